"""Rebuilding one key of one view while its job goes on writing; see ``rebuild`` for how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.definitions.keys import encode_key
from featurestore.errors import OfflineError, OnlineError
from featurestore.offline.events import events_of_key, has_reached
from featurestore.online.codec import empty_base
from featurestore.online.keys import bucket_of
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.store import Replacement
from featurestore.online.writer import FencedWriter, keep_ms
from featurestore.timeline import MAX_INSTANT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.online.store import OnlineStore

TRIES = 20


@dataclass(frozen=True)
class RebuiltKey:
    """What the rebuild of one key did.

    Attributes:
        view: The view.
        until: Partition to the offset up to which the blob was made anew; what the stream appended since was kept.
        events: How many events it was made of.
        changed: Whether what was there differed in its bytes; a blob that was folded at other moments does, too.
    """

    view: str
    until: dict[int, int]
    events: int
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return dict(self.__dict__)


def rebuild_key(
    store: OnlineStore,
    view: FeatureView,
    key: Sequence[Any],
    offline: str,
    *,
    wait: Callable[[], bool] = lambda: False,
) -> RebuiltKey:
    """Rebuild the blobs of one entity key from the event log, up to exactly what they hold; the stream goes on meanwhile.

    Args:
        store: The online store.
        view: The view.
        key: The key's values.
        offline: Root of the Delta tables.
        wait: Waits a little for the event log to catch up with the stream; False gives up.

    Raises:
        OfflineError: The event log has not reached what the store holds.
        OnlineError: The stream changed the blob too often meanwhile; nothing was changed.
    """
    encoded = encode_key(key, [kind for _, kind in view.layout.keys])
    names = [store.space.blob(view.name, view.layout.fingerprint, encoded, part.number) for part in view.layout.parts]
    bucket = bucket_of(encoded)
    partitions = sorted(store.progress(view.source.name))
    fields = [
        store.space.fence_field(view.name, view.layout.fingerprint, view.source.name, partition)
        for partition in partitions
    ]
    for _ in range(TRIES):
        fences = store.fences(fields)[bucket]
        held = store.read(names)
        if store.fences(fields)[bucket] != fences:
            continue
        until = {partition: int(each or 0) for partition, each in zip(partitions, fences, strict=True)}
        while not has_reached(offline, view.source.name, until):
            if not wait():
                raise OfflineError(
                    f"view {view.name}: the event log of {view.source.name} has not reached offsets {until} yet.",
                    hint="is the archive query running? try again, or rebuild the view once the job is stopped.",
                )
        made, events = _made(store.project, view, key, encoded, offline, until)
        bases = [empty_base(part) for part in view.layout.parts]
        if all(
            (old is None and name not in made)
            or _replaced(store, view, name, base if old is None else old, made.get(name, base))
            for name, old, base in zip(names, held, bases, strict=True)
        ):
            changed = any(made.get(name) != old for name, old in zip(names, held, strict=True))
            return RebuiltKey(view.name, until, events, changed)
    raise OnlineError(
        f"view {view.name}: the key's blob was folded or its fences moved during each of {TRIES} tries.",
        hint="try again, or rebuild the view once the job is stopped.",
    )


def _made(
    project: str, view: FeatureView, key: Sequence[Any], encoded: bytes, offline: str, until: dict[int, int]
) -> tuple[dict[bytes, bytes], int]:
    """Return the blobs of the key's events below the offsets, and how many events those are."""
    found = events_of_key(view, offline, key, begin=None, end=MAX_INSTANT)
    place = found.table.select(["_partition", "_offset"]).to_pydict()
    below = [
        offset < until.get(partition, 0)
        for partition, offset in zip(place["_partition"], place["_offset"], strict=True)
    ]
    kept = type(found)(found.table.filter(below), found.version, found.newest_arrival)
    store = MemoryOnlineStore(project)
    if len(kept):
        shaped = kept.shaped(view)
        mine = np.array([each == encoded for each in shaped.keys], dtype=bool)
        writer = FencedWriter(store, view.source.name, [view])
        writer.apply(
            0, 0, int(shaped.arrival.max()) if len(shaped) else 0, [shaped.take(np.flatnonzero(mine[shaped.key]))]
        )
    return store.values, len(kept)


def _replaced(store: OnlineStore, view: FeatureView, name: bytes, held: bytes, made: bytes) -> bool:
    """Put a blob in place of the one that was read, and keep what was appended since; False when that one was folded."""
    for _ in range(TRIES):
        current = store.read([name])[0] or b""
        if current and not current.startswith(held):
            return False
        if store.replace([Replacement(name, current, made + current[len(held) :], keep_ms(view))]):
            return True
    return False
