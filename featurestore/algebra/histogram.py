"""Histogram: counts of values between given edges."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import Aggregate
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Columns, EventOrder, Partial

_MOST_EDGES = 256
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, repr=False)
class Histogram(Aggregate):
    """How many values lie below, between and above ascending edges: a list of ``len(edges) + 1`` counts.

    Edges e0 < e1 < ... < ek give the counts of x < e0, e0 <= x < e1, ..., and ek <= x. Like every interval here a bin holds its
    lower edge and not its upper one, also at the last edge; the two outer bins are open, so no value is lost to the choice
    of edges. -0.0 is 0.0; infinities fall into the outer bins. NaN falls into no bin: the counts add up to the number of
    values that are not NaN. Nulls are skipped. All counts are 0 without values; the list is never null.

    Integers are compared with the edges exactly, also where they are no longer exact as doubles; false is 0, true 1.

    Partial: one i8 per count (16 to 2056 bytes: it is kept per tile and per row of the online store). Exact.

    Args:
        input: SQL row expression; int64, float64 or bool.
        where: SQL row condition; events for which it is not true do not count.
        value_type: Set when a view is defined.
        edges: 1 to 256 finite numbers, ascending.

    Raises:
        DefinitionError: The edges are not that.

    >>> from featurestore.datatypes import DataType
    >>> histogram = Histogram("amount", edges=(0, 10, 100)).bind(DataType.FLOAT64)
    >>> total = histogram.empty()
    >>> for value in (-1.0, 0.0, 9.99, 10.0, 1e6):
    ...     total = histogram.merge(total, histogram.prepare(value, None))
    >>> histogram.finalize(total)
    [1, 2, 1, 1]
    """

    edges: tuple[float, ...] = ()

    partial_kind: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        if isinstance(self.edges, str) or not hasattr(self.edges, "__iter__"):
            raise DefinitionError(f"Histogram: edges={self.edges!r} is not a list of numbers.")
        given = list(self.edges)
        if not 1 <= len(given) <= _MOST_EDGES:
            raise DefinitionError(
                f"Histogram({self.input!r}): {len(given)} edges, allowed are 1 to {_MOST_EDGES}.",
                hint="for example Histogram('amount', edges=[0, 10, 100]).",
            )
        edges = [_edge(edge) for edge in given]
        for given_edge, edge in zip(given, edges, strict=True):
            if not math.isfinite(edge):
                raise DefinitionError(f"Histogram({self.input!r}): edge {given_edge!r} is not a finite number.")
        for low, high in pairwise(edges):
            if not low < high:
                raise DefinitionError(
                    f"Histogram({self.input!r}): edge {high!r} follows {low!r}; edges must ascend.",
                    hint="sort them, without repeats.",
                )
        object.__setattr__(self, "edges", tuple(edge + 0.0 for edge in edges))  # one spelling of zero

    @cached_property
    def bounds(self) -> tuple[float, ...] | tuple[int, ...]:
        """The edges in the type of the values: for integers the smallest integer not below each edge."""
        return tuple(math.ceil(edge) for edge in self.edges) if self.is_integer else self.edges

    @property
    def slots(self) -> tuple[str, ...]:
        """One count per bin, the outer bins first and last."""
        return ("i8",) * (len(self.edges) + 1)

    @property
    def added_slots(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self.slots)))

    @property
    def result_type(self) -> DataType:
        """Always list<int64>."""
        return DataType.LIST_INT64

    def empty(self) -> Partial:
        """Return zero counts."""
        return (0,) * len(self.slots)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return a one in the value's bin."""
        if value is None or value != value:  # noqa: PLR0124 - NaN
            return self.empty()
        counts = [0] * len(self.slots)
        counts[bisect_right(self.bounds, value)] = 1
        return tuple(counts)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the counts added."""
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def finalize(self, partial: Partial) -> list[int]:
        """Return the counts."""
        return [int(count) for count in partial]

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return a one in the bin of every valid row."""
        if self.is_integer:
            within = [max(bound, _INT64_MIN) for bound in self.bounds if bound <= _INT64_MAX]
            bounds = np.array(within, dtype=np.int64)
            counted, kept = valid, np.where(valid, values, 0).astype(np.int64)
        else:
            bounds = np.array(self.bounds, dtype=np.float64)
            kept = np.where(valid, values, 0.0).astype(np.float64)
            counted = valid & ~np.isnan(kept)
        bins = np.where(counted, np.searchsorted(bounds, kept, side="right"), -1)
        return tuple((bins == i).astype(np.int64) for i in range(len(self.slots)))

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the counts added."""
        return tuple(x + y for x, y in zip(a, b, strict=True))

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts as lists; never null."""
        rows = len(partial[0])
        lists = np.empty(rows, dtype=object)
        for row, counts in enumerate(np.stack(partial, axis=1).tolist()):
            lists[row] = counts
        return lists, np.ones(rows, dtype=bool)


def _edge(edge: Any) -> float:
    """Return an edge as a double; NaN when it is none, or no double is equal to it."""
    try:
        number = float(edge)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if number == edge else math.nan
