"""What an aggregate is: a value with laws.

An aggregate turns events into *partials* and partials into a feature value. Windows, tiles, Spark and the online store are
layers over these four functions, which is why they agree:

    empty()               the partial of no events
    prepare(value, at)    the partial of one event
    merge(a, b)           the partial of two disjoint sets of events
    finalize(partial)     the feature value; None (null) when no event counted

A reader asks for ``value(partial, t, window)``. It is ``finalize(partial)``, but for the few aggregates whose value also
depends on the time of the question or the length of the window (seconds since an event, events per second).

Laws, for all partials a, b, c (tests/laws proves them for every class, ``featurestore.testing`` for yours):

    1. merge(a, merge(b, c)) == merge(merge(a, b), c)
    2. merge(a, b) == merge(b, a)
    3. merge(empty(), a) == a
    4. merge changes neither argument (partials are tuples of numbers and bytes)
    5. finalize of any split of the events, merged in any order, equals finalize of the whole
    6. the column functions give what the scalar ones give, row by row

Equality is exact for integers, counts, extremes and ordered aggregates; floating values agree within the relative
``tolerance`` and the absolute ``slack`` that the class states.

A partial is a fixed number of *slots*: a signed 8-byte integer ("i8"), a double ("f8") or bytes of any length ("b"). The
tuple in memory (int, float, bytes), the columns in numpy (int64, float64, objects that are bytes) and the row in the store
(``algebra.rows``) are the same slots in the same order. An aggregate that keeps a "b" slot raises ``CodecError`` for bytes
that it cannot have written.

The scalar functions serve the lookup and the oracle; the column functions do the same for arrays of slots, and carry the
Spark jobs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np

from featurestore.algebra.windows import Windowed, as_window
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError, FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.algebra.windows import Window
    from featurestore.timeline import Instant

Partial: TypeAlias = tuple[Any, ...]
"""One int, float or bytes per slot."""
Columns: TypeAlias = "tuple[np.ndarray, ...]"
"""One array per slot, all of one length."""


class EventOrder(NamedTuple):
    """Where an event stands among all others: by event time, then source partition, then source offset."""

    event_time: int
    sequence: int


def sequence_of(partition: int, offset: int) -> int:
    """Return partition and offset as one ordered int64 (16 bits of partition, 47 of offset)."""
    return (partition << 47) | offset


ELEMENT_BITS = 10
_PARTITIONS, _OFFSETS = 1 << 12, 1 << 41


def element_sequence(sequence: Any, position: Any) -> Any:
    """Return the place of an element of an event's array: 12 bits of partition, 41 of offset, 10 of position; of arrays too.

    Raises:
        FeatureStoreError: The partition is not below 4,096 or the offset not below 2**41.
    """
    partition, offset = sequence >> 47, sequence & ((1 << 47) - 1)
    if np.any(partition >= _PARTITIONS) or np.any(offset >= _OFFSETS):
        raise FeatureStoreError("an exploding view takes partitions below 4,096 and offsets below 2,199,023,255,552.")
    return (partition << 51) | (offset << ELEMENT_BITS) | position


def offset_of(sequence: Any, *, elements: bool = False) -> Any:
    """Return the source offset in a ``sequence_of``, or in an ``element_sequence``; of arrays too."""
    return (sequence >> ELEMENT_BITS) & (_OFFSETS - 1) if elements else sequence & ((1 << 47) - 1)


NUMBERS = frozenset({DataType.INT64, DataType.FLOAT64, DataType.BOOL})
ORDERED = NUMBERS | {DataType.TIMESTAMP}


@dataclass(frozen=True, kw_only=False)
class Aggregate(ABC):
    """Base of every aggregate.

    Args:
        input: SQL row expression over the source's columns; what is aggregated.
        where: SQL row condition; events for which it is not true do not count.
        value_type: The type of ``input``; set by ``bind`` when a view is defined.
    """

    input: str | None = None
    where: str | None = field(default=None, kw_only=True)
    value_type: DataType | None = field(default=None, kw_only=True)

    accepts: ClassVar[frozenset[DataType]] = NUMBERS
    partial_kind: ClassVar[str]
    """Aggregates of one kind, input and condition share their partials."""
    tolerance: ClassVar[float] = 0.0
    """Relative error allowed between two ways of computing one float64 value; 0 means exactly equal."""
    finalize_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how a partial is finalized, not the partial: aggregates that differ in them alone share one."""

    picks: ClassVar[int] = 0
    """What the merge of rows in ascending order of (event time, sequence) is: 1 their last row that is not empty, -1 the
    first of those; 0 is neither. Whether a row is empty is told by its first slot."""
    is_counted: ClassVar[bool] = False
    """Whether the first slot is the number of events merged: aggregates of the same events then agree in it."""

    def over(self, *windows: str | Window | Sequence[Window]) -> Windowed:
        """Return one feature per window: ``"24h"`` (sawtooth), ``"lifetime"``, a window object or a ``Series`` of them."""
        given: list[str | Window] = []
        for window in windows:
            given += window if isinstance(window, (tuple, list)) else [window]  # type: ignore[list-item]
        if not given:
            raise DefinitionError(f"{self!r}.over() needs at least one window.", hint="for example .over('1h', '24h').")
        return Windowed(self, tuple(as_window(window) for window in given))

    def check_window(self, window: Window) -> None:  # noqa: B027
        """Refuse a window over which this aggregate has no value; most have one over every window."""

    def bind(self, value_type: DataType | None) -> Self:
        """Return a copy that knows its input's type.

        Raises:
            DefinitionError: The aggregate is not defined for that type.
        """
        if self.input is not None and value_type not in self.accepts:
            allowed = ", ".join(sorted(self.accepts))
            raise DefinitionError(
                f"{self!r}: {type(self).__name__} takes {allowed}, but {self.input!r} is {value_type}.",
                hint="cast it, or use another aggregate.",
            )
        return replace(self, value_type=value_type)

    @cached_property
    def is_integer(self) -> bool:
        """Whether the input is kept in integer slots (int64, bool, timestamp)."""
        return self.value_type != DataType.FLOAT64

    @property
    def adds(self) -> bool:
        """Whether merging adds integers slot by slot, so that a difference of running totals is exact."""
        return False

    @property
    def parameters(self) -> dict[str, Any]:
        """What makes this aggregate differ from another of its class, besides input and condition."""
        own = {f.name for f in fields(Aggregate)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    @property
    def partial_identity(self) -> tuple[Any, ...]:
        """What two aggregates must agree in to share a partial."""
        kept = tuple((name, value) for name, value in self.parameters.items() if name not in self.finalize_only)
        return (self.partial_kind, self.input, self.where, self.value_type, kept)

    @property
    def is_fixed(self) -> bool:
        """Whether every partial has the same size: no "b" slot."""
        return "b" not in self.slots

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The slots of a partial: "i8", "f8" or "b" each."""

    @property
    def added_slots(self) -> tuple[int, ...]:
        """Integer slots that merging adds up: beyond int64, numpy's integers wrap where Python's grow."""
        return ()

    @property
    @abstractmethod
    def result_type(self) -> DataType:
        """The type of the feature."""

    @abstractmethod
    def empty(self) -> Partial:
        """Return the partial of no events."""

    @abstractmethod
    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return the partial of one event; a null value gives the empty partial."""

    @abstractmethod
    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the partial of both; neither argument changes."""

    @abstractmethod
    def finalize(self, partial: Partial) -> Any:
        """Return the feature value, or None when no event counted."""

    def value(self, partial: Partial, t: Instant, window: Window) -> Any:
        """Return the feature value of a window at ``t``; ``finalize`` unless it depends on the time or the window."""
        return self.finalize(partial)

    @abstractmethod
    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return ``prepare`` of every row; rows that are not ``valid`` give the empty partial.

        Args:
            values: Strings as objects, doubles as float64, everything else as int64; what stands at a null means nothing.
            valid: Which rows have a value that counts.
            event_time: Event times, int64 microseconds.
            sequence: Places among events of one time (``sequence_of``).
        """

    @abstractmethod
    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return ``merge`` of every pair of rows."""

    def merge_groups(self, columns: Columns, starts: np.ndarray) -> Columns | None:
        """Return the merge of every group of rows, if the class has a faster way than by pairs; else None.

        Args:
            columns: Rows; every group is contiguous.
            starts: The first row of every group, ascending, the first one 0.
        """
        return None

    def running_columns(self, columns: Columns) -> Columns:
        """Return in step i the merge of the steps 0 to i, one after the other; to the bit what ``merge`` gives.

        Args:
            columns: Arrays of shape (steps, rows), at least one step.
        """
        made = [tuple(column[0] for column in columns)]
        for step in range(1, len(columns[0])):
            made.append(self.merge_columns(made[-1], tuple(column[step] for column in columns)))
        return tuple(np.stack(slot) for slot in zip(*made, strict=True))

    @abstractmethod
    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the values and a mask of those that are not null; strings and lists as an array of objects."""

    def slack(self, inputs: Sequence[float]) -> float:
        """Return the absolute difference allowed between two ways of computing one float64 value, besides ``tolerance``.

        Where terms of both signs cancel, no relative error can be promised; what can be is an error relative to the terms.

        Args:
            inputs: The absolute values of the finite inputs merged.
        """
        return self.tolerance * 1e-16 * math.fsum(inputs)

    def finalizer(self, begin: int) -> Callable[[Sequence[Any]], Any]:
        """Return a function that finalizes the partial whose slots lie in a row from ``begin`` on.

        It gives what ``finalize`` gives; a lookup calls it once per feature, so it is overridden where it can be quicker.
        """
        finalize, end = self.finalize, begin + len(self.slots)
        return lambda row: finalize(tuple(row[begin:end]))

    def value_columns(self, partial: Columns, t: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return ``value`` of every row; ``t`` is one instant per row, int64."""
        return self.finalize_columns(partial)

    def within_error(self, a: Any, b: Any, values: Sequence[Any]) -> bool:
        """Return whether two unequal results may both come from these inputs: False but for sketches, which state an error.

        Args:
            a: One feature value.
            b: The other.
            values: The inputs of all events of the window, nulls as None.
        """
        return False

    def __repr__(self) -> str:
        given = [repr(self.input)] if self.input is not None else []
        given += [f"{name}={value!r}" for name, value in self.parameters.items()]
        given += [f"where={self.where!r}"] if self.where is not None else []
        return f"{type(self).__name__}({', '.join(given)})"
