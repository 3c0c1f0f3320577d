"""First and Last: aggregates that depend on order. Events are ordered by (event time, source partition, source offset).

Partial of both: event time i8 · sequence i8 · value i8 or f8 (24 bytes), or a text's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import ORDERED, Aggregate
from featurestore.algebra.values import from_slot, from_slots, no_value, slot_of, to_slot, to_slots
from featurestore.datatypes import DataType
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Columns, EventOrder, Partial
    from featurestore.timeline import Instant


@dataclass(frozen=True, repr=False)
class _Ordered(Aggregate):
    """The value of one event, the first in an order that the class chooses by ``comes_first`` and ``never``.

    Both orders are total over (event time, sequence), so merging is exact, and a tie is a tie with itself.
    """

    accepts: ClassVar[frozenset[DataType]] = ORDERED | {DataType.STRING}
    never: ClassVar[Instant]
    """The event time of no event: it comes after every other in the order."""

    @staticmethod
    def comes_first(time: Any, sequence: Any, other_time: Any, other_sequence: Any) -> Any:
        """Return whether the one is kept rather than the other; of numbers or of arrays, so without ``and`` and ``or``."""
        raise NotImplementedError

    @property
    def slots(self) -> tuple[str, ...]:
        """(event time, sequence, value); the event time is ``never`` when empty."""
        return ("i8", "i8", slot_of(self.value_type))

    @property
    def result_type(self) -> DataType:
        """The type of the input."""
        assert self.value_type is not None  # noqa: S101 - bound by the view
        return self.value_type

    def empty(self) -> Partial:
        """Return no events."""
        return (self.never, 0, no_value(self.value_type))

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        if value is None:
            return self.empty()
        return (at.event_time, at.sequence, to_slot(value, self.value_type))

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the one that comes first."""
        return a if self.comes_first(a[0], a[1], b[0], b[1]) else b

    def finalize(self, partial: Partial) -> Any:
        """Return the value, or None without one."""
        return None if partial[0] == self.never else from_slot(partial[2], self.value_type)

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return one value per valid row."""
        kept = to_slots(values, valid, self.value_type)
        return np.where(valid, event_time, self.never), np.where(valid, sequence, 0), kept

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the one that comes first of every pair."""
        first = self.comes_first(a[0], a[1], b[0], b[1])
        return tuple(np.where(first, x, y) for x, y in zip(a, b, strict=True))

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the values; null without one."""
        valid = partial[0] != self.never
        return from_slots(partial[2], valid, self.value_type), valid


@dataclass(frozen=True, repr=False)
class First(_Ordered):
    """The value of the oldest event whose value is not null. Null when there is none; NaN is a value.

    Events at the same instant are told apart by source partition and offset, never by when they happened to arrive. A late
    event that is older than the first one replaces it.

    Partial: event time i8 · sequence i8 · value i8 or f8 (24 bytes), or a text's UTF-8. Exact.

    >>> from featurestore.algebra import EventOrder
    >>> from featurestore.datatypes import DataType
    >>> first = First("amount").bind(DataType.INT64)
    >>> first.finalize(first.merge(first.prepare(7, EventOrder(20, 0)), first.prepare(5, EventOrder(10, 1))))
    5
    """

    partial_kind: ClassVar[str] = "first"
    never: ClassVar[Instant] = MAX_INSTANT
    picks: ClassVar[int] = -1

    @staticmethod
    def comes_first(time: Any, sequence: Any, other_time: Any, other_sequence: Any) -> Any:
        """Return whether the one is not newer."""
        return (time < other_time) | ((time == other_time) & (sequence <= other_sequence))


@dataclass(frozen=True, repr=False)
class Last(_Ordered):
    """The value of the newest event whose value is not null. Null when there is none; NaN is a value.

    Events at the same instant are told apart by source partition and offset, never by when they happened to arrive.

    Partial: event time i8 · sequence i8 · value i8 or f8 (24 bytes), or a text's UTF-8. Exact.

    >>> from featurestore.algebra import EventOrder
    >>> from featurestore.datatypes import DataType
    >>> last = Last("amount").bind(DataType.INT64)
    >>> last.finalize(last.merge(last.prepare(7, EventOrder(20, 0)), last.prepare(5, EventOrder(10, 1))))
    7
    """

    partial_kind: ClassVar[str] = "last"
    never: ClassVar[Instant] = MIN_INSTANT
    picks: ClassVar[int] = 1

    @staticmethod
    def comes_first(time: Any, sequence: Any, other_time: Any, other_sequence: Any) -> Any:
        """Return whether the one is not older."""
        return (time > other_time) | ((time == other_time) & (sequence >= other_sequence))
