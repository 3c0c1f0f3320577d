"""TopItems: the most frequent values, about. A Misra-Gries summary (1982) in DataSketches' frequent-items bytes.

A partial counts up to ``capacity`` values. When a merge has more, the (capacity + 1)-th greatest count is taken off all of
them and those with nothing left are dropped (Agarwal et al., Mergeable Summaries, 2012, section 3). Every time that
happens, at least capacity + 1 times as many events are taken off as the *offset* grows, so no count is ever too low by
more than n / (capacity + 1), and none is too high.

DataSketches takes off the median of a sample instead, whenever its table is full: the same bytes, the same reading of them
(a count is a lower bound, count + offset an upper one), a weaker bound, and a result that depends on the table's order.

Bytes (DataSketches FrequentItems, serial version 1; little-endian):

    04 01 0a lgM lgC 00 00 00, values held u4, 0 u4, n u8, offset u8, a count u8 for each value, the values ascending:
    int64 as i8, texts as length u4 and UTF-8
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from featurestore.algebra.packed import Packed, broken, check_number, read_texts, text_record
from featurestore.algebra.values import decode_text
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.algebra.aggregate import EventOrder

_NULLS = 8
"""Spark appends its count of nulls, 8 bytes, which is read over: nulls do not count here."""
_HEADER = struct.Struct("<8BIIQQ")


class Counts(NamedTuple):
    """n events; the count of every value held is too low by at most ``offset``. Texts are UTF-8."""

    n: int
    offset: int
    counts: Mapping[Any, int]


@dataclass(frozen=True, repr=False)
class TopItems(Packed):
    """The k most frequent values, most frequent first, ties in ascending order of the value. Null when there is none.

    While no more than ``capacity`` different values were seen, this is exact. Beyond that a count may be too low by at
    most n / (capacity + 1), n being the number of values that counted: every value more frequent than that is found, and
    a value can only stand before a truly more frequent one when their counts differ by no more than that. Two paths that
    merged the events in different groups may then differ within it.

    The bytes can be read by DataSketches (``frequent_strings_sketch``, ``frequent_items_sketch`` with ``PyLongsSerDe``).
    Spark's ``approx_top_k_accumulate`` keeps such bytes, followed by its count of nulls (8 bytes, read over here), in the first
    field of a struct; ``approx_top_k_estimate`` reads these bytes when they are put into one and 8 zeros behind them.

    Args:
        k: How many values, 1 to ``capacity``.
        capacity: How many values a partial counts, 1 to 10,000. It takes up to 16 bytes for each (texts: 12 and the text).

    >>> from featurestore.algebra import TopItems
    >>> from featurestore.datatypes import DataType
    >>> top = TopItems("country", 2).bind(DataType.STRING)
    >>> parts = [top.prepare(value, (0, 0)) for value in ("de", "ch", "de")]
    >>> top.finalize(top.merge(parts[0], top.merge(parts[1], parts[2])))
    ['de', 'ch']
    """

    k: int = 10
    capacity: int = 256

    accepts: ClassVar[frozenset[DataType]] = frozenset({DataType.INT64, DataType.STRING})
    partial_kind: ClassVar[str] = "top_items"
    finalize_only: ClassVar[frozenset[str]] = frozenset({"k"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "k", 1, 10_000)
        check_number(self, "capacity", 1, 10_000)
        if self.k > self.capacity:
            raise DefinitionError(
                f"TopItems: k is {self.k}, allowed is at most the capacity, {self.capacity}.",
                hint="a capacity of ten times k is a good start.",
            )

    @property
    def result_type(self) -> DataType:
        """A list of the input's type."""
        return DataType.LIST_STRING if self.is_text else DataType.LIST_INT64

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return self.value_type == DataType.STRING

    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return one value."""
        return self.pack_many([value], np.zeros(1, np.int64), np.zeros(1, np.int64))[0]

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return a count of one for every value."""
        head = self.one_head
        if self.is_text:
            return [head + text_record(value.encode()) for value in values]
        return [head + value.to_bytes(8, "little", signed=True) for value in values]

    @property
    def one_head(self) -> bytes:
        """What stands before the value of one event."""
        return self.header(1, 1, 0) + (1).to_bytes(8, "little")

    def header(self, held: int, n: int, offset: int) -> bytes:
        """Return what stands before the counts."""
        most, now = (max(3, ((4 * size + 2) // 3 - 1).bit_length()) for size in (self.capacity, held))
        return _HEADER.pack(4, 1, 10, most, now, 0, 0, 0, held, 0, n, offset)

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the counts of all parts, reduced to ``capacity`` values."""
        total: Counter[Any] = Counter()
        head = self.one_head
        ones = Counter([part[len(head) :] for part in parts if part.startswith(head)])
        n, offset = ones.total(), 0
        plain = [record for record in ones if len(record) == self.size_of(record)]
        total.update(dict(zip(self.items_of(b"".join(plain), len(plain)), map(ones.get, plain), strict=True)))
        for record in ones.keys() - set(plain) if len(plain) < len(ones) else ():
            total[self.items_of(record, 1)[0]] += ones[record]
        for part in parts if n < len(parts) else ():
            if part.startswith(head):
                continue
            found = self.parse(part)
            n, offset = n + found.n, offset + found.offset
            for value, count in found.counts.items():
                total[value] += count
        if len(total) > self.capacity:
            off = sorted(total.values(), reverse=True)[self.capacity]
            offset += off
            total = Counter({value: count - off for value, count in total.items() if count > off})
        return self.write(Counts(n, offset, total))

    def size_of(self, record: bytes) -> int:
        """Return how many bytes the first value of a record takes; Spark's count of nulls may follow."""
        return 4 + int.from_bytes(record[:4], "little") if self.is_text else 8

    def parse(self, data: bytes) -> Counts:
        """Return the counts."""
        if len(data) < _HEADER.size:
            raise broken(self, f"has {len(data)} bytes, a summary has at least {_HEADER.size}")
        longs, version, family, *_, held, _, n, offset = _HEADER.unpack_from(data)
        begin = _HEADER.size + 8 * held
        if (longs, version, family) != (4, 1, 10) or len(data) < begin or max(n, offset) >> 62:
            raise broken(self, f"is no summary of frequent items: {data[:8].hex(' ')}")
        counts = struct.unpack_from(f"<{held}Q", data, _HEADER.size)
        items = self.items_of(data[begin:], held)
        if len(set(items)) != held or sum(counts) > n:
            raise broken(self, f"states {n} events of {held} values and holds {sum(counts)} of {len(set(items))}")
        return Counts(n, offset, dict(zip(items, counts, strict=True)))

    def items_of(self, data: bytes, held: int) -> Sequence[Any]:
        """Return that many values; texts as UTF-8."""
        if self.is_text:
            texts = [text for _, text in itertools.islice(read_texts(self, data), held)]
            size = 4 * held + sum(map(len, texts))
        else:
            size = 8 * held
        if len(data) - size not in {0, _NULLS}:
            raise broken(self, f"states {held} values, which {len(data)} bytes are not")
        return texts if self.is_text else struct.unpack_from(f"<{held}q", data)

    def write(self, found: Counts) -> bytes:
        """Return the bytes, values ascending."""
        items = sorted(found.counts)
        counts = struct.pack(f"<{len(items)}Q", *[found.counts[item] for item in items])
        values = b"".join(map(text_record, items)) if self.is_text else struct.pack(f"<{len(items)}q", *items)
        return self.header(len(items), found.n, found.offset) + counts + values

    def read(self, data: bytes) -> list[Any] | None:
        """Return the k values with the greatest counts."""
        counts = self.parse(data).counts
        top = sorted(counts, key=lambda value: (-counts[value], value))[: self.k]
        return [decode_text(value) for value in top] if self.is_text else top

    def within_error(self, a: Any, b: Any, values: Sequence[Any]) -> bool:
        """Return whether both lists are a top k of ``values`` when counts may be too low by n / (capacity + 1)."""
        counts = Counter(value for value in values if value is not None)
        if len(counts) <= self.capacity:
            return False
        slack = counts.total() / (self.capacity + 1)
        for result in (a or [], b or []):
            given = [counts[value] for value in result]
            others = [count for value, count in counts.items() if value not in set(result)]
            if len(set(result)) != len(result) or (min(given, default=0) < max(others, default=0) - slack and others):
                return False
            if any(later > earlier + slack for i, earlier in enumerate(given) for later in given[i:]):
                return False
        return True
