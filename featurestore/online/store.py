"""What the writer, the client and the jobs ask of an online store. Two stores obey it, and one suite proves both.

    read side    ``read`` (values of keys), ``load_plan``, ``progress``
    write side   ``prepare``, then ``fences`` -> ``append`` -> ``replace`` -> ``record_progress`` (see ``writer``)
    control      ``publish_plan``, ``remove_plan``, ``publish_complete``, ``blobs``, ``remove``, ``ping``, ``close``

Values are bytes under the names of ``keys.KeySpace``; what they mean is the codec's business. The one thing a store has to
do atomically is a bucket's append with its fences, and a replacement with its comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.lookup import LookupPlan
    from featurestore.timeline import Instant


@dataclass(slots=True)
class Blobs:
    """Blobs of one layout in one bucket, and what to append to each.

    Attributes:
        base: What a blob that does not exist yet begins with.
        names: The blobs.
        records: One string of records per blob.
        keep_ms: How long from now on they are kept, in milliseconds; 0 for ever. Only a server forgets them then.
    """

    base: bytes
    names: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    keep_ms: int = 0


@dataclass(frozen=True, slots=True)
class Fence:
    """One fence of a bucket: where it must stand, and where it moves to.

    Attributes:
        name: ``KeySpace.fence_field``.
        expected: The value read before, None when there was none.
        until: The next offset to apply afterwards.
    """

    name: bytes
    expected: bytes | None
    until: int


@dataclass(frozen=True, slots=True)
class Append:
    """The atomic write of one bucket: only if every fence is where it was read, append and move the fences."""

    bucket: int
    fences: Sequence[Fence]
    blobs: Sequence[Blobs]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bucket that was left alone: another writer moved this fence in between."""

    fence: bytes
    current: bytes


@dataclass(frozen=True, slots=True)
class Replacement:
    """A compare-and-set of one blob: made only if the blob still has the length and the header of ``old``.

    It is kept ``keep_ms`` milliseconds from now on; 0: as long as the old one would have been.
    """

    name: bytes
    old: bytes
    new: bytes
    keep_ms: int = 0


@dataclass(frozen=True, slots=True)
class KeptIds:
    """Ids of events to keep in one bucket, all at once, if the bucket is where it was read (see ``ids``).

    Attributes:
        bucket: The bucket.
        catalog: Its hash of slices, with "until".
        expected: The value of "until" read before, None when there was none.
        times: (name, number) of a slice to digests and their times.
        stale: (name, number) of slices to remove; what ``times`` names is written after that.
    """

    bucket: int
    catalog: bytes
    expected: bytes | None
    times: Mapping[tuple[bytes, int], Mapping[bytes, Instant]]
    stale: Mapping[tuple[bytes, int], None]


class OnlineStore(Protocol):
    """Plans, values, fences and progress of one project. Thread-safe."""

    @property
    def project(self) -> str:
        """The project."""

    @property
    def space(self) -> KeySpace:
        """The names of the project's keys."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the keys, read together; None where there is none."""

    def prepare(self) -> None:
        """Make ready for writing; a writer calls it once.

        Raises:
            OnlineStoreUnavailableError: The store cannot be reached.
        """

    def fences(self, names: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return, per bucket, the values of the named fences; None where there is none."""

    def append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Make the appends, each atomically, in any order; return per append the new lengths of its blobs.

        Raises:
            OnlineError: The store failed; any of the appends may have been made.
        """

    def read_hashes(self, asked: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> list[dict[bytes, bytes]]:
        """Return the chosen fields of hashes, all of them for None; those that a hash does not have are left out."""

    def keep_ids(self, kept: Sequence[KeptIds], until: bytes, epoch: int | None) -> list[bool]:
        """Keep ids bucket by bucket, each atomically, and move "until"; return which were.

        A bucket that is not where it was read, or of another epoch where one is given, is left alone.
        """

    def replace(self, replacements: Sequence[Replacement]) -> int:
        """Make the replacements whose comparison holds; return how many were made. None is owed: a fold may be lost."""

    def progress(self, source: str) -> dict[int, tuple[int, Instant]]:
        """Return per source partition: the next offset to apply, and the newest arrival applied (microseconds)."""

    def record_progress(self, source: str, partition: int, until: int, arrival: Instant) -> None:
        """Move the progress of a partition forward; neither number ever goes back."""

    def remember_topics(self, ids: Mapping[str, str]) -> None:
        """Keep the ids of topics, in the hash ``KeySpace.topics``."""

    def publish_complete(self, source: str, instant: Instant) -> None:
        """Say that everything of a source that arrived up to ``instant`` has been applied."""

    def publish_plan(self, plan: LookupPlan) -> None:
        """Store the lookup plan of a service, replacing an older one."""

    def remove_plan(self, service: str) -> None:
        """Forget the plan of a service; harmless when there is none."""

    def load_plan(self, service: str) -> LookupPlan:
        """Return the published plan of a service.

        Raises:
            UnknownNameError: No such service has been applied to this store.
        """

    def blobs(self, view: str, fingerprint: str) -> Iterable[bytes]:
        """Return the names of all blobs of a view; those written meanwhile may or may not be among them."""

    def remove(self, names: Sequence[bytes]) -> None:
        """Remove values; harmless where there are none."""

    def ping(self) -> None:
        """Raise unless the store answers."""

    def close(self) -> None:
        """Give back what the store holds on this side."""
