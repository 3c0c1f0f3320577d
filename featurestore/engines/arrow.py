"""Row expressions over Arrow columns: the evaluator of every path, batch, stream and lookup.

Null-propagating arithmetic and comparisons run as numpy kernels over (values, validity), which is where int64 overflow,
NaN and division by zero get the meaning of ``expression_nodes``; logic, choice and text run as Arrow kernels. A literal
stays an Arrow scalar until it meets a column. ``engines.scalar`` is the specification.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Call, Case, Column, Literal, Node, Op, like_parts
from featurestore.events.decode import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.definitions.expression import Expression

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_TWO_63 = float(2**63)
_EXACT = Context(prec=2000)
_SPACES = " \t\n\r\f\v"


def evaluate(expression: Expression, columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int) -> pa.Array:
    """Return the value of an expression for every row, as one array of its type. Never fails on data.

    Args:
        expression: What to compute.
        columns: At least the columns it names, ``rows`` values each; kindred Arrow types are converted.
        rows: How many; an expression of literals alone has no other way to know.

    >>> from featurestore.definitions.expression import Expression
    >>> half = Expression.parse("amount / 2", {"amount": DataType.INT64})
    >>> evaluate(half, {"amount": pa.array([3, None])}, 2).to_pylist()
    [1.5, None]
    """
    with np.errstate(all="ignore"):
        result = _Evaluator(columns, rows).value(expression.node)
    return pa.repeat(result, rows) if isinstance(result, pa.Scalar) else result


class _Evaluator:
    """Walks a tree; holds the columns of one batch."""

    def __init__(self, columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int) -> None:
        self.columns = columns
        self.rows = rows

    def value(self, node: Node) -> pa.Array | pa.Scalar:
        if isinstance(node, Column):
            return self.column(node)
        if isinstance(node, Literal):
            return pa.scalar(node.value, ARROW_TYPES[node.type])
        if isinstance(node, Case):
            return self.case(node)
        args = [self.value(arg) for arg in node.args]
        if all(isinstance(arg, pa.Scalar) for arg in args):
            args[0] = pa.repeat(args[0], self.rows)
        return _KERNELS[node.op](node, args)

    def column(self, node: Column) -> pa.Array:
        array = self.columns[node.name]
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
        wanted = ARROW_TYPES[node.type]
        return array if array.type == wanted else array.cast(wanted)

    def case(self, node: Case) -> pa.Array | pa.Scalar:
        subject = None if node.subject is None else self.value(node.subject)
        result = self.value(node.otherwise)
        for when, then in reversed(node.branches):
            condition = self.value(when)
            if subject is not None:
                condition = _equal([subject, condition])
            if isinstance(condition, pa.Scalar):
                condition = pa.repeat(condition, self.rows)
            result = pc.if_else(condition.fill_null(False), self.value(then), result)
        return result


# -- numpy kernels: null in, null out


def _unpack(value: pa.Array | pa.Scalar) -> tuple[Any, Any]:
    """Return values and validity as numpy; True stands for all valid."""
    if isinstance(value, pa.Scalar):
        bare = value.value if pa.types.is_timestamp(value.type) else value.as_py()
        return (bare if bare is not None else False), value.is_valid
    if pa.types.is_timestamp(value.type):
        value = value.cast(pa.int64())
    if value.null_count == 0:
        return value.to_numpy(zero_copy_only=False), True
    valid = value.is_valid().to_numpy(zero_copy_only=False)
    filled = value.fill_null(False if pa.types.is_boolean(value.type) else 0)
    return filled.to_numpy(zero_copy_only=False), valid


def _pack(values: Any, valid: Any, rows: int, kind: DataType) -> pa.Array:
    values = np.broadcast_to(values, (rows,))
    if valid is True:
        return pa.array(values, ARROW_TYPES[kind])
    return pa.array(values, ARROW_TYPES[kind], mask=~np.broadcast_to(valid, (rows,)))


def _rows(args: Sequence[pa.Array | pa.Scalar]) -> int:
    return next(len(arg) for arg in args if not isinstance(arg, pa.Scalar))


def _numeric(kernel: Callable[..., Any]) -> Callable[[Call, list[Any]], pa.Array]:
    """Lift a kernel over bare values; it returns values, or values and where they exist."""

    def run(node: Call, args: list[Any]) -> pa.Array:
        bare, valid = zip(*(_unpack(arg) for arg in args), strict=True)
        exists = reduce(np.logical_and, valid) if any(one is not True for one in valid) else True
        typed = [
            np.asarray(
                one, np.float64 if arg.type == pa.float64() else np.bool_ if arg.type == pa.bool_() else np.int64
            )
            for one, arg in zip(bare, args, strict=True)
        ]
        result = kernel(*typed)
        if isinstance(result, tuple):
            result, defined = result
            exists = defined if exists is True else np.logical_and(exists, defined)
        return _pack(result, exists, _rows(args), node.type)

    return run


def _is_whole(values: np.ndarray) -> bool:
    return values.dtype == np.int64


def _add(left: np.ndarray, right: np.ndarray) -> Any:
    result = left + right
    if not _is_whole(result):
        return result
    return result, ((left ^ result) & (right ^ result)) >= 0  # overflow flips the sign of both


def _subtract(left: np.ndarray, right: np.ndarray) -> Any:
    result = left - right
    if not _is_whole(result):
        return result
    return result, ((left ^ right) & (left ^ result)) >= 0


def _multiply(left: np.ndarray, right: np.ndarray) -> Any:
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


def _divide(left: np.ndarray, right: np.ndarray) -> Any:
    return left / right, right != 0


def _modulo(left: np.ndarray, right: np.ndarray) -> Any:
    defined = right != 0
    if left.dtype == np.int64 and right.dtype == np.int64:
        # The remainder by 1 and by -1 is 0; asking the processor for LOWEST % -1 traps.
        return np.fmod(left, np.where(defined & (right != -1), right, 1)), defined
    return np.fmod(left, right), defined


def _negate(values: np.ndarray) -> Any:
    return (-values, values != _LOWEST) if _is_whole(values) else -values


def _abs(values: np.ndarray) -> Any:
    return (np.abs(values), values != _LOWEST) if _is_whole(values) else np.abs(values)


def _whole(rounding: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Any]:
    def convert(values: np.ndarray) -> Any:
        if values.dtype != np.float64:
            return values.astype(np.int64)
        rounded = rounding(values)
        fits = (rounded >= -_TWO_63) & (rounded < _TWO_63)
        return np.where(fits, rounded, 0).astype(np.int64), fits

    return convert


def _round(values: np.ndarray, digits: np.ndarray) -> Any:
    places = int(digits)
    if _is_whole(values):
        if places >= 0:
            return values
        step = 10**-places
        rest = np.fmod(values, step)
        base, up = values - rest, np.sign(rest) * step
        rounded = np.where(np.abs(rest) >= step // 2, base + up, base)
        return rounded, (rounded >= 0) == (values >= 0) if np.any(np.abs(base) > _HIGHEST - step) else True
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


def _less(left: Any, right: Any) -> Any:
    result = left < right
    if left.dtype == np.float64:
        result = result | (~np.isnan(left) & np.isnan(right))
    return result


def _same_number(left: Any, right: Any) -> Any:
    result = left == right
    if left.dtype == np.float64:
        result = result | (np.isnan(left) & np.isnan(right))
    return result


def _less_or_same(left: Any, right: Any) -> Any:
    result = left <= right
    if left.dtype == np.float64:
        result = result | np.isnan(right)
    return result


def _months(instants: np.ndarray) -> np.ndarray:
    return np.asarray(instants, "M8[us]").astype("M8[M]")


def _day(instants: np.ndarray) -> np.ndarray:
    moments = np.asarray(instants, "M8[us]")
    return (moments.astype("M8[D]") - moments.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1


# -- Arrow kernels


def _compare(numbers: Callable[..., Any], texts: Callable[..., Any]) -> Callable[[list[Any]], pa.Array]:
    lifted = _numeric(numbers)

    def run(args: list[Any]) -> pa.Array:
        if pa.types.is_string(args[0].type):
            return texts(*args)
        if all(isinstance(arg, pa.Scalar) for arg in args):
            return lifted(_TO_BOOL, [pa.repeat(args[0], 1), args[1]])[0]
        return lifted(_TO_BOOL, args)

    return run


_TO_BOOL = Call(Op.EQUAL, (), DataType.BOOL)
_equal = _compare(_same_number, pc.equal)
_below = _compare(_less, pc.less)
_not_above = _compare(_less_or_same, pc.less_equal)


def _same(args: list[Any]) -> pa.Array:
    nulls = [pc.is_null(arg) for arg in args]
    return pc.or_(pc.and_(*nulls), pc.fill_null(_equal(args), False))


def _in(args: list[Any]) -> pa.Array:
    value, options = args[0], [arg for arg in args[1:] if arg.is_valid]
    if pa.types.is_floating(value.type):  # the set tells -0.0 from 0.0; equality does not
        value = pc.add(value, 0.0)
        options = [pc.add(option, 0.0) for option in options]
    known = pa.array([option.as_py() for option in options], value.type)
    found = pc.is_in(value, known)
    unknown = value.is_null() if len(options) == len(args) - 1 else pc.or_(value.is_null(), pc.invert(found))
    return pc.if_else(unknown, pa.scalar(None, pa.bool_()), found)


def _extreme(better: Callable[[list[Any]], pa.Array]) -> Callable[[Call, list[Any]], pa.Array]:
    def run(_: Call, args: list[Any]) -> pa.Array:
        rows = _rows(args)
        best, *others = (pa.repeat(arg, rows) if isinstance(arg, pa.Scalar) else arg for arg in args)
        for other in others:
            wins = pc.or_(best.is_null(), better([best, other]).fill_null(False))
            best = pc.if_else(pc.and_(wins, other.is_valid()), other, best)
        return best

    return run


def _folded(
    ascii_kernel: Callable[..., pa.Array], method: Callable[[str], str]
) -> Callable[[Call, list[Any]], pa.Array]:
    """Change case: by Arrow where a text is ASCII, else by Python, whose mappings are the full ones of Unicode."""

    def run(_: Call, args: list[Any]) -> pa.Array:
        (text,) = args
        if pc.all(pc.string_is_ascii(text), min_count=0).as_py() is not False:
            return ascii_kernel(text)
        return pa.array([None if one is None else method(one) for one in text.to_pylist()], pa.string())

    return run


def _substring(node: Call, args: list[Any]) -> pa.Array:
    start, *length = (arg.value for arg in node.args[1:] if isinstance(arg, Literal))
    first = int(start or 0)
    first = first - 1 if first > 0 else first
    if not length:
        return pc.utf8_slice_codeunits(args[0], first)
    count = min(int(length[0] or 0), _HIGHEST // 2)
    end = first + count
    if count <= 0:
        return pc.utf8_slice_codeunits(args[0], 0, 0)
    if first < 0 <= end:
        return pc.utf8_slice_codeunits(args[0], first)
    return pc.utf8_slice_codeunits(args[0], first, end)


def _like(node: Call, args: list[Any]) -> pa.Array:
    turned = {
        "text": lambda text: "".join(f"\\x{{{ord(one):x}}}" for one in text),
        "one": lambda _: ".",
        "run": lambda _: ".*",
    }
    pattern = node.args[1].value if isinstance(node.args[1], Literal) else ""
    wanted = "".join(turned[kind](content) for kind, content in like_parts(str(pattern)))
    return pc.match_substring_regex(args[0], rf"(?s)\A{wanted}\z")


# -- casts


def _cast(node: Call, args: list[Any]) -> pa.Array:
    (value,) = args
    old, new = node.args[0].type, node.type
    if old == DataType.STRING:
        return _from_text(pc.utf8_trim(value, _SPACES), new)
    if new == DataType.STRING:
        if old == DataType.FLOAT64:
            return pa.array([None if one is None else _float_text(one) for one in value.to_pylist()], pa.string())
        return value.cast(pa.string())
    return _NUMBER_CASTS[new](node, args)


_NUMBER_CASTS = {
    DataType.BOOL: _numeric(lambda values: values != 0),
    DataType.FLOAT64: _numeric(lambda values: values.astype(np.float64)),
    DataType.INT64: _numeric(_whole(np.trunc)),
}
_WORDS = {"t": True, "true": True, "y": True, "yes": True, "1": True}
_WORDS |= {"f": False, "false": False, "n": False, "no": False, "0": False}
_WHOLE = r"\A[+-]?[0-9]+(\.[0-9]*)?\z"
_NUMBER = r"(?i)\A[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)\z"


def _from_text(text: pa.Array, new: DataType) -> pa.Array:
    convert: Callable[[str], Any]
    if new == DataType.BOOL:
        convert = lambda one: _WORDS.get(one.lower()) if one.isascii() else None  # noqa: E731
    elif new == DataType.INT64:
        text = pc.if_else(pc.match_substring_regex(text, _WHOLE), text, pa.scalar(None, pa.string()))
        convert = _whole_of
    else:
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, pa.string()))
        convert = float
    return pa.array([None if one is None else convert(one) for one in text.to_pylist()], ARROW_TYPES[new])


def _whole_of(text: str) -> int | None:
    digits = text.partition(".")[0]
    if len(digits) > 4000:
        return None
    number = int(digits)
    return number if _LOWEST <= number <= _HIGHEST else None


def _float_text(value: float) -> str:
    """Return the number as Java writes it, from Python's shortest digits in scientific form."""
    if value != value or value in (np.inf, -np.inf):  # noqa: PLR0124 - NaN
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return np.format_float_positional(value, unique=True, trim="0")
    mantissa, _, exponent = np.format_float_scientific(value, unique=True, trim="0").partition("e")
    return f"{mantissa}E{int(exponent)}"


