"""FirstK, LastK, MinK and MaxK: the few values that come first in some order. Exact, and the same however they are merged.

Bytes, little-endian, the values that come first standing first:

    numbers, FirstK and LastK   k rows of (event time i8, sequence i8, value i8 or f8)
    numbers, MinK and MaxK      k rows of (value i8 or f8)
    texts, FirstK and LastK     k times event time i8, sequence i8, length u4, UTF-8
    texts, MinK and MaxK        k times length u4, UTF-8

A row outside the first k of a part is never among the first k of the whole, so keeping k is enough (and with ``distinct``,
the k values whose best events come first).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import ORDERED
from featurestore.algebra.packed import (
    Packed,
    Records,
    ascending,
    check_number,
    first_of_groups,
    read_texts,
    text_record,
    values_of_words,
    words_of_values,
)
from featurestore.algebra.values import decode_text
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder

_ORDER = struct.Struct("<qq")
_ROW = struct.Struct("<qqq")
_EVENT = np.dtype([("event_time", "<i8"), ("sequence", "<i8"), ("value", "<i8")])
_VALUE = np.dtype([("value", "<i8")])


@dataclass(frozen=True, repr=False)
class _Several(Records):
    k: int = 10

    accepts: ClassVar[frozenset[DataType]] = ORDERED | {DataType.STRING}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "k", 1, 1000)

    @property
    def result_type(self) -> DataType:
        """A list of the input's type."""
        assert self.value_type is not None  # noqa: S101 - bound by the view
        return DataType.list_of(self.value_type)

    @property
    def is_text(self) -> bool:
        """Whether the values are texts, whose records have no fixed length."""
        return self.value_type == DataType.STRING

    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return one value."""
        times = np.array([at[0]], dtype=np.int64), np.array([at[1]], dtype=np.int64)
        return self.pack_many([value], *times)[0]

    def merge_groups(self, columns: Columns, starts: np.ndarray) -> Columns:
        """Return the first k of every group."""
        return Packed.merge_groups(self, columns, starts) if self.is_text else super().merge_groups(columns, starts)


@dataclass(frozen=True, repr=False)
class _InOrder(_Several):
    distinct: bool = False

    newest_first: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.distinct, bool):
            raise DefinitionError(f"{type(self).__name__}: distinct is {self.distinct!r}, allowed are True and False.")

    @property
    def record(self) -> np.dtype[Any]:
        """(event time, sequence, value)."""
        return _EVENT

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return one row per value."""
        if self.is_text:
            orders = zip(event_time.tolist(), sequence.tolist(), strict=True)
            return [_ORDER.pack(*at) + text_record(v.encode()) for v, at in zip(values, orders, strict=True)]
        rows = np.empty(len(values), dtype=_EVENT)
        rows["event_time"], rows["sequence"] = event_time, sequence
        rows["value"] = words_of_values(np.asarray(values), self.value_type)
        data = rows.tobytes()
        return [data[at : at + _EVENT.itemsize] for at in range(0, len(data), _EVENT.itemsize)]

    def select(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return the first k rows of every group; of equal values only the first when they have to be distinct."""
        sign = -1 if self.newest_first else 1  # ~x turns an order around without overflow, -x would not
        time, sequence = (rows[name] if sign > 0 else ~rows[name] for name in ("event_time", "sequence"))
        order = np.lexsort((rows["value"], sequence, time, group))
        if self.distinct:
            by_value = order[np.lexsort((np.arange(len(order)), rows["value"][order], group[order]))]
            value, of_group = rows["value"][by_value], group[by_value]
            fresh = np.ones(len(by_value), dtype=bool)
            fresh[1:] = (value[1:] != value[:-1]) | (of_group[1:] != of_group[:-1])
            keep = np.zeros(len(order), dtype=bool)
            keep[by_value[fresh]] = True
            order = order[keep[order]]
        return np.asarray(order[first_of_groups(group[order], self.k)])

    def events_of(self, data: bytes) -> list[tuple[int, int, Any]]:
        """Return (event time, sequence, value) of every record, the value as a word or as UTF-8."""
        if not self.is_text:
            return list(_ROW.iter_unpack(self.check_length(data)))
        return [(*_ORDER.unpack(header), text) for header, text in read_texts(self, data, _ORDER.size)]

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the first k of all parts."""
        events = [event for part in parts for event in self.events_of(part)]
        events.sort(key=(lambda e: (~e[0], ~e[1], e[2])) if self.newest_first else None)
        if self.distinct:
            seen: dict[Any, tuple[int, int, Any]] = {}
            for event in events:
                seen.setdefault(event[2], event)
            events = list(seen.values())
        if self.is_text:
            return b"".join(_ORDER.pack(at, nth) + text_record(text) for at, nth, text in events[: self.k])
        return b"".join(_ROW.pack(*event) for event in events[: self.k])

    def read(self, data: bytes) -> list[Any]:
        """Return the values, first to k-th."""
        kept = [value for _, _, value in self.events_of(data)]
        if self.is_text:
            return list(map(decode_text, kept))
        return values_of_words(np.array(kept, dtype=np.int64), self.value_type)


@dataclass(frozen=True, repr=False)
class FirstK(_InOrder):
    """The values of the k oldest events whose value is not null, oldest first. Null when there is none.

    Fewer than k events give a shorter list. Events at the same instant are told apart by source partition and offset.
    NaN is a value.

    Args:
        k: How many, 1 to 1000.
        distinct: Of equal values only the first event counts; NaN equals NaN.

    >>> from featurestore.algebra import EventOrder, FirstK
    >>> from featurestore.datatypes import DataType
    >>> first = FirstK("amount", 2).bind(DataType.INT64)
    >>> parts = [first.prepare(value, EventOrder(time, 0)) for time, value in ((30, 7), (10, 5), (20, 5))]
    >>> first.finalize(first.merge(parts[0], first.merge(parts[1], parts[2])))
    [5, 5]
    """

    partial_kind: ClassVar[str] = "first_k"
    newest_first: ClassVar[bool] = False


@dataclass(frozen=True, repr=False)
class LastK(_InOrder):
    """The values of the k newest events whose value is not null, newest first. Null when there is none.

    Fewer than k events give a shorter list. Events at the same instant are told apart by source partition and offset.
    NaN is a value.

    Args:
        k: How many, 1 to 1000.
        distinct: Of equal values only the last event counts; NaN equals NaN.

    >>> from featurestore.algebra import EventOrder, LastK
    >>> from featurestore.datatypes import DataType
    >>> last = LastK("country", 2, distinct=True).bind(DataType.STRING)
    >>> parts = [last.prepare(value, EventOrder(time, 0)) for time, value in ((30, "ch"), (10, "de"), (20, "ch"))]
    >>> last.finalize(last.merge(parts[0], last.merge(parts[1], parts[2])))
    ['ch', 'de']
    """

    partial_kind: ClassVar[str] = "last_k"
    newest_first: ClassVar[bool] = True


@dataclass(frozen=True, repr=False)
class _BySize(_Several):
    largest_first: ClassVar[bool]

    @property
    def record(self) -> np.dtype[Any]:
        """(value,)."""
        return _VALUE

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return the values as words or texts."""
        if self.is_text:
            return [text_record(value.encode()) for value in values]
        data = words_of_values(np.asarray(values), self.value_type).tobytes()
        return [data[at : at + 8] for at in range(0, len(data), 8)]

    def select(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return the k smallest, or largest, of every group."""
        size = ascending(rows["value"], self.value_type)
        order = np.lexsort((~size if self.largest_first else size, group))
        return np.asarray(order[first_of_groups(group[order], self.k)])

    def kept(self, data: bytes) -> list[Any]:
        """Return the values; texts as UTF-8."""
        if self.is_text:
            return [text for _, text in read_texts(self, data)]
        return list(struct.unpack(f"<{len(data) // 8}{self.code}", self.check_length(data)))

    @property
    def code(self) -> str:
        """How ``struct`` calls a value."""
        return "d" if self.value_type == DataType.FLOAT64 else "q"

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the k smallest, or largest."""
        values = [value for part in parts for value in self.kept(part)]
        values.sort(key=_nan_last if self.value_type == DataType.FLOAT64 else None, reverse=self.largest_first)
        first = values[: self.k]
        return b"".join(map(text_record, first)) if self.is_text else struct.pack(f"<{len(first)}{self.code}", *first)

    def read(self, data: bytes) -> list[Any]:
        """Return the values, first to k-th."""
        kept = self.kept(data)
        if self.is_text:
            return list(map(decode_text, kept))
        return [value != 0 for value in kept] if self.value_type == DataType.BOOL else kept


def _nan_last(value: float) -> tuple[bool, float]:
    return (value != value, value)  # noqa: PLR0124 - NaN is unequal to itself


@dataclass(frozen=True, repr=False)
class MinK(_BySize):
    """The k smallest values, ascending; equal values each count. Null when no value counted.

    NaN is greater than all numbers, so it stands last. Texts are in the order of their code points, which is the order of
    their UTF-8 bytes.

    Args:
        k: How many, 1 to 1000.

    >>> from featurestore.algebra import MinK
    >>> from featurestore.datatypes import DataType
    >>> smallest = MinK("amount", 2).bind(DataType.FLOAT64)
    >>> parts = [smallest.prepare(value, (0, 0)) for value in (3.0, float("nan"), 1.5)]
    >>> smallest.finalize(smallest.merge(parts[0], smallest.merge(parts[1], parts[2])))
    [1.5, 3.0]
    """

    partial_kind: ClassVar[str] = "min_k"
    largest_first: ClassVar[bool] = False


@dataclass(frozen=True, repr=False)
class MaxK(_BySize):
    """The k largest values, descending; equal values each count. Null when no value counted.

    NaN is greater than all numbers, so it stands first. Texts are in the order of their code points, which is the order of
    their UTF-8 bytes.

    Args:
        k: How many, 1 to 1000.

    >>> from featurestore.algebra import MaxK
    >>> from featurestore.datatypes import DataType
    >>> largest = MaxK("country", 2).bind(DataType.STRING)
    >>> parts = [largest.prepare(value, (0, 0)) for value in ("de", "ch", "de")]
    >>> largest.finalize(largest.merge(parts[0], largest.merge(parts[1], parts[2])))
    ['de', 'de']
    """

    partial_kind: ClassVar[str] = "max_k"
    largest_first: ClassVar[bool] = True
