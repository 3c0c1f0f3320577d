"""ApproxQuantile: the value at a rank, about. A KLL sketch (Karnin, Lang, Liberty, 2016) in DataSketches' bytes.

A sketch is levels of ascending values; one of level h stands for 2**h events. When all levels together are over their
capacity, the lowest full level is *compacted*: every second of its values moves up, which half being a coin's choice. A
published KLL sketch tosses a random coin, and then no value could be computed twice. Here the coin is a hash of the values
being compacted: the same partials merged in the same way give the same bytes, on every machine and on every run.

It still matters *how* events were grouped into partials before they were merged, once something was compacted: no bounded
summary of ranks is free of that without giving up this error. So the value is exact, and equal on every path, up to k
events; beyond that two paths agree within the rank error that the class states.

Bytes (DataSketches KLL of doubles; little-endian):

    one value   02 02 0f 06 k u2 08 00, value f8
    more        05 01 0f 02 k u2 08 00, n u8, k u2, levels u1, 00, then for each level where it begins u4,
                least f8, greatest f8, the values of level 0, of level 1, ...

A level begins where it would in an array filled up to its end that has room for all capacities.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from zlib import crc32

import numpy as np

from featurestore.algebra.packed import Packed, broken, check_number, words_of_values
from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import EventOrder

_LEAST_CAPACITY = 8
_SINGLE = struct.Struct("<4BHBBd")
_FULL = struct.Struct("<4BHBBQHBB")
_EMPTY, _SORTED, _ONE = 1, 2, 4


class Sketch(NamedTuple):
    """n values with their least and greatest; level h holds values that stand for 2**h each."""

    n: int
    least: float
    greatest: float
    levels: list[np.ndarray]


@lru_cache(maxsize=4096)
def capacities(k: int, levels: int) -> tuple[int, ...]:
    """Return how many values each level may hold: k for the highest, 2/3 of that for each one below, at least 8."""
    return tuple(
        max(_LEAST_CAPACITY, ((2 * k << depth) // 3**depth + 1) >> 1) if depth <= 30 else _LEAST_CAPACITY
        for depth in range(levels - 1, -1, -1)
    )


def compress(k: int, levels: list[np.ndarray]) -> list[np.ndarray]:
    """Return the levels, brought within their capacity from the lowest up."""
    levels = list(levels)
    room, held = capacities(k, len(levels)), sum(map(len, levels))
    height = 0
    while held > sum(room):
        if len(levels[height]) >= room[height]:
            values = levels[height]
            if height == len(levels) - 1:
                levels.append(values[:0])
                room = capacities(k, len(levels))
            odd = len(values) % 2
            promoted = values[odd + _coin(values) :: 2]
            levels[height] = values[:odd]
            levels[height + 1] = np.sort(np.concatenate((levels[height + 1], promoted)))
            held -= len(promoted)
        height = (height + 1) % len(levels)
    return levels


def _coin(values: np.ndarray) -> int:
    """Return 0 or 1, a function of the values: their CRC, whose bits are then mixed (it is linear in them)."""
    mixed = (crc32(values.tobytes()) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 >> 40) & 1


@dataclass(frozen=True, repr=False)
class ApproxQuantile(Packed):
    """The value at rank q of the numbers that count: at least q of all are not greater. Null when there is none.

    q may be a list: then the feature is a list of as many values. Values at several q of one input share their partial.

    Up to k events the value is exact (SQL's ``percentile_disc``), and equal on every path. Beyond that its rank is off by
    at most ``rank_error`` (2.296 / k**0.9723 of all events, 1.33 % for k = 200, with 99 % confidence), and so two paths
    that merged the events in different groups may differ by twice that. q = 0 and q = 1 stay exact. The same merges give
    the same value, always: the sketch's coin is a hash, not a random number.

    NaN has no rank and is skipped, as in DataSketches and Spark. Integers are kept as doubles (exact up to 2**53).

    The bytes are those of DataSketches' KLL of doubles and of Spark's ``kll_sketch_agg_double(x, k)``, both ways;
    ``kll_sketch_get_quantile_double(bytes, q)`` reads them.

    Args:
        q: A rank from 0 to 1, or several.
        k: The accuracy, 8 to 8,000. A partial takes 8 bytes per event up to k, then at most about 24 k.

    >>> from featurestore.algebra import ApproxQuantile
    >>> from featurestore.datatypes import DataType
    >>> median = ApproxQuantile("amount", 0.5).bind(DataType.FLOAT64)
    >>> parts = [median.prepare(value, (0, 0)) for value in (3.0, 1.0, 2.0)]
    >>> median.finalize(median.merge(parts[0], median.merge(parts[1], parts[2])))
    2.0
    """

    q: float | tuple[float, ...] = 0.5
    k: int = 200

    accepts: ClassVar[frozenset[DataType]] = frozenset({DataType.INT64, DataType.FLOAT64})
    partial_kind: ClassVar[str] = "approx_quantile"
    finalize_only: ClassVar[frozenset[str]] = frozenset({"q"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "k", _LEAST_CAPACITY, 8000)
        if isinstance(self.q, list):
            object.__setattr__(self, "q", tuple(self.q))
        ranks = self.ranks
        legal = [isinstance(q, (int, float)) and not isinstance(q, bool) and 0 <= q <= 1 for q in ranks]
        if not legal or not all(legal):
            raise DefinitionError(
                f"ApproxQuantile: q is {self.q!r}, allowed are numbers from 0 to 1, or a list of them.",
                hint="for example 0.95, or [0.5, 0.95].",
            )

    @property
    def ranks(self) -> tuple[float, ...]:
        """Every q."""
        return self.q if isinstance(self.q, tuple) else (self.q,)

    @property
    def result_type(self) -> DataType:
        """Float64, or a list of float64 when q is a list."""
        return DataType.LIST_FLOAT64 if isinstance(self.q, tuple) else DataType.FLOAT64

    @property
    def rank_error(self) -> float:
        """By how much of all events a rank may be off beyond k events, with 99 % confidence.

        The constants are DataSketches' fit to thousands of trials (its ``normalized_rank_error``).
        """
        return float(2.296 / self.k**0.9723)

    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return a sketch of one value; of NaN, nothing."""
        return self.pack_many([value], np.zeros(1, np.int64), np.zeros(1, np.int64))[0]

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return one sketch per value."""
        doubles = words_of_values(np.asarray(values, dtype=np.float64), DataType.FLOAT64).view(np.float64)
        rows = np.empty((len(doubles), 2), dtype="<i8")
        rows[:, 0], rows[:, 1] = self.one_header, doubles.view(np.int64)
        data, nan = rows.tobytes(), np.isnan(doubles).tolist()
        return [b"" if skip else data[16 * i : 16 * i + 16] for i, skip in enumerate(nan)]

    @property
    def one_header(self) -> int:
        """The first word of a sketch of one value."""
        return int.from_bytes(_SINGLE.pack(2, 2, 15, _SORTED | _ONE, self.k, _LEAST_CAPACITY, 0, 0.0)[:8], "little")

    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the sketch of all parts: the levels joined, then compressed."""
        ones = self.parse_ones(b"".join([part for part in parts if len(part) == 16])).tolist()
        sketches = [self.parse(part) for part in parts if len(part) != 16]
        levels: list[list[Any]] = [[ones] if ones else []]
        for sketch in sketches:
            levels += [[] for _ in range(len(sketch.levels) - len(levels))]
            for height, values in enumerate(sketch.levels):
                levels[height].append(values)
        joined = [np.sort(np.concatenate(values)) if values else np.zeros(0) for values in levels]
        ends = [end for sketch in sketches for end in (sketch.least, sketch.greatest)] + ones
        n = len(ones) + sum(sketch.n for sketch in sketches)
        return self.write(Sketch(n, min(ends), max(ends), compress(self.k, joined)))

    def parse_ones(self, data: bytes) -> np.ndarray:
        """Return the values of sketches of one value each."""
        words = np.frombuffer(data, "<i8")
        if ((words[0::2] | _SORTED << 24) != self.one_header).any():
            raise broken(self, f"of 16 bytes is no KLL sketch of one double with k={self.k}")
        values = words[1::2].view("<f8")
        if np.isnan(values).any():
            raise broken(self, "holds NaN")
        return values

    def parse(self, data: bytes) -> Sketch:
        """Return a sketch, its levels in the order of the bytes: DataSketches and Spark leave level 0 unsorted."""
        if len(data) == 16:
            value = float(self.parse_ones(data)[0])
            return Sketch(1, value, value, [np.array([value])])
        if len(data) < _FULL.size:
            raise broken(self, f"has {len(data)} bytes")
        ints, version, family, flags, k, m, _, n, least_k, count, _ = _FULL.unpack_from(data)
        if (ints, version, family, k, m, least_k) != (5, 1, 15, self.k, _LEAST_CAPACITY, self.k):
            raise broken(self, f"is no KLL sketch of doubles with k={self.k}: {data[:8].hex(' ')}")
        begin = _FULL.size + 4 * count
        if flags & (_EMPTY | _ONE) or not 1 <= count <= 60 or len(data) < begin + 16:
            raise broken(self, f"has {count} levels in {len(data)} bytes")
        bounds = [*struct.unpack_from(f"<{count}I", data, _FULL.size), sum(capacities(self.k, count))]
        sizes = [high - low for low, high in itertools.pairwise(bounds)]
        if min(sizes) < 0 or len(data) != begin + 16 + 8 * sum(sizes):
            raise broken(self, f"has {len(data)} bytes and levels of {sizes}")
        values = np.frombuffer(data, "<f8", offset=begin)
        weight = sum(size << height for height, size in enumerate(sizes))
        if weight != n or n >> 62 or np.isnan(values).any():
            raise broken(self, f"states {n} values and holds {weight}, or one is NaN")
        ends = itertools.accumulate([2, *sizes])
        return Sketch(
            n,
            float(values[0]),
            float(values[1]),
            [values[low:high] for low, high in itertools.pairwise(ends)],
        )

    def write(self, sketch: Sketch) -> bytes:
        """Return the bytes of at least two values."""
        sizes = list(map(len, sketch.levels))
        count = len(sizes)
        begins = itertools.accumulate([sum(capacities(self.k, count)) - sum(sizes), *sizes[:-1]])
        head = _FULL.pack(5, 1, 15, _SORTED, self.k, _LEAST_CAPACITY, 0, sketch.n, self.k, count, 0)
        head += struct.pack(f"<{count}Idd", *begins, sketch.least, sketch.greatest)
        return head + b"".join([values.tobytes() for values in sketch.levels])

    def read(self, data: bytes) -> Any:
        """Return the values at all ranks."""
        sketch = self.parse(data)
        values = np.concatenate(sketch.levels)
        weights = np.repeat(1 << np.arange(len(sketch.levels)), [len(level) for level in sketch.levels])
        order = np.argsort(values, kind="stable")
        below = np.cumsum(weights[order])
        found = []
        for q in self.ranks:
            rank = math.ceil(Decimal(repr(q)) * sketch.n)  # as written: 0.1 of 30 is 3, in doubles it would be more
            spot = int(np.searchsorted(below, rank))
            ends = {0.0: sketch.least, 1.0: sketch.greatest}
            found.append(ends[q] if q in ends else float(values[order[spot]]))
        return found if isinstance(self.q, tuple) else found[0]

    def within_error(self, a: Any, b: Any, values: Sequence[Any]) -> bool:
        """Return whether both results have the asked ranks among ``values``, within twice the rank error."""
        known = np.sort([float(v) for v in values if v is not None and not math.isnan(v)])
        if len(known) <= self.k or a is None or b is None:
            return False
        for result in (a, b):
            for q, value in zip(self.ranks, result if isinstance(self.q, tuple) else [result], strict=True):
                low, high = (np.searchsorted(known, value, side=side) / len(known) for side in ("left", "right"))
                if not low - 2 * self.rank_error <= q <= high + 2 * self.rank_error:
                    return False
        return True
