"""Min and Max. Not invertible: nothing can be taken out of an extreme again, so no ``subtract`` exists to be misused.

NaN is the greatest of all numbers, as in Spark SQL: Max is NaN as soon as one NaN counted, Min only when all were. Texts are
in the order of their code points, which is the order of their UTF-8 bytes: "Z" < "a" < "é", whatever the language.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import ORDERED, Aggregate
from featurestore.algebra.values import from_slot, from_slots, no_value, slot_of, to_slot, to_slots
from featurestore.datatypes import DataType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder, Partial


@dataclass(frozen=True, repr=False)
class _Extreme(Aggregate):
    accepts: ClassVar[frozenset[DataType]] = ORDERED | {DataType.STRING}

    @property
    def slots(self) -> tuple[str, ...]:
        """(n, value)."""
        return ("i8", slot_of(self.value_type))

    @property
    def result_type(self) -> DataType:
        """The type of the input."""
        assert self.value_type is not None  # noqa: S101 - bound by the view
        return self.value_type

    @property
    def added_slots(self) -> tuple[int, ...]:
        """The count."""
        return (0,)

    def empty(self) -> Partial:
        """Return no events."""
        return (0, no_value(self.value_type))

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        return self.empty() if value is None else (1, to_slot(value, self.value_type))

    pick: ClassVar[np.ufunc]
    """Gives the one to keep of two integers. Of 0.0 and -0.0, which are equal, it would give either, by their places."""
    last_integer: ClassVar[int]
    """Comes after every other integer."""

    @staticmethod
    def stays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return where the first of every pair is the one that ``merge`` keeps."""
        raise NotImplementedError

    def finalize(self, partial: Partial) -> Any:
        """Return the extreme, or None without values."""
        return from_slot(partial[1], self.value_type) if partial[0] else None

    def finalizer(self, begin: int) -> Callable[[Sequence[Any]], Any]:
        """Return the extreme of numbers without a call in between."""
        if self.value_type not in (DataType.FLOAT64, DataType.INT64):
            return super().finalizer(begin)
        n, value = begin, begin + 1
        return lambda row: row[value] if row[n] else None

    def prepare_columns(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        event_time: np.ndarray,
        sequence: np.ndarray,
    ) -> Columns:
        """Return one value per valid row."""
        return valid.astype(np.int64), to_slots(values, valid, self.value_type)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the extremes."""
        is_first = (a[0] != 0) & ((b[0] == 0) | self.stays(a[1], b[1]))
        return a[0] + b[0], np.where(is_first, a[1], b[1])

    def running_columns(self, columns: Columns) -> Columns:
        """Return the running extremes."""
        if self.slots[1] != "i8":
            return super().running_columns(columns)
        n, values = columns
        total = np.add.accumulate(n)
        found = self.pick.accumulate(np.where(n == 0, self.last_integer, values))
        return total, np.where(total == 0, values, found)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the extremes; null without values."""
        valid = partial[0] > 0
        return from_slots(partial[1], valid, self.value_type), valid


@dataclass(frozen=True, repr=False)
class Min(_Extreme):
    """The smallest value; NaN only when every value is NaN. Null when no value counted.

    >>> from featurestore.algebra import Min
    >>> from featurestore.datatypes import DataType
    >>> low = Min("amount").bind(DataType.FLOAT64)
    >>> low.finalize(low.merge(low.prepare(1.0, (0, 0)), low.prepare(float("nan"), (0, 1))))
    1.0
    """

    partial_kind: ClassVar[str] = "min"
    is_counted: ClassVar[bool] = True
    pick: ClassVar[np.ufunc] = np.minimum
    last_integer: ClassVar[int] = 2**63 - 1

    @staticmethod
    def stays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return where the first is not larger, or the second a NaN."""
        kept: np.ndarray = (x <= y) | (y != y)  # noqa: PLR0124
        return kept

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the smaller of both; a NaN (unequal to itself) loses."""
        if not a[0]:
            return b
        if not b[0]:
            return a
        x, y = a[1], b[1]
        return (a[0] + b[0], x if x <= y or y != y else y)  # noqa: PLR0124


@dataclass(frozen=True, repr=False)
class Max(_Extreme):
    """The largest value; NaN as soon as one value is NaN. Null when no value counted.

    >>> from featurestore.algebra import Max
    >>> from featurestore.datatypes import DataType
    >>> high = Max("amount").bind(DataType.FLOAT64)
    >>> high.finalize(high.merge(high.prepare(1.0, (0, 0)), high.prepare(float("nan"), (0, 1))))
    nan
    """

    partial_kind: ClassVar[str] = "max"
    is_counted: ClassVar[bool] = True
    pick: ClassVar[np.ufunc] = np.maximum
    last_integer: ClassVar[int] = -(2**63)

    @staticmethod
    def stays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return where the first is not smaller, or a NaN."""
        kept: np.ndarray = (x >= y) | (x != x)  # noqa: PLR0124
        return kept

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the larger of both; a NaN wins."""
        if not a[0]:
            return b
        if not b[0]:
            return a
        x, y = a[1], b[1]
        return (a[0] + b[0], x if x >= y or x != x else y)  # noqa: PLR0124
