"""What a row expression means: a small typed tree, and one stated meaning for every function in it.

The SQL parser is left behind here: evaluators walk these nodes, and a fingerprint hashes ``render`` of them, so that
neither a value nor an identity depends on the version of a parser.

Rules that hold for every function, unless its line in ``FUNCTIONS`` says otherwise:
    1. Total: no event can make an expression fail. What has no result (a division by zero, an integer beyond 64 bits, a
       text that is no number) is null.
    2. Null in, null out. AND, OR and NOT know three values: ``false AND null`` is false, ``true AND null`` is null.
    3. Arithmetic is int64 or IEEE 754 float64. An int64 meets a float64 as float64; nothing else is converted unasked.
    4. NaN is an ordinary value: equal to itself and greater than every other number, as in Spark. -0.0 equals 0.0.
    5. Texts are compared by code point and counted in code points. Times are instants; their parts are read in UTC.

Where they can, the rules agree with Spark SQL without ANSI mode. Known differences, on purpose: an integer overflow and
a float beyond int64 are null, where Spark wraps or saturates; there are no implicit casts between text and number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from featurestore.datatypes import DataType


class Op(StrEnum):
    """What a ``Call`` computes. Arguments already have the types that the operation wants."""

    ADD = "+"
    SUBTRACT = "-"
    MULTIPLY = "*"
    DIVIDE = "/"
    MODULO = "%"
    DIV = "DIV"
    NEGATE = "NEGATE"
    ABS = "ABS"
    FLOOR = "FLOOR"
    CEIL = "CEIL"
    ROUND = "ROUND"
    SQRT = "SQRT"
    LN = "LN"
    LOG10 = "LOG10"
    SIGN = "SIGN"
    EXP = "EXP"
    POWER = "POWER"
    ISNAN = "ISNAN"
    EQUAL = "="
    LESS = "<"
    LESS_EQUAL = "<="
    SAME = "IS NOT DISTINCT FROM"
    IN = "IN"
    BETWEEN = "BETWEEN"
    AND = "AND"
    OR = "OR"
    NOT = "NOT"
    IS_NULL = "IS NULL"
    COALESCE = "COALESCE"
    NULLIF = "NULLIF"
    LEAST = "LEAST"
    GREATEST = "GREATEST"
    UPPER = "UPPER"
    LOWER = "LOWER"
    LENGTH = "LENGTH"
    CONCAT = "CONCAT"
    SUBSTRING = "SUBSTRING"
    TRIM = "TRIM"
    LTRIM = "LTRIM"
    RTRIM = "RTRIM"
    REPLACE = "REPLACE"
    STARTSWITH = "STARTSWITH"
    ENDSWITH = "ENDSWITH"
    CONTAINS = "CONTAINS"
    LIKE = "LIKE"
    CAST = "CAST"
    YEAR = "YEAR"
    QUARTER = "QUARTER"
    MONTH = "MONTH"
    DAY = "DAY"
    HOUR = "HOUR"
    MINUTE = "MINUTE"
    SECOND = "SECOND"
    DAYOFWEEK = "DAYOFWEEK"
    WEEKDAY = "WEEKDAY"
    DAYOFYEAR = "DAYOFYEAR"
    DATE_TRUNC = "DATE_TRUNC"
    EPOCH_US = "EPOCH_US"


@dataclass(frozen=True, slots=True)
class Column:
    """The value of a column in this row."""

    name: str
    type: DataType


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant; None is null."""

    value: int | float | str | bool | None
    type: DataType


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on values of the same row. Evaluating it never fails."""

    op: Op
    args: tuple[Node, ...]
    type: DataType


@dataclass(frozen=True, slots=True)
class Case:
    """The value of the first branch that holds: its condition is true, or equals the subject where there is one."""

    branches: tuple[tuple[Node, Node], ...]
    otherwise: Node
    type: DataType
    subject: Node | None = None


Node: TypeAlias = Column | Literal | Call | Case


@dataclass(frozen=True, slots=True)
class Function:
    """A line of the reference: how it is written, what it means, and what null does when that is not rule 2."""

    signature: str
    meaning: str
    nulls: str = "null in, null out"


FUNCTIONS: dict[str, Function] = {
    "+": Function("number + number -> number", "sum; int64 beyond 64 bits is null"),
    "-": Function("number - number -> number; -number", "difference, negation; int64 beyond 64 bits is null"),
    "*": Function("number * number -> number", "product; int64 beyond 64 bits is null"),
    "/": Function("number / number -> float64", "float64 quotient; by zero is null"),
    "%": Function("number % number -> number", "remainder with the sign of the dividend; by zero is null"),
    "DIV": Function("int64 DIV int64 -> int64", "quotient towards zero; by zero, or beyond 64 bits, is null"),
    "=": Function("any = any -> bool", "also ==; also <>, !=, <, <=, >, >= of one type or of numbers"),
    "IS DISTINCT FROM": Function("any IS [NOT] DISTINCT FROM any -> bool", "also <=>", "null equals null; never null"),
    "AND": Function("bool AND bool -> bool", "also OR, NOT", "three-valued"),
    "IS NULL": Function("any IS [NOT] NULL -> bool", "also IS [NOT] TRUE, IS [NOT] FALSE", "never null"),
    "IN": Function("any [NOT] IN (literals) -> bool", "equals one of them", "not found is null when a literal is null"),
    "BETWEEN": Function("x [NOT] BETWEEN low AND high -> bool", "low <= x AND x <= high", "as that AND"),
    "CASE": Function(
        "CASE [x] WHEN a THEN b ... [ELSE c] END",
        "first branch whose condition is true, or equals x",
        "a null condition does not hold; no branch and no ELSE is null",
    ),
    "IF": Function("IF(condition, a [, b])", "CASE WHEN condition THEN a ELSE b END", "as CASE"),
    "COALESCE": Function("COALESCE(a, b, ...)", "first that is not null; also IFNULL, NVL", "null when all are"),
    "NULLIF": Function("NULLIF(a, b)", "null where a = b, else a", "a where b is null"),
    "LEAST": Function("LEAST(a, b, ...)", "smallest; of equals the first", "skips nulls"),
    "GREATEST": Function("GREATEST(a, b, ...)", "greatest, NaN above all; of equals the first", "skips nulls"),
    "ABS": Function("ABS(number) -> number", "magnitude; of the lowest int64 null"),
    "FLOOR": Function("FLOOR(number) -> int64", "greatest integer not above; NaN or beyond int64 is null"),
    "CEIL": Function("CEIL(number) -> int64", "smallest integer not below; NaN or beyond int64 is null"),
    "ROUND": Function(
        "ROUND(number [, digits]) -> number",
        "half away from zero, of the shortest decimal text of the number: ROUND(2.675, 2) is 2.68; "
        "digits is a literal from -15 to 15; an int64 stays one, and is null beyond 64 bits",
    ),
    "SQRT": Function("SQRT(number) -> float64", "square root; of a negative number NaN"),
    "LN": Function("LN(number) -> float64", "natural logarithm; null at and below zero"),
    "LOG10": Function("LOG10(number) -> float64", "logarithm to the base 10; null at and below zero"),
    "SIGN": Function("SIGN(number) -> float64", "-1.0, 1.0, or the number itself where it is 0 or NaN"),
    "EXP": Function("EXP(number) -> float64", "e to the power of it"),
    "POWER": Function("POWER(x, y) -> float64", "pow of IEEE 754: POWER(x, 0) is 1, a root of a negative is NaN"),
    "ISNAN": Function("ISNAN(number) -> bool", "whether it is NaN", "of null is false"),
    "UPPER": Function("UPPER(text) -> text", "full Unicode upper case, of no language"),
    "LOWER": Function("LOWER(text) -> text", "full Unicode lower case, of no language"),
    "LENGTH": Function("LENGTH(text) -> int64", "number of code points"),
    "CONCAT": Function("CONCAT(text, ...) -> text", "joined; also ||", "null when one is"),
    "SUBSTRING": Function(
        "SUBSTRING(text, from [, length]) -> text",
        "from is a literal: 1 the first, 0 as 1, -1 the last; what lies outside the text is left out",
    ),
    "TRIM": Function("TRIM(text) -> text", "without spaces (U+0020) at both ends; also LTRIM, RTRIM, of one end"),
    "REPLACE": Function(
        "REPLACE(text, a, b) -> text", "every a in it replaced by b, from the left; an empty a changes nothing"
    ),
    "STARTSWITH": Function(
        "STARTSWITH(text, part) -> bool",
        "whether it begins with part; also ENDSWITH, CONTAINS; an empty part is in every text",
    ),
    "LIKE": Function(
        "text [NOT] LIKE 'pattern' -> bool", "% any run, _ any one code point, \\ takes %, _ and \\ as they are"
    ),
    "CAST": Function(
        "CAST(x AS bigint | double | string | boolean), also TRY_CAST",
        "what cannot be converted is null; float64 to bigint truncates; text is trimmed first; "
        "bool is 1 or 0; a number is true unless it is 0; float64 to text as Java writes it (1.0, 1.0E10, NaN)",
    ),
    "HOUR": Function(
        "HOUR(timestamp) -> int64",
        "also YEAR, QUARTER, MONTH, DAY, MINUTE, SECOND, DAYOFYEAR, DAYOFWEEK (1 is Sunday), WEEKDAY (0 is Monday), "
        "EXTRACT(HOUR FROM x)",
    ),
    "DATE_TRUNC": Function(
        "DATE_TRUNC('unit', timestamp) -> timestamp",
        "the start, in UTC, of the unit it lies in: YEAR, QUARTER, MONTH, WEEK (from Monday), DAY, HOUR, MINUTE or SECOND",
    ),
    "EPOCH_US": Function("EPOCH_US(timestamp) -> int64", "microseconds since 1970-01-01 UTC; also UNIX_MICROS"),
}
"""Everything a row expression may use. The conformance cases prove each line in every evaluator."""

CAST_NAMES = {
    DataType.INT64: "BIGINT",
    DataType.FLOAT64: "DOUBLE",
    DataType.STRING: "STRING",
    DataType.BOOL: "BOOLEAN",
}
"""The SQL names of the types that a cast can name; there is none for a timestamp."""

_BETWEEN_ARGS = frozenset(
    {
        Op.ADD,
        Op.SUBTRACT,
        Op.MULTIPLY,
        Op.DIVIDE,
        Op.MODULO,
        Op.DIV,
        Op.EQUAL,
        Op.LESS,
        Op.LESS_EQUAL,
        Op.SAME,
        Op.AND,
        Op.OR,
        Op.LIKE,
    }
)


def render(node: Node) -> str:
    """Return the normal SQL text of a tree: fully bracketed, casts written out. Equal trees, and only those, agree."""
    if isinstance(node, Column):
        return f"`{node.name.replace('`', '``')}`"
    if isinstance(node, Literal):
        return _render_literal(node)
    if isinstance(node, Case):
        subject = "" if node.subject is None else f" {render(node.subject)}"
        branches = "".join(f" WHEN {render(when)} THEN {render(then)}" for when, then in node.branches)
        return f"CASE{subject}{branches} ELSE {render(node.otherwise)} END"
    args = [render(arg) for arg in node.args]
    if node.op in _BETWEEN_ARGS:
        return f"({args[0]} {node.op} {args[1]})"
    if node.op == Op.NEGATE:
        return f"(- {args[0]})"
    if node.op == Op.NOT:
        return f"(NOT {args[0]})"
    if node.op == Op.IS_NULL:
        return f"({args[0]} IS NULL)"
    if node.op == Op.IN:
        return f"({args[0]} IN ({', '.join(args[1:])}))"
    if node.op == Op.BETWEEN:
        return f"({args[0]} BETWEEN {args[1]} AND {args[2]})"
    if node.op == Op.CAST:
        return f"CAST({args[0]} AS {CAST_NAMES[node.type]})"
    return f"{node.op}({', '.join(args)})"


def _render_literal(node: Literal) -> str:
    value = node.value
    if value is None:
        name = CAST_NAMES.get(node.type)
        return "NULL" if name is None else f"CAST(NULL AS {name})"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return repr(value)


def column_types(node: Node) -> dict[str, DataType]:
    """Return the columns that a tree reads, by name, sorted."""
    found: dict[str, DataType] = {}
    stack: list[Node] = [node]
    while stack:
        one = stack.pop()
        if isinstance(one, Column):
            found[one.name] = one.type
        elif isinstance(one, Call):
            stack.extend(one.args)
        elif isinstance(one, Case):
            stack.append(one.otherwise)
            stack.extend(part for branch in one.branches for part in branch)
            if one.subject is not None:
                stack.append(one.subject)
    return dict(sorted(found.items()))


def depth_of(node: Node) -> int:
    """Return how many levels of a tree lie below its root, and the root."""
    if isinstance(node, Call):
        return 1 + max(map(depth_of, node.args), default=0)
    if isinstance(node, Case):
        parts = [node.otherwise, *(part for branch in node.branches for part in branch)]
        return 1 + max(map(depth_of, [*parts, node.subject] if node.subject is not None else parts))
    return 1


class PatternError(ValueError):
    """A LIKE pattern with an escape that escapes nothing."""


def like_parts(pattern: str) -> list[tuple[str, str]]:
    r"""Return a LIKE pattern as a list of ("text", characters), ("one", "") and ("run", "").

    Raises:
        PatternError: A backslash is not followed by %, _ or a backslash.

    >>> like_parts("a\\%_%")
    [('text', 'a%'), ('one', ''), ('run', '')]
    """
    parts: list[tuple[str, str]] = []
    for piece in re.findall(r"\\.|.|\\\Z", pattern, re.DOTALL):
        if piece in ("%", "_"):
            parts.append(("run" if piece == "%" else "one", ""))
            continue
        if piece[0] == "\\" and piece[1:] not in ("%", "_", "\\"):
            raise PatternError(piece)
        text = piece[-1]
        if parts and parts[-1][0] == "text":
            text = parts.pop()[1] + text
        parts.append(("text", text))
    return parts
