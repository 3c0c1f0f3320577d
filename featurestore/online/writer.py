"""The fenced writer: applies shaped events to an online store exactly once. Runs inside Spark's workers.

For every (view, source partition, bucket of keys) the store holds a fence: the next Kafka offset to apply. To apply the
events [first, until) of one partition, a writer

    1. reads the partition's fences and drops the events below them
    2. merges what is left per (part of a view, key, tile) into tail records
    3. sends one append per bucket: if the fences are still what step 1 read, add the records and move the fences to
       ``until``, all at once; otherwise change nothing and report it
    4. records the partition's progress, once every bucket is done
    5. folds the tails that have grown too long (compare-and-set, so a fold that lost a race is simply not made)

A crash anywhere leaves buckets either wholly applied or untouched, and the next run, with any batch boundaries and with or
without the checkpoint, skips exactly what was applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra import offset_of
from featurestore.definitions.cost import CATCH_UP_EVENTS, TAIL_CAP
from featurestore.engines.shape import tiles
from featurestore.errors import FenceError, OnlineStoreLostError
from featurestore.failpoints import is_armed, reach
from featurestore.online.codec import base_length, empty_base, record_format, record_size, records_in_tail
from featurestore.online.epoch import EPOCH, lost, one_epoch, read_epochs
from featurestore.online.fold import drop_unreachable, fold
from featurestore.online.keys import BUCKETS, buckets_of
from featurestore.online.store import Append, Blobs, Fence, Refusal, Replacement
from featurestore.timeline import MILLISECOND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.tiles import TileRows
    from featurestore.definitions.parts import Part
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.online.ids import JudgedIds, SeenIds
    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Instant

_KNOWN_BASES = 200_000


def keep_ms(view: FeatureView) -> int:
    """Return the milliseconds that the blobs of a view are kept after a write, rounded up; 0 for ever."""
    return 0 if view.ttl_us is None else -(-view.ttl_us // MILLISECOND)


class FencedWriter:
    """Applies the events of one source to the online store.

    Args:
        store: Where to.
        source: Name of the source.
        views: The feature views on that source.
        tail_cap: Records in a key's tail before it is folded into the base.
        catch_up_cap: The same in a batch of ``CATCH_UP_EVENTS`` or more; ``tail_cap`` where that is larger.
        epoch: The epoch that the store must have (``online.epoch``); None writes to whatever is there.
        ids: Per view, the ids it has seen; empty where events have none.
    """

    def __init__(
        self,
        store: OnlineStore,
        source: str,
        views: Sequence[FeatureView],
        *,
        tail_cap: int = TAIL_CAP,
        catch_up_cap: int = TAIL_CAP,
        epoch: int | None = None,
        ids: Sequence[SeenIds] = (),
    ) -> None:
        self.store = store
        self.ids = tuple(ids)
        self.source = source
        self.views = tuple(views)
        self.parts = tuple((index, part) for index, view in enumerate(self.views) for part in view.layout.parts)
        """Every part of every view, and the view's index: what blobs are told apart by, besides their key."""
        self.tail_cap, self.catch_up_cap = tail_cap, catch_up_cap
        self.epoch = epoch
        self._reached: dict[int, np.ndarray] = {}  # of every partition, how far this writer has moved each fence
        self._bases: dict[bytes, int] = {}
        self._wide: dict[bytes, int] = {}  # size of the records being appended, where they differ in size
        store.prepare()

    def apply(
        self,
        partition: int,
        until: int,
        arrival: Instant,
        shaped: Sequence[Shaped],
        *,
        judged: Sequence[JudgedIds] = (),
    ) -> dict[str, int]:
        """Apply the events of one partition up to, not including, offset ``until``; what the fences cover is skipped.

        Args:
            partition: Kafka partition all events come from.
            until: The offset after the newest consumed record, whether it entered a view or not.
            arrival: Newest arrival instant among the consumed records.
            shaped: Per view, its shaped events.
            judged: Per view, which of the events are repetitions, where they have ids; these are then kept.

        Returns:
            Counts: "applied" and "fenced" events (per view and event), "records" appended, "folded" blobs.

        Raises:
            FenceError: Another writer moved a fence meanwhile; nothing of that bucket was changed.
            OnlineStoreLostError: The store has another epoch, or its fences went back; nothing was changed.
        """
        counts = {"applied": 0, "fenced": 0, "records": 0, "folded": 0}
        fields = [
            self.store.space.fence_field(view.name, view.layout.fingerprint, self.source, partition)
            for view in self.views
        ]
        fences = self.store.fences(fields if self.epoch is None else [*fields, EPOCH])
        reach("writer.fences")
        reached = None if self.epoch is None else self._check_life(partition, fences)
        self._wide.clear()
        buckets: list[list[tuple[int, Blobs]]] = [[] for _ in range(BUCKETS)]
        for index, events in enumerate(shaped):
            if not len(events):
                continue
            of_key = buckets_of(events.keys)
            fence = np.array([int(row[index] or 0) for row in fences], dtype=np.int64)
            has_elements = self.views[index].explode is not None
            offset = offset_of(events.sequence, elements=has_elements)
            fresh, counted = offset >= fence[of_key[events.key]], np.ones(len(offset), bool)
            if judged:
                counted = ~np.isin(offset, judged[index].repeated)
                fresh &= counted & ~np.isin(offset, judged[index].done)
            applied, among = (
                len(np.unique(offset[rows])) if has_elements else int(np.count_nonzero(rows))
                for rows in (fresh, counted)
            )
            counts["applied"] += applied
            counts["fenced"] += among - applied
            kept = events.take(np.flatnonzero(fresh))
            for number, (owner, part) in enumerate(self.parts):
                if owner == index:
                    rows = drop_unreachable(part, kept, tiles(part, kept))
                    counts["records"] += len(rows)
                    self._distribute(number, part, events.keys, of_key, rows, buckets)
        is_large = max(map(len, shaped), default=0) >= CATCH_UP_EVENTS
        cap = max(self.tail_cap, self.catch_up_cap) if is_large else self.tail_cap
        touched = self._send(fields, fences, until, buckets, cap)
        reach("writer.appended")
        for ids, each in zip(self.ids, judged, strict=bool(judged)):
            ids.keep(until, each)
        if reached is not None:
            for bucket, to in enumerate(buckets):
                for index, _ in to:
                    reached[bucket, self.parts[index][0]] = until
            self._reached[partition] = reached
        counts["folded"] = self.fold(touched, clock=arrival)
        reach("writer.folded")
        self.store.record_progress(self.source, partition, until, arrival)
        reach("writer.progress")
        return counts

    def _check_life(self, partition: int, fences: Sequence[Sequence[bytes | None]]) -> np.ndarray:
        """Return the fences, per bucket and view, if the store is the one this writer knows: its epoch, and none went back."""
        assert self.epoch is not None  # noqa: S101 - only asked then
        epochs = [None if row[-1] is None else int(row[-1]) for row in fences]
        if one_epoch(epochs) != self.epoch:
            raise lost(epochs, self.epoch)
        current = np.array([[int(each or 0) for each in row[:-1]] for row in fences])
        reached = self._reached.get(partition)
        if reached is not None and (current < reached).any():
            bucket, view = (int(each) for each in np.argwhere(current < reached)[0])
            raise OnlineStoreLostError(
                f"the online store went back: view {self.views[view].name}, source {self.source}, partition {partition} had "
                f"reached offset {reached[bucket, view]:,} in bucket {bucket}, and is at {current[bucket, view]:,}.",
                hint="it lost writes. Run featurestore rebuild-online, with --from-topics if they still hold what it lost, then "
                "submit the job again.",
            )
        return current

    def _distribute(
        self,
        index: int,
        part: Part,
        keys: Sequence[bytes],
        of_key: np.ndarray,
        rows: TileRows,
        buckets: list[list[tuple[int, Blobs]]],
    ) -> None:
        """Cut the records into one string per key and hand them to the keys' buckets."""
        codes, first, rows_of = np.unique(rows.key, return_index=True, return_counts=True)
        data, begins = record_format(part).encode(rows.records)
        edges = np.append(begins[first], len(data))
        base, keep = empty_base(part), keep_ms(self.views[self.parts[index][0]])
        names_begin = self.store.space.blob_prefixes(part.view, part.fingerprint, part.number)
        order = np.argsort(of_key[codes], kind="stable")
        counts = np.bincount(of_key[codes], minlength=BUCKETS)
        for bucket, places in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            if not len(places):
                continue
            begin = names_begin[bucket]
            names = [begin + keys[code] for code in codes[places].tolist()]
            lows, highs = edges[places].tolist(), edges[places + 1].tolist()
            blobs = Blobs(base, names, [data[low:high] for low, high in zip(lows, highs, strict=True)], keep)
            buckets[bucket].append((index, blobs))
            if not part.is_fixed:
                sizes = (edges[places + 1] - edges[places]) // rows_of[places]
                self._wide.update(zip(names, sizes.tolist(), strict=True))

    def _send(
        self,
        fields: Sequence[bytes],
        fences: Sequence[Sequence[bytes | None]],
        until: int,
        buckets: Sequence[Sequence[tuple[int, Blobs]]],
        cap: int,
    ) -> dict[int, list[tuple[bytes, int]]]:
        """Append bucket by bucket; return, per part, the blobs whose tails may be longer than ``cap``, with their lengths."""
        appends = [
            Append(
                bucket,
                [
                    *([] if self.epoch is None else [Fence(EPOCH, str(self.epoch).encode(), self.epoch)]),
                    *(
                        Fence(fields[view], fences[bucket][view], until)
                        for view in sorted({self.parts[index][0] for index, _ in touched})
                    ),
                ],
                [blobs for _, blobs in touched],
            )
            for bucket, touched in enumerate(buckets)
            if touched
        ]
        grown: dict[int, list[tuple[bytes, int]]] = {}
        for append, reply in zip(appends, self._append(appends), strict=True):
            if isinstance(reply, Refusal):
                if reply.fence == EPOCH and self.epoch is not None:
                    raise lost(read_epochs(self.store), self.epoch)
                raise FenceError(
                    f"source {self.source}: FENCE {reply.fence.decode()} is at {reply.current.decode()}; "
                    "another writer is active.",
                    hint="stop the other driver of this job; this one changed nothing in that bucket.",
                )
            lengths = iter(reply)
            for index, blobs in buckets[append.bucket]:
                usual, fixed = record_size(self.parts[index][1]), len(blobs.base)
                for name, length in zip(blobs.names, lengths, strict=False):
                    size = self._wide.pop(name, usual)
                    base = self._bases.get(name, fixed)
                    if length < base:  # it had expired, and began anew
                        base = self._bases[name] = fixed
                    if length - base > cap * size:
                        grown.setdefault(index, []).append((name, length))
        return grown

    def _append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Return the store's replies; a test that lets the writer die between two buckets has them sent one by one."""
        if not is_armed("writer.bucket"):
            return self.store.append(appends)
        replies: list[list[int] | Refusal] = []
        for append in appends:
            replies += self.store.append([append])
            reach("writer.bucket")
        return replies

    def fold(self, grown: dict[int, list[tuple[bytes, int]]], *, clock: Instant) -> int:
        """Fold the tails of the given blobs, per index into ``parts``; return how many were folded."""
        done = 0
        for index, entries in grown.items():
            part = self.parts[index][1]
            blobs = self.store.read([name for name, _ in entries])
            due = []
            for (name, _), blob in zip(entries, blobs, strict=True):
                if blob is None:
                    continue
                base = base_length(blob)
                self._remember(name, base)
                if records_in_tail(part, blob, base) > self.tail_cap:
                    due.append((name, blob))
            folded = fold(part, [blob for _, blob in due], clock=clock)
            done += self.store.replace(
                [Replacement(name, old, new) for (name, old), new in zip(due, folded, strict=True)]
            )
            for (name, _), new in zip(due, folded, strict=True):
                self._remember(name, base_length(new))
        return done

    def _remember(self, name: bytes, base: int) -> None:
        if len(self._bases) >= _KNOWN_BASES:
            self._bases.clear()
        self._bases[name] = base
