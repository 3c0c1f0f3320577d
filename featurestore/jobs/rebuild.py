"""Rebuilding the online store from the event log, with the writer and the algebra that the stream uses. No JVM.

The whole store, or one view of it (``rebuild_online``):

    1. the newest version of each event log says how far it reaches: per partition, the offset after its newest event
    2. every bucket gets the negative of the next epoch: no writer is let in, readers go on reading
    3. for a group of buckets at a time, the log streams by in batches; the events of the group's keys go through a
       ``FencedWriter`` into a store in memory. Groups bound the memory: one pass over the log for each
    4. every blob replaces the one that is there, whole, by compare-and-set; blobs of keys that the log does not have are removed;
       then each bucket's fences move to exactly the offsets of step 1, all at once
    5. every bucket gets the next epoch. A job that is submitted now begins at the fences

A reader sees a key's old value or its new one, never a half-built one. No value goes back: a log that has not reached a
fence is refused before anything is changed. After a crash the store still has the negative epoch, and no job begins on it: the
rebuild is run again, from the start.

One key (``rebuild_key``) while its job goes on writing: the fences of its bucket, the blob, and the fences once more; if they
are equal, the blob holds exactly the events below them. Once the log has reached them, the same events make the new blob. If the
old one is still the beginning of what is there, new blob and what was appended since replace it, by compare-and-set.

A store of many gigabytes is rebuilt by one process, at the speed of one core. On a cluster, the same steps are: ``shape`` in
``mapInArrow``, repartition by bucket, this module's builder per bucket, one task for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import OfflineError, OnlineError, OnlineStoreLostError, UnknownNameError
from featurestore.jobs.worker import seen_ids
from featurestore.offline.epochs import OnlineEpochs
from featurestore.offline.ids import LogIds, PartitionIds
from featurestore.offline.scan import LogScan
from featurestore.online.epoch import EPOCH, lost, move_epoch, one_epoch, read_epochs
from featurestore.online.keys import BUCKETS, buckets_of
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.store import Append, Fence, Refusal, Replacement
from featurestore.online.writer import FencedWriter, keep_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.definitions.registry import Definitions
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.offline.scan import LogEnds
    from featurestore.online.store import OnlineStore

_CHUNK = 500
MEMORY_BYTES = 1 << 30


@dataclass
class Rebuilt:
    """What a rebuild did.

    Attributes:
        epoch: The epoch of the store now.
        views: The views that were rebuilt.
        versions: "events/SOURCE" to the Delta version it was rebuilt from.
        until: Source to partition to the next offset that the stream will apply.
        events: How many events were read, per source and pass.
        blobs: How many blobs were written.
        removed: How many were removed, because the log does not have their keys.
        passes: How often the logs were read.
    """

    epoch: int
    views: tuple[str, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    until: dict[str, dict[int, int]] = field(default_factory=dict)
    events: int = 0
    blobs: int = 0
    removed: int = 0
    passes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return {**self.__dict__, "views": list(self.views)}


def rebuild_online(
    store: OnlineStore,
    definitions: Definitions,
    offline: str,
    *,
    view: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Rebuilt:
    """Rebuild the whole store, or one view of it, and begin a new epoch. Readers are served meanwhile; writers are refused.

    Args:
        store: The online store.
        definitions: The applied definitions.
        offline: Root of the Delta tables.
        view: Only this view; the store has to be whole otherwise.
        memory_bytes: About how much memory blobs may take before they are written; less means more passes over the log.
        progress: Called with buckets done, and buckets in all.

    Raises:
        UnknownNameError: No such view is applied.
        OfflineStoreUnavailableError: A source has no event log.
        OfflineError: The log has not reached what the store holds already; nothing was changed.
        OnlineStoreLostError: One view is asked for, but the store has lost more; nothing was changed.
        OnlineError: Somebody else writes to the store.
    """
    chosen = [definitions.view(view)] if view is not None else list(definitions.views.values())
    if not chosen:
        raise UnknownNameError("no view is applied.", hint="run featurestore apply first.")
    recorded, epochs = OnlineEpochs(offline, store.project), read_epochs(store)
    newest = recorded.newest()
    if view is not None and (one_epoch(epochs) is None or one_epoch(epochs) != (newest or one_epoch(epochs))):
        error = lost(epochs, newest or 1)
        raise OnlineStoreLostError(error.message, hint="one view is not enough: rebuild all of it, without --view.")
    by_source: dict[str, list[FeatureView]] = {}
    for each in chosen:
        by_source.setdefault(each.source.name, []).append(each)
    scans = {source: LogScan(offline, source) for source in by_source}
    ends = {source: scan.ends() for source, scan in scans.items()}
    _refuse_behind(store, by_source, ends)

    epoch = 1 + max(newest or 0, *(abs(each or 0) for each in epochs))
    move_epoch(store, -epoch)
    _refuse_behind(store, by_source, ends)  # no writer can move a fence from here on
    for service in definitions.services.values():
        store.publish_plan(LookupPlan.of(service))
    result = Rebuilt(epoch, tuple(each.name for each in chosen))
    done, total = 0, BUCKETS * len(by_source)
    for source, views in by_source.items():
        result.versions[f"events/{source}"] = ends[source].version
        result.until[source] = ends[source].until
        groups = _groups(views, ends[source].rows, memory_bytes)
        for group in range(groups):
            members = [bucket for bucket in range(BUCKETS) if bucket % groups == group]
            built = _build(store.project, scans[source], views, set(members))
            result.passes += 1
            result.events += ends[source].rows
            _write_blobs(store, views, set(members), built, result)
            for bucket in members:
                _move_fences(store, bucket, source, views, ends[source], -epoch)
                done += 1
                if progress is not None:
                    progress(done, total)
        for partition, until in ends[source].until.items():
            store.record_progress(source, partition, until, ends[source].arrival[partition])
        _keep_ids(store, offline, views, ends[source])
    move_epoch(store, epoch)
    recorded.record(epoch, f"rebuilt {'all views' if view is None else 'view ' + view}")
    return result


def accept_online(store: OnlineStore, offline: str) -> int:
    """Begin a new epoch on the store as it is, and return it: the stream reads its topics again from the store's own fences.

    What a bucket holds and its fences were lost or kept together, so an empty or older store is right again once the topics have
    been read; as far as they still hold what is missing. Needs no event log.

    Raises:
        OnlineStoreLostError: A rebuild was interrupted: its blobs and fences are not of one moment.
    """
    recorded, epochs = OnlineEpochs(offline, store.project), read_epochs(store)
    newest = recorded.newest() or 0
    if any(each is not None and each < 0 for each in epochs):
        error = lost(epochs, newest)
        raise OnlineStoreLostError(error.message, hint="run featurestore rebuild-online, all of it.")
    epoch = 1 + max(newest, *(each or 0 for each in epochs))
    move_epoch(store, epoch)
    recorded.record(epoch, "the store as it was, read again from the topics")
    return epoch


def _refuse_behind(
    store: OnlineStore, by_source: Mapping[str, Sequence[FeatureView]], ends: Mapping[str, LogEnds]
) -> None:
    """Raise when the store holds events that the log does not have yet."""
    for source, views in by_source.items():
        partitions = sorted({*ends[source].until, *store.progress(source)})
        fields = [
            store.space.fence_field(view.name, view.layout.fingerprint, source, partition)
            for view in views
            for partition in partitions
        ]
        rows = store.fences(fields)
        reached = [max((int(row[index] or 0) for row in rows), default=0) for index in range(len(fields))]
        for index, offset in enumerate(reached):
            view, partition = views[index // len(partitions)], partitions[index % len(partitions)]
            until = ends[source].until.get(partition, 0)
            if offset > until:
                raise OfflineError(
                    f"view {view.name}: the online store has applied {source} partition {partition} up to offset {offset:,}, the "
                    f"event log reaches {until:,}; its values would go back.",
                    hint="stop the job, let the archive catch up (jobs submit --queries archive), then rebuild again.",
                )


def _groups(views: Sequence[FeatureView], rows: int, memory_bytes: int) -> int:
    """Return how many passes keep the blobs within the memory: each event is at most one record and one row per part."""
    per_event = sum(2 * 8 * (3 + part.slot_offsets[-1]) + 64 for view in views for part in view.layout.parts)
    needed = -(-rows * per_event // max(1, memory_bytes))
    return next((groups for groups in (1, 2, 4, 8) if groups >= needed), BUCKETS)


def _build(project: str, scan: LogScan, views: Sequence[FeatureView], buckets: set[int]) -> MemoryOnlineStore:
    """Return a store with the blobs of some buckets, made of all events of a log."""
    store = MemoryOnlineStore(project)
    writer = FencedWriter(store, scan.source, views)
    for shaped, arrival in scan.shaped(views):
        # Offsets come in no special order, so nothing is fenced: all fences stay at 0.
        writer.apply(0, 0, arrival, [_within(each, buckets) for each in shaped])
    return store


def _within(shaped: Shaped, buckets: set[int]) -> Shaped:
    chosen = np.isin(buckets_of(shaped.keys), list(buckets))
    return shaped if chosen.all() else shaped.take(np.flatnonzero(chosen[shaped.key]))


def _write_blobs(
    store: OnlineStore, views: Sequence[FeatureView], buckets: set[int], built: MemoryOnlineStore, result: Rebuilt
) -> None:
    """Replace the blobs of some buckets, and remove those of keys that no event has."""
    for view in views:
        names = [name for name in built.values if store.space.is_blob(name, view.name, view.layout.fingerprint)]
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            replace_blobs(store, chunk, [built.values[name] for name in chunk], keep_ms(view))
        result.blobs += len(names)
        found = store.blobs(view.name, view.layout.fingerprint)
        stale = {name for name in found if name not in built.values and store.space.bucket_in(name) in buckets}
        store.remove(sorted(stale))
        result.removed += len(stale)


def _keep_ids(store: OnlineStore, offline: str, views: Sequence[FeatureView], ends: LogEnds) -> None:
    """Put the ids of the log's newest events into the store, so that the stream knows a repetition of one of them."""
    source = views[0].source
    if source.event_id is None:
        return
    known = LogIds(source)
    known.load(offline, ends.until)
    for partition, until in ends.until.items():
        ids = known.partitions.get(partition, PartitionIds())
        for view in views:
            seen_ids(store, view).replace(partition, until, ids.newest, ids.through)


