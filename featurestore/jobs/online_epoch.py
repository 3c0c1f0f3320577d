"""How a job begins on an online store: is it the one it knows, and from which offsets does it go on.

joined     the store's epoch, held against the one that Delta remembers; both empty: epoch 1 begins
older      a store of the right epoch whose progress has gone back behind what the job saw is an older one
start      every epoch has a checkpoint of its own, so after a rebuild the hot query does not skip to where it was before
the loss: it begins at the lowest fence, and the fences drop what is applied
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import OffsetsGoneError, OnlineError, OnlineStoreLostError
from featurestore.events.broker import OffsetReader
from featurestore.offline.epochs import OnlineEpochs
from featurestore.online.epoch import lost, move_epoch, one_epoch, read_epochs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Instant

_EARLIEST = -2
"""Kafka's earliest offset, as Spark writes it."""


def join_epoch(store: OnlineStore, offline: str) -> int:
    """Return the store's epoch, if it is the one that Delta remembers; a new store of a new project begins its first.

    Args:
        store: The online store.
        offline: Root of the Delta tables.

    Raises:
        OnlineStoreLostError: The store was emptied, is older, or is being rebuilt; nothing was changed.
    """
    recorded = OnlineEpochs(offline, store.project)
    expected, epochs = recorded.newest(), read_epochs(store)
    found = one_epoch(epochs)
    if expected is None and set(epochs) == {None}:
        recorded.record(1, "the first job")
        with contextlib.suppress(OnlineError):  # another job begins it too; between them they reach every bucket
            move_epoch(store, 1)
        epochs, expected = read_epochs(store), 1
        found = one_epoch(epochs)
    if found is not None and (expected is None or found > expected):
        recorded.record(found, "found in the online store")
        return found
    if found is None or found != expected:
        raise lost(epochs, expected or 1)
    return found


Progress = Mapping[str, Mapping[int, int]]
"""Source to partition to the offset that the store waits for."""


def offsets_of(progress: Mapping[int, tuple[int, Instant]]) -> dict[int, int]:
    """Return a source's progress without its times."""
    return {partition: offset for partition, (offset, _) in progress.items()}


def progress_of(store: OnlineStore, sources: Iterable[str]) -> dict[str, dict[int, int]]:
    """Return the store's progress."""
    return {source: offsets_of(store.progress(source)) for source in sources}


def farthest(one: Progress, other: Progress) -> dict[str, dict[int, int]]:
    """Return the larger offset of two, per source, or topic, and partition."""
    found = {source: dict(offsets) for source, offsets in one.items()}
    for source, offsets in other.items():
        for partition, offset in offsets.items():
            mine = found.setdefault(source, {})
            mine[partition] = max(offset, mine.get(partition, 0))
    return found


def refuse_older(seen: Progress, progress: Progress) -> None:
    """Raise when a store's progress lies behind what was seen of it.

    Raises:
        OnlineStoreLostError: It does: the store is an older one, or lost writes.
    """
    for source, offsets in seen.items():
        now = progress.get(source, {})
        for partition, offset in offsets.items():
            current = now.get(partition, 0)
            if current < offset:
                raise OnlineStoreLostError(
                    f"the online store is an older one: source {source}, partition {partition} had reached offset "
                    f"{offset:,}, and is at {current:,}.",
                    hint="run featurestore rebuild-online, with --from-topics if they still hold what it lost, then submit "
                    "the job again.",
                )


