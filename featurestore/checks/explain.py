"""explain: where one value comes from, on both sides, and if they differ, why. No JVM: the event log is read as files.

    online     fences, then the key's record, read by the reader of lookups at t (or just after what it has merged beyond t)
    offline    the key's events around the window, from the event log; the value of the specification (``engines.oracle``),
               event by event, and of the kernel of training sets (``engines.points``)
    tiles      the same events merged per grid step, and what the tiles table has for each

The fences are read before the record and the record before the log: an event below its fence is in the record, and is in the
log unless the archive is behind. Both sides are compared by ``testing.compare.values_match``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.checks.causes import causes_of
from featurestore.checks.explanation import (
    DIFFERENT,
    EQUAL,
    NOT_COMPARED,
    Cause,
    Explanation,
    OfflineSide,
    OnlineSide,
    Tile,
    counted,
)
from featurestore.checks.names import Named, alone
from featurestore.definitions.keys import encode_key
from featurestore.engines.fates import MERGED, Fate, Judged, fates, inputs_at
from featurestore.engines.oracle import values_at
from featurestore.errors import (
    CodecError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    PastLookupError,
    UnknownNameError,
)
from featurestore.offline.events import events_of_key, has_reached, tiles_of_key
from featurestore.online.inspect import inspect_blob, place_of
from featurestore.online.keys import bucket_of
from featurestore.online.reader import ViewReader
from featurestore.testing.compare import values_match
from featurestore.testing.judge import entering
from featurestore.testing.log import values_of
from featurestore.timeline import HOUR, Instant, format_duration, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.algebra import Window
    from featurestore.definitions.view import FeatureView
    from featurestore.offline.events import KeyEvents
    from featurestore.online.store import OnlineStore

MOST_BY_ONE = 20_000
"""Up to this many events of a key, the specification is asked too, and every event's fate is told."""
SHOWN = 20
_AROUND = 3


def explain(
    named: Named,
    keys: Mapping[str, Any],
    t: Instant,
    *,
    offline: str,
    store: OnlineStore,
    as_served: bool = False,
    shown: int = SHOWN,
) -> Explanation:
    """Return where the value of a feature comes from.

    Args:
        named: The feature.
        keys: The entity's key columns and values; others are ignored.
        t: The time; events at or after it do not count.
        offline: Root of the Delta tables.
        store: The online store.
        as_served: Whether events that arrived after ``t`` are left out of the offline side.
        shown: How many events and tiles to keep, the newest.

    Raises:
        OfflineStoreUnavailableError: The source has no event log yet.
        DefinitionError: A key value is not of its column's type.
    """
    key = tuple(keys[name] for name, _ in named.view.layout.keys)
    online = read_online(named, key, t, store)
    side = _Offline(named, alone(named), key, offline)
    log = side.read(t)
    visible = t if as_served else None
    specified, value = side.values(log, t, visible)
    judged = side.judged(log, t, visible)
    one = judged if judged is not None else side.newest(log, t, visible, shown)
    compared, expected, found = t, value, judged
    log_then = log
    if online.at != t:
        compared, log_then = online.at, side.read(online.at)
        _, expected = side.values(log_then, compared, None)
        found = side.judged(log_then, compared, None)
    inputs = (
        partial(inputs_at, named.view, named.feature, log_then.events, key, compared) if found is not None else None
    )
    verdict = NOT_COMPARED
    causes: list[Cause] = []
    if online.at != t:
        causes.append(_past(online, t))
    if online.status == "unreachable":
        causes.append(Cause("unreachable", online.detail))
    elif online.status != "unreadable" and values_match(named.feature, expected, online.value, inputs):
        verdict = EQUAL
    else:
        verdict = DIFFERENT
        if found is None:
            found = side.newest(log_then, compared, visible, MOST_BY_ONE)
        entered = [each.event_time for each in entering(named.view, [one.event for one in found], key)]
        causes = causes_of(
            online, found,
            published=_published(named, store), applied=named.view.layout.fingerprint, service=named.service,
            is_log_behind=not has_reached(offline, named.view.source.name, online.fences),
            newest=_newest(online, entered, named.feature.window.start(compared), compared), repeated=log_then.repeated(),
        ) + causes  # fmt: skip
    if specified is not NOT_ASKED and not values_match(
        named.feature, specified, value, partial(inputs_at, named.view, named.feature, log.events, key, t)
    ):
        verdict = DIFFERENT
        text = f"the specification says {specified!r}, the kernel of training sets {value!r}, of the same events."
        causes.insert(0, Cause("kernel", text, "this is a bug of ours; run featurestore verify for a small case."))
    tiles = [] if judged is None else side.tiles(judged, t, is_compared=not as_served)
    wrong = [tile for tile in tiles if _differs(named, tile)]
    if wrong:
        text = f"{len(wrong)} stored tiles differ from the event log, the first at {format_instant(wrong[0].start)}."
        causes.append(Cause("tiles", text, "no lookup or training set reads them; a rebuild from tiles would."))
    window = named.feature.window
    events, left_out = _shown(one, shown)
    part, _ = place_of(named.view.layout, named.feature)
    return Explanation(
        feature=named.id,
        service=named.service,
        source=named.view.source.name,
        topic=named.view.source.topic,
        fingerprint=named.view.layout.fingerprint,
        aggregate=repr(named.feature.aggregate),
        where=named.view.where,
        keys=dict(zip((name for name, _ in named.view.layout.keys), key, strict=True)),
        at=t,
        as_served=as_served,
        start=window.start(t),
        end=window.end(t),
        rule=rule_of(window),
        offline=OfflineSide(
            version=log.version,
            events=len(log),
            fates=None if judged is None else counted(judged),
            specification=None if specified is NOT_ASKED else specified,
            is_specified=specified is not NOT_ASKED,
            training_set=value,
        ),
        online=online,
        events=events,
        left_out=left_out + len(log) - len(one),
        tiles=tuple(tiles[-shown:] if shown else ()),
        tiles_left_out=max(0, len(tiles) - shown),
        tile=None if part.is_event_grained else part.tile,
        verdict=verdict,
        compared_at=compared,
        expected=expected,
        causes=tuple(causes),
    )


