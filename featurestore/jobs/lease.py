"""Who writes a view: a lease in the online store, so that a second job is told before it begins, and by name.

What keeps values exact are the fences and the epoch, which each write compares; a lease is only the clear word. It is held per
view and definition, for half a minute at a time, and renewed by the driver all the while:

    taken      when the job starts: free, ended, or of the same job, which is started again after a crash
    refused    another job holds it: who, and since when; ``take_over`` takes it all the same
    lost       another job has taken it meanwhile: this one ends

While the store is away nothing is renewed, and nothing ends: nobody else can take it there either.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featurestore.errors import LeaseError, OnlineError
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from featurestore.definitions.view import FeatureView
    from featurestore.online.redis_store import RedisOnlineStore
    from featurestore.timeline import Instant

KEEP_MS = 30_000
RENEW_EVERY_S = 3.0


@dataclass(frozen=True)
class Lease:
    """The right of one run of a job to write some views.

    Attributes:
        store: The online store.
        names: The views, each with its fingerprint (``stored_names``).
        job: Stays the same when the job is started again (``job_id``).
        words: Who that is, for people.
        keep_ms: How long it is held from each renewal on.
        run: This run of the job.
        since: When it began.
    """

    store: RedisOnlineStore
    names: Sequence[str]
    job: str
    words: str
    keep_ms: int = KEEP_MS
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: Instant = field(default_factory=lambda: SystemClock().now())

    def take(self, *, over: bool = False) -> None:
        """Take it.

        Args:
            over: Also from a job that holds it.

        Raises:
            LeaseError: Another job holds it.
        """
        refused = self._ask("force" if over else "take")
        if refused is not None:
            view, who, since = refused
            raise LeaseError(
                f"project {self.store.project}, view {view}: another job writes it, {who}, since {since}.",
                hint=f"stop that job. Where it was killed its lease ends within {KEEP_MS // 1000} s; --take-over does not wait.",
            )

    def renew(self) -> None:
        """Hold it for longer.

        Raises:
            LeaseError: Another job has taken it.
        """
        refused = self._ask("renew")
        if refused is not None:
            view, who, since = refused
            raise LeaseError(
                f"project {self.store.project}, view {view}: another job has taken it over, {who}, since {since}.",
                hint="one job is enough: stop the other before this one is submitted again.",
            )

    def release(self) -> None:
        """Let it go; harmless where another has it."""
        self._ask("release")

    def _ask(self, mode: str) -> tuple[str, str, str] | None:
        """Return the first view that another holds: its name, who, and since when."""
        keys = [self.store.space.lease(name) for name in self.names]
        words = f"{format_instant(self.since)} {self.words}"
        reply = self.store.lease(keys, mode, self.run, self.job, words, self.keep_ms)
        if not reply:
            return None
        _, _, since, who = reply[1].decode().split(" ", 3)
        return self.names[reply[0] - 1].partition("@")[0], who, since


def stored_names(views: Iterable[FeatureView]) -> list[str]:
    """Return what the online store calls views: a changed definition is another one."""
    return [f"{view.name}@{view.layout.fingerprint}" for view in views]


def job_id(checkpoints: Path) -> str:
    """Return what tells a job from others, wherever it is started again: a number beside its checkpoints."""
    path = checkpoints.with_name(f"{checkpoints.name}.job.json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"id": made}), encoding="utf-8")
    partial.replace(path)
    return made


def who_is(checkpoints: Path) -> str:
    """Return this process and its job in words."""
    return f"{checkpoints.parent.name} (pid {os.getpid()} on {socket.gethostname()})"


class LeaseKeeper(threading.Thread):
    """Takes a lease, renews it until stopped, and lets it go.

    Args:
        lease: The lease; its store is this thread's to close.
        over: Take it from whoever holds it.
        every_s: Seconds between renewals.

    Raises:
        LeaseError: Another job holds it.
        OnlineStoreUnavailableError: The store cannot be reached.
    """

    def __init__(self, lease: Lease, *, over: bool = False, every_s: float = RENEW_EVERY_S) -> None:
        super().__init__(name="lease", daemon=True)
        self._lease, self._every_s = lease, every_s
        self._ended = threading.Event()
        self._lost: LeaseError | None = None
        try:
            lease.take(over=over)
        except BaseException:
            lease.store.close()
            raise

    def run(self) -> None:
        """Renew until stopped; a store that is away is tried again."""
        while not self._ended.wait(self._every_s):
            try:
                self._lease.renew()
            except LeaseError as error:
                self._lost = error
                return
            except OnlineError:
                continue

    def check(self) -> None:
        """Raise when another job has taken the lease.

        Raises:
            LeaseError: One has.
        """
        if self._lost is not None:
            raise self._lost

    def stop(self) -> None:
        """Let it go. Where the store is away it ends by itself."""
        self._ended.set()
        self.join()
        with contextlib.suppress(OnlineError):
            self._lease.release()
        self._lease.store.close()
