"""Who writes a view: a lease in the online store, so that a second job is told before it begins, and by name.

What keeps values exact are the fences and the epoch, which each write compares; a lease is only the clear word. It is held per
view and definition, for half a minute at a time, and renewed by the driver all the while:

    taken      when the job starts: free, ended, of the same job, which is started again after a crash, or of a process of this
               machine that is gone
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
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featurestore.errors import LeaseError, OnlineError
from featurestore.stack import guard
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.online.redis_store import RedisOnlineStore
    from featurestore.timeline import Instant

KEEP_MS = 30_000
RENEW_EVERY_S = 3.0


def this_process() -> str:
    """Return this process in a word that no other one has: boot, namespace of pids, pid and birth; "-" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{os.getpid()}/{guard.birth(os.getpid())}"
    except OSError:
        return "-"


@dataclass(frozen=True)
class Lease:
    """The right of one run of a job to write some views.

    Attributes:
        store: The online store.
        names: The views, each with its fingerprint (``stored_names``).
        job: Stays the same when the job is started again (``job_id``).
        words: Who that is, for people.
        place: Which process that is, for ``is_gone``.
        keep_ms: How long it is held from each renewal on.
        run: This run of the job.
        since: When it began.
    """

    store: RedisOnlineStore
    names: Sequence[str]
    job: str
    words: str
    keep_ms: int = KEEP_MS
    place: str = field(default_factory=this_process)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: Instant = field(default_factory=lambda: SystemClock().now())

    def take(self, *, over: bool = False) -> None:
        """Take it.

        Args:
            over: Also from a job that holds it.

        Raises:
            LeaseError: Another job holds it.
        """
        ended: list[str] = []
        while (held := self._ask("force" if over else "take", *ended)) is not None:
            if held.run not in ended and is_gone(held.place):
                ended.append(held.run)
                continue
            by = format_instant(SystemClock().now() + self.keep_ms * 1_000)
            raise LeaseError(
                f"project {self.store.project}, view {held.view}: another job writes it, {held.who}, since {held.since}.",
                hint=f"stop that job. If it was killed, its lease ends by {by}; --take-over takes it now.",
            )

    def renew(self) -> None:
        """Hold it for longer.

        Raises:
            LeaseError: Another job has taken it.
        """
        held = self._ask("renew")
        if held is not None:
            raise LeaseError(
                f"project {self.store.project}, view {held.view}: another job has taken it over, {held.who}, since {held.since}.",
                hint="one job is enough: stop the other before this one is submitted again.",
            )

    def release(self) -> None:
        """Let it go; harmless where another has it."""
        self._ask("release")

    def _ask(self, mode: str, *ended: str) -> _Held | None:
        """Return the first view that another holds, by none of the runs that are known to have ended."""
        keys = [self.store.space.lease(name) for name in self.names]
        words = f"{format_instant(self.since)} {self.place} {self.words}"
        reply = self.store.lease(keys, mode, self.run, self.job, words, self.keep_ms, *ended)
        if not reply:
            return None
        run, _, since, place, who = reply[1].decode().split(" ", 4)
        return _Held(self.names[reply[0] - 1].partition("@")[0], run, since, place, who)


class _Held(NamedTuple):
    """A lease of somebody else."""

    view: str
    run: str
    since: str
    place: str
    who: str


def is_gone(place: str) -> bool:
    """Return whether a process is known to be gone: it was one of this machine, and there is none of its pid and birth."""
    here, there = this_process().split("/"), place.split("/")
    if len(here) != 4 or len(there) != 4 or here[:2] != there[:2] or not there[2].isdecimal():
        return False
    born = guard.birth(int(there[2]))
    if born is not None:
        return born != there[3]
    try:
        os.kill(int(there[2]), 0)  # it may only be hidden from this user
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


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