@dataclass(frozen=True)
class SeenProgress:
    """What a job has seen of the store's progress, in a file beside its checkpoints.

    Attributes:
        path: The file.
        epoch: The epoch it is about; what was seen of another means nothing.
    """

    path: Path
    epoch: int

    @property
    def exists(self) -> bool:
        """Whether the job has written to the store in this epoch."""
        return bool(self.read())

    def read(self) -> dict[str, dict[int, int]]:
        """Return what was seen; nothing where there is no file, or one of another epoch."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if content.get("epoch") != self.epoch:
            return {}
        return {
            source: {int(each): offset for each, offset in of.items()} for source, of in content["progress"].items()
        }

    def check(self, progress: Progress) -> None:
        """Raise when the store's progress lies behind what was seen.

        Raises:
            OnlineStoreLostError: It does: the store is an older one, or lost writes.
        """
        refuse_older(self.read(), progress)

    def note(self, progress: Progress) -> None:
        """Write down what was seen, where it is more than before."""
        seen = self.read()
        merged = farthest(seen, progress)
        if merged == seen:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"epoch": self.epoch, "progress": merged}), encoding="utf-8")
        partial.replace(self.path)


class ProgressWatch:
    """Tells a store that lost what it had acknowledged from one that never had it.

    A master that was taken for dead may wake, carry out what it was sent, and be shown that its successor has less: whoever wrote
    that has no answer, and writes it again. So what is held against the store later is what it was seen to have *and* the hot
    query has been through.

    Args:
        seen: Where that is kept over restarts.
    """

    def __init__(self, seen: SeenProgress) -> None:
        self._seen, self._known = seen, seen.read()
        self._most: dict[str, dict[int, int]] = {}

    def check(self, progress: Progress, reached: Progress) -> None:
        """Raise when the store has less than it had acknowledged.

        Args:
            progress: What it has now.
            reached: How far the hot query has been through.

        Raises:
            OnlineStoreLostError: It does.
        """
        through = {
            source: {
                partition: min(offset, reached[source][partition])
                for partition, offset in of.items()
                if partition in reached.get(source, {})
            }
            for source, of in self._most.items()
        }
        self._known = farthest(self._known, through)
        refuse_older(self._known, progress)
        self._most = farthest(self._most, progress)

    def keep(self) -> None:
        """Write down what is held against the store; OSError where that cannot be."""
        self._seen.note(self._known)


@dataclass(frozen=True)
class HotStart:
    """How the hot query begins on the store it found.

    Attributes:
        epoch: The store's epoch.
        checkpoint: The epoch's checkpoint.
        starting: Topic to partition to the offset at which a new checkpoint begins; None at the earliest.
        seen: What this job has seen of the store.
    """

    epoch: int
    checkpoint: str
    starting: dict[str, dict[int, int]] | None
    seen: SeenProgress

    def check(self, store: OnlineStore) -> None:
        """Raise when the store is no longer the one the job began on, also while no record comes.

        Raises:
            OnlineStoreLostError: It was emptied, or is being rebuilt.
        """
        epochs = read_epochs(store)
        if one_epoch(epochs) != self.epoch:
            raise lost(epochs, self.epoch)


def begin_hot(
    store: OnlineStore,
    offline: str,
    kafka: Mapping[str, str],
    topics: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]],
    checkpoints: str,
) -> HotStart:
    """Return how the hot query of a job begins on an online store.

    Args:
        store: The store.
        offline: Root of the Delta tables.
        kafka: Kafka settings.
        topics: Topic to source and the views on it.
        checkpoints: The folder of the job's checkpoints.

    Raises:
        OnlineStoreUnavailableError: The store cannot be reached.
        OnlineStoreLostError: It was emptied, is an older one, or is being rebuilt.
        OffsetsGoneError: Kafka no longer has what the store's fences wait for.
    """
    store.ping()
    epoch = join_epoch(store, offline)
    seen = SeenProgress(Path(checkpoints, "online.json"), epoch)
    seen.check(progress_of(store, (source.name for source, _ in topics.values())))
    starting = None
    if epoch > 1 and not seen.exists:  # the first time in this epoch; from then on the checkpoint says where to go on
        reader = OffsetReader(kafka, topics)
        try:
            firsts = reader.first_offsets()
        finally:
            reader.close()
        refuse_gone(store, topics, firsts)
        starting = starting_offsets(store, topics, firsts)
    return HotStart(epoch, hot_checkpoint(checkpoints, epoch), starting, seen)


def hot_checkpoint(checkpoints: str, epoch: int) -> str:
    """Return the directory of the hot query's checkpoint in an epoch."""
    return f"{checkpoints}/hot" if epoch == 1 else f"{checkpoints}/hot-{epoch}"


def starting_offsets(
    store: OnlineStore,
    topics: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]],
    partitions: Mapping[str, Iterable[int]],
) -> dict[str, dict[int, int]]:
    """Return, per topic and partition, the lowest offset that some fence still waits for; -2 (earliest) where one has none.

    Args:
        store: The online store.
        topics: Topic to source and the views on it.
        partitions: Topic to its partitions.
    """
    found: dict[str, dict[int, int]] = {}
    for topic, partition, fences in _fences_of(store, topics, partitions):
        explicit = [each for each in fences if each is not None]
        found.setdefault(topic, {})[partition] = min(explicit) if len(explicit) == len(fences) else _EARLIEST
    return found


def refuse_gone(
    store: OnlineStore,
    topics: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]],
    firsts: Mapping[str, Mapping[int, int]],
) -> None:
    """Raise when Kafka no longer has records that some fence still waits for.

    A bucket that no event met for long has an old fence too, and is then taken for one that waits: a rebuild of all views, out of
    the event log, moves every fence.

    Args:
        store: The online store.
        topics: Topic to source and the views on it.
        firsts: Topic to partition to the oldest offset that Kafka has.

    Raises:
        OffsetsGoneError: It does not; the message says which and how many.
    """
    for topic, partition, fences in _fences_of(store, topics, firsts):
        lowest = min((each for each in fences if each is not None), default=None)
        first = firsts[topic][partition]
        if lowest is not None and lowest < first:
            raise OffsetsGoneError(
                f"{topic}-{partition}: the online store waits for offset {lowest:,}, Kafka has {first:,} and newer: "
                f"{first - lowest:,} records are gone from the topic.",
                hint="run featurestore rebuild-online, all views: the event log has what the archive query has read of them.",
            )


def _fences_of(
    store: OnlineStore,
    topics: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]],
    partitions: Mapping[str, Iterable[int]],
) -> Iterator[tuple[str, int, list[int | None]]]:
    """Yield topic, partition, and the fences of all views and buckets."""
    for topic, (source, views) in topics.items():
        numbers = sorted(partitions[topic])
        fields = [
            store.space.fence_field(view.name, view.layout.fingerprint, source.name, partition)
            for partition in numbers
            for view in views
        ]
        rows = store.fences(fields)
        for position, partition in enumerate(numbers):
            mine = [each for row in rows for each in row[position * len(views) : (position + 1) * len(views)]]
            yield topic, partition, [None if each is None else int(each) for each in mine]
