"""DistinctCount: how many different values, exactly, up to a bound.

Bytes: the different values in ascending order without repeats, one record each, or the single byte FF once there were more
than ``limit``. A record is the 8 bytes of a number (int64 little-endian; doubles by their bits) or the first 16 bytes of a
text's BLAKE2b hash (RFC 7693): a partial stays small whatever the texts are. Two different texts share a record with a
probability of 2**-128, so among 10,000 texts one is missed with probability 1.5e-31.

Passing the bound is final: a set over the limit stays over it whatever is merged, so the order of merging never shows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.packed import Records, check_number, first_of_groups, words_of_values
from featurestore.algebra.values import objects
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder

_OVER = b"\xff"
_WORD, _HASH = np.dtype("<i8"), np.dtype("S16")
_POLICIES = ("limit", "null")


@dataclass(frozen=True, repr=False)
class DistinctCount(Records):
    """The number of different values that are not null, exactly, up to ``limit``. 0 when there are none.

    0.0 and -0.0 are one value, and so are all NaN. Texts differ when their bytes do ("é" composed and decomposed are two).
    A partial takes 8 bytes per different number and 16 per different text: a bound of 10,000 means up to 160 kB per key
    and hop. For more, take ``ApproxDistinct``.

    Args:
        limit: The bound, 1 to 100,000.
        overflow: The value once there are more: "limit" gives the limit (read it as "at least"), "null" gives null.

    >>> from featurestore.algebra import DistinctCount
    >>> from featurestore.datatypes import DataType
    >>> merchants = DistinctCount("merchant").bind(DataType.STRING)
    >>> parts = [merchants.prepare(value, (0, 0)) for value in ("a", "b", "a")]
    >>> merchants.finalize(merchants.merge(parts[0], merchants.merge(parts[1], parts[2])))
    2
    """

    limit: int = 10_000
    overflow: str = "limit"

    accepts: ClassVar[frozenset[DataType]] = frozenset(
        {DataType.INT64, DataType.FLOAT64, DataType.BOOL, DataType.STRING, DataType.TIMESTAMP}
    )
    partial_kind: ClassVar[str] = "distinct_count"
    finalize_only: ClassVar[frozenset[str]] = frozenset({"overflow"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "limit", 1, 100_000)
        if self.overflow not in _POLICIES:
            raise DefinitionError(
                f"DistinctCount: overflow is {self.overflow!r}, allowed are {' and '.join(map(repr, _POLICIES))}.",
                hint="'limit' gives the limit once there are more values, 'null' gives null.",
            )

    @property
    def result_type(self) -> DataType:
        """Always int64."""
        return DataType.INT64

    @property
    def without_events(self) -> int:
        """A count: 0."""
        return 0

    @property
    def record(self) -> np.dtype[Any]:
        """A word, or a hash of 16 bytes."""
        return _HASH if self.value_type == DataType.STRING else _WORD

    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return one value."""
        return self.pack_many([value], np.zeros(1, np.int64), np.zeros(1, np.int64))[0]

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return one record per value."""
        if self.value_type == DataType.STRING:
            return [blake2b(value.encode(), digest_size=16).digest() for value in values]
        data = words_of_values(np.asarray(values), self.value_type).tobytes()
        return [data[at : at + 8] for at in range(0, len(data), 8)]

    def select(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return one row per value, up to one more than the limit."""
        order = np.lexsort((rows, group))
        value, of_group = rows[order], group[order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (value[1:] != value[:-1]) | (of_group[1:] != of_group[:-1])
        order = order[fresh]
        return np.asarray(order[first_of_groups(group[order], self.limit + 1)])

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the union."""
        if _OVER in parts:
            return _OVER
        data = self.check_length(b"".join(parts))
        if self.value_type == DataType.STRING:
            return self.bounded(b"".join(sorted({data[at : at + 16] for at in range(0, len(data), 16)})))
        values = sorted(set(struct.unpack(f"<{len(data) // 8}q", data)))
        return self.bounded(struct.pack(f"<{len(values)}q", *values))

    def merge_groups(self, columns: Columns, starts: np.ndarray) -> Columns:
        """Return the union of every group."""
        blobs = columns[0]
        over = np.fromiter((blob == _OVER for blob in blobs), bool, len(blobs))
        if over.any():
            columns = (np.where(over, objects([b""] * len(blobs)), blobs),)
        merged = super().merge_groups(columns, starts)[0]
        result = [self.bounded(data) for data in merged.tolist()]
        for group in np.unique(np.searchsorted(starts, np.flatnonzero(over), side="right") - 1).tolist():
            result[group] = _OVER
        return (objects(result),)

    def bounded(self, data: bytes) -> bytes:
        """Return the partial, or the mark of one beyond the limit."""
        return _OVER if len(data) > self.limit * self.record.itemsize else data

    def read(self, data: bytes) -> int | None:
        """Return the count."""
        if data == _OVER:
            return self.limit if self.overflow == "limit" else None
        return len(self.check_length(data)) // self.record.itemsize
