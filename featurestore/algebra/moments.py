"""Variance, StdDev, Skew and Kurtosis: central moments, merged pair by pair.

A partial holds n, the mean, and sums of powers of the deviations from it: M2, and for skewness and kurtosis M3 and M4. Two
partials are merged by the updating formulas of Chan, Golub and LeVeque (Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances, 1979) for M2, and of Pebay (Formulas for Robust, One-Pass Parallel Computation of Covariances
and Arbitrary-Order Statistical Moments, SAND2008-6212) for M3 and M4. Sums of squares of the values themselves are never
formed, so nothing cancels where the values are large and close together.

The mean is kept as two doubles, mean + rest (Knuth's TwoSum). Those formulas need the *difference* of two means, and of
means near 1e16 that are kept as one double nothing of it is left. With the second double the difference is good to the
last bits, and so is the variance, relatively, whatever the values: ADR 0008 has the measurements. It also takes int64
exactly, beyond 2**53 too.

Rules that hold for all four:
    null         inputs are skipped; the value is null where it is not defined, as each class states
    NaN, inf     one such value makes the result NaN: its deviation from the mean has no value
    overflow     a sum of squares beyond the range of a double is infinite

    kind       used by              slots                               bytes
    variance   Variance, StdDev     n, mean, rest, M2                      32
    moments    Skew, Kurtosis       n, mean, rest, M2, M3, M4              48

Why two kinds: with one, every Variance would pay 48 bytes a row instead of 32, and variances are what is used most. Skew
alone could do without M4 (40 bytes), but who asks for one of the two mostly asks for the other, and both together then
cost 48 instead of 88. A view with Variance and Skew of one input pays 80.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import Aggregate
from featurestore.datatypes import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder, Partial

_LOW = 0xFFFFFFFF
_TWO_32 = 4294967296.0
_NO_SPREAD, _TOO_WIDE = 1e-140, 1e140
"""Bounds of M2 within which M4 and M2 * M2 are normal doubles; see ``_Shape``."""


def _two_sum(x: Any, y: Any) -> tuple[Any, Any]:
    """Return the rounded sum and its rounding error, of numbers or arrays (Knuth, TAOCP 2, 4.2.2)."""
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def _combine(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Return [n, mean, rest, M2 ...] of two partials that are not empty, of numbers or of arrays.

    One text for both, so that the scalar and the column merge are the same to the last bit.
    """
    n = a[0] + b[0]
    p, q = a[0] / n, b[0] / n
    difference, error = _two_sum(b[1], -a[1])
    delta = difference + (error + (b[2] - a[2]))
    mean, error = _two_sum(a[1], delta * q)
    mean, rest = _two_sum(mean, a[2] + error)
    square = delta * (delta * (a[0] * q))
    merged = [n, mean, rest, a[3] + b[3] + square]
    if len(a) > 4:
        cube = square * delta * ((a[0] - b[0]) / n)
        merged.append(a[4] + b[4] + (cube + 3.0 * delta * (p * b[3] - q * a[3])))
        fourth = square * delta * delta * (p * p - p * q + q * q)
        crossed = 6.0 * delta * delta * (p * p * b[3] + q * q * a[3]) + 4.0 * delta * (p * b[4] - q * a[4])
        merged.append(a[5] + b[5] + (fourth + crossed))
    return merged


