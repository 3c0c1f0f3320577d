"""Row expressions over Arrow columns: the evaluator of every path, batch, stream and lookup.

Null-propagating arithmetic and comparisons run as numpy kernels over (values, validity), which is where int64 overflow,
NaN and division by zero get the meaning of ``expression_nodes``; logic, choice and text run as Arrow kernels. A literal
stays an Arrow scalar until it meets a column. ``engines.scalar`` is the specification.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Call, Case, Column, Literal, Node, Op
from featurestore.engines import arrow_numbers as numbers
from featurestore.engines.arrow_text import change_case, float_text, from_text, like, replace, substring, text_test
from featurestore.events.arrow_types import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.definitions.derived import DerivedLayout
    from featurestore.definitions.expression import Expression


def evaluate(
    expression: Expression | DerivedLayout, columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int
) -> pa.Array:
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
_equal = _compare(numbers.same_number, pc.equal)
_below = _compare(numbers.less, pc.less)
_not_above = _compare(numbers.less_or_same, pc.less_equal)


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


# -- casts


def _cast(node: Call, args: list[Any]) -> pa.Array:
    (value,) = args
    old, new = node.args[0].type, node.type
    if old == DataType.STRING:
        return from_text(value, new)
    if new == DataType.STRING:
        if old == DataType.FLOAT64:
            return pa.array([None if one is None else float_text(one) for one in value.to_pylist()], pa.string())
        return value.cast(pa.string())
    return _NUMBER_CASTS[new](node, args)


_NUMBER_CASTS = {
    DataType.BOOL: _numeric(lambda values: values != 0),
    DataType.FLOAT64: _numeric(lambda values: values.astype(np.float64)),
    DataType.INT64: _numeric(numbers.to_whole(np.trunc)),
}


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


def _log10(args: list[Any]) -> pa.Array:
    (value,) = args
    return pc.log10(pc.if_else(pc.less_equal(value, 0.0), pa.scalar(None, pa.float64()), value))


def _date_trunc(node: Call, args: list[Any]) -> pa.Array:
    unit = node.args[0].value if isinstance(node.args[0], Literal) else ""
    return _numeric(lambda instants: numbers.start_of(str(unit), instants))(node, args[1:])


def _nullif(args: list[Any]) -> pa.Array:
    return pc.if_else(_equal(args).fill_null(False), pa.scalar(None, args[0].type), args[0])


_KERNELS: dict[Op, Callable[[Call, list[Any]], pa.Array]] = {
    Op.ADD: _numeric(numbers.add),
    Op.SUBTRACT: _numeric(numbers.subtract),
    Op.MULTIPLY: _numeric(numbers.multiply),
    Op.DIVIDE: _numeric(numbers.divide),
    Op.MODULO: _numeric(numbers.modulo),
    Op.NEGATE: _numeric(numbers.negate),
    Op.ABS: _numeric(numbers.magnitude),
    Op.FLOOR: _numeric(numbers.to_whole(np.floor)),
    Op.CEIL: _numeric(numbers.to_whole(np.ceil)),
    Op.ROUND: _numeric(numbers.round_half_up),
    Op.SQRT: _numeric(np.sqrt),
    Op.LN: _listed(_ln),
    Op.LOG10: _listed(_log10),
    Op.SIGN: _numeric(numbers.sign),
    Op.DIV: _numeric(numbers.whole_quotient),
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
    Op.UPPER: change_case(pc.ascii_upper, str.upper),
    Op.LOWER: change_case(pc.ascii_lower, str.lower),
    Op.LENGTH: lambda _, args: pc.utf8_length(args[0]).cast(pa.int64()),
    Op.CONCAT: lambda _, args: pc.binary_join_element_wise(*args, ""),
    Op.SUBSTRING: substring,
    Op.TRIM: lambda _, args: pc.utf8_trim(args[0], " "),
    Op.LTRIM: lambda _, args: pc.utf8_ltrim(args[0], " "),
    Op.RTRIM: lambda _, args: pc.utf8_rtrim(args[0], " "),
    Op.REPLACE: replace,
    Op.STARTSWITH: text_test(pc.starts_with, str.startswith),
    Op.ENDSWITH: text_test(pc.ends_with, str.endswith),
    Op.CONTAINS: text_test(pc.match_substring, str.__contains__),
    Op.LIKE: like,
    Op.CAST: _cast,
    Op.YEAR: _numeric(numbers.year),
    Op.QUARTER: _numeric(lambda instants: (numbers.month(instants) + 2) // 3),
    Op.MONTH: _numeric(numbers.month),
    Op.DAY: _numeric(numbers.day_of_month),
    Op.HOUR: _numeric(lambda instants: instants // 3_600_000_000 % 24),
    Op.MINUTE: _numeric(lambda instants: instants // 60_000_000 % 60),
    Op.SECOND: _numeric(lambda instants: instants // 1_000_000 % 60),
    Op.WEEKDAY: _numeric(lambda instants: (instants // 86_400_000_000 + 3) % 7),
    Op.DAYOFYEAR: _numeric(numbers.day_of_year),
    Op.DATE_TRUNC: _date_trunc,
    Op.DAYOFWEEK: _numeric(lambda instants: (instants // 86_400_000_000 + 4) % 7 + 1),
    Op.EPOCH_US: _numeric(lambda instants: instants),
}
