"""ViewCost: the most that a view keeps per entity key in the online store, known before anything runs. Pure.

A ladder on a hop has at most one row per hop that a lookup can reach, however many events a key has: that is its cap, and a
coarser hop lowers it. What is kept event by event (``Exact``, and delays between hops) has a row per distinct event time, and
no cap but the events themselves. After the base comes a tail: of at most ``TAIL_CAP`` records, and what one batch adds, or of
``CATCH_UP_TAIL_CAP`` where the key was last written to by a job that caught up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import DefinitionError
from featurestore.timeline import MICROSECOND, format_duration

if TYPE_CHECKING:
    from featurestore.definitions.layout import ViewLayout
    from featurestore.definitions.parts import Ladder, Part
    from featurestore.timeline import Duration

TAIL_CAP = 4
"""Records in a key's tail before it is folded into the base."""
CATCH_UP_TAIL_CAP, CATCH_UP_EVENTS = 16, 10_000
"""The same in a batch of so many events: who writes that many has others waiting, and folds are half of the work."""
WIDE_BYTES = 256 * 1024
"""More bytes per key than this, and a plan warns: each lookup moves them, and each fold reads and writes them."""
MOST_BYTES = 64 * 1024 * 1024
"""More bytes per key than this are refused."""
_HEADER_BYTES, _STAMP_BYTES, _HOP_BYTES = 32, 24, 8


@dataclass(frozen=True)
class LadderCost:
    """The most that one ladder keeps per key.

    Attributes:
        part: The part's number.
        hop: The ladder's grid step in microseconds; None for a single row.
        windows: Labels of the windows it answers.
        rows: At most so many; None for one per distinct event time within ``reach``.
        reach: How far back rows are kept, in microseconds; None for ever.
        row_bytes: Of one row with its hop; without the bytes of sketches, lists and texts.
        is_fixed: Whether that is all of a row.
        short_row_bytes: As ``row_bytes``, where every measure counts the same events: nothing is null, or left out.
    """

    part: int
    hop: Duration | None
    windows: tuple[str, ...]
    rows: int | None
    reach: Duration | None
    row_bytes: int
    is_fixed: bool
    short_row_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as data."""
        return {**self.__dict__, "windows": list(self.windows)}


@dataclass(frozen=True)
class ViewCost:
    """The most that a view keeps per key.

    Attributes:
        view: Its name.
        ladders: Of all parts.
        tail_bytes: Of the longest tails, and the parts' headers.
    """

    view: str
    ladders: tuple[LadderCost, ...]
    tail_bytes: int

    @property
    def rows(self) -> int:
        """Rows per key at most, without those kept event by event."""
        return sum(ladder.rows or 0 for ladder in self.ladders)

    @property
    def bytes(self) -> int:
        """Bytes per key at most: without rows kept event by event, and what sketches, lists and texts add."""
        return self.tail_bytes + sum((ladder.rows or 0) * ladder.row_bytes for ladder in self.ladders)

    @property
    def short_bytes(self) -> int:
        """As ``bytes``, of a key whose measures all count the same events."""
        return self.tail_bytes + sum((ladder.rows or 0) * ladder.short_row_bytes for ladder in self.ladders)

    @property
    def by_event(self) -> tuple[LadderCost, ...]:
        """The ladders with a row per distinct event time."""
        return tuple(ladder for ladder in self.ladders if ladder.rows is None)

    @property
    def warnings(self) -> list[str]:
        """What a plan warns of."""
        if self.bytes <= WIDE_BYTES:
            return []
        widest = max(self.ladders, key=lambda ladder: (ladder.rows or 0) * ladder.row_bytes)
        text = (
            f"view {self.view}: a key with events in every hop takes {_size(self.bytes)}, more than {_size(WIDE_BYTES)}: "
            f"{widest.rows:,} rows for {', '.join(widest.windows)} on a hop of {format_duration(widest.hop or 0)}. "
            "Hint: a coarser hop keeps fewer rows."
        )
        return [text]

    def to_dict(self) -> dict[str, Any]:
        """Return it as data."""
        return {
            "view": self.view,
            "rows": self.rows,
            "bytes": self.bytes,
            "short_bytes": self.short_bytes,
            "is_bounded": all(ladder.is_fixed and ladder.rows is not None for ladder in self.ladders),
            "ladders": [ladder.to_dict() for ladder in self.ladders],
            "warnings": self.warnings,
        }

    def __str__(self) -> str:
        text = f"at most {self.rows:,} rows and {_size(self.bytes)} per key"
        if self.short_bytes < self.bytes:
            text += f", {_size(self.short_bytes)} where nothing is null or left out"
        for ladder in self.by_event:
            within = "for ever" if ladder.reach is None else f"within {format_duration(ladder.reach)}"
            text += f", and {ladder.row_bytes} bytes per event time {within}"
        return (
            text if all(ladder.is_fixed for ladder in self.ladders) else f"{text}; sketches, lists and texts add theirs"
        )


def cost_of(layout: ViewLayout) -> ViewCost:
    """Return what a view keeps per key at most."""
    ladders, tails = [], 0
    for part in layout.parts:
        counts = (4 * len(part.ladders) + 7) // 8 * 8
        tails += _HEADER_BYTES + counts + CATCH_UP_TAIL_CAP * (_STAMP_BYTES + 8 * part.slot_offsets[-1])
        ladders += [_ladder_cost(layout, part, number, ladder) for number, ladder in enumerate(part.ladders)]
    return ViewCost(layout.view, tuple(ladders), tails)


def refuse_too_wide(layout: ViewLayout) -> None:
    """Raise unless what a view keeps per key stays below ``MOST_BYTES``.

    Raises:
        DefinitionError: It does not.
    """
    cost = cost_of(layout)
    if cost.bytes > MOST_BYTES:
        widest = max(cost.ladders, key=lambda ladder: (ladder.rows or 0) * ladder.row_bytes)
        raise DefinitionError(
            f"view {layout.view}: {', '.join(widest.windows)} on a hop of {format_duration(widest.hop or 0)} keeps up to "
            f"{widest.rows:,} rows, {_size(cost.bytes)} per key; at most {_size(MOST_BYTES)} are allowed.",
            hint="a coarser hop keeps fewer rows.",
        )


def _ladder_cost(layout: ViewLayout, part: Part, number: int, ladder: Ladder) -> LadderCost:
    windows = [layout.features[read.feature].window.label for read in part.reads if read.ladder == number]
    rows, reach = _rows(ladder)
    row_bytes = _HOP_BYTES + part.row_sizes[number] + (0 if part.is_fixed else 8)
    short = _HOP_BYTES + part.short_sizes[number] if part.is_fixed else row_bytes
    labels = tuple(dict.fromkeys(windows))
    return LadderCost(part.number, ladder.hop, labels, rows, reach, row_bytes, part.is_fixed, short)


def _rows(ladder: Ladder) -> tuple[int | None, Duration | None]:
    """Return the rows of a ladder at most, None for one per event time, and how far back they are kept."""
    if ladder.hop is None:
        return 1, None
    if ladder.hop == MICROSECOND:
        return None, ladder.settled if ladder.reach is None else ladder.reach
    assert ladder.reach is not None  # noqa: S101 - only a lifetime has none
    return -(-ladder.reach // ladder.hop) + 1, ladder.reach


def _size(size: int) -> str:
    return (
        f"{size:,} bytes"
        if size < 1024
        else f"{size / 1024:,.1f} kB"
        if size < 1024**2
        else f"{size / 1024**2:,.1f} MB"
    )
