"""ApproxDistinct: how many different values, about. A HyperLogLog sketch (Flajolet et al., 2007) in DataSketches' bytes.

Why the order of merging never shows. A value's hash gives a *coupon*: a register address and a rank, the leading zeros plus
one. Up to a bound of different coupons the sketch is their set, after that every register keeps its greatest rank: both are
functions of the set of values alone. What does depend on the order in DataSketches is its HIP estimator (Ting, 2014), which
a sketch that was never merged uses. So a partial here is written the way DataSketches writes the result of a union: flagged
out of order, which makes every reader take the composite estimator, a function of the registers. The same set of values
gives the same bytes, and so the same estimate.

Bytes (DataSketches HLL, serial version 1, type HLL_8, compact; little-endian):

    list   02 01 07 lgK 03 08 n 08, then n < 8 coupons u4
    set    03 01 07 lgK lgN 08 00 09, n u4, then n coupons u4, at most 3/4 of 2**(lgK - 3); lgK >= 8 only
    HLL    0a 01 07 lgK 00 18 00 0a, 0.0 f8 (HIP), kxq0 f8, kxq1 f8, zero registers u4, 0 u4, 2**lgK registers of one byte

kxq0 and kxq1 sum 2**-rank over the registers, below rank 32 and from there on; both sums are exact in a double.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.murmur import hash_texts, hash_words
from featurestore.algebra.packed import Packed, broken, check_number, words_of_values
from featurestore.datatypes import DataType
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import EventOrder

_ADDRESS_BITS = 26
_ADDRESS = 2**_ADDRESS_BITS - 1
_LIST_SIZE = 8
_LIST, _SET, _HLL = 8, 9, 10
_COMPACT, _OUT_OF_ORDER = 8, 16
_WEIGHT = np.exp2(-np.arange(64.0))
_HEADER = struct.Struct("<8B")
_HLL_HEADER = struct.Struct("<8BdddII")


def coupons_of(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the coupons of hashes: 6 bits of rank above 26 bits of address."""
    top, bottom = (low >> np.uint64(32)).astype(np.float64), (low & np.uint64(0xFFFFFFFF)).astype(np.float64)
    zeros = np.where(top > 0, 32 - np.frexp(top)[1], 64 - np.frexp(bottom)[1])  # exact: 32 bits fit a double
    rank = np.minimum(zeros, 62).astype(np.uint32) + np.uint32(1)
    return (rank << np.uint32(_ADDRESS_BITS)) | (high & np.uint64(_ADDRESS)).astype(np.uint32)