def _plain(kernel: Callable[..., pa.Array]) -> Callable[[Call, list[Any]], pa.Array]:
    return lambda _, args: kernel(*args)


def _listed(kernel: Callable[[list[Any]], pa.Array]) -> Callable[[Call, list[Any]], pa.Array]:
    return lambda _, args: kernel(args)


def _between(args: list[Any]) -> pa.Array:
    value, low, high = args
    if isinstance(value, pa.Scalar):
        value = pa.repeat(value, _rows(args))
    return pc.and_kleene(_not_above([low, value]), _not_above([value, high]))


def _isnan(args: list[Any]) -> pa.Array:
    return pc.is_nan(args[0]).fill_null(False)


def _ln(args: list[Any]) -> pa.Array:
    (value,) = args
    return pc.ln(pc.if_else(pc.less_equal(value, 0.0), pa.scalar(None, pa.float64()), value))


def _nullif(args: list[Any]) -> pa.Array:
    return pc.if_else(_equal(args).fill_null(False), pa.scalar(None, args[0].type), args[0])


_KERNELS: dict[Op, Callable[[Call, list[Any]], pa.Array]] = {
    Op.ADD: _numeric(_add),
    Op.SUBTRACT: _numeric(_subtract),
    Op.MULTIPLY: _numeric(_multiply),
    Op.DIVIDE: _numeric(_divide),
    Op.MODULO: _numeric(_modulo),
    Op.NEGATE: _numeric(_negate),
    Op.ABS: _numeric(_abs),
    Op.FLOOR: _numeric(_whole(np.floor)),
    Op.CEIL: _numeric(_whole(np.ceil)),
    Op.ROUND: _numeric(_round),
    Op.SQRT: _numeric(np.sqrt),
    Op.LN: _listed(_ln),
    Op.EXP: _plain(pc.exp),
    Op.POWER: _plain(pc.power),
    Op.ISNAN: _listed(_isnan),
    Op.EQUAL: _listed(_equal),
    Op.LESS: _listed(_below),
    Op.LESS_EQUAL: _listed(_not_above),
    Op.SAME: _listed(_same),
    Op.IN: _listed(_in),
    Op.BETWEEN: _listed(_between),
    Op.AND: _plain(pc.and_kleene),
    Op.OR: _plain(pc.or_kleene),
    Op.NOT: _plain(pc.invert),
    Op.IS_NULL: _plain(pc.is_null),
    Op.COALESCE: _plain(pc.coalesce),
    Op.NULLIF: _listed(_nullif),
    Op.LEAST: _extreme(lambda pair: _below(pair[::-1])),
    Op.GREATEST: _extreme(_below),
    Op.UPPER: _folded(pc.ascii_upper, str.upper),
    Op.LOWER: _folded(pc.ascii_lower, str.lower),
    Op.LENGTH: lambda _, args: pc.utf8_length(args[0]).cast(pa.int64()),
    Op.CONCAT: lambda _, args: pc.binary_join_element_wise(*args, ""),
    Op.SUBSTRING: _substring,
    Op.TRIM: lambda _, args: pc.utf8_trim(args[0], " "),
    Op.LIKE: _like,
    Op.CAST: _cast,
    Op.YEAR: _numeric(lambda instants: _months(instants).astype("M8[Y]").astype(np.int64) + 1970),
    Op.MONTH: _numeric(lambda instants: _months(instants).astype(np.int64) % 12 + 1),
    Op.DAY: _numeric(_day),
    Op.HOUR: _numeric(lambda instants: instants // 3_600_000_000 % 24),
    Op.MINUTE: _numeric(lambda instants: instants // 60_000_000 % 60),
    Op.DAYOFWEEK: _numeric(lambda instants: (instants // 86_400_000_000 + 4) % 7 + 1),
    Op.EPOCH_US: _numeric(lambda instants: instants),
}