@dataclass(frozen=True, repr=False)
class _Moments(Aggregate):
    tolerance: ClassVar[float] = 1e-9
    powers: ClassVar[int]
    """How many sums of powers a partial holds."""

    @property
    def slots(self) -> tuple[str, ...]:
        """(n, mean, rest of the mean, M2 ...)."""
        return ("i8", "f8", "f8", *("f8" for _ in range(self.powers)))

    @property
    def added_slots(self) -> tuple[int, ...]:
        """The count."""
        return (0,)

    @property
    def result_type(self) -> DataType:
        """Always float64."""
        return DataType.FLOAT64

    def empty(self) -> Partial:
        """Return no events."""
        return (0, *(0.0 for _ in self.slots[1:]))

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value: its own mean, without any deviation; NaN deviations of what is not finite."""
        if value is None:
            return self.empty()
        if self.is_integer:
            mean, rest = _two_sum(float(int(value) >> 32) * _TWO_32, float(int(value) & _LOW))
            return (1, mean, rest, *(0.0 for _ in range(self.powers)))
        if not math.isfinite(value):
            return (1, 0.0, 0.0, *(math.nan for _ in range(self.powers)))
        return (1, float(value), 0.0, *(0.0 for _ in range(self.powers)))

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the moments of both."""
        if not a[0]:
            return b
        if not b[0]:
            return a
        # Counts as doubles, as in columns: beyond 2**53, where only spoiled bytes get, an integer is rounded elsewhere.
        merged = _combine((float(a[0]), *a[1:]), (float(b[0]), *b[1:]))
        merged[0] = a[0] + b[0]
        if not math.isfinite(merged[3]):  # then it stays so, and the mean no longer matters
            merged[1:4] = 0.0, 0.0, a[3] + b[3] + math.inf  # NaN if one of them was, else infinite
        return tuple(merged)

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return one value per valid row."""
        if self.is_integer:
            kept = np.where(valid, values, 0).astype(np.int64)
            mean, rest = _two_sum((kept >> 32).astype(np.float64) * _TWO_32, (kept & _LOW).astype(np.float64))
            return (valid.astype(np.int64), mean, rest, *(np.zeros(len(mean)) for _ in range(self.powers)))
        kept = np.where(valid, values, 0.0).astype(np.float64)
        finite = np.isfinite(kept)
        deviations = (np.where(finite, 0.0, np.nan) for _ in range(self.powers))
        return (valid.astype(np.int64), np.where(finite, kept, 0.0), np.zeros(len(kept)), *deviations)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the moments of every pair."""
        x, y = (np.maximum(side[0], 1).astype(np.float64) for side in (a, b))
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            merged = _combine((x, *a[1:]), (y, *b[1:]))
        finite = np.isfinite(merged[3])
        beyond: Columns = (np.zeros(1), np.zeros(1), a[3] + b[3] + np.inf)
        merged[1:4] = (np.where(finite, m, other) for m, other in zip(merged[1:4], beyond, strict=True))
        no_a, no_b = a[0] == 0, b[0] == 0
        kept = (np.where(no_a, y, np.where(no_b, x, m)) for x, y, m in zip(a[1:], b[1:], merged[1:], strict=True))
        return (a[0] + b[0], *kept)


@dataclass(frozen=True, repr=False)
class Variance(_Moments):
    """The variance of a number, float64: the sample's (divided by n - 1), or with ``population=True`` divided by n.

    The sample variance of fewer than two values is null; the population variance of one value is 0.0, of none null. NaN
    as soon as one value is NaN or infinite. Of a condition, with ``population=True``, it is p * (1 - p).

    Partial: n i8 · mean f8 · rest of the mean f8 · M2 f8 (32 bytes), shared with ``StdDev`` whatever ``population`` is.
    Relative error below 1e-9, also where all values are large and close together; Chan et al. 1979, see
    ``algebra.moments``. Below about 1e-300 a double loses its digits.

    Args:
        input: SQL row expression; int64, float64 or bool.
        where: SQL row condition; events for which it is not true do not count.
        value_type: Set when a view is defined.
        population: Divide by n instead of n - 1.

    >>> from featurestore.datatypes import DataType
    >>> variance = Variance("amount").bind(DataType.FLOAT64)
    >>> a, b = variance.prepare(1e9 + 1, None), variance.prepare(1e9 + 3, None)
    >>> variance.finalize(a), variance.finalize(variance.merge(a, b))
    (None, 2.0)
    """

    population: bool = False

    partial_kind: ClassVar[str] = "variance"
    is_counted: ClassVar[bool] = True
    powers: ClassVar[int] = 1
    finalize_only: ClassVar[frozenset[str]] = frozenset({"population"})

    def slack(self, inputs: Sequence[float]) -> float:
        """Return 1e-300: squares that small are below the normal doubles. Nothing cancels."""
        return 1e-300

    def finalize(self, partial: Partial) -> float | None:
        """Return M2 / n or M2 / (n - 1), or None with too few values."""
        freedom = partial[0] - (0 if self.population else 1)
        return partial[3] / freedom if freedom > 0 else None

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return M2 / n or M2 / (n - 1); null with too few values."""
        freedom = partial[0] - (0 if self.population else 1)
        return partial[3] / np.maximum(freedom, 1), freedom > 0


@dataclass(frozen=True, repr=False)
class StdDev(Variance):
    """The standard deviation of a number, float64: the square root of ``Variance``, with its rules and its partial.

    The sample standard deviation of fewer than two values is null; the population's of one value is 0.0, of none null.
    NaN as soon as one value is NaN or infinite. Relative error below 1e-9.

    Args:
        input: SQL row expression; int64, float64 or bool.
        where: SQL row condition; events for which it is not true do not count.
        value_type: Set when a view is defined.
        population: Divide by n instead of n - 1.

    >>> from featurestore.datatypes import DataType
    >>> deviation = StdDev("amount", population=True).bind(DataType.INT64)
    >>> deviation.finalize(deviation.merge(deviation.prepare(1, None), deviation.prepare(5, None)))
    2.0
    """

    def slack(self, inputs: Sequence[float]) -> float:
        """Return 1e-150, the root of what a variance may miss."""
        return 1e-150

    def finalize(self, partial: Partial) -> float | None:
        """Return the root of the variance, or None with too few values."""
        variance = super().finalize(partial)
        return None if variance is None else math.sqrt(variance)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the roots of the variances; null with too few values."""
        variance, valid = super().finalize_columns(partial)
        return np.sqrt(variance), valid


