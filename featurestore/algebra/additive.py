"""Count, Sum and Mean: partials that add up, slot by slot.

Integers are summed exactly: a value v is kept as hi = v >> 32 and lo = v & 0xFFFFFFFF, two sums that cannot overflow
within 2**31 events. Doubles are summed with the running error of each addition (Knuth's TwoSum, The Art of Computer
Programming 2, section 4.2.2), so the order of merging does not show above relative 1e-9 (of the sum, or 1e-25 of the sum
of the absolute values where they cancel). Infinities and NaN follow IEEE 754, and so does a sum that leaves the range of
a double on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import NUMBERS, Aggregate
from featurestore.datatypes import SCALARS, DataType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder, Partial

_LOW = 0xFFFFFFFF
_EXACT = 9007199254740992.0
"""2**53: integers below it are exact as doubles."""
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, repr=False)
class Count(Aggregate):
    """The number of events; with an input, of events where it is not null. 0 when there are none, never null.

    >>> from featurestore.algebra import Count
    >>> count = Count()
    >>> count.finalize(count.merge(count.prepare(None, None), count.empty()))
    1
    """

    accepts: ClassVar[frozenset[DataType]] = SCALARS
    partial_kind: ClassVar[str] = "count"
    is_counted: ClassVar[bool] = True

    @property
    def slots(self) -> tuple[str, ...]:
        """(n,)."""
        return ("i8",)

    @property
    def adds(self) -> bool:
        """Always."""
        return True

    @property
    def added_slots(self) -> tuple[int, ...]:
        """The count."""
        return (0,)

    @property
    def result_type(self) -> DataType:
        """Always int64."""
        return DataType.INT64

    def empty(self) -> Partial:
        """Return zero events."""
        return (0,)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one event, or none when an input is given and null."""
        return (0,) if self.input is not None and value is None else (1,)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the sum of both counts."""
        return (a[0] + b[0],)

    def finalize(self, partial: Partial) -> int:
        """Return the count."""
        return int(partial[0])

    def finalizer(self, begin: int) -> Callable[[Sequence[Any]], Any]:
        """Return the slot itself."""
        return itemgetter(begin)

    def prepare_columns(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        event_time: np.ndarray,
        sequence: np.ndarray,
    ) -> Columns:
        """Return one for every valid row."""
        return (valid.astype(np.int64),)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the sums."""
        return (a[0] + b[0],)

    def running_columns(self, columns: Columns) -> Columns:
        """Return the running sums."""
        return (np.add.accumulate(columns[0]),)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts; never null."""
        return partial[0], np.ones(len(partial[0]), dtype=bool)


@dataclass(frozen=True, repr=False)
class Sum(Aggregate):
    """The sum of a number. Integers (and booleans as 0 and 1) exactly; doubles compensated. Null when no value counted.

    A sum of integers beyond int64 saturates at its ends when it is read; the stored partial stays exact.

    >>> from featurestore.algebra import Sum
    >>> from featurestore.datatypes import DataType
    >>> total = Sum("amount").bind(DataType.FLOAT64)
    >>> parts = [total.prepare(value, (0, 0)) for value in (1e16, 1.0, -1e16)]
    >>> total.finalize(total.merge(parts[0], total.merge(parts[1], parts[2])))
    1.0
    """

    partial_kind: ClassVar[str] = "sum"
    is_counted: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-9

    @property
    def slots(self) -> tuple[str, ...]:
        """(n, hi, lo) for integers, (n, sum, error) for doubles."""
        return ("i8", "i8", "i8") if self.is_integer else ("i8", "f8", "f8")

    @property
    def adds(self) -> bool:
        """For integers; differences of floating totals would cancel digits."""
        return self.is_integer

    @property
    def added_slots(self) -> tuple[int, ...]:
        """The count, and both halves of an integer sum."""
        return (0, 1, 2) if self.is_integer else (0,)

    @property
    def result_type(self) -> DataType:
        """Int64 for integers and booleans, else float64."""
        return DataType.INT64 if self.is_integer else DataType.FLOAT64

    def empty(self) -> Partial:
        """Return no events."""
        return (0, 0, 0) if self.is_integer else (0, 0.0, 0.0)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        if value is None:
            return self.empty()
        if self.is_integer:
            return (1, int(value) >> 32, int(value) & _LOW)
        return (1, float(value), 0.0)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return both sums added, the rounding error kept apart."""
        if self.is_integer:
            return (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        x, y = a[1], b[1]
        total = x + y
        if total - total:  # NaN, as it is for NaN and infinities; 0.0 for all else
            return (a[0] + b[0], total, 0.0)
        back = total - x
        return (a[0] + b[0], total, a[2] + b[2] + ((x - (total - back)) + (y - back)))

    def total(self, partial: Partial) -> int | float:
        """Return the sum, also of no events."""
        if self.is_integer:
            return int(partial[1] << 32) + int(partial[2])
        return float(partial[1] + partial[2])

    def total_columns(self, partial: Columns) -> np.ndarray:
        """Return the sums as doubles, also of no events."""
        total: np.ndarray
        if not self.is_integer:
            total = partial[1] + partial[2]
            return total
        # lo is carried into hi first: both are then exact as doubles, and nothing cancels
        total = (partial[1] + (partial[2] >> 32)) * 4294967296.0 + (partial[2] & _LOW)
        return total

    def finalize(self, partial: Partial) -> int | float | None:
        """Return the sum, or None without values."""
        if not partial[0]:
            return None
        total = self.total(partial)
        return min(max(total, _INT64_MIN), _INT64_MAX) if self.is_integer else total

    def finalizer(self, begin: int) -> Callable[[Sequence[Any]], Any]:
        """Return the sum of doubles without a call in between."""
        if self.is_integer:
            return super().finalizer(begin)
        n, total, error = begin, begin + 1, begin + 2
        return lambda row: row[total] + row[error] if row[n] else None

    def prepare_columns(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        event_time: np.ndarray,
        sequence: np.ndarray,
    ) -> Columns:
        """Return one value per valid row."""
        n = valid.astype(np.int64)
        if self.is_integer:
            kept = np.where(valid, values, 0).astype(np.int64)
            return n, kept >> 32, kept & _LOW
        return n, np.where(valid, values, 0.0).astype(np.float64), np.zeros(len(n))

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the sums."""
        if self.is_integer:
            return a[0] + b[0], a[1] + b[1], a[2] + b[2]
        with np.errstate(invalid="ignore", over="ignore"):
            x, y = a[1], b[1]
            total = x + y
            back = total - x
            error = a[2] + b[2] + ((x - (total - back)) + (y - back))
        return a[0] + b[0], total, np.where(np.isfinite(total), error, 0.0)

    def running_columns(self, columns: Columns) -> Columns:
        """Return the running sums; of doubles, each addition's error is known once all of them are made."""
        n = np.add.accumulate(columns[0])
        if self.is_integer:
            return n, np.add.accumulate(columns[1]), np.add.accumulate(columns[2])
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.add.accumulate(columns[1])  # one after the other along the first axis, never in pairs
            x, y, after = total[:-1], columns[1][1:], total[1:]
            back = after - x
            terms = np.empty((2 * len(n) - 1, *n.shape[1:]))
            terms[0], terms[1::2], terms[2::2] = columns[2][0], columns[2][1:], (x - (after - back)) + (y - back)
            error = np.add.accumulate(terms)[::2]
        error[1:][~np.isfinite(after)] = 0.0  # and what is not finite stays so
        return n, total, error

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums; null without values."""
        if not self.is_integer:
            return partial[1] + partial[2], partial[0] > 0
        high = partial[1] + (partial[2] >> 32)
        total = (np.clip(high, -(2**31), 2**31 - 1) << 32) | (partial[2] & _LOW)
        total = np.where(high >= 2**31, _INT64_MAX, np.where(high < -(2**31), _INT64_MIN, total))
        return total, partial[0] > 0


@dataclass(frozen=True, repr=False)
class Mean(Sum):
    """The arithmetic mean, always float64; of a condition it is the share of true. Null when no value counted.

    Shares its partial with a ``Sum`` of the same input.

    >>> from featurestore.algebra import Mean
    >>> from featurestore.datatypes import DataType
    >>> share = Mean("status = 'declined'").bind(DataType.BOOL)
    >>> share.finalize(share.merge(share.prepare(True, (0, 0)), share.prepare(False, (0, 1))))
    0.5
    """

    accepts: ClassVar[frozenset[DataType]] = NUMBERS

    @property
    def result_type(self) -> DataType:
        """Always float64."""
        return DataType.FLOAT64

    def finalize(self, partial: Partial) -> float | None:
        """Return sum / n, or None without values."""
        return self.total(partial) / partial[0] if partial[0] else None

    def finalizer(self, begin: int) -> Callable[[Sequence[Any]], Any]:
        """Return the mean of doubles without a call in between."""
        if self.is_integer:
            return super().finalizer(begin)
        n, total, error = begin, begin + 1, begin + 2
        return lambda row: (row[total] + row[error]) / row[n] if row[n] else None

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return sum / n; null without values."""
        total, valid = self.total_columns(partial), partial[0] > 0
        means = total / np.maximum(partial[0], 1)
        if self.is_integer:
            # Beyond 2**53 they have been rounded already; dividing what is exact rounds once, as ``finalize`` does.
            wide = np.maximum(np.abs(total), partial[0]) >= _EXACT
            for row in np.flatnonzero(wide & valid).tolist():
                means[row] = self.total(tuple(slot.item(row) for slot in partial)) / partial[0].item(row)
        return means, valid
