"""What the online store holds about one feature of one key, for people to look at. Pure; what the bytes are is told in ``codec``.

A lookup answers from the same bytes by ``reader``; nothing here computes a value that is served.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import CodecError
from featurestore.online.codec import parse_frame, record_format, row_forms, wide_row
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from featurestore.definitions.layout import FeatureLayout, ViewLayout
    from featurestore.definitions.parts import Part, Read
    from featurestore.timeline import Instant


@dataclass(frozen=True, slots=True)
class Row:
    """A stored row of the feature's ladder: where its hop begins (None: since ever), and what it alone would answer."""

    hop: Instant | None
    value: Any


@dataclass(frozen=True, slots=True)
class Record:
    """A tail record: its tile, the event times it merges, what it alone would answer, and why it is left out, if it is."""

    tile: Instant
    oldest: Instant
    newest: Instant
    value: Any
    skipped: str | None


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob, seen from one feature.

    Attributes:
        size: Bytes in all.
        base: Bytes of the base; what follows is the tail.
        newest: Newest event time folded into the base; None without one.
        folds: How often the tail has been folded into the base.
        ladder: "suffix" (a row holds its hop and everything newer) or "plain" (its hop alone).
        hop: The ladder's grid step in microseconds; None for a single row.
        rows: Rows of the ladder.
        used: Those that the value is merged from, oldest first: at most one of a suffix ladder.
        tail: The tail records, in the order in which they were written.
    """

    size: int
    base: int
    newest: Instant | None
    folds: int
    ladder: str
    hop: int | None
    rows: int
    used: tuple[Row, ...]
    tail: tuple[Record, ...]


def place_of(layout: ViewLayout, feature: FeatureLayout) -> tuple[Part, Read]:
    """Return the part that holds a feature, and where in it."""
    index = layout.features.index(feature)
    return next((part, read) for part in layout.parts for read in part.reads if read.feature == index)


def inspect_blob(layout: ViewLayout, feature: FeatureLayout, blob: bytes, t: Instant) -> Blob:
    """Return what a blob of the feature's part holds, read at ``t``.

    Raises:
        CodecError: The bytes are no blob of this part, or the numbers in it no partials.
    """
    part, read = place_of(layout, feature)
    frame = parse_frame(blob, part)
    ladder = part.ladders[read.ladder]
    window = feature.window

    def value(partial: tuple[Any, ...]) -> Any:
        try:
            return feature.aggregate.value(partial, t, window)
        except CodecError:
            raise
        except (ArithmeticError, ValueError) as error:
            raise CodecError(f"view {layout.view}: a blob's numbers are no partials: {error}.") from error

    low, high = window.start(t), window.end(t)
    hop = ladder.hop or 1

    before = ladder.measures[: ladder.measures.index(read.measure)]
    begin = sum(len(part.measures[measure].slots) for measure in before)
    in_row = slice(begin, begin + len(part.measures[read.measure].slots))
    offset, rows = frame.ladders[read.ladder]
    hops = memoryview(blob)[offset : offset + 8 * rows].cast("q")
    first = 0 if low is None else bisect_left(hops, low // hop)
    last = min(first + 1, rows) if ladder.is_suffix else bisect_left(hops, high // hop)
    form, whole = row_forms(part, is_short=frame.is_short)[read.ladder]
    used = []
    for index in range(first, last):
        if part.is_fixed:
            row = form.words.unpack_from(blob, offset + 8 * rows + index * form.words.size)
            row = row if whole is None else whole(row)
        else:
            row = wide_row(form, blob, offset, rows, index)
        start = None if ladder.hop is None else hops[index] * hop
        used.append(Row(start, value(row[in_row])))

    in_record = slice(3 + part.slot_offsets[read.measure], 3 + part.slot_offsets[read.measure + 1])
    tail = []
    for record in record_format(part).scan(blob, frame.base_length, len(blob)):
        tile, oldest, newest = record[:3]
        skipped = None
        if oldest >= t:
            skipped = "ahead of the time asked"
        elif low is not None and tile < low:
            skipped = "before the window"
        elif tile >= high:
            skipped = "at or after its end"
        tail.append(Record(tile, oldest, newest, value(record[in_record]), skipped))
    return Blob(
        size=len(blob),
        base=frame.base_length,
        newest=None if frame.newest == MIN_INSTANT else frame.newest,
        folds=frame.folds,
        ladder="suffix" if ladder.is_suffix else "plain",
        hop=ladder.hop,
        rows=rows,
        used=tuple(used),
        tail=tuple(tail),
    )
