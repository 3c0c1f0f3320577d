"""An online store whose writer dies when it is told to: crashes as input data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.lookup import LookupPlan
    from featurestore.online.store import Append, KeptIds, OnlineStore, Refusal, Replacement
    from featurestore.timeline import Instant


class SimulatedCrashError(Exception):
    """The job died here; whatever it had written stays written."""


class CrashingStore:
    """Another store, until the given number of buckets has been written; then the writer is dead.

    Attributes:
        inner: The store that holds everything.
        buckets_to_live: Bucket appends until the crash; None never crashes.
    """

    def __init__(self, inner: OnlineStore) -> None:
        self.inner = inner
        self.buckets_to_live: int | None = None

    def append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Make the appends, or the first few of them and raise."""
        if self.buckets_to_live is None:
            return self.inner.append(appends)
        alive = appends[: self.buckets_to_live]
        self.buckets_to_live -= len(alive)
        done = self.inner.append(alive)
        if len(alive) < len(appends) or not self.buckets_to_live:
            raise SimulatedCrashError
        return done

    @property
    def project(self) -> str:
        """The project."""
        return self.inner.project

    @property
    def space(self) -> KeySpace:
        """The names of the project's keys."""
        return self.inner.space

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Pass on."""
        return self.inner.read(keys)

    def prepare(self) -> None:
        """Pass on."""
        self.inner.prepare()

    def fences(self, names: Sequence[bytes]) -> list[list[bytes | None]]:
        """Pass on."""
        return self.inner.fences(names)

    def read_hashes(self, asked: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> list[dict[bytes, bytes]]:
        """Pass on."""
        return self.inner.read_hashes(asked)

    def keep_ids(self, kept: Sequence[KeptIds], until: bytes, epoch: int | None) -> list[bool]:
        """Keep the ids, or those of the first few buckets and raise."""
        if self.buckets_to_live is None:
            return self.inner.keep_ids(kept, until, epoch)
        alive = kept[: self.buckets_to_live]
        self.buckets_to_live -= len(alive)
        done = self.inner.keep_ids(alive, until, epoch)
        if len(alive) < len(kept) or not self.buckets_to_live:
            raise SimulatedCrashError
        return done

    def replace(self, replacements: Sequence[Replacement]) -> int:
        """Pass on."""
        return self.inner.replace(replacements)

    def progress(self, source: str) -> dict[int, tuple[int, Instant]]:
        """Pass on."""
        return self.inner.progress(source)

    def record_progress(self, source: str, partition: int, until: int, arrival: Instant) -> None:
        """Pass on."""
        self.inner.record_progress(source, partition, until, arrival)

    def remember_topics(self, ids: Mapping[str, str]) -> None:
        """Pass on."""
        self.inner.remember_topics(ids)

    def publish_complete(self, source: str, instant: Instant) -> None:
        """Pass on."""
        self.inner.publish_complete(source, instant)

    def blobs(self, view: str, fingerprint: str) -> Iterable[bytes]:
        """Pass on."""
        return self.inner.blobs(view, fingerprint)

    def remove(self, names: Sequence[bytes]) -> None:
        """Pass on."""
        self.inner.remove(names)

    def publish_plan(self, plan: LookupPlan) -> None:
        """Pass on."""
        self.inner.publish_plan(plan)

    def remove_plan(self, service: str) -> None:
        """Pass on."""
        self.inner.remove_plan(service)

    def load_plan(self, service: str) -> LookupPlan:
        """Pass on."""
        return self.inner.load_plan(service)

    def ping(self) -> None:
        """Pass on."""
        self.inner.ping()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()
