"""Views that compiled code reads, where numba is installed: one pass over the bytes instead of Python or numpy per value.

What it reads are views of one part whose windows end at t and whose aggregates are plain numbers (``_READS``); of those it
reads what blobs usually hold. All else is told apart here by None, and read as it always was, with the same values and errors.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra import Count, First, Last, Max, Mean, Min, SecondsSinceFirst, SecondsSinceLast, Sum
from featurestore.algebra.tiles import RECORD_SLOTS
from featurestore.datatypes import DataType
from featurestore.online import opcodes as op
from featurestore.online.codec import HEADER, counts_size, fingerprint_word, head_word, record_size
from featurestore.online.columns import Block, ViewColumns
from featurestore.online.loading import LOADING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra import Aggregate
    from featurestore.definitions.layout import ViewLayout
    from featurestore.definitions.parts import Part
    from featurestore.timeline import Instant

SWITCH = "FEATURESTORE_COMPILED"
"""The environment variable that, set to ``0``, leaves compiled code out; set to ``1``, makes the first lookup wait for it."""
_KINDS = {
    "count": (op.ADD_INTEGERS, op.ADD_INTEGERS, 0),
    "sum": (op.ADD_INTEGERS, op.ADD_DOUBLES, 0),
    "min": (op.MIN_INTEGER, op.MIN_DOUBLE, 0),
    "max": (op.MAX_INTEGER, op.MAX_DOUBLE, 0),
    "first": (op.EARLIEST, op.EARLIEST, op.MAX),
    "last": (op.LATEST, op.LATEST, op.MIN),
    "oldest": (op.EARLIEST, op.EARLIEST, op.MAX),
    "newest": (op.LATEST, op.LATEST, op.MIN),
}
"""Kind of partial, with integers and with doubles, and the first slot of the empty one."""
_READS: dict[type[Aggregate], tuple[int, int, int]] = {
    Count: (op.COPY, op.COPY, 0),
    Sum: (op.TOTAL_INTEGER, op.TOTAL_DOUBLE, 0),
    Mean: (op.MEAN_INTEGER, op.MEAN_DOUBLE, 0),
    **dict.fromkeys((Min, Max), (op.COPY, op.COPY, 1)),
    **dict.fromkeys((First, Last), (op.COPY, op.COPY, 2)),
    **dict.fromkeys((SecondsSinceFirst, SecondsSinceLast), (op.SECONDS, op.SECONDS, 0)),
}
"""What is made of it, likewise, and the slot that is copied; of these classes alone, for a subclass may make something else."""
_LONGEST = 1 << 60
_BYTES_SIZE = 33
"""Four words and a zero behind the bytes: what ``bytes`` takes where the kernel finds type, length and bytes in it."""


class CompiledView:
    """Reads one view with compiled code; make it with ``compiled``. Immutable; safe to share between threads."""

    def __init__(self, layout: ViewLayout) -> None:
        self._one: Any = None
        self._many: Any = None
        self._numbers: Any = None
        features = layout.features
        ranks = {DataType.FLOAT64: 0, DataType.BOOL: 2}
        types = [feature.aggregate.result_type for feature in features]
        places = sorted(range(len(features)), key=lambda feature: ranks.get(types[feature], 1))
        self._plan, self._plan_of_one = _planned(layout, places), _planned(layout, range(len(features)))
        self._row = Struct("=" + "".join("d" if kind == DataType.FLOAT64 else "q" for kind in types))
        self._bools = [place for place, kind in enumerate(types) if kind == DataType.BOOL]
        self._scratch = np.empty(op.scratch_words(*self._plan[[op.LADDERS, op.WINDOWS]].tolist()), dtype=np.int64)
        kinds = [types[feature] for feature in places]
        self._count = len(places)
        self._doubles = kinds.count(DataType.FLOAT64)
        ends = (0, self._doubles, self._count - len(self._bools), self._count)
        kinds_of = (DataType.FLOAT64, DataType.INT64, DataType.BOOL)
        self._blocks = [
            (np.array(places[low:high]), low, high, kind)
            for low, high, kind in zip(ends, ends[1:], kinds_of, strict=False)
            if low < high
        ]
        self._ends, self._places = np.array(ends[1:3]), np.array(places)

    def is_there(self) -> bool:
        """Whether the code is loaded; until it is, nothing is plain."""
        code = LOADING.code
        if code is None:
            return False
        self._numbers, self._many, self._one = code.read_numbers, code.read_many, code.read_one
        return True

    def read(self, blob: bytes, t: Instant, *, exact_time: bool) -> tuple[tuple[Any, ...], Instant] | None:
        """Return the values of one key and its newest event time, ``MIN_INSTANT`` without; None when it is not plain."""
        if self._one is None and not self.is_there():
            return None
        made = bytes(16 * self._count)  # the kernel writes into it; nobody else has it yet
        status, as_of, nulls = self._one(id(blob), t, exact_time, self._plan_of_one, id(made), self._scratch)
        if status != op.OK:
            return None
        row = self._row.unpack_from(made)
        if nulls or self._bools:
            values = [*row]
            for place in self._bools:
                values[place] = bool(values[place])
            if nulls:
                there = made[8 * self._count :: 8]
                values = [value if is_there else None for value, is_there in zip(values, there, strict=True)]
            row = tuple(values)
        return row, as_of

    def columns(
        self, blobs: Sequence[bytes | None], t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> ViewColumns | None:
        """Return what ``BatchReader.columns`` does, or None when a blob is not plain."""
        if self._one is None and not self.is_there():
            return None
        keys = len(blobs)
        times = np.array([t] if isinstance(t, int) else t, dtype=np.int64)
        out, about = np.empty((self._count, keys), dtype=np.int64), np.empty((2, keys), dtype=np.int64)
        valid = np.empty((self._count + 1, keys), dtype=bool)
        flat = out.reshape(-1), valid.reshape(-1), about.reshape(-1)
        if self._many(_places(blobs), times, exact_time, self._plan, *flat, self._scratch) != op.OK:
            return None
        blocks = []
        for features, low, high, kind in self._blocks:
            values = out[low:high].view(np.float64) if kind == DataType.FLOAT64 else out[low:high]
            blocks.append(Block(features, values != 0 if kind == DataType.BOOL else values, valid[low:high]))
        return ViewColumns(blocks, valid[-1], about[0])

    def numbers(
        self,
        blobs: Sequence[bytes | None],
        t: Instant,
        numbers: np.ndarray,
        nulls: np.ndarray,
        *,
        first: int,
        exact_time: bool,
    ) -> bool:
        """Read many keys as float32, null as NaN; return False when one has no record or is not plain.

        Args:
            blobs: Of every key.
            t: The time of the lookup.
            numbers: Gets the values; shape (keys, any), those of this view from column ``first`` on.
            nulls: Of every key, how many values are null is added to it.
            first: See ``numbers``.
            exact_time: See ``ViewReader.read``.
        """
        if self._one is None and not self.is_there():
            return False
        places = self._places + first if first else self._places
        status = self._numbers(
            _places(blobs),
            t,
            exact_time,
            self._plan,
            places,
            self._ends,
            numbers.shape[1],
            numbers.reshape(-1),
            nulls,
            self._scratch,
        )
        return bool(status == op.OK)


def _places(blobs: Sequence[bytes | None]) -> np.ndarray:
    """Return where in memory the blobs are, as the kernel wants them: joining them would copy everything once more."""
    return np.fromiter(map(id, blobs), dtype=np.int64, count=len(blobs))


def compiled(layout: ViewLayout) -> CompiledView | None:
    """Return the compiled reading of a view; None where there is none, or it is switched off.

    The code may still be loading, in a thread beside; where the switch is ``1`` it is waited for.
    """
    switch = os.environ.get(SWITCH)
    if switch == "0" or not serves(layout) or find_spec("numba") is None or bytes.__basicsize__ != _BYTES_SIZE:
        return None
    LOADING.begin()
    found = CompiledView(layout)
    if switch == "1":
        LOADING.wait()
        return found if found.is_there() else None
    return found


def serves(layout: ViewLayout) -> bool:
    """Return whether compiled code can read a view."""
    if len(layout.parts) != 1 or not layout.parts[0].is_fixed:
        return False
    part = layout.parts[0]
    return (
        all(ladder.is_suffix and (ladder.reach or 0) < _LONGEST for ladder in part.ladders)
        and all(measure.partial_kind in _KINDS for measure in part.measures)
        and all(type(feature.aggregate) in _READS for feature in layout.features)
        and len(part.reads) == len(layout.features) > 0
    )


def _is_double(aggregate: Aggregate) -> int:
    return int("f8" in aggregate.slots)


def _planned(layout: ViewLayout, places: Sequence[int]) -> np.ndarray:
    """Return the view as the kernel takes it (``opcodes``), whose values are the features in this order."""
    part = layout.parts[0]
    asked = {(read.ladder, layout.features[read.feature].window) for read in part.reads}
    nearest = sorted(asked, key=lambda each: (each[1].length is None, (each[1].length or 0) + each[1].delay, each[0]))
    windows = {each: number for number, each in enumerate(nearest)}  # so that each covers the records of the one before
    cells: dict[int, dict[int, tuple[int, int, list[int]]]] = {}
    for read in part.reads:
        window = windows[read.ladder, layout.features[read.feature].window]
        in_row = _before(part, part.ladders[read.ladder].measures, read.measure)
        cells.setdefault(read.measure, {}).setdefault(window, (read.ladder, in_row, []))[2].append(read.feature)
    place_of = {feature: place for place, feature in enumerate(places)}

    head = [
        head_word(part),
        fingerprint_word(part),
        (HEADER.size + counts_size(len(part.ladders))) // 8,
        record_size(part) // 8,
        len(part.ladders),
        len(windows),
        len(cells),
        id(bytes),
        id(None),
    ]
    plan = head + [size // 8 for size in (*part.row_sizes, *part.short_sizes)]
    for ladder, span in windows:
        plan += [ladder, part.ladders[ladder].hop or 1, span.delay + (span.length or 0)]
        plan.append(0 if span.length is None else span.hop or 1)
    cell_at = len(plan) + op.MEASURE * len(cells)
    read_at = cell_at + op.CELL * sum(map(len, cells.values()))
    cell_words: list[int] = []
    read_words: list[int] = []
    for measure, mine in cells.items():
        begin = cell_at + len(cell_words)
        one = part.measures[measure]
        *kinds, empty = _KINDS[one.partial_kind]
        for window, (ladder, in_row, features) in sorted(mine.items()):
            first = read_at + len(read_words)
            for feature in features:
                aggregate = layout.features[feature].aggregate
                reads = _READS[type(aggregate)]
                null = -1 if type(aggregate) is Count else empty  # no count is null
                read_words += [reads[_is_double(aggregate)], place_of[feature], null, reads[2]]
            first_slot, *others = part.short_places[ladder][in_row : in_row + len(one.slots)]
            cell_words += [window, in_row, first, read_at + len(read_words)]
            cell_words += [first_slot, others[0] - 1 if others else first_slot]
        in_record = len(RECORD_SLOTS) + part.slot_offsets[measure]
        plan += [kinds[_is_double(one)], in_record, begin, cell_at + len(cell_words)]
        plan += [*(slot if slot < len(one.slots) else 0 for slot in (1, 2)), empty]
    return np.array(plan + cell_words + read_words, dtype=np.int64)


def _before(part: Part, held: Sequence[int], measure: int) -> int:
    """Return where a measure's partial begins in a row of the measures ``held``."""
    return sum(len(part.measures[each].slots) for each in held[: held.index(measure)])