def _move_fences(
    store: OnlineStore, bucket: int, source: str, views: Sequence[FeatureView], ends: LogEnds, epoch: int
) -> None:
    """Move the fences of a bucket to where the log ends."""
    fields = [
        (store.space.fence_field(view.name, view.layout.fingerprint, source, partition), until)
        for view in views
        for partition, until in ends.until.items()
    ]
    current = store.fences([name for name, _ in fields])[bucket]
    fences = [Fence(EPOCH, str(epoch).encode(), epoch)]
    fences += [Fence(name, now, until) for (name, until), now in zip(fields, current, strict=True)]
    reply = store.append([Append(bucket, fences, [])])[0]
    if isinstance(reply, Refusal):
        raise OnlineError(
            f"bucket {bucket}: {reply.fence.decode()} moved to {reply.current.decode()} during the rebuild.",
            hint="somebody else writes to this store, or it was emptied; run the rebuild again.",
        )


def replace_blobs(store: OnlineStore, names: Sequence[bytes], blobs: Sequence[bytes], keep: int) -> None:
    """Replace values, each whole and compared with what was there; they are kept for ``keep`` milliseconds, 0 for ever.

    Raises:
        OnlineError: One was changed in between.
    """
    current = store.read(names)
    replacements = [
        Replacement(name, old or b"", new, keep)
        for name, old, new in zip(names, current, blobs, strict=True)
        if keep or old != new
    ]
    if store.replace(replacements) != len(replacements):
        raise OnlineError(
            "blobs were changed during the rebuild.", hint="stop what writes to this store, and run it again."
        )