NOT_ASKED = object()


def rule_of(window: Window) -> str:
    """Return how a window's edges follow from t, in words.

    >>> from featurestore.algebra import Hopping, Lifetime, Sawtooth
    >>> rule_of(Sawtooth("1h"))
    'sawtooth of 1h, hop 5m: start = floor(t - 1h, 5m), end = t; an event at the end does not count'
    >>> rule_of(Hopping("1h", hop="5m"))
    'hopping of 1h, hop 5m: start = floor(t, 5m) - 1h, end = floor(t, 5m); an event at the end does not count'
    >>> rule_of(Lifetime(delay="7d"))
    'lifetime, delay 7d: start = none, end = t - 7d; an event at the end does not count'
    """
    t = f"t - {format_duration(window.delay)}" if window.delay else "t"
    delayed = f", delay {format_duration(window.delay)}" if window.delay else ""
    if window.length is None or window.hop is None:
        name, start, end = window.kind, "none", t
    else:
        length, hop = format_duration(window.length), format_duration(window.hop)
        name = f"{window.kind} of {length}" + ("" if window.kind in ("exact", "tumbling") else f", hop {hop}")
        if window.is_closed:
            start, end = f"floor({t}, {hop}) - {length}", f"floor({t}, {hop})"
        else:
            start, end = (f"{t} - {length}" if window.kind == "exact" else f"floor({t} - {length}, {hop})"), t
    return f"{name}{delayed}: start = {start}, end = {end}; an event at the end does not count"


def read_online(named: Named, key: tuple[Any, ...], t: Instant, store: OnlineStore) -> OnlineSide:
    """Return what the online store says of a feature at ``t``, or, where it cannot, just after what it has merged."""
    view, layout = named.view, named.view.layout
    encoded = encode_key(key, [kind for _, kind in layout.keys])
    source = view.source.name
    at = t
    try:
        partitions = sorted(store.progress(source))
        fields = [store.space.fence_field(view.name, layout.fingerprint, source, each) for each in partitions]
        values = store.fences(fields)[bucket_of(encoded)] if fields else []
        fences = {n: None if value is None else int(value) for n, value in zip(partitions, values, strict=True)}
        names = [store.space.blob(view.name, layout.fingerprint, encoded, part.number) for part in layout.parts]
        *blobs, stamp = store.read([*names, store.space.complete(source)])
    except (OnlineStoreUnavailableError, OnlineStoreTimeoutError) as error:
        return OnlineSide("unreachable", t, detail=str(error))
    complete = None if stamp is None else int(stamp)
    try:
        try:
            read = ViewReader(layout).read(blobs, t)
        except PastLookupError:
            read = ViewReader(layout).read(blobs, t, exact_time=False)
            at = max(t, (read.as_of or t) + 1)
        part, _ = place_of(layout, named.feature)
        blob = blobs[part.number]
        held = None if blob is None else inspect_blob(layout, named.feature, blob, at)
    except CodecError as error:
        return OnlineSide("unreadable", t, complete_through=complete, fences=fences, detail=str(error))
    # An empty store is not an empty window: lookups say the same.
    value = read.values[layout.features.index(named.feature)] if read.known or complete is not None else None
    status = "read" if read.known else "missing"
    return OnlineSide(status, at, value, read.as_of, complete, fences, held)


def _published(named: Named, store: OnlineStore) -> str | None:
    """Return the fingerprint of the view in the published plan; None without one."""
    if named.service is None:
        return None
    try:
        plan = store.load_plan(named.service)
    except UnknownNameError:
        return None
    return next((layout.fingerprint for layout in plan.views if layout.view == named.view.name), None)


