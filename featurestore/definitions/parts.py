"""Parts: what a feature view keeps per entity key in the online store, and how its features are read from there.

A view has one to four parts, each with a blob of its own per key:

    part             measures             tile                          windows
    aligned          without "b" slots    greatest common hop           sawtooth, hopping, tumbling, lifetime
    event-grained    without "b" slots    1 us: one per event time      exact, and sawtooth or lifetime with a delay
    aligned wide     with "b" slots       greatest common hop           as aligned
    wide by event    with "b" slots       1 us                          as event-grained

Most views have one part. Parts are numbered in this order, without gaps. Within a part, ladders are the stored rows:

    ladder           rows on its hop                                     answers                     reading merges
    suffix           that hop and everything newer                       windows that end at t       one row
    plain            that hop alone                                      hopping, tumbling, delay    the rows in the window
    plain lifetime   as plain, all that no delay can reach as one row    lifetime with a delay       the rows before its end

A suffix reaches to the newest event, so a window that ends before it cannot be read from one: see ADR 0007.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.timeline import DAY, MICROSECOND, Duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.algebra import Aggregate, Window


@dataclass(frozen=True)
class Ladder:
    """Stored rows on one hop.

    Attributes:
        hop: The grid step in microseconds; None for lifetime, which has a single row.
        reach: How far before the newest event a lookup can still look, in microseconds; None for without end.
        measures: Indices of the part's measures that each row holds, ascending.
        is_suffix: Whether a row holds its hop and everything newer, or its hop alone.
        settled: Of a plain lifetime ladder: rows further behind the newest event than this are merged into one.
    """

    hop: Duration | None
    reach: Duration | None
    measures: tuple[int, ...]
    is_suffix: bool = True
    settled: Duration | None = None


class Read(NamedTuple):
    """Where a feature is read: indices into the view's features, the part's measures and the part's ladders."""

    feature: int
    measure: int
    ladder: int


@dataclass(frozen=True)
class Part:
    """One part of a view.

    Attributes:
        view: Name of the view.
        fingerprint: The view's.
        number: Its place among the view's parts; in the store it tells their blobs apart.
        measure_ids: Which of the view's measures it keeps.
        measures: Those aggregates.
        reads: The features it answers.
        ladders: Suffix ladders, finest hop first and lifetime last; then plain ones in the same order.
        tile: The grid on which events are merged before they are stored, in microseconds.
    """

    view: str
    fingerprint: str
    number: int
    measure_ids: tuple[int, ...]
    measures: tuple[Aggregate, ...]
    reads: tuple[Read, ...]
    ladders: tuple[Ladder, ...]
    tile: Duration

    @cached_property
    def reach(self) -> Duration | None:
        """The longest look-back of any window, its hop included; None when one reaches back without end."""
        longest = 0
        for ladder in self.ladders:
            if ladder.hop is None or ladder.reach is None:
                return None
            longest = max(longest, ladder.reach + ladder.hop)
        return longest

    @cached_property
    def slot_offsets(self) -> tuple[int, ...]:
        """Where each measure's slots begin in a full row of all measures; one more for the end."""
        return slot_offsets(self.measures)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots of a full row of all measures."""
        return tuple(slot for measure in self.measures for slot in measure.slots)

    @cached_property
    def fingerprint_word(self) -> int:
        """The fingerprint as an unsigned integer."""
        return int(self.fingerprint, 16)

    @cached_property
    def row_sizes(self) -> tuple[int, ...]:
        """For every ladder: the bytes of a row, or of its words where rows differ in size."""
        return tuple(8 * len(self.ladder_slots(ladder)) for ladder in self.ladders)

    @cached_property
    def short_places(self) -> tuple[tuple[int, ...], ...]:
        """For every ladder: where each slot of a row stands in a short one, which has one number of events for all measures."""
        return tuple(_short_places([self.measures[measure] for measure in ladder.measures]) for ladder in self.ladders)

    @cached_property
    def short_sizes(self) -> tuple[int, ...]:
        """For every ladder: the bytes of a short row."""
        return tuple(8 * (max(places) + 1) for places in self.short_places)

    @cached_property
    def is_fixed(self) -> bool:
        """Whether no measure has a "b" slot, so that all rows have one size."""
        return "b" not in self.slots

    @property
    def is_event_grained(self) -> bool:
        """Whether it keeps one row per distinct event time: the event log holds the same, so Delta keeps no tiles of it."""
        return self.tile == MICROSECOND

    def ladder_slots(self, ladder: Ladder) -> tuple[str, ...]:
        """Return the slots of a row of one of its ladders."""
        return tuple(slot for measure in ladder.measures for slot in self.measures[measure].slots)

    def to_dict(self) -> dict[str, Any]:
        """Return the part as data, without what the view says."""
        return {
            "measures": list(self.measure_ids),
            "reads": [list(read) for read in self.reads],
            "ladders": [
                {
                    "hop": ladder.hop,
                    "reach": ladder.reach,
                    "measures": list(ladder.measures),
                    "suffix": ladder.is_suffix,
                    **({} if ladder.settled is None else {"settled": ladder.settled}),
                }
                for ladder in self.ladders
            ],
            "tile": self.tile,
        }

    @staticmethod
    def from_dict(
        data: Mapping[str, Any], view: str, fingerprint: str, number: int, measures: Sequence[Aggregate]
    ) -> Part:
        """Return the part that ``to_dict`` wrote, of a view with these measures."""
        return Part(
            view=view,
            fingerprint=fingerprint,
            number=number,
            measure_ids=tuple(data["measures"]),
            measures=tuple(measures[measure] for measure in data["measures"]),
            reads=tuple(Read(*read) for read in data["reads"]),
            ladders=tuple(
                Ladder(one["hop"], one["reach"], tuple(one["measures"]), one["suffix"], one.get("settled"))
                for one in data["ladders"]
            ),
            tile=data["tile"],
        )


def _short_places(measures: Sequence[Aggregate]) -> tuple[int, ...]:
    """Return where each slot of a row stands in a short row: the first number of events is that of all."""
    places: list[int] = []
    count, width = None, 0
    for measure in measures:
        for slot in range(len(measure.slots)):
            is_count = measure.is_counted and slot == 0
            if is_count and count is not None:
                places.append(count)
                continue
            count = width if is_count else count
            places.append(width)
            width += 1
    return tuple(places)


def slot_offsets(measures: Sequence[Aggregate]) -> tuple[int, ...]:
    """Return where each measure's slots begin in a row of all of them; one more for the end."""
    offsets = [0]
    for measure in measures:
        offsets.append(offsets[-1] + len(measure.slots))
    return tuple(offsets)


