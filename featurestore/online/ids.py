"""Which ids a view has seen: what drops repeated events on their way into the online store. Pure, over the store's protocol.

Ids are spread over the buckets by the first byte of their digest. Per view, source partition and bucket the store holds

    ids:VIEW@FP/SOURCE/PARTITION          hash: "until" -> "offset,time" up to which this bucket knows its ids; slice -> ""
    ids:VIEW@FP/SOURCE/PARTITION/SLICE    hash: digest -> time of its last event, for times in one slice as long as a horizon

and once per partition, ``.../all``, up to where all buckets do. An id and its entity live in different slots, so a batch takes
three steps, and a crash between any two of them leaves what the next run makes right:

    1. read what the buckets know, and judge: below "all" an event is done, with an id below its bucket's "until" too; of the
       others, some are repetitions
    2. the fenced append of those that are not (``writer``)
    3. per bucket, all at once, if "until" is still what step 1 read: keep the ids and move it; then move "all"

Nothing is kept before every append of its batch was made, so what is below needs no second look. What is not is judged again by
exactly the events before it, whatever the batches are, so a repetition is the same one every time. Each view has ids of its own,
as it has fences of its own: one that is rebuilt or begins later takes nothing from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import FenceError
from featurestore.events.repeats import repetitions, times_of
from featurestore.failpoints import reach
from featurestore.online.keys import BUCKETS
from featurestore.online.store import KeptIds
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Duration, Instant

UNTIL = b"until"


@dataclass(frozen=True)
class JudgedIds:
    """What became of the events of one batch.

    Attributes:
        partition: Their partition.
        repeated: Offsets of the repetitions, ascending.
        done: Offsets of events that were applied or dropped before, ascending.
        through: The time after the last of them.
        kept: Per bucket, the ids to keep once the rest is applied; at the end, that all buckets are done.
    """

    partition: int
    repeated: np.ndarray
    done: np.ndarray
    through: Instant
    kept: tuple[KeptIds, ...]


class SeenIds:
    """The ids that one view has seen.

    Args:
        store: The store.
        name: View, fingerprint and source, as a fence is named.
        horizon_us: How long an id is remembered.
        epoch: The epoch that the store must have; None writes to whatever is there.
    """

    def __init__(self, store: OnlineStore, name: str, horizon_us: Duration, *, epoch: int | None = None) -> None:
        self.store, self.name, self.horizon_us, self.epoch = store, name, horizon_us, epoch

    def judge(self, partition: int, offsets: np.ndarray, arrival: np.ndarray, digests: np.ndarray) -> JudgedIds:
        """Return what becomes of consecutive events of a partition; nothing is written.

        Args:
            partition: The partition.
            offsets: Their offsets, ascending.
            arrival: When each arrived, microseconds.
            digests: Their ids; None for events without one, which are never repetitions.
        """
        *catalogs, every = self._known(partition)
        start, through = _place(every.get(UNTIL))
        bucket = np.array([-1 if digest is None else digest[0] % BUCKETS for digest in digests.tolist()], np.int64)
        until = np.array([_place(each.get(UNTIL))[0] for each in catalogs], np.int64)
        new = (bucket >= 0) & (offsets >= start)
        times = np.zeros(len(offsets), np.int64)
        times[new] = times_of(arrival[new], through)
        is_open = new & (offsets >= until[bucket])
        rows = np.flatnonzero(is_open)
        before = self._times(partition, catalogs, bucket, rows, digests, times)
        repeats, newest = repetitions(digests[rows], times[rows], self.horizon_us, before)
        end = int(times[new][-1]) if new.any() else through
        kept = [
            self._one(partition, number, catalogs[number], ids, end)
            for number, ids in _by_bucket(newest, np.unique(bucket[rows]).tolist()).items()
        ]
        if new.any():
            kept.append(self._one(partition, None, every, {}, end))
        done = (offsets < start) | (new & ~is_open)
        return JudgedIds(partition, offsets[rows][repeats], offsets[done], end, tuple(kept))

    def keep(self, until: int, judged: JudgedIds) -> None:
        """Keep the ids of a batch that ends before an offset, every append of which has been made.

        Raises:
            FenceError: Another writer kept ids meanwhile.
        """
        if judged.kept:
            self._keep(judged.kept[:-1], until, judged.through, judged.partition)
            reach("writer.ids")
            self._keep(judged.kept[-1:], until, judged.through, judged.partition)

    def replace(self, partition: int, until: int, newest: Mapping[bytes, Instant], through: Instant) -> None:
        """Put these ids in the place of all that are there: what a rebuild has read from the event log.

        Args:
            partition: The partition.
            until: The offset up to which they are known.
            newest: Digest to the time of the id's last event.
            through: The newest arrival of an event with an id; ``MIN_INSTANT`` where there is none.
        """
        *catalogs, every = self._known(partition)
        own = _by_bucket(newest, list(range(BUCKETS)))
        kept = [self._one(partition, number, catalogs[number], ids, MAX_INSTANT) for number, ids in own.items()]
        self._keep([*kept, self._one(partition, None, every, {}, through)], until, through, partition)

    def _keep(self, kept: Sequence[KeptIds], until: int, through: Instant, partition: int) -> None:
        done = self.store.keep_ids(kept, f"{until},{through}".encode(), self.epoch) if kept else []
        if not all(done):
            raise FenceError(
                f"{self.name}, partition {partition}: the ids of bucket {kept[done.index(False)].bucket} moved meanwhile; "
                "another writer is active.",
                hint="stop the other driver of this job.",
            )

    def _known(self, partition: int) -> list[dict[bytes, bytes]]:
        """Return what every bucket says of itself, and last what is said of them all."""
        names = [self._catalog(bucket, partition) for bucket in (*range(BUCKETS), None)]
        return self.store.read_hashes([(name, None) for name in names])

    def _catalog(self, bucket: int | None, partition: int) -> bytes:
        space = self.store.space
        return space.ids(0, self.name, partition, "all") if bucket is None else space.ids(bucket, self.name, partition)

    def _times(
        self,
        partition: int,
        catalogs: list[dict[bytes, bytes]],
        bucket: np.ndarray,
        rows: np.ndarray,
        digests: np.ndarray,
        times: np.ndarray,
    ) -> dict[bytes, Instant]:
        """Return the time of the last event of every id that is known."""
        if not len(rows):
            return {}
        oldest = (int(times[rows[0]]) - self.horizon_us) // self.horizon_us
        wanted: dict[int, dict[bytes, None]] = {}
        for row in rows.tolist():
            wanted.setdefault(int(bucket[row]), {})[digests[row]] = None
        asked: list[tuple[bytes, list[bytes] | None]] = [
            (self.store.space.ids(number, self.name, partition, int(each)), list(ids))
            for number, ids in wanted.items()
            for each in catalogs[number]
            if each != UNTIL and int(each) >= oldest
        ]
        found: dict[bytes, int] = {}
        for known in self.store.read_hashes(asked):
            for digest, time in known.items():
                found[digest] = max(int(time), found.get(digest, MIN_INSTANT))
        return found

    def _one(
        self,
        partition: int,
        bucket: int | None,
        known: Mapping[bytes, bytes],
        ids: Mapping[bytes, Instant],
        end: Instant,
    ) -> KeptIds:
        """Return what to keep in a bucket, or of them all; slices out of the horizon at the time ``end`` are removed."""
        slices: dict[int, dict[bytes, int]] = {}
        for digest, time in ids.items():
            slices.setdefault(time // self.horizon_us, {})[digest] = time
        oldest = (end - self.horizon_us) // self.horizon_us
        stale = sorted(int(each) for each in known if each != UNTIL and int(each) < oldest)
        space, at = self.store.space, bucket or 0
        return KeptIds(
            at,
            self._catalog(bucket, partition),
            known.get(UNTIL),
            {(space.ids(at, self.name, partition, each), each): times for each, times in slices.items()},
            {(space.ids(at, self.name, partition, each), each): None for each in stale},
        )


def _place(value: bytes | None) -> tuple[int, Instant]:
    if value is None:
        return 0, MIN_INSTANT
    offset, _, time = value.partition(b",")
    return int(offset), int(time)


def _by_bucket(newest: Mapping[bytes, Instant], buckets: Sequence[int]) -> dict[int, dict[bytes, Instant]]:
    own: dict[int, dict[bytes, int]] = {number: {} for number in buckets}
    for digest, time in newest.items():
        own[digest[0] % BUCKETS][digest] = time
    return own
