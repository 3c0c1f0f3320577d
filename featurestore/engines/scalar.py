"""The meaning of row expressions, one row at a time, in plain Python: the specification that can run.

Written from ``definitions.expression_nodes.FUNCTIONS`` alone and sharing nothing with the vectorised evaluator, so that
agreement of the two proves something. Values are int, float, str, bool and None; a timestamp is an int of microseconds.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Case, Column, Literal, Node, Op, like_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featurestore.definitions.derived import DerivedLayout
    from featurestore.definitions.expression import Expression

_EXACT = Context(prec=2000)
_HOUR_US, _MINUTE_US, _DAY_US = 3_600_000_000, 60_000_000, 86_400_000_000


def evaluate_row(expression: Expression | DerivedLayout, row: Mapping[str, object]) -> object:
    """Return the value of an expression for one row; a column that the row lacks is null. Never raises.

    >>> from featurestore.definitions.expression import Expression
    >>> half = Expression.parse("amount / 2", {"amount": DataType.INT64})
    >>> evaluate_row(half, {"amount": 3}), evaluate_row(half, {})
    (1.5, None)
    """
    return _value(expression.node, row)


def _value(node: Node, row: Mapping[str, object]) -> Any:
    if isinstance(node, Column):
        return row.get(node.name)
    if isinstance(node, Literal):
        return node.value
    if isinstance(node, Case):
        return _case(node, row)
    args = [_value(arg, row) for arg in node.args]
    if node.op in _WITH_NULLS:
        return _WITH_NULLS[node.op](*args)
    if any(arg is None for arg in args):
        return None
    if node.op == Op.CAST:
        return _cast(args[0], node.args[0].type, node.type)
    result = _STRICT[node.op](*args)
    return _within_64_bits(result) if node.type == DataType.INT64 else result


def _case(node: Case, row: Mapping[str, object]) -> Any:
    subject = None if node.subject is None else _value(node.subject, row)
    for when, then in node.branches:
        condition = _value(when, row)
        if node.subject is not None:
            condition = _or_null(_equal)(subject, condition)
        if condition is True:
            return _value(then, row)
    return _value(node.otherwise, row)


def _within_64_bits(value: int | None) -> int | None:
    return value if value is not None and -(2**63) <= value < 2**63 else None


def _or_null(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: None if any(arg is None for arg in args) else function(*args)


# -- order: NaN equals NaN and is above everything


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) or (_is_nan(left) and _is_nan(right))


def _less(left: Any, right: Any) -> bool:
    if _is_nan(left) or _is_nan(right):
        return _is_nan(right) and not _is_nan(left)
    return bool(left < right)


def _less_equal(left: Any, right: Any) -> bool:
    return _less(left, right) or _equal(left, right)


# -- logic and choice, where null takes part


def _and(left: Any, right: Any) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _or(left: Any, right: Any) -> bool | None:
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return _equal(left, right)


def _in(value: Any, *options: Any) -> bool | None:
    if value is None:
        return None
    if any(option is not None and _equal(value, option) for option in options):
        return True
    return None if None in options else False


def _between(value: Any, low: Any, high: Any) -> bool | None:
    compare = _or_null(_less_equal)
    return _and(compare(low, value), compare(value, high))


def _nullif(left: Any, right: Any) -> Any:
    return None if left is not None and right is not None and _equal(left, right) else left


def _least(*values: Any) -> Any:
    best = None
    for value in values:
        if value is not None and (best is None or _less(value, best)):
            best = value
    return best


def _greatest(*values: Any) -> Any:
    best = None
    for value in values:
        if value is not None and (best is None or _less(best, value)):
            best = value
    return best


# -- numbers


def _modulo(left: float, right: float) -> float | None:
    if right == 0:
        return None
    if isinstance(left, int) and isinstance(right, int):
        rest = abs(left) % abs(right)
        return -rest if left < 0 else rest
    if math.isinf(left):
        return math.nan
    return math.fmod(left, right)


def _to_whole(rounding: str) -> Callable[[float], int | None]:
    def convert(value: float) -> int | None:
        if isinstance(value, int):
            return int(value)  # of True, 1
        if not math.isfinite(value):
            return None
        return int(Decimal(value).to_integral_value(rounding))

    return convert


def _round(value: float, digits: int) -> float | int:
    if isinstance(value, float) and not math.isfinite(value):
        return value
    written = Decimal(repr(value))
    if -int(written.as_tuple().exponent) <= digits:
        return value
    rounded = written.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, _EXACT)
    return int(rounded) if isinstance(value, int) else float(rounded)


def _power(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:
        if base != 0:
            return math.nan  # a root of a negative number
        odd = exponent % 2 == 1
        return math.copysign(math.inf, base) if odd else math.inf


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _ln(value: float) -> float | None:
    return None if value <= 0 else math.log(value)


def _log10(value: float) -> float | None:
    return None if value <= 0 else math.log10(value)


def _sign(value: float) -> float:
    return value if value == 0 or math.isnan(value) else math.copysign(1.0, value)


def _div(left: int, right: int) -> int | None:
    if right == 0:
        return None
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _sqrt(value: float) -> float:
    return math.nan if value < 0 else math.sqrt(value)


# -- text


def _substring(text: str, start: int, length: int | None = None) -> str:
    first = start - 1 if start > 0 else len(text) + start if start < 0 else 0
    end = len(text) if length is None else first + length
    return "".join(character for index, character in enumerate(text) if first <= index < end)


def _like(text: str, pattern: str) -> bool:
    turned = {"one": ".", "run": ".*"}
    wanted = "".join(turned.get(kind) or re.escape(content) for kind, content in like_parts(pattern))
    return re.fullmatch(wanted, text, re.DOTALL) is not None


def _cast(value: Any, old: DataType, new: DataType) -> Any:
    if old == DataType.STRING:
        return _from_text(value.strip(" \t\n\r\f\v"), new)
    if new == DataType.STRING:
        if old == DataType.BOOL:
            return "true" if value else "false"
        return str(value) if old == DataType.INT64 else _float_text(value)
    if new == DataType.BOOL:
        return value != 0
    if new == DataType.FLOAT64:
        return float(value)
    return _within_64_bits(_to_whole(ROUND_DOWN)(value))


def _from_text(text: str, new: DataType) -> Any:
    if new == DataType.BOOL:
        word = text.lower() if text.isascii() else ""
        return (
            True
            if word in ("t", "true", "y", "yes", "1")
            else False
            if word in ("f", "false", "n", "no", "0")
            else None
        )
    if new == DataType.INT64:
        whole = re.fullmatch(r"([+-]?[0-9]+)(\.[0-9]*)?", text)
        return None if whole is None else _within_64_bits(int(whole[1]) if len(whole[1]) < 4000 else None)
    number = re.fullmatch(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|inf|infinity)", text.lower())
    return None if number is None or not text.isascii() else float(text)


def _float_text(value: float) -> str:
    """Return what Java's Double.toString writes: shortest digits, plain from 1e-3 to 1e7, else d.dEn."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "-0.0" if math.copysign(1, value) < 0 else "0.0"
    sign, digits, exponent = Decimal(repr(value)).normalize(_EXACT).as_tuple()
    text = "".join(map(str, digits))
    scale = len(text) + int(exponent) - 1  # of the leading digit
    if -3 <= scale < 7:
        plain = format(Decimal(f"{text}e{exponent}"), "f")
        written = plain if "." in plain else f"{plain}.0"
    else:
        written = f"{text[0]}.{text[1:] or '0'}E{scale}"
    return f"-{written}" if sign else written