def compile_parts(
    view: str, fingerprint: str, measures: Sequence[Aggregate], features: Sequence[tuple[int, Window]]
) -> tuple[Part, ...]:
    """Return the parts of a view whose features are (measure, window) pairs."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for feature, (measure, window) in enumerate(features):
        kinds.setdefault((not measures[measure].is_fixed, _needs_events(window)), []).append(feature)
    return tuple(
        _compile_part(view, fingerprint, number, measures, features, kinds[kind], by_event=kind[1])
        for number, kind in enumerate(sorted(kinds))
    )


def _needs_events(window: Window) -> bool:
    """Return whether one of the window's edges can lie between two hops of any grid."""
    return window.kind == "exact" or (window.delay > 0 and not window.is_closed)


def _compile_part(
    view: str,
    fingerprint: str,
    number: int,
    measures: Sequence[Aggregate],
    features: Sequence[tuple[int, Window]],
    chosen: Sequence[int],
    *,
    by_event: bool,
) -> Part:
    measure_ids = sorted({features[feature][0] for feature in chosen})
    # Sorts as ladders are ordered: suffix before plain, finest hop first, lifetime last.
    rungs: dict[tuple[bool, float], list[int]] = {}
    for feature in chosen:
        window = features[feature][1]
        hop = math.inf if window.length is None else MICROSECOND if by_event else window.hop
        assert hop is not None  # noqa: S101 - only lifetime has none
        rungs.setdefault((not window.ends_at_t, hop), []).append(feature)
    order = sorted(rungs)
    ladders = []
    for plain, hop in order:
        windows = [features[feature][1] for feature in rungs[plain, hop]]
        held = sorted({measure_ids.index(features[feature][0]) for feature in rungs[plain, hop]})
        if hop == math.inf:
            grid, reach = (MICROSECOND if plain else None), None
        else:
            # A delayed sawtooth begins on its own hop, which is coarser than the ladder's.
            grid, reach = int(hop), max((w.length or 0) + w.delay + (w.hop or 0) - int(hop) for w in windows)
        settled = max(w.delay for w in windows) if plain and hop == math.inf else None
        ladders.append(Ladder(grid, reach, tuple(held), not plain, settled))
    place = {feature: order.index(rung) for rung, members in rungs.items() for feature in members}
    hops = [ladder.hop for ladder in ladders if ladder.hop is not None]
    return Part(
        view=view,
        fingerprint=fingerprint,
        number=number,
        measure_ids=tuple(measure_ids),
        measures=tuple(measures[measure] for measure in measure_ids),
        reads=tuple(Read(feature, measure_ids.index(features[feature][0]), place[feature]) for feature in chosen),
        ladders=tuple(ladders),
        tile=math.gcd(*hops) if hops else DAY,
    )
