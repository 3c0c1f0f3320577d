"""Min and Max. Not invertible: nothing can be taken out of an extreme again, so no ``subtract`` exists to be misused.

NaN is the greatest of all numbers, as in Spark SQL: Max is NaN as soon as one NaN counted, Min only when all were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import ORDERED, Aggregate

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Columns, EventOrder, Partial
    from featurestore.datatypes import DataType


@dataclass(frozen=True, repr=False)
class _Extreme(Aggregate):
    accepts: ClassVar[frozenset[DataType]] = ORDERED

    @property
    def slots(self) -> tuple[str, ...]:
        """(n, value)."""
        return ("i8", "i8") if self.is_integer else ("i8", "f8")

    @property
    def result_type(self) -> DataType:
        """The type of the input."""
        assert self.value_type is not None  # noqa: S101 - bound by the view
        return self.value_type

    def empty(self) -> Partial:
        """Return no events."""
        return (0, 0) if self.is_integer else (0, 0.0)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        if value is None:
            return self.empty()
        return (1, int(value)) if self.is_integer else (1, float(value))

    def first_wins(self, x: Any, y: Any) -> bool:
        """Whether ``x`` is the one to keep."""
        raise NotImplementedError

    def extreme(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the one to keep of every pair."""
        raise NotImplementedError

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the extreme of both."""
        if not a[0]:
            return b
        if not b[0]:
            return a
        return (a[0] + b[0], a[1] if self.first_wins(a[1], b[1]) else b[1])

    def finalize(self, partial: Partial) -> Any:
        """Return the extreme, or None without values."""
        if not partial[0]:
            return None
        return bool(partial[1]) if self.value_type == "bool" else partial[1]

    def prepare_columns(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        event_time: np.ndarray,
        sequence: np.ndarray,
    ) -> Columns:
        """Return one value per valid row."""
        kind = np.int64 if self.is_integer else np.float64
        return valid.astype(np.int64), np.where(valid, values, 0).astype(kind)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the extremes."""
        chosen = np.where(a[0] == 0, b[1], np.where(b[0] == 0, a[1], self.extreme(a[1], b[1])))
        return a[0] + b[0], chosen

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the extremes; null without values."""
        return partial[1], partial[0] > 0


@dataclass(frozen=True, repr=False)
class Min(_Extreme):
    """The smallest value; NaN only when every value is NaN. Null when no value counted."""

    partial_kind: ClassVar[str] = "min"

    def first_wins(self, x: Any, y: Any) -> bool:
        """Whether x is the smaller; a NaN (unequal to itself) loses."""
        return bool(x <= y or y != y)  # noqa: PLR0124

    def extreme(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the smaller of every pair, NaN last."""
        return np.asarray(np.fmin(x, y))


@dataclass(frozen=True, repr=False)
class Max(_Extreme):
    """The largest value; NaN as soon as one value is NaN. Null when no value counted."""

    partial_kind: ClassVar[str] = "max"

    def first_wins(self, x: Any, y: Any) -> bool:
        """Whether x is the larger; a NaN wins."""
        return bool(x >= y or x != x)  # noqa: PLR0124

    def extreme(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the larger of every pair, NaN first."""
        return np.asarray(np.maximum(x, y))