# -- time


def _civil(instant: int) -> tuple[int, int, int]:
    """Return year, month and day in UTC: Howard Hinnant's civil_from_days, for any int."""
    days = instant // _DAY_US + 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def _date_trunc(unit: str, instant: int) -> int:
    """Return the start of a unit, by stepping back from day to month, and from month to month."""
    fixed = {"DAY": _DAY_US, "HOUR": _HOUR_US, "MINUTE": _MINUTE_US, "SECOND": 1_000_000}
    if unit in fixed:
        return instant // fixed[unit] * fixed[unit]
    day = instant // _DAY_US * _DAY_US
    if unit == "WEEK":
        while (day // _DAY_US + 3) % 7:  # 1970-01-01 was a Thursday
            day -= _DAY_US
        return day
    start = day - (_civil(day)[2] - 1) * _DAY_US
    firsts = {"MONTH": range(1, 13), "QUARTER": (1, 4, 7, 10), "YEAR": (1,)}[unit]
    while _civil(start)[1] not in firsts:
        start -= _civil(start - _DAY_US)[2] * _DAY_US
    return start


_WITH_NULLS: dict[Op, Callable[..., Any]] = {
    Op.AND: _and,
    Op.OR: _or,
    Op.IS_NULL: lambda value: value is None,
    Op.SAME: _same,
    Op.IN: _in,
    Op.BETWEEN: _between,
    Op.COALESCE: lambda *values: next((value for value in values if value is not None), None),
    Op.NULLIF: _nullif,
    Op.LEAST: _least,
    Op.GREATEST: _greatest,
    Op.ISNAN: _is_nan,
}
_STRICT: dict[Op, Callable[..., Any]] = {
    Op.ADD: lambda left, right: left + right,
    Op.SUBTRACT: lambda left, right: left - right,
    Op.MULTIPLY: lambda left, right: left * right,
    Op.DIVIDE: lambda left, right: None if right == 0 else left / right,
    Op.MODULO: _modulo,
    Op.NEGATE: lambda value: -value,
    Op.ABS: abs,
    Op.FLOOR: _to_whole(ROUND_FLOOR),
    Op.CEIL: _to_whole(ROUND_CEILING),
    Op.ROUND: _round,
    Op.SQRT: _sqrt,
    Op.LN: _ln,
    Op.LOG10: _log10,
    Op.SIGN: _sign,
    Op.DIV: _div,
    Op.EXP: _exp,
    Op.POWER: _power,
    Op.EQUAL: _equal,
    Op.LESS: _less,
    Op.LESS_EQUAL: _less_equal,
    Op.NOT: lambda value: not value,
    Op.UPPER: lambda text: text.upper(),
    Op.LOWER: lambda text: text.lower(),
    Op.LENGTH: len,
    Op.CONCAT: lambda *texts: "".join(texts),
    Op.SUBSTRING: _substring,
    Op.TRIM: lambda text: text.strip(" "),
    Op.LTRIM: lambda text: text.lstrip(" "),
    Op.RTRIM: lambda text: text.rstrip(" "),
    Op.REPLACE: lambda text, old, new: text.replace(old, new) if old else text,
    Op.STARTSWITH: lambda text, part: text[: len(part)] == part,
    Op.ENDSWITH: lambda text, part: part == "" or text[-len(part) :] == part,
    Op.CONTAINS: lambda text, part: part in text,
    Op.LIKE: _like,
    Op.YEAR: lambda instant: _civil(instant)[0],
    Op.QUARTER: lambda instant: (_civil(instant)[1] + 2) // 3,
    Op.MONTH: lambda instant: _civil(instant)[1],
    Op.DAY: lambda instant: _civil(instant)[2],
    Op.HOUR: lambda instant: instant // _HOUR_US % 24,
    Op.MINUTE: lambda instant: instant // _MINUTE_US % 60,
    Op.SECOND: lambda instant: instant // 1_000_000 % 60,
    Op.WEEKDAY: lambda instant: (instant // _DAY_US + 3) % 7,
    Op.DAYOFYEAR: lambda instant: (instant - _date_trunc("YEAR", instant)) // _DAY_US + 1,
    Op.DATE_TRUNC: _date_trunc,
    Op.DAYOFWEEK: lambda instant: (instant // _DAY_US + 4) % 7 + 1,
    Op.EPOCH_US: lambda instant: instant,
}