@dataclass(frozen=True, repr=False)
class ApproxDistinct(Packed):
    """The number of different values that are not null, about; an int64. 0 when there are none.

    Exact up to rounding while few (about a tenth of 2**precision), then within a relative standard error of
    1.04 / 2**(precision / 2): 1.6 % for 12. The estimate depends on the set of values only, never on the order or number of
    merges. 0.0 and -0.0 are one value, and so are all NaN. **An empty text is not counted**, as in DataSketches and Spark.

    The bytes are those of DataSketches HLL_8, and Spark's functions read them: ``hll_sketch_estimate`` gives this value,
    ``hll_union`` merges them with what ``hll_sketch_agg(x, precision)`` wrote, which can be read and merged here too.
    Reading a value needs the package ``datasketches`` (``pip install 'featurestore[sketches]'``); building and merging
    partials does not.

    Args:
        precision: log2 of the number of registers, 4 to 16. A partial takes 4 bytes per different value while few, then
            40 bytes and one per register (4,136 bytes for 12).

    >>> from featurestore.algebra import ApproxDistinct
    >>> from featurestore.datatypes import DataType
    >>> merchants = ApproxDistinct("merchant").bind(DataType.STRING)
    >>> parts = [merchants.prepare(value, (0, 0)) for value in ("a", "b", "a")]
    >>> merchants.finalize(merchants.merge(parts[0], merchants.merge(parts[1], parts[2])))
    2
    """

    precision: int = 12

    accepts: ClassVar[frozenset[DataType]] = frozenset(
        {DataType.INT64, DataType.FLOAT64, DataType.BOOL, DataType.STRING, DataType.TIMESTAMP}
    )
    partial_kind: ClassVar[str] = "approx_distinct"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "precision", 4, 16)

    @property
    def result_type(self) -> DataType:
        """Always int64."""
        return DataType.INT64

    @property
    def without_events(self) -> int:
        """A count: 0."""
        return 0

    @property
    def most_coupons(self) -> int:
        """How many coupons are kept one by one before there are registers."""
        return _LIST_SIZE - 1 if self.precision < 8 else 3 * 2 ** (self.precision - 3) // 4

    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return one value."""
        return self.pack_many([value], np.zeros(1, np.int64), np.zeros(1, np.int64))[0]

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return a list of one coupon per value."""
        if self.value_type == DataType.STRING:
            texts = [value.encode() for value in values]
            coupons = coupons_of(*hash_texts(texts))
        else:
            texts = []
            coupons = coupons_of(*hash_words(words_of_values(np.asarray(values), self.value_type)))
        head, data = self.list_header(1), coupons.astype("<u4").tobytes()
        packed = [head + data[at : at + 4] for at in range(0, len(data), 4)]
        return [b"" if text == b"" else one for text, one in zip(texts, packed, strict=True)] if texts else packed

    def list_header(self, count: int) -> bytes:
        """Return the header of a list of coupons."""
        return _HEADER.pack(2, 1, 7, self.precision, 3, _COMPACT, count, _LIST)

    # ---------------------------------------------------------------------------------------------------- merging

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the union."""
        ones = [part for part in parts if len(part) == 12]
        seen = set(self.parse_ones(b"".join(ones)))
        registers = None
        for part in parts if len(ones) < len(parts) else ():
            if len(part) == 12:
                continue
            found = self.parse(part)
            if isinstance(found, tuple):
                seen.update(found)
            else:
                registers = found if registers is None else np.maximum(registers, found)
        return self.write(seen) if registers is None else self.write_registers(self.raised(registers, seen))

    def raised(self, registers: np.ndarray, seen: set[int]) -> np.ndarray:
        """Return registers that have seen the coupons too."""
        result = registers.copy()
        coupons = np.fromiter(seen, np.int64, len(seen))
        np.maximum.at(result, coupons & (2**self.precision - 1), (coupons >> _ADDRESS_BITS).astype(np.uint8))
        return result

    def parse_ones(self, data: bytes) -> tuple[int, ...]:
        """Return the coupons of lists of one coupon each."""
        words = struct.unpack(f"<{len(data) // 4}I", data)
        head, coupons = set(zip(words[0::3], words[1::3], strict=True)), words[2::3]
        if head - {struct.unpack("<2I", self.list_header(1))} or (coupons and min(coupons) >> _ADDRESS_BITS == 0):
            raise broken(self, f"of 12 bytes is no HLL_8 list of one coupon with precision {self.precision}")
        return coupons

    def parse(self, data: bytes) -> tuple[int, ...] | np.ndarray:
        """Return coupons, or registers (uint8).

        Accepts what DataSketches and Spark write too: any order of coupons, and the updatable form with its gaps of zeros.
        """
        if len(data) < 8:
            raise broken(self, f"has {len(data)} bytes, a sketch has at least 8")
        ints, version, family, precision, _, _, count, mode = _HEADER.unpack_from(data)
        if (version, family, precision) != (1, 7, self.precision) or mode not in (_LIST, _SET, _HLL):
            raise broken(self, f"is no HLL_8 sketch of precision {self.precision}: {data[:8].hex(' ')}")
        if mode == _HLL:
            if ints != 10 or len(data) != _HLL_HEADER.size + 2**precision:
                raise broken(self, f"has {len(data)} bytes, not {_HLL_HEADER.size + 2**precision}")
            registers = np.frombuffer(data, np.uint8, offset=_HLL_HEADER.size)
            if registers.max() > 63:
                raise broken(self, "has a register above 63")
            return np.asarray(registers)
        begin = 8 if mode == _LIST else 12
        if ints != (2 if mode == _LIST else 3) or len(data) % 4 or len(data) < begin:
            raise broken(self, f"of coupons has {len(data)} bytes and starts with {data[:8].hex(' ')}")
        coupons = struct.unpack_from(f"<{(len(data) - begin) // 4}I", data, begin)
        if 0 in coupons:
            coupons = tuple(coupon for coupon in coupons if coupon)
        stated = count if mode == _LIST else int.from_bytes(data[8:12], "little")
        if len(coupons) != stated or (coupons and min(coupons) >> _ADDRESS_BITS == 0):
            raise broken(self, f"has {len(coupons)} coupons and states {stated}, or one of them has no rank")
        return coupons

    def write(self, seen: set[int]) -> bytes:
        """Return the bytes of coupons."""
        count = len(seen)
        if count > self.most_coupons:
            return self.write_registers(self.raised(np.zeros(2**self.precision, np.uint8), seen))
        data = struct.pack(f"<{count}I", *sorted(seen))
        if count < _LIST_SIZE:
            return self.list_header(count) + data
        length = max(5, math.ceil(math.log2(count * 4 / 3)))
        return _HEADER.pack(3, 1, 7, self.precision, length, _COMPACT, 0, _SET) + count.to_bytes(4, "little") + data

    def write_registers(self, registers: np.ndarray) -> bytes:
        """Return the bytes of registers."""
        counts = np.bincount(registers, minlength=64)
        weight = counts * _WEIGHT
        return (
            _HLL_HEADER.pack(
                10, 1, 7, self.precision, 0, _COMPACT | _OUT_OF_ORDER, 0, _HLL,
                0.0, math.fsum(weight[:32]), math.fsum(weight[32:]), int(counts[0]), 0,
            )
            + registers.tobytes()
        )  # fmt: skip

    def read(self, data: bytes) -> int:
        """Return DataSketches' composite estimate, rounded as Spark rounds it."""
        found = self.parse(data)
        canonical = self.write(set(found)) if isinstance(found, tuple) else self.write_registers(found)
        return math.floor(_estimate(canonical) + 0.5)


def _estimate(data: bytes) -> float:
    """Return DataSketches' estimate of a sketch that is flagged out of order, or of coupons."""
    try:
        from datasketches import hll_sketch
    except ImportError as error:
        raise ConfigError(
            "ApproxDistinct: reading a value needs the package datasketches, which is not installed.",
            hint="pip install 'featurestore[sketches]'.",
        ) from error
    return float(hll_sketch.deserialize(data).get_estimate())
