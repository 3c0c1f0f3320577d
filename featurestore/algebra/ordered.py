"""Last: aggregates that depend on order. Events are ordered by (event time, source partition, source offset)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import ORDERED, Aggregate
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Columns, EventOrder, Partial
    from featurestore.datatypes import DataType


@dataclass(frozen=True, repr=False)
class Last(Aggregate):
    """The value of the newest event whose value is not null. Null when there is none.

    Events at the same instant are told apart by source partition and offset, never by when they happened to arrive.
    """

    accepts: ClassVar[frozenset[DataType]] = ORDERED
    partial_kind: ClassVar[str] = "last"

    @property
    def slots(self) -> tuple[str, ...]:
        """(event time, sequence, value); the event time is the smallest int64 when empty."""
        return ("i8", "i8", "i8") if self.is_integer else ("i8", "i8", "f8")

    @property
    def result_type(self) -> DataType:
        """The type of the input."""
        assert self.value_type is not None  # noqa: S101 - bound by the view
        return self.value_type

    def empty(self) -> Partial:
        """Return no events."""
        return (MIN_INSTANT, 0, 0 if self.is_integer else 0.0)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        if value is None:
            return self.empty()
        return (at.event_time, at.sequence, int(value) if self.is_integer else float(value))

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the newer of both."""
        return a if (a[0], a[1]) >= (b[0], b[1]) else b

    def finalize(self, partial: Partial) -> Any:
        """Return the value, or None without one."""
        if partial[0] == MIN_INSTANT:
            return None
        return bool(partial[2]) if self.value_type == "bool" else partial[2]

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return one value per valid row."""
        kind = np.int64 if self.is_integer else np.float64
        return (
            np.where(valid, event_time, MIN_INSTANT),
            np.where(valid, sequence, 0),
            np.where(valid, values, 0).astype(kind),
        )

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the newer of every pair."""
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] >= b[1]))
        return np.where(first, a[0], b[0]), np.where(first, a[1], b[1]), np.where(first, a[2], b[2])

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the values; null without one."""
        return partial[2], partial[0] != MIN_INSTANT