@dataclass(frozen=True, repr=False)
class _Shape(_Moments):
    """Ratios of moments. Null without spread, NaN where the fourth powers leave the range of a double.

    Both are decided by M2 alone, which is the same for every split: M2 < 1e-140 counts as no spread, M2 > 1e140 as too
    wide. Between them every M3 and M4 on the way is finite, because no part has a larger M2 than the whole.
    """

    partial_kind: ClassVar[str] = "moments"
    is_counted: ClassVar[bool] = True
    powers: ClassVar[int] = 3

    def of_moments(self, m2: Any, m3: Any, m4: Any, root: Any) -> Any:
        """Return the value from the central moments m2, m3, m4 (divided by n) and the root of m2; numbers or arrays."""
        raise NotImplementedError

    def finalize(self, partial: Partial) -> float | None:
        """Return the ratio, or None without values or spread."""
        n, spread = partial[0], partial[3]
        if not n or spread < _NO_SPREAD:
            return None
        if not spread <= _TOO_WIDE:
            return math.nan
        m2 = spread / n
        return float(self.of_moments(m2, partial[4] / n, partial[5] / n, math.sqrt(m2)))

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the ratios; null without values or spread."""
        n, spread = np.maximum(partial[0], 1), partial[3]
        within = (spread >= _NO_SPREAD) & (spread <= _TOO_WIDE)
        m2 = np.where(within, spread, 1.0) / n
        m3, m4 = (np.where(within, power, 0.0) / n for power in partial[4:])
        value = np.where(within, self.of_moments(m2, m3, m4, np.sqrt(m2)), np.nan)
        return value, (partial[0] > 0) & ~(spread < _NO_SPREAD)


@dataclass(frozen=True, repr=False)
class Skew(_Shape):
    """The skewness of a number, float64: g1 = m3 / m2 ** 1.5 of the population's moments, Spark's ``skewness``.

    Null without values, and where all are equal (no spread: the sum of squared deviations is below 1e-140). NaN as soon
    as one value is NaN or infinite, and where the sum of squared deviations is above 1e140.

    Partial: n i8 · mean f8 · rest of the mean f8 · M2 f8 · M3 f8 · M4 f8 (48 bytes), shared with ``Kurtosis``. Relative
    error below 1e-9, or 1e-12 * sqrt(n) absolute where the cubes cancel; Pebay 2008, see ``algebra.moments``.

    >>> from featurestore.datatypes import DataType
    >>> skew = Skew("amount").bind(DataType.INT64)
    >>> total = skew.empty()
    >>> for value in (0, 0, 0, 10):
    ...     total = skew.merge(total, skew.prepare(value, None))
    >>> round(skew.finalize(total), 12)
    1.154700538379
    """

    def slack(self, inputs: Sequence[float]) -> float:
        """Return 1e-12 * sqrt(n): the mean of the absolute cubes of n standardized values is at most sqrt(n)."""
        return self.tolerance * 1e-3 * math.sqrt(len(inputs))

    def of_moments(self, m2: Any, m3: Any, m4: Any, root: Any) -> Any:
        """Return m3 / m2 ** 1.5."""
        return m3 / (m2 * root)


@dataclass(frozen=True, repr=False)
class Kurtosis(_Shape):
    """The excess kurtosis of a number, float64: g2 = m4 / m2 ** 2 - 3 of the population's moments, Spark's ``kurtosis``.

    0 for a normal distribution, never below -2. Null without values, and where all are equal (no spread: the sum of
    squared deviations is below 1e-140). NaN as soon as one value is NaN or infinite, and where the sum of squared
    deviations is above 1e140.

    Partial: n i8 · mean f8 · rest of the mean f8 · M2 f8 · M3 f8 · M4 f8 (48 bytes), shared with ``Skew``. Relative error
    of g2 + 3 below 1e-9; Pebay 2008, see ``algebra.moments``.

    >>> from featurestore.datatypes import DataType
    >>> kurtosis = Kurtosis("amount").bind(DataType.INT64)
    >>> total = kurtosis.empty()
    >>> for value in (1, 2, 3, 4):
    ...     total = kurtosis.merge(total, kurtosis.prepare(value, None))
    >>> round(kurtosis.finalize(total), 12)
    -1.36
    """

    def slack(self, inputs: Sequence[float]) -> float:
        """Return what 1e-9 of a g2 + 3 of 3 is: around g2 = 0 the relative error of the difference is not bounded."""
        return self.tolerance * 3.0

    def of_moments(self, m2: Any, m3: Any, m4: Any, root: Any) -> Any:
        """Return m4 / m2 ** 2 - 3."""
        return m4 / (m2 * m2) - 3.0