def _past(online: OnlineSide, t: Instant) -> Cause:
    text = (
        f"the online store cannot answer for {format_instant(t)}: it has merged an event of "
        f"{format_instant(online.at - 1)}, and answers for now. Both sides are compared just after that."
    )
    return Cause("past", text)


def _newest(online: OnlineSide, entered: Sequence[Instant], start: Instant | None, t: Instant) -> Instant | None:
    """Return the newest event before ``t``; what was merged before the window was not read, and is as good as there."""
    newest = max((each for each in entered if each < t), default=None)
    if online.as_of is not None and start is not None and online.as_of < start:
        return online.as_of
    return newest


def _shown(judged: Sequence[Judged], most: int) -> tuple[tuple[Judged, ...], int]:
    """Return the newest events in the window, and the nearest outside it, and how many others there are."""
    before = [one for one in judged if one.fate == Fate.BEFORE]
    after = [one for one in judged if one.fate == Fate.AFTER]
    inside = [one for one in judged if one.fate not in (Fate.BEFORE, Fate.AFTER)]
    kept = (*before[-_AROUND:], *(inside[-most:] if most else ()), *after[:_AROUND])
    return kept, len(judged) - len(kept)


def _differs(named: Named, tile: Tile) -> bool:
    return tile.is_whole and tile.is_stored and not values_match(named.feature, tile.value, tile.stored)


@dataclass(frozen=True)
class _Offline:
    """One key's events, read and evaluated."""

    named: Named
    view: FeatureView
    """With this one feature."""
    key: tuple[Any, ...]
    root: str

    def read(self, t: Instant) -> KeyEvents:
        """Return the events of the window at ``t``, and those around its edges."""
        window = self.named.feature.window
        around = max(window.hop or HOUR, (window.length or 0) // 12)
        start = window.start(t)
        begin = None if start is None else start - around
        return events_of_key(self.view, self.root, self.key, begin=begin, end=max(t, window.end(t) + around))

    def values(self, log: KeyEvents, t: Instant, visible: Instant | None) -> tuple[Any, Any]:
        """Return the value by the specification, or NOT_ASKED, and by the kernel of training sets."""
        ((by_kernel, *_),) = values_of(self.view, log.shaped(self.view), [(self.key, t, visible)])
        if len(log) > MOST_BY_ONE:
            return NOT_ASKED, by_kernel
        (specified, *_) = values_at(self.view, log.events, self.key, t, visible_at=visible).values()
        return specified, by_kernel

    def judged(self, log: KeyEvents, t: Instant, visible: Instant | None) -> list[Judged] | None:
        """Return every event's fate; None where there are too many."""
        return None if len(log) > MOST_BY_ONE else self._fates(log, t, visible)

    def newest(self, log: KeyEvents, t: Instant, visible: Instant | None, most: int) -> list[Judged]:
        """Return the fates of the newest events."""
        return self._fates(log.newest(max(1, most)), t, visible)

    def _fates(self, log: KeyEvents, t: Instant, visible: Instant | None) -> list[Judged]:
        feature = self.view.layout.features[0]
        return fates(self.view, feature, log.events, self.key, t, visible_at=visible)

    def tiles(self, judged: Sequence[Judged], t: Instant, *, is_compared: bool) -> list[Tile]:
        """Return the window's tiles, merged from the events and as they are stored."""
        part, read = place_of(self.named.view.layout, self.named.feature)
        if part.is_event_grained:
            return []
        window, aggregate, size = self.named.feature.window, self.named.feature.aggregate, part.tile
        start, end = window.start(t), window.end(t)
        begin = None if start is None else start - start % size
        merged: dict[Instant, tuple[int, Any]] = {}
        for one in judged:
            if one.fate in MERGED:
                tile = one.event.event_time - one.event.event_time % size
                count, total = merged.get(tile, (0, aggregate.empty()))
                merged[tile] = count + 1, aggregate.merge(total, aggregate.prepare(one.value, one.event.order))
        stored: dict[Instant, Any] = {}
        if is_compared:
            encoded = encode_key(self.key, [kind for _, kind in self.named.view.layout.keys])
            for row in tiles_of_key(self.root, part, read.measure, encoded, begin=begin, end=end) or ():
                stored[row.tile] = aggregate.merge(stored.get(row.tile, aggregate.empty()), row.partial)
        found = []
        for tile in sorted(merged.keys() | stored.keys()):
            count, total = merged.get(tile, (0, aggregate.empty()))
            held = stored.get(tile)
            found.append(
                Tile(
                    start=tile,
                    is_whole=(start is None or tile >= start) and tile + size <= end,
                    events=count,
                    value=aggregate.value(total, t, window),
                    stored=None if held is None else aggregate.value(held, t, window),
                    is_stored=held is not None,
                )
            )
        return found
