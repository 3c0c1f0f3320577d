"""Reading a view's blobs at one time. Pure; no I/O. What the bytes are is told in ``codec``.

The parts of a key are read together and answer for one instant. An event that lies at or after t in what has been merged
with earlier ones can no longer be told apart: an explicit t is then refused, and "now" moves just past it, in all parts.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra import Aggregate
from featurestore.algebra.columns import partial_at, reduce_groups
from featurestore.errors import CodecError, PastLookupError
from featurestore.online.codec import parse_frame, record_format, row_forms, wide_row
from featurestore.online.columns import ViewValues
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT, format_instant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.algebra import Window
    from featurestore.algebra.aggregate import Partial
    from featurestore.definitions.layout import ViewLayout
    from featurestore.definitions.parts import Part
    from featurestore.online.codec import Frame
    from featurestore.online.compiled import CompiledView
    from featurestore.timeline import Instant

_START = itemgetter(0)
_MANY = 1024
"""Plain rows from which on one vectorised merge is quicker than a loop."""


class ViewReader:
    """Reads the blobs of one view. Immutable after construction; safe to share between threads.

    Args:
        layout: The view.
        compiled: Reads what is plain, where there is compiled code for the view.
    """

    def __init__(self, layout: ViewLayout, compiled: CompiledView | None = None) -> None:
        self.layout = layout
        self.compiled = compiled
        self.parts = tuple(_PartReader(layout, part) for part in layout.parts)
        self._empty = [(f.aggregate, f.aggregate.empty(), f.window) for f in layout.features]
        self._timeless = all(_finish(f.aggregate, f.window) is None for f in layout.features)
        self._empty_values = self._empty_at(0)

    def _empty_at(self, t: Instant) -> tuple[Any, ...]:
        return tuple(aggregate.value(empty, t, window) for aggregate, empty, window in self._empty)

    def read(self, blobs: Sequence[bytes | None], t: Instant, *, exact_time: bool = True) -> ViewValues:
        """Return the features of a key at time ``t`` (events at ``t`` excluded).

        Args:
            blobs: The stored bytes of every part of the view, in order; all None when the key has none.
            t: The time of the lookup.
            exact_time: True refuses a ``t`` that merged events have passed; False moves ``t`` just after the newest of
                them instead, which is right for "now" on a clock that runs a little behind the producer's.

        Raises:
            CodecError: The bytes are not blobs of this view, or one of its parts is missing.
            PastLookupError: ``t`` is not after an event that can no longer be told apart.
        """
        if self.compiled is not None and (only := blobs[0]) is not None:
            found = self.compiled.read(only, t, exact_time=exact_time)
            if found is not None:
                return ViewValues(found[0], known=True, as_of=None if found[1] == MIN_INSTANT else found[1])
        opened = []
        for part, blob in zip(self.parts, blobs, strict=True):
            if blob is not None:
                opened.append(part.open(blob))
        if not opened:
            return ViewValues(self._empty_values if self._timeless else self._empty_at(t), known=False, as_of=None)
        if len(opened) < len(self.parts):
            missing = [part.part.number for part, blob in zip(self.parts, blobs, strict=True) if blob is None]
            raise CodecError(
                f"view {self.layout.view}: part {missing[0]} of a key is gone while others are there.",
                hint="does the store evict keys? rebuild it from Delta.",
            )
        while True:
            as_of = MIN_INSTANT
            tails = []
            for _, frame, records in opened:
                tail = [record for record in records if record[1] < t]
                tail.sort(key=_START)
                tails.append(tail)
                as_of = max(as_of, frame.newest, *[record[2] for record in tail])
            if as_of < t:
                break
            if exact_time:
                raise self.past(t, as_of)
            t = as_of + 1
        values: list[Any] = [None] * len(self.layout.features)
        try:
            for part, (blob, frame, _), tail in zip(self.parts, opened, tails, strict=True):
                part.read(values, blob, frame, tail, t)
        except (ArithmeticError, ValueError) as error:
            if isinstance(error, CodecError):
                raise
            raise CodecError(f"view {self.layout.view}: a blob's numbers are no partials: {error}.") from error
        return ViewValues(tuple(values), known=True, as_of=None if as_of == MIN_INSTANT else as_of)

    def past(self, t: Instant, newest: Instant) -> PastLookupError:
        """Return the refusal of a time that is not after the newest merged event."""
        return PastLookupError(
            f"view {self.layout.view}: time {format_instant(t)} is not after the newest applied event, "
            f"{format_instant(newest)}.",
            hint="the online store answers for now; ask a training set for the past.",
        )


@dataclass(frozen=True, slots=True)
class _Member:
    """A feature, and where its partial lies in a row of its ladder and in a record; the measure tells partials apart."""

    feature: int
    aggregate: Aggregate
    measure: int
    in_row: slice
    in_record: slice


class _PartReader:
    """Reads the blobs of one part."""

    def __init__(self, layout: ViewLayout, part: Part) -> None:
        self.part = part
        self._records = record_format(part)
        self._forms = [row_forms(part, is_short=is_short) for is_short in (False, True)]
        groups: dict[tuple[int, Window], list[_Member]] = {}
        for read in part.reads:
            feature, ladder = layout.features[read.feature], part.ladders[read.ladder]
            before = ladder.measures[: ladder.measures.index(read.measure)]
            begin = sum(len(part.measures[measure].slots) for measure in before)
            width = len(part.measures[read.measure].slots)
            full = 3 + part.slot_offsets[read.measure]
            in_row, in_record = slice(begin, begin + width), slice(full, full + width)
            member = _Member(read.feature, feature.aggregate, read.measure, in_row, in_record)
            groups.setdefault((read.ladder, feature.window), []).append(member)
        self._windows = [
            (
                ladder,
                part.ladders[ladder].hop or 1,
                part.ladders[ladder].is_suffix,
                window,
                [(m.feature, m.aggregate, _finish(m.aggregate, window), m.in_row, m.in_record) for m in members],
                _by_measure(part, window, members),
                # Most reads find a row and no tail: each value is then one call on the row.
                [(m.feature, m.aggregate.finalizer(m.in_row.start)) for m in members]
                if all(_finish(m.aggregate, window) is None for m in members)
                else None,
            )
            for (ladder, window), members in groups.items()
        ]

    def open(self, blob: bytes) -> tuple[bytes, Frame, list[Partial]]:
        """Return a blob, its frame and its tail records."""
        frame = parse_frame(blob, self.part)
        return blob, frame, self._records.scan(blob, frame.base_length, len(blob))

    def read(self, values: list[Any], blob: bytes, frame: Frame, tail: list[Partial], t: Instant) -> None:
        """Fill in the values of the part's features."""
        view = memoryview(blob)
        forms = self._forms[frame.is_short]
        is_fixed = self.part.is_fixed
        starts = [record[0] for record in tail]
        newest: dict[int, list[Partial]] = {}  # per measure, the merge of the newest record, of the two newest, ...
        for ladder, hop, is_suffix, window, members, measures, quick in self._windows:
            low = window.start(t)
            offset, rows = frame.ladders[ladder]
            if not is_suffix:
                self._read_plain(values, blob, frame, tail, t, ladder, hop, window, members)
                continue
            row = None
            if rows:
                index = 0 if low is None else bisect_left(view[offset : offset + 8 * rows].cast("q"), low // hop)
                if index < rows:
                    form, whole = forms[ladder]
                    if is_fixed:
                        words = form.words
                        row = words.unpack_from(blob, offset + 8 * rows + index * words.size)
                        row = row if whole is None else whole(row)
                    else:
                        row = wide_row(form, blob, offset, rows, index)
            covered = len(tail) if low is None else len(tail) - bisect_left(starts, low)
            if row is not None and not covered and quick is not None:
                for feature, finalize in quick:
                    values[feature] = finalize(row)
                continue
            for measure, merge, empty, counts, in_row, in_record, readers in measures:
                partial: Partial = empty if row is None else row[in_row]
                if covered:
                    merged = newest.setdefault(measure, [])
                    while len(merged) < covered:
                        older = tail[-1 - len(merged)][in_record]
                        merged.append(merge(merged[-1], older) if merged else older)
                    partial = merge(partial, merged[covered - 1])
                    if counts and not (min(partial) >= MIN_INSTANT and max(partial) <= MAX_INSTANT):
                        raise CodecError(f"view {self.part.view}: counts add up to {partial}, beyond int64.")
                for feature, finalize, finish in readers:
                    values[feature] = finalize(partial) if finish is None else finish(partial, t)

    def _read_plain(
        self,
        values: list[Any],
        blob: bytes,
        frame: Frame,
        tail: list[Partial],
        t: Instant,
        ladder: int,
        hop: int,
        window: Window,
        members: list[tuple[int, Aggregate, Callable[..., Any] | None, slice, slice]],
    ) -> None:
        """Fill in the features of a window that ends before t: rows with start <= hop < end, and records in range."""
        low, high = window.start(t), window.end(t)
        offset, rows = frame.ladders[ladder]
        hops = memoryview(blob)[offset : offset + 8 * rows].cast("q")
        first = 0 if low is None else bisect_left(hops, low // hop)
        last = bisect_left(hops, high // hop)  # end(t) lies on the ladder's grid, so no row straddles it
        form, whole = self._forms[frame.is_short][ladder]
        covered = [record for record in tail if (low is None or record[0] >= low) and record[0] < high]
        is_fixed = self.part.is_fixed
        many = is_fixed and last - first >= _MANY
        picked: list[Partial] = []
        columns: tuple[np.ndarray, ...] = ()
        at = offset + 8 * rows
        if many:
            columns = form.decode([blob[at + first * form.words.size : at + last * form.words.size]])
            columns = columns if whole is None else whole(columns)
        elif is_fixed:
            picked = [form.words.unpack_from(blob, at + index * form.words.size) for index in range(first, last)]
            picked = picked if whole is None else [*map(whole, picked)]
        else:
            picked = [wide_row(form, blob, offset, rows, index) for index in range(first, last)]
        start = np.zeros(1, dtype=np.int64)
        for feature, aggregate, finish, in_row, in_record in members:
            partial = partial_at(reduce_groups(aggregate, columns[in_row], start), 0) if many else aggregate.empty()
            for row in picked:
                partial = aggregate.merge(partial, row[in_row])
            for record in covered:
                partial = aggregate.merge(partial, record[in_record])
            values[feature] = aggregate.finalize(partial) if finish is None else finish(partial, t)


def _by_measure(part: Part, window: Window, members: Sequence[_Member]) -> list[tuple[Any, ...]]:
    """Return per measure: its number, its merge, its empty partial, whether it is all counts, slots, and what reads it."""
    found: dict[int, list[_Member]] = {}
    for member in members:
        found.setdefault(member.measure, []).append(member)
    return [
        (
            measure,
            part.measures[measure].merge,
            part.measures[measure].empty(),
            len(part.measures[measure].added_slots) == len(part.measures[measure].slots),
            first.in_row,
            first.in_record,
            [(m.feature, m.aggregate.finalizer(0), _finish(m.aggregate, window)) for m in (first, *others)],
        )
        for measure, (first, *others) in found.items()
    ]


def _finish(aggregate: Aggregate, window: Window) -> Callable[[Partial, Instant], Any] | None:
    """Return what makes a value of a partial and a time; None where ``finalize`` does, which saves a call per feature."""
    if type(aggregate).value is Aggregate.value:
        return None
    return lambda partial, t: aggregate.value(partial, t, window)
