"""From SQL text to a typed tree; sqlglot does the syntax, this module everything that has a meaning.

A node of the parser is understood with exactly the parts that are listed for it (``_understand``); one that carries
anything more (``CEIL(x, 2)``, ``TRIM(LEADING ...)``) is refused, so that nothing is dropped silently.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import ParseError, TokenError

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import (
    CAST_NAMES,
    FUNCTIONS,
    Call,
    Case,
    Column,
    Literal,
    Node,
    Op,
    PatternError,
    like_parts,
)
from featurestore.errors import ExpressionError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_CHARACTERS = 10_000
MAX_DEPTH = 100
INT, FLOAT, BOOL = DataType.INT64, DataType.FLOAT64, DataType.BOOL
TEXT, TIME = DataType.STRING, DataType.TIMESTAMP
_NUMBERS = (INT, FLOAT)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_ROUND_DIGITS = 15

_NOT_OF_THE_ROW = frozenset(
    {  # fmt: skip
        "CURDATE",
        "CURRENT_DATE",
        "CURRENT_DATETIME",
        "CURRENT_TIME",
        "CURRENT_TIMESTAMP",
        "CURRENT_TIMEZONE",
        "CURRENT_USER",
        "GETDATE",
        "INPUT_FILE_NAME",
        "LOCALTIME",
        "LOCALTIMESTAMP",
        "MONOTONICALLY_INCREASING_ID",
        "NOW",
        "RAND",
        "RANDN",
        "RANDOM",
        "RANDSTR",
        "SHUFFLE",
        "SPARK_PARTITION_ID",
        "SYSDATE",
        "UNIFORM",
        "UNIX_SECONDS",
        "UNIX_TIMESTAMP",
        "UUID",
    }
)
_ALIASES = {"POW": "POWER", "CEILING": "CEIL", "SUBSTR": "SUBSTRING", "LEN": "LENGTH"}
_AGGREGATES = frozenset({"MEAN", "FIRST", "LAST", "COLLECT_LIST", "PERCENTILE"})

_UNARY: dict[type[exp.Expression], tuple[Op, tuple[DataType, ...], DataType | None]] = {
    exp.Neg: (Op.NEGATE, _NUMBERS, None),
    exp.Abs: (Op.ABS, _NUMBERS, None),
    exp.Floor: (Op.FLOOR, _NUMBERS, INT),
    exp.Ceil: (Op.CEIL, _NUMBERS, INT),
    exp.Sqrt: (Op.SQRT, (FLOAT,), FLOAT),
    exp.Ln: (Op.LN, (FLOAT,), FLOAT),
    exp.Exp: (Op.EXP, (FLOAT,), FLOAT),
    exp.IsNan: (Op.ISNAN, (FLOAT,), BOOL),
    exp.Not: (Op.NOT, (BOOL,), BOOL),
    exp.Upper: (Op.UPPER, (TEXT,), TEXT),
    exp.Lower: (Op.LOWER, (TEXT,), TEXT),
    exp.Length: (Op.LENGTH, (TEXT,), INT),
    exp.Trim: (Op.TRIM, (TEXT,), TEXT),
    exp.Year: (Op.YEAR, (TIME,), INT),
    exp.Month: (Op.MONTH, (TIME,), INT),
    exp.Day: (Op.DAY, (TIME,), INT),
    exp.DayOfMonth: (Op.DAY, (TIME,), INT),
    exp.DayOfWeek: (Op.DAYOFWEEK, (TIME,), INT),
    exp.Hour: (Op.HOUR, (TIME,), INT),
    exp.Minute: (Op.MINUTE, (TIME,), INT),
}
"""Functions of one argument: what they compute, the types they take, the type they give (None: the argument's)."""

_PARTS_OF_TIME = {name: Op[name] for name in ("YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "DAYOFWEEK")} | {
    "DOW": Op.DAYOFWEEK
}
_CASTS = {
    exp.DType.BIGINT: INT,
    exp.DType.DOUBLE: FLOAT,
    exp.DType.TEXT: TEXT,
    exp.DType.BOOLEAN: BOOL,
}


class _RowSql(Spark):
    """Spark's spelling, with the quote of the SQL standard: ``'O''Hare'``, as Spark 4 reads it."""

    class Tokenizer(Spark.Tokenizer):
        STRING_ESCAPES = ["\\", "'"]  # noqa: RUF012 - sqlglot's form of a setting


_SYNTAX = _RowSql()


def read_expression(text: str, columns: Mapping[str, DataType], *, where: str) -> Node:
    """Return the typed tree of a row expression.

    Raises:
        ExpressionError: See ``Expression.parse``.
    """
    return _Reader(text, columns, where).read_all()


class _Reader:
    """Reads one text; holds what every message needs."""

    def __init__(self, text: str, columns: Mapping[str, DataType], where: str) -> None:
        self.text = text
        self.columns = columns
        self.where = where
        self.depth = 0

    # -- from text to the parser's tree

    def read_all(self) -> Node:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ExpressionError(
                f"{self.where}: {self.text!r} is no expression.",
                hint='write SQL over the fields, such as "amount * 2".',
            )
        if len(self.text) > MAX_CHARACTERS:
            raise ExpressionError(
                f"{self.where}: the expression has {len(self.text):,} characters, allowed are {MAX_CHARACTERS:,}."
            )
        try:
            node = self.read(self._parse())
        except RecursionError:
            self._too_deep()
        if node.type is None:
            raise self.error("NULL alone has no type", None, hint="write CAST(NULL AS double).")
        return node

    def _parse(self) -> exp.Expression:
        try:
            tokens = _SYNTAX.tokenize(self.text)
            parsed = _SYNTAX.parser().parse_into(exp.Condition, tokens, self.text)
        except TokenError:
            start = self._unclosed()
            raise self.error(f"a quote ({self.text[start]}) is opened and never closed", start)
        except ParseError as error:
            self._syntax_error(error)
        if len(parsed) != 1 or parsed[0] is None:
            start = self.text.find(";")
            raise self.error("one expression is wanted, not several", max(start, 0), hint="remove the semicolon.")
        return parsed[0]

    def _unclosed(self) -> int:
        """Return where the quote starts that is never closed."""
        closed = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:\\.|''|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^'\"`]", re.DOTALL)
        start = 0
        while start < len(self.text) and (match := closed.match(self.text, start)):
            start = match.end()
        return min(start, len(self.text) - 1)

    def _syntax_error(self, error: ParseError) -> NoReturn:
        known = error.errors[0] if error.errors else {}
        description, highlight = (
            str(known.get("description") or "it is no SQL expression"),
            known.get("highlight") or "",
        )
        lines = self.text.splitlines(keepends=True)
        line, column = int(known.get("line") or 1), int(known.get("col") or 1)
        start = sum(len(one) for one in lines[: line - 1]) + column - len(highlight)
        if "missing" in description:
            problem = f"something is missing after {highlight!r}"
        elif "Unexpected token" in description:
            problem = f"{highlight!r} is not expected here"
        elif description.startswith("The number of provided"):
            problem = "too many arguments"
        else:
            problem = description[0].lower() + description[1:]
        hint = f"types are {', '.join(CAST_NAMES.values()).lower()}." if "TYPE" in description else None
        if self.text.split()[0].upper() in ("SELECT", "WITH", "FROM"):
            hint = "write the expression alone, without SELECT."
        raise self.error(problem, max(start, 0), hint=hint)

    # -- messages

    def error(self, problem: str, at: exp.Expression | int | None, *, hint: str | None = None) -> ExpressionError:
        start = at if isinstance(at, int) or at is None else self._start(at)
        place = "in" if start is None else f"at character {start + 1} of"
        return ExpressionError(f"{self.where}: {problem} {place} {self.text!r}.", hint=hint)

    def _start(self, node: exp.Expression) -> int | None:
        """Return where in the text a node starts, as far as the parser kept it or its name says."""
        starts = [one.meta["start"] for one in node.walk() if "start" in one.meta]
        if starts:
            return min(starts)
        named = re.search(rf"\b{re.escape(_name_of(node))}\b", self.text, re.IGNORECASE)
        return None if named is None else named.start()

    def _too_deep(self) -> NoReturn:
        raise ExpressionError(
            f"{self.where}: the expression is nested more than {MAX_DEPTH} levels deep.",
            hint="use IN (...) instead of many ORs, COALESCE instead of nested CASEs, or fewer brackets.",
        )

    def _refuse(self, node: exp.Expression) -> NoReturn:
        name = _name_of(node)
        if isinstance(node, exp.Window):
            raise self.error(
                "a window function is not allowed", node, hint='windows are given by .over("1h") of an aggregate.'
            )
        if isinstance(node, exp.Query | exp.Subquery | exp.Exists) or node.find(exp.Query) is not None:
            raise self.error(
                "a subquery is not allowed", node, hint="a row expression sees one event and nothing else."
            )
        if isinstance(node, exp.AggFunc) or name in _AGGREGATES:
            raise self.error(
                f"{name} is an aggregate, and a row expression sees one event",
                node,
                hint='write the aggregate in Python, around the expression: Sum("amount").over("1h").',
            )
        if name in _NOT_OF_THE_ROW:
            raise self.error(
                f"{name} is not a function of the event, so a feature made with it could never be computed again",
                node,
                hint="use the event's own time or id.",
            )
        close = did_you_mean(name, FUNCTIONS) if re.fullmatch(r"\w+", name) else ""
        allowed = f"allowed are {', '.join(FUNCTIONS)}."
        raise self.error(
            f"{name} is not allowed", node, hint=f"{close} {allowed}" if close.startswith("did") else allowed
        )

    # -- from the parser's tree to ours

    def read(self, node: exp.Expression) -> Node:
        if self.depth >= MAX_DEPTH:
            self._too_deep()
        entry = _READERS.get(type(node))
        if entry is None:
            self._refuse(node)
        reader, parts = entry
        for part, value in node.args.items():
            if part not in parts and value not in (None, False, []):
                raise self.error(f"{_name_of(node)} is not understood with {part!r}", node, hint=_hint(_name_of(node)))
        self.depth += 1
        try:
            return reader(self, node)
        finally:
            self.depth -= 1

    def read_as(self, node: exp.Expression, kinds: Sequence[DataType], *, user: exp.Expression) -> Node:
        """Return an argument, converted to the one type wanted, or refuse it."""
        found = self.read(node)
        if found.type is None:
            return Literal(None, kinds[-1])
        if found.type in kinds:
            return found
        if found.type == INT and FLOAT in kinds:
            return _as_float(found)
        hint = _hint(_name_of(user))
        if found.type == TIME and set(kinds) & set(_NUMBERS):
            hint = "EPOCH_US(x) gives microseconds: EPOCH_US(a) - EPOCH_US(b)."
        elif found.type == TEXT and set(kinds) & set(_NUMBERS):
            hint = "CAST(x AS double) reads a number from text."
        elif kinds == (TEXT,) and found.type != TIME:
            hint = "CAST(x AS string) writes it as text."
        raise self.error(f"{_name_of(user)} takes {' or '.join(kinds)}, not {found.type},", node, hint=hint)

    def unify(self, nodes: Sequence[exp.Expression], *, user: exp.Expression) -> list[Node]:
        """Return arguments as values of one type: theirs, or float64 where int64 and float64 meet."""
        found = [self.read(node) for node in nodes]
        kinds = {one.type for one in found if one.type is not None}
        if not kinds:
            raise self.error(
                f"{_name_of(user)} of nothing but NULL has no type", user, hint="write CAST(NULL AS double)."
            )
        if kinds == {INT, FLOAT}:
            found = [_as_float(one) if one.type == INT else one for one in found]
        elif len(kinds) > 1:
            names = " and ".join(sorted(kinds))
            raise self.error(
                f"{_name_of(user)} takes values of one type, not {names},", user, hint="convert one with CAST."
            )
        kind = FLOAT if FLOAT in kinds else next(iter(kinds))
        return [Literal(None, kind) if one.type is None else one for one in found]

    def column(self, node: exp.Expression) -> Node:
        if not isinstance(node.this, exp.Identifier):
            self._refuse(node.this)
        name = ".".join(part.name for part in node.parts)
        if name not in self.columns:
            raise self.error(f"unknown column {name!r}", node, hint=did_you_mean(name, self.columns, what="columns"))
        return Column(name, DataType(self.columns[name]))

    def literal(self, node: exp.Expression) -> Node:
        return self.constant(node, 1)

    def constant(self, node: exp.Expression, sign: int) -> Node:
        if node.is_string:
            if any("\ud800" <= character <= "\udfff" for character in node.this):
                raise self.error("the text has half a surrogate pair, which is no character,", node)
            return Literal(node.this, TEXT)
        if re.fullmatch(r"[0-9]+", node.this, re.ASCII):
            whole = sign * int(node.this)
            if not _LOWEST <= whole <= _HIGHEST:
                raise self.error(f"{whole} is beyond 64 bits", node, hint=f"write {node.this}.0 for a float64.")
            return Literal(whole, INT)
        value = sign * float(node.this) if re.fullmatch(r"[0-9.eE+-]+", node.this, re.ASCII) else math.inf
        if math.isinf(value):
            raise self.error(f"{node.this} is no float64", node)
        return Literal(value, FLOAT)

    def truth(self, node: exp.Expression) -> Node:
        return Literal(bool(node.this), BOOL)

    def null(self, _: exp.Expression) -> Node:
        return _NULL

    def brackets(self, node: exp.Expression) -> Node:
        return self.read(node.this)

    def negative(self, node: exp.Expression) -> Node:
        if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return self.constant(node.this, -1)
        return self.unary(node)

    def unary(self, node: exp.Expression) -> Node:
        op, kinds, result = _UNARY[type(node)]
        argument = node.this.this if isinstance(node.this, exp.TsOrDsToDate) else node.this
        found = self.read_as(argument, kinds, user=node)
        return Call(op, (found,), result or found.type)

    def arithmetic(self, node: exp.Expression) -> Node:
        op = _ARITHMETIC[type(node)]
        kinds = (FLOAT,) if op in (Op.DIVIDE, Op.POWER) else _NUMBERS
        left, right = (self.read_as(one, kinds, user=node) for one in (node.this, node.expression))
        if left.type != right.type:
            nulls = [one for one in (left, right) if isinstance(one, Literal) and one.value is None]
            if nulls:
                kind = right.type if left in nulls else left.type
                left, right = (Literal(None, kind) if one in nulls else one for one in (left, right))
            else:
                left, right = _as_float(left), _as_float(right)
        return Call(op, (left, right), left.type)

    def comparison(self, node: exp.Expression) -> Node:
        left, right = self.unify([node.this, node.expression], user=node)
        op, swapped, negated = _COMPARISONS[type(node)]
        call = Call(op, (right, left) if swapped else (left, right), BOOL)
        return Call(Op.NOT, (call,), BOOL) if negated else call

    def connective(self, node: exp.Expression) -> Node:
        op = Op.AND if isinstance(node, exp.And) else Op.OR
        left, right = (self.read_as(one, (BOOL,), user=node) for one in (node.this, node.expression))
        return Call(op, (left, right), BOOL)

    def is_(self, node: exp.Expression) -> Node:
        found = self.read(node.this)
        if found.type is None:
            found = Literal(None, BOOL)
        if isinstance(node.expression, exp.Null):
            return Call(Op.IS_NULL, (found,), BOOL)
        if isinstance(node.expression, exp.Boolean) and found.type == BOOL:
            return Call(Op.SAME, (found, self.truth(node.expression)), BOOL)
        raise self.error(
            "IS takes NULL, or TRUE and FALSE of a bool,", node, hint="write IS NOT DISTINCT FROM to compare."
        )

    def in_(self, node: exp.Expression) -> Node:
        if node.args.get("query") is not None:
            self._refuse(node.args["query"])
        options = node.expressions
        if not options:
            raise self.error("IN takes a list of literals in brackets", node, hint="such as status IN ('a', 'b').")
        found = self.unify([node.this, *options], user=node)
        for option, value in zip(options, found[1:], strict=True):
            if not isinstance(value, Literal):
                raise self.error("IN takes literals only", option, hint="write OR for columns: a = b OR a = c.")
        return Call(Op.IN, tuple(found), BOOL)

    def between(self, node: exp.Expression) -> Node:
        found = self.unify([node.this, node.args["low"], node.args["high"]], user=node)
        return Call(Op.BETWEEN, tuple(found), BOOL)

    def case(self, node: exp.Expression) -> Node:
        tests = [branch.this for branch in node.args["ifs"]]
        subject: Node | None = None
        if node.this is not None:
            subject, *conditions = self.unify([node.this, *tests], user=node)
        else:
            conditions = [self.read_as(test, (BOOL,), user=node) for test in tests]
        default = node.args.get("default") or exp.Null()
        *values, otherwise = self.unify([*(branch.args["true"] for branch in node.args["ifs"]), default], user=node)
        return Case(tuple(zip(conditions, values, strict=True)), otherwise, otherwise.type, subject)

    def if_(self, node: exp.Expression) -> Node:
        condition = self.read_as(node.this, (BOOL,), user=node)
        value, otherwise = self.unify([node.args["true"], node.args.get("false") or exp.Null()], user=node)
        return Case(((condition, value),), otherwise, otherwise.type)

    def choice(self, node: exp.Expression) -> Node:
        op = _CHOICES[type(node)]
        found = self.unify([node.this, *([node.expression] if op == Op.NULLIF else node.expressions)], user=node)
        return found[0] if len(found) == 1 else Call(op, tuple(found), found[0].type)

    def concat(self, node: exp.Expression) -> Node:
        parts = [node.this, node.expression] if isinstance(node, exp.DPipe) else node.expressions
        found = tuple(self.read_as(part, (TEXT,), user=node) for part in parts)
        return found[0] if len(found) == 1 else Call(Op.CONCAT, found, TEXT)

    def whole(self, node: exp.Expression | None, user: exp.Expression, what: str) -> Literal:
        found = None if node is None else self.read(node)
        if not isinstance(found, Literal) or found.type != INT or found.value is None:
            raise self.error(
                f"{_name_of(user)} takes {what} as a whole literal", node or user, hint=_hint(_name_of(user))
            )
        return found

    def round(self, node: exp.Expression) -> Node:
        value = self.read_as(node.this, _NUMBERS, user=node)
        given = node.args.get("decimals")
        digits = Literal(0, INT) if given is None else self.whole(given, node, "the digits")
        if abs(int(digits.value or 0)) > _ROUND_DIGITS:
            raise self.error(f"ROUND takes -{_ROUND_DIGITS} to {_ROUND_DIGITS} digits, not {digits.value},", given)
        return Call(Op.ROUND, (value, digits), value.type)

    def substring(self, node: exp.Expression) -> Node:
        text = self.read_as(node.this, (TEXT,), user=node)
        args = [self.whole(node.args.get("start"), node, "the first position")]
        if node.args.get("length") is not None:
            args.append(self.whole(node.args["length"], node, "the length"))
        return Call(Op.SUBSTRING, (text, *args), TEXT)

    def like(self, node: exp.Expression) -> Node:
        text = self.read_as(node.this, (TEXT,), user=node)
        pattern = self.read(node.expression)
        if not isinstance(pattern, Literal) or not isinstance(pattern.value, str):
            raise self.error("LIKE takes a pattern in quotes", node.expression, hint="such as name LIKE 'a%'.")
        try:
            like_parts(pattern.value)
        except PatternError as error:
            raise self.error(f"{error!s} escapes nothing", node.expression, hint=r"write \\ for a backslash.")
        call = Call(Op.LIKE, (text, pattern), BOOL)
        return Call(Op.NOT, (call,), BOOL) if node.args.get("negate") else call

    def cast(self, node: exp.Expression) -> Node:
        kind = _CASTS.get(node.args["to"].this)
        if kind is None or node.args["to"].expressions:
            name = node.args["to"].sql("spark").lower()
            raise self.error(
                f"{name} is no type to cast to", node, hint=f"types are {', '.join(CAST_NAMES.values()).lower()}."
            )
        found = self.read(node.this)
        if found.type is None:
            return Literal(None, kind)
        if found.type == TIME:
            raise self.error(
                "a timestamp cannot be cast", node, hint="use EPOCH_US(x), or its parts: HOUR(x), DAYOFWEEK(x)."
            )
        return found if found.type == kind else Call(Op.CAST, (found,), kind)

    def extract(self, node: exp.Expression) -> Node:
        part = node.this.name.upper()
        if part not in _PARTS_OF_TIME:
            raise self.error(f"EXTRACT does not know {part}", node, hint=f"parts are {', '.join(_PARTS_OF_TIME)}.")
        return Call(_PARTS_OF_TIME[part], (self.read_as(node.expression, (TIME,), user=node),), INT)

    def unnamed(self, node: exp.Expression) -> Node:
        if _name_of(node) != "EPOCH_US":
            self._refuse(node)
        if len(node.expressions) != 1:
            raise self.error("EPOCH_US takes one timestamp", node)
        return Call(Op.EPOCH_US, (self.read_as(node.expressions[0], (TIME,), user=node),), INT)


_NULL: Any = Literal(None, None)  # type: ignore[arg-type] # becomes typed where it is used
_ARITHMETIC = {
    exp.Add: Op.ADD,
    exp.Sub: Op.SUBTRACT,
    exp.Mul: Op.MULTIPLY,
    exp.Div: Op.DIVIDE,
    exp.Mod: Op.MODULO,
    exp.Pow: Op.POWER,
}
_COMPARISONS = {  # operation, whether its sides are swapped, whether it is negated
    exp.EQ: (Op.EQUAL, False, False),
    exp.NEQ: (Op.EQUAL, False, True),
    exp.LT: (Op.LESS, False, False),
    exp.LTE: (Op.LESS_EQUAL, False, False),
    exp.GT: (Op.LESS, True, False),
    exp.GTE: (Op.LESS_EQUAL, True, False),
    exp.NullSafeEQ: (Op.SAME, False, False),
    exp.NullSafeNEQ: (Op.SAME, False, True),
}
_CHOICES = {
    exp.Coalesce: Op.COALESCE,
    exp.Nullif: Op.NULLIF,
    exp.Least: Op.LEAST,
    exp.Greatest: Op.GREATEST,
}
_SYMBOLS = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Neg: "-",
    exp.Mul: "*",
    exp.Div: "/",
    exp.Mod: "%",
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.Pow: "POWER",
    exp.DPipe: "||",
    exp.IntDiv: "DIV",
    exp.Star: "*",
    exp.NullSafeEQ: "IS DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
    exp.TryCast: "CAST",
    exp.IsNan: "ISNAN",
    exp.DayOfWeek: "DAYOFWEEK",
}
_READERS: dict[type[exp.Expression], tuple[Callable[[_Reader, exp.Expression], Node], frozenset[str]]] = {}


def _understand(method: Callable[[_Reader, exp.Expression], Node], parts: str, *kinds: type[exp.Expression]) -> None:
    for kind in kinds:
        _READERS[kind] = (method, frozenset(parts.split()))


_understand(_Reader.column, "this table db catalog", exp.Column)
_understand(_Reader.literal, "this is_string", exp.Literal)
_understand(_Reader.truth, "this", exp.Boolean)
_understand(_Reader.null, "", exp.Null)
_understand(_Reader.brackets, "this", exp.Paren)
_understand(_Reader.unary, "this", *_UNARY)
_understand(_Reader.negative, "this", exp.Neg)
_understand(_Reader.arithmetic, "this expression typed safe", *_ARITHMETIC)
_understand(_Reader.comparison, "this expression", *_COMPARISONS)
_understand(_Reader.connective, "this expression", exp.And, exp.Or)
_understand(_Reader.is_, "this expression", exp.Is)
_understand(_Reader.in_, "this expressions query", exp.In)
_understand(_Reader.between, "this low high", exp.Between)
_understand(_Reader.case, "this ifs default", exp.Case)
_understand(_Reader.if_, "this true false", exp.If)
_understand(_Reader.choice, "this expression expressions ignore_nulls is_nvl is_null", *_CHOICES)
_understand(_Reader.concat, "this expression expressions safe", exp.Concat, exp.DPipe)
_understand(_Reader.round, "this decimals", exp.Round)
_understand(_Reader.substring, "this start length", exp.Substring)
_understand(_Reader.like, "this expression negate", exp.Like)
_understand(_Reader.cast, "this to safe _type", exp.Cast, exp.TryCast)
_understand(_Reader.extract, "this expression", exp.Extract)
_understand(_Reader.unnamed, "this expressions", exp.Anonymous)


def _as_float(node: Node) -> Node:
    if isinstance(node, Literal):
        return Literal(None if node.value is None else float(node.value), FLOAT)
    return node if node.type == FLOAT else Call(Op.CAST, (node,), FLOAT)


def _name_of(node: exp.Expression) -> str:
    """Return what the user would call a node: its symbol or the name of its function."""
    if type(node) in _SYMBOLS:
        return _SYMBOLS[type(node)]
    name = node.name if isinstance(node, exp.Anonymous) else node.sql_name() if isinstance(node, exp.Func) else node.key
    return _ALIASES.get(name.upper(), name.upper())


def _hint(name: str) -> str | None:
    found = FUNCTIONS.get(name)
    return None if found is None else f"{found.signature}."
