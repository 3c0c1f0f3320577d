"""The laws of an aggregate, checked on given or hostile events. Usable on your own aggregates; needs no test framework.

    check_laws(Sum("amount").bind(DataType.FLOAT64))                       # hostile events of that type
    check_laws(mine, values=[1.5, None, float("nan")], times=[0, 0, 3])    # events of your own

Every law of ``algebra.aggregate`` is tried, on the scalar functions and on the column functions that Spark and the
store use. Two partials count as equal when their integer slots are equal and nothing that may follow tells them apart:
they finalize alike, alone and merged with each of the other events; bytes in a partial may differ. A value of type float64
may differ by the relative ``tolerance`` that its class states, and absolutely by its ``slack`` of the inputs (sums that
cancel); everything else is compared exactly, but for the error that a sketch states (``within_error``). NaN equals NaN, and
-0.0 equals 0.0.

Not covered: doubles whose partial sums leave the range of a double; IEEE 754 makes their result depend on the order.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra.aggregate import EventOrder
from featurestore.algebra.columns import (
    SLOT_TYPES,
    empty_columns,
    merge_ranges,
    merge_suffixes,
    partial_at,
    reduce_groups,
    take,
    to_columns,
)
from featurestore.algebra.rows import row_format
from featurestore.algebra.tiles import tile_events
from featurestore.algebra.windows import Hopping, Lifetime, Sawtooth
from featurestore.datatypes import DataType
from featurestore.errors import WindowError
from featurestore.testing.compare import values_agree
from featurestore.timeline import floor_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Aggregate, Columns, Partial

_TILE = 10
_SCALARS = {"i8": int, "f8": float, "b": bytes}
_TIMES = (-25, -11, -10, -1, 0, 0, 9, 10, 24)

HOSTILE_VALUES: dict[DataType, tuple[Any, ...]] = {
    DataType.INT64: (0, 1, -1, 7, None, 2**63 - 1, -(2**63), 2**53 + 1, -(2**32), 2**32 - 1, 2**63 - 1),
    DataType.FLOAT64: (
        0.0, -0.0, 1.5, None, -1.5, 0.1, 1e16, 1.0, -1e16, math.nan, math.inf, -math.inf, 5e-324, 1e300, -1e300, 3.3,
    ),
    DataType.BOOL: (True, False, None, True, False, False),
    DataType.TIMESTAMP: (0, -1, None, 1_700_000_000_000_000, -62_135_596_800_000_000, 253_402_300_799_999_999),
    DataType.STRING: ("", "a", None, "1", "ü", "a"),
}  # fmt: skip
"""Per input type, values on which aggregates break."""
CLOSE_VALUES: dict[DataType, tuple[tuple[Any, ...], ...]] = {
    DataType.INT64: ((2**62 + 1, 2**62 + 2, 2**62 + 4, None, 2**62 + 7, 2**62 + 2),),
    DataType.FLOAT64: (
        (1e9 + 0.25, 1e9 + 0.1, 1e9, None, 1e9 + 0.7, 1e9 - 0.3, 1e9 + 0.1),
        (1e16 + 2, 1e16 + 4, 1e16 + 2, 1e16 + 8, None, 1e16),
    ),
}
"""Values far from zero and close together, where what tells them apart is lost first; tried on their own."""


class LawViolationError(AssertionError):
    """An aggregate breaks one of its laws; the message names the law and the events."""


def check_laws(
    aggregate: Aggregate,
    values: Sequence[Any] | None = None,
    times: Sequence[int] | None = None,
    *,
    seed: int = 0,
    rounds: int = 25,
) -> None:
    """Return when every law holds for these events.

    Args:
        aggregate: Bound to its input's type.
        values: One input per event, None for null; hostile ones of the input's type when not given.
        times: One event time per event, in microseconds; ties and negative times when not given. Events at one time are
            told apart by their position in ``values``.
        seed: Chooses the times, splits and orders tried.
        rounds: How many random triples and splits are tried.

    Raises:
        LawViolationError: A law is broken.

    >>> from featurestore.algebra import Max
    >>> check_laws(Max("amount").bind(DataType.FLOAT64))
    """
    if values is None:
        values = HOSTILE_VALUES[aggregate.value_type or DataType.STRING]
        for limit in (1e20, 1.7e308):  # a NaN or a huge value would hide what the others do
            tame = [v for v in values if not isinstance(v, float) or abs(v) < limit]
            if len(tame) < len(values):
                check_laws(aggregate, tame, times and times[: len(tame)], seed=seed, rounds=rounds)
        for close in CLOSE_VALUES.get(aggregate.value_type or DataType.STRING, ()):
            check_laws(aggregate, close, times and times[: len(close)], seed=seed, rounds=rounds)
    chosen = list(values)
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    spots = [dice.choice(_TIMES) for _ in chosen] if times is None else list(times)
    orders = [EventOrder(time, sequence) for sequence, time in enumerate(spots)]
    if len(orders) != len(chosen):
        raise ValueError(f"{len(chosen)} values need as many times, got {len(orders)}")
    laws = _Laws(aggregate, chosen, orders, dice, rounds)
    laws.check_partials()
    laws.check_merge()
    laws.check_splits()
    laws.check_columns()
    laws.check_values()
    laws.check_groups()
    laws.check_tiles()


@dataclass
class _Laws:
    aggregate: Aggregate
    values: list[Any]
    orders: list[EventOrder]
    dice: random.Random
    rounds: int

    def __post_init__(self) -> None:
        self.partials: list[Partial] = [
            self.aggregate.prepare(value, at) for value, at in zip(self.values, self.orders, strict=True)
        ]
        inputs = [abs(float(v)) for v in self.values if isinstance(v, (int, float)) and math.isfinite(v)]
        self.slack = self.aggregate.slack(inputs)

    # ------------------------------------------------------------------------------------------------- equality

    def fail(self, law: str, detail: str) -> None:
        events = ", ".join(f"{v!r}@{at.event_time}" for v, at in zip(self.values, self.orders, strict=True))
        raise LawViolationError(f"{self.aggregate!r} breaks the law of {law}: {detail}; events: {events}")

    def same_value(self, a: Any, b: Any) -> bool:
        return values_agree(a, b, tolerance=self.aggregate.tolerance, slack=self.slack)

    def same_result(self, a: Any, b: Any, inputs: Sequence[Any] | None) -> bool:
        """Whether two values agree, or are both within the error that the class states for these inputs."""
        return self.same_value(a, b) or (inputs is not None and self.aggregate.within_error(a, b, inputs))

    def expect_equal(self, law: str, a: Partial, b: Partial, inputs: Sequence[Any] | None = None) -> None:
        """Compare two partials of the events whose ``inputs`` these are; None where no error is allowed."""
        finalize, merge = self.aggregate.finalize, self.aggregate.merge
        for x, y, slot in zip(a, b, self.aggregate.slots, strict=True):
            if slot == "i8" and x != y:
                self.fail(law, f"{a} is not {b}")
        if repr(a) == repr(b):  # 0.0 == -0.0, which a later merge may tell apart; their words differ
            return  # of the same numbers and bytes every function makes the same
        if not self.same_result(finalize(a), finalize(b), inputs):
            self.fail(law, f"{a} gives {finalize(a)!r}, {b} gives {finalize(b)!r}")
        for other, value in zip(self.partials, self.values, strict=True):
            x, y = finalize(merge(a, other)), finalize(merge(b, other))
            if not self.same_result(x, y, None if inputs is None else [*inputs, value]):
                self.fail(law, f"merged with {other}, {a} gives {x!r} and {b} gives {y!r}")

    def expect_rows(
        self,
        law: str,
        columns: Columns,
        partials: Sequence[Partial],
        *,
        exact: bool = False,
        inputs: Sequence[Sequence[Any]] | None = None,
    ) -> None:
        """Compare columns with partials row by row; ``exact`` compares doubles too, slot by slot.

        ``inputs`` are those of every row, where an error that the class states is allowed.
        """
        if len(columns) != len(self.aggregate.slots) or any(len(column) != len(partials) for column in columns):
            self.fail(law, f"shape {[len(c) for c in columns]} is not {len(partials)} rows of {self.aggregate.slots}")
        for column, slot in zip(columns, self.aggregate.slots, strict=True):
            if column.dtype != np.dtype(SLOT_TYPES[slot]):
                self.fail(law, f"a slot of {column.dtype}, stated is {slot}")
        for row, partial in enumerate(partials):
            got = partial_at(columns, row)
            if not exact:
                self.expect_equal(law, got, partial, None if inputs is None else inputs[row])
            elif not all(x == y or (x != x and y != y) for x, y in zip(got, partial, strict=True)):  # noqa: PLR0124
                self.fail(law, f"row {row} is {got}, not {partial}")
        results, valid = self.aggregate.finalize_columns(columns)
        for row, partial in enumerate(partials):
            got_value = results.item(row) if valid[row] else None
            if not self.same_result(
                got_value, self.aggregate.finalize(partial), None if inputs is None else inputs[row]
            ):
                self.fail(f"{law} (finalize)", f"{got_value!r} is not {self.aggregate.finalize(partial)!r}")

    def merge_all(self, partials: Sequence[Partial]) -> Partial:
        total = self.aggregate.empty()
        for partial in partials:
            total = self.aggregate.merge(total, partial)
        return total

    # ------------------------------------------------------------------------------------------------- the laws

    def check_partials(self) -> None:
        """Partials are tuples of one number or bytes per slot, and a null is no event."""
        slots = self.aggregate.slots
        for partial in [self.aggregate.empty(), *self.partials, self.merge_all(self.partials)]:
            quick = self.aggregate.finalizer(2)((None, None, *partial, None))
            if not self.same_value(quick, self.aggregate.finalize(partial)):
                self.fail("finalizer", f"{quick!r} is not {self.aggregate.finalize(partial)!r}")
            kinds = [_SCALARS[slot] for slot in slots]
            if not isinstance(partial, tuple) or [type(x) for x in partial] != kinds:
                self.fail("partials", f"{partial!r} is not a tuple of {slots}")
            try:
                row_format(slots).pack(partial)
            except struct.error:
                self.fail("partials", f"{partial!r} does not fit its slots {slots}")
        if self.aggregate.input is not None:
            for at in self.orders:
                self.expect_equal("null inputs", self.aggregate.prepare(None, at), self.aggregate.empty())

    def check_merge(self) -> None:
        """Merge is associative and commutative with an identity, and changes neither argument."""
        merge, empty = self.aggregate.merge, self.aggregate.empty
        for a in self.partials:
            self.expect_equal("identity", merge(empty(), a), a)
            self.expect_equal("identity", merge(a, empty()), a)
        if not self.partials:
            return
        for _ in range(self.rounds):
            # distinct events, as partials of disjoint sets are
            some = self.dice.sample(self.partials, min(6, len(self.partials)))
            a, b, c = self.merge_all(some[0:2]), self.merge_all(some[2:4]), self.merge_all(some[4:6])
            before = [tuple(a), tuple(b)]
            ab = merge(a, b)
            if repr([tuple(a), tuple(b)]) != repr(before):
                self.fail("immutability", f"merge changed {before} into {[a, b]}")
            self.expect_equal("commutativity", ab, merge(b, a))
            self.expect_equal("associativity", merge(ab, c), merge(a, merge(b, c)))

    def check_splits(self) -> None:
        """Any split, merged in any order and grouping, gives the whole."""
        whole = self.merge_all(self.partials)
        for _ in range(self.rounds):
            pile = self.dice.sample(self.partials, len(self.partials))
            while len(pile) > 1:
                a = pile.pop(self.dice.randrange(len(pile)))
                b = pile.pop(self.dice.randrange(len(pile)))
                pile.append(self.aggregate.merge(a, b))
            self.expect_equal("split invariance", pile[0] if pile else self.aggregate.empty(), whole, self.values)

    def columns(self) -> Columns:
        """Return ``prepare_columns`` of all events, garbage standing at the nulls."""
        kind = self.aggregate.value_type
        valid = np.array([value is not None for value in self.values], dtype=bool)
        if self.aggregate.input is None:
            valid = np.ones(len(self.values), dtype=bool)
        dtype: Any = np.float64 if kind == DataType.FLOAT64 else object if kind == DataType.STRING else np.int64
        garbage: Any = math.nan if kind == DataType.FLOAT64 else "" if kind == DataType.STRING else -77
        inputs = np.array([garbage if v is None or kind is None else v for v in self.values], dtype=dtype)
        times = np.array([at.event_time for at in self.orders], dtype=np.int64)
        sequences = np.array([at.sequence for at in self.orders], dtype=np.int64)
        return self.aggregate.prepare_columns(inputs, valid, times, sequences)

    def check_columns(self) -> None:
        """The column functions give what the scalar ones give, row by row."""
        columns = self.columns()
        self.expect_rows("columns: prepare", columns, self.partials, exact=True)
        self.expect_rows("columns: empty", empty_columns(self.aggregate, 2), [self.aggregate.empty()] * 2, exact=True)
        order = list(range(len(self.partials)))
        self.dice.shuffle(order)
        rows = np.array(order, dtype=np.int64)
        before = [column.copy() for column in columns]
        merged = self.aggregate.merge_columns(columns, take(columns, rows))
        if any(a.tobytes() != b.tobytes() for a, b in zip(before, columns, strict=True)):
            self.fail("immutability", "merge_columns changed its arguments")
        pairs = [self.aggregate.merge(a, self.partials[i]) for a, i in zip(self.partials, order, strict=True)]
        self.expect_rows("columns: merge", merged, pairs, exact=True)
        if order:
            steps = tuple(np.stack([column, column[rows]], axis=1) for column in columns)
            for lane, events in enumerate((self.partials, [self.partials[i] for i in order])):
                running = [events[0]]
                for partial in events[1:]:
                    running.append(self.aggregate.merge(running[-1], partial))
                got = tuple(np.ascontiguousarray(column[:, lane]) for column in self.aggregate.running_columns(steps))
                self.expect_rows("columns: running", got, running, exact=True)
        nothing = self.aggregate.merge_columns(columns, empty_columns(self.aggregate, len(order)))
        self.expect_rows("columns: identity", nothing, self.partials)
        form = row_format(self.aggregate.slots)
        data, offsets = form.encode(columns)
        self.expect_rows("rows", form.decode([data[:0], data]), self.partials, exact=True)
        each = [form.unpack(data, begin, len(data)) for begin in offsets[:-1].tolist()]
        self.expect_rows(
            "rows: one by one", to_columns(form.slots, [row for row, _ in each]), self.partials, exact=True
        )
        if [end for _, end in each] != offsets[1:].tolist():
            self.fail("rows", f"offsets are {offsets.tolist()}")

    def check_values(self) -> None:
        """The value at t is the same from columns and from scalars, for every t of a row of its own."""
        columns = self.columns()
        for window in (Sawtooth("40us", hop="10us"), Hopping("40us", hop="20us", delay="1us"), Lifetime()):
            try:
                self.aggregate.check_window(window)
            except WindowError:
                continue
            t = [self.dice.randrange(25, 100) for _ in self.partials]
            results, valid = self.aggregate.value_columns(columns, np.array(t, dtype=np.int64), window)
            for row, (partial, at) in enumerate(zip(self.partials, t, strict=True)):
                got, expected = results.item(row) if valid[row] else None, self.aggregate.value(partial, at, window)
                if not self.same_value(got, expected):
                    self.fail("columns: value", f"at {at} over {window.label} {got!r} is not {expected!r}")

    def check_groups(self) -> None:
        """Groups, suffixes and ranges merge what they cover and nothing else."""
        columns, rows = self.columns(), len(self.partials)
        for _ in range(max(1, self.rounds // 5)):
            inner = sorted(self.dice.sample(range(1, rows), self.dice.randrange(rows))) if rows > 1 else []
            starts = [0, *inner] if rows else []
            ends = [*starts[1:], rows] if rows else []
            spans = list(zip(starts, ends, strict=True))
            grouped = reduce_groups(self.aggregate, columns, np.array(starts, dtype=np.int64))
            inputs = [self.values[a:b] for a, b in spans]
            self.expect_rows("groups", grouped, [self.merge_all(self.partials[a:b]) for a, b in spans], inputs=inputs)
            suffixes = merge_suffixes(self.aggregate, columns, np.array(starts, dtype=np.int64))
            expected = [self.merge_all(self.partials[i:end]) for start, end in spans for i in range(start, end)]
            inputs = [self.values[i:end] for start, end in spans for i in range(start, end)]
            self.expect_rows("suffixes", suffixes, expected, inputs=inputs)
            queries = [(self.dice.randint(0, rows), self.dice.randint(0, rows)) for _ in range(10)] + [(0, rows)]
            low, high = (np.array(side, dtype=np.int64) for side in zip(*queries, strict=True))
            ranges = merge_ranges(self.aggregate, columns, low, high)
            inputs = [self.values[a:b] for a, b in queries]
            self.expect_rows("ranges", ranges, [self.merge_all(self.partials[a:b]) for a, b in queries], inputs=inputs)
        self.expect_rows("columns: prepare", columns, self.partials, exact=True)

    def check_tiles(self) -> None:
        """A tile is the merge of its events, whatever else is merged beside it."""
        keys = [self.dice.randrange(3) for _ in self.partials]
        apart = [self.dice.random() < 0.2 for _ in self.partials]
        rows = tile_events(
            [self.aggregate],
            _TILE,
            np.array(keys, dtype=np.int64),
            np.array([at.event_time for at in self.orders], dtype=np.int64),
            [self.columns()],
            apart=np.array(apart, dtype=bool),
        )
        groups: dict[tuple[int, int, int], list[int]] = {}
        for i, (key, at) in enumerate(zip(keys, self.orders, strict=True)):
            groups.setdefault((key, floor_to(at.event_time, _TILE), i if apart[i] else -1), []).append(i)
        expected = [(key, tile, members) for (key, tile, _), members in sorted(groups.items())]
        times = [[self.orders[i].event_time for i in members] for _, _, members in expected]
        told = list(zip(rows.key.tolist(), rows.tile.tolist(), rows.oldest.tolist(), rows.newest.tolist(), strict=True))
        if told != [(key, tile, min(t), max(t)) for (key, tile, _), t in zip(expected, times, strict=True)]:
            self.fail("tiles", f"(key, tile, oldest, newest) are {told}")
        merged = [self.merge_all([self.partials[i] for i in members]) for _, _, members in expected]
        inputs = [[self.values[i] for i in members] for _, _, members in expected]
        self.expect_rows("tiles", rows.columns, merged, inputs=inputs)
