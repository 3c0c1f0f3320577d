"""Row expressions over Arrow columns: the kernels over numbers and times, on bare numpy values.

A kernel gets float64 or int64 values (bool where it compares), garbage where a row is null, and returns values, or values
and where they exist. It is called with numpy's warnings off.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_TWO_63 = float(2**63)
_EXACT = Context(prec=2000)


def _is_whole(values: np.ndarray) -> bool:
    return values.dtype == np.int64


def add(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the sums."""
    result = left + right
    if not _is_whole(result):
        return result
    return result, ((left ^ result) & (right ^ result)) >= 0  # overflow flips the sign of both


def subtract(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the differences."""
    result = left - right
    if not _is_whole(result):
        return result
    return result, ((left ^ right) & (left ^ result)) >= 0


def multiply(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the products."""
    result = left * right
    if not _is_whole(result):
        return result
    near = np.abs(left.astype(np.float64) * right.astype(np.float64))
    if not (near >= 2.0**62).any():
        return result
    # Beyond the float's doubt the float decides; within it (a product next to 2**63) Python's integers do.
    fits = near < 2.0**62
    left, right = np.broadcast_arrays(left, right)
    fits = np.array(np.broadcast_to(fits, result.shape))
    for index in np.argwhere((near >= 2.0**62) & (near <= 2.0**64)):
        place = tuple(index)
        fits[place] = _LOWEST <= int(left[place]) * int(right[place]) <= _HIGHEST
    return result, fits


def divide(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the quotients; there is none by zero."""
    return left / right, right != 0


def modulo(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the remainders, with the sign of the dividend; there is none by zero."""
    defined = right != 0
    if left.dtype == np.int64 and right.dtype == np.int64:
        # The remainder by 1 and by -1 is 0; asking the processor for LOWEST % -1 traps.
        return np.fmod(left, np.where(defined & (right != -1), right, 1)), defined
    return np.fmod(left, right), defined


def negate(values: np.ndarray) -> Any:
    """Return the numbers with the other sign."""
    return (-values, values != _LOWEST) if _is_whole(values) else -values


def magnitude(values: np.ndarray) -> Any:
    """Return the magnitudes."""
    return (np.abs(values), values != _LOWEST) if _is_whole(values) else np.abs(values)


def to_whole(rounding: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Any]:
    """Return the kernel that gives int64 by a rounding, where the result fits."""

    def convert(values: np.ndarray) -> Any:
        if values.dtype != np.float64:
            return values.astype(np.int64)
        rounded = rounding(values)
        fits = (rounded >= -_TWO_63) & (rounded < _TWO_63)
        return np.where(fits, rounded, 0).astype(np.int64), fits

    return convert


def round_half_up(values: np.ndarray, digits: np.ndarray) -> Any:
    """Return the numbers rounded to some digits, half away from zero."""
    places = int(digits)
    if _is_whole(values):
        if places >= 0:
            return values
        step = 10**-places
        rest = np.fmod(values, step)
        up = np.where(np.abs(rest) >= step // 2, np.sign(rest) * step, 0)
        return add(values - rest, up)
    scale = 10.0 ** abs(places)
    scaled = values * scale if places >= 0 else values / scale
    whole = np.trunc(scaled)
    rest = np.abs(scaled - whole)
    whole = np.where(rest >= 0.5, whole + np.sign(scaled), whole)
    rounded = np.array(whole / scale if places >= 0 else whole * scale)
    rounded = np.where(rounded == 0, np.copysign(0.0, values), rounded)
    rounded = np.where(np.isfinite(values), rounded, values)
    # Where scaling lost bits that decide (next to a tie, or beyond 2**50), the decimal text of the number decides.
    if places:
        doubtful = np.isfinite(values) & ((np.abs(rest - 0.5) < 1e-3) | (np.abs(scaled) > 2.0**40))
        for index in np.argwhere(doubtful):
            place = tuple(index)
            rounded[place] = _round_decimal(float(values[place]), places)
    return rounded


def _round_decimal(value: float, places: int) -> float:
    written = Decimal(repr(value))
    if -int(written.as_tuple().exponent) <= places:
        return value
    return float(written.quantize(Decimal((0, (1,), -places)), ROUND_HALF_UP, _EXACT))


def less(left: Any, right: Any) -> Any:
    """Return whether left is before right, NaN last."""
    result = left < right
    if left.dtype == np.float64:
        result = result | (~np.isnan(left) & np.isnan(right))
    return result


def same_number(left: Any, right: Any) -> Any:
    """Return whether both are the same number; NaN is."""
    result = left == right
    if left.dtype == np.float64:
        result = result | (np.isnan(left) & np.isnan(right))
    return result


def less_or_same(left: Any, right: Any) -> Any:
    """Return whether left is not after right, NaN last."""
    result = left <= right
    if left.dtype == np.float64:
        result = result | np.isnan(right)
    return result


def _months(instants: np.ndarray) -> Any:
    """Return months since 1970."""
    return np.asarray(instants, "M8[us]").astype("M8[M]")


def year(instants: np.ndarray) -> Any:
    """Return the years."""
    return _months(instants).astype("M8[Y]").astype(np.int64) + 1970


def month(instants: np.ndarray) -> Any:
    """Return the months, from 1."""
    return _months(instants).astype(np.int64) % 12 + 1


def day_of_month(instants: np.ndarray) -> Any:
    """Return the days of the month."""
    moments = np.asarray(instants, "M8[us]")
    return (moments.astype("M8[D]") - moments.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1


def day_of_year(instants: np.ndarray) -> Any:
    """Return the days of the year, from 1."""
    moments = np.asarray(instants, "M8[us]")
    return (moments.astype("M8[D]") - moments.astype("M8[Y]").astype("M8[D]")).astype(np.int64) + 1


_STEPS = {
    "WEEK": 7 * 86_400_000_000,
    "DAY": 86_400_000_000,
    "HOUR": 3_600_000_000,
    "MINUTE": 60_000_000,
    "SECOND": 1_000_000,
}
_FIRST_MONDAY = 4 * 86_400_000_000


def start_of(unit: str, instants: np.ndarray) -> Any:
    """Return the instants at which the units that they lie in begin."""
    if unit in _STEPS:
        shift = _FIRST_MONDAY if unit == "WEEK" else 0
        return instants - (instants - shift) % _STEPS[unit]
    months = _months(instants).astype(np.int64)
    months = months - months % {"MONTH": 1, "QUARTER": 3, "YEAR": 12}[unit]
    return months.astype("M8[M]").astype("M8[us]").astype(np.int64)


def sign(values: np.ndarray) -> Any:
    """Return -1.0 and 1.0; a zero or a NaN as it is."""
    return np.where((values == 0) | np.isnan(values), values, np.copysign(1.0, values))


def whole_quotient(left: np.ndarray, right: np.ndarray) -> Any:
    """Return the quotients towards zero; there is none by zero, nor of the lowest integer by -1."""
    defined = (right != 0) & ~((left == _LOWEST) & (right == -1))
    divisor = np.where(defined, right, 1)
    return (left - np.fmod(left, divisor)) // divisor, defined
