"""From the parser's tree to ours: everything that has a meaning. Syntax and messages are ``expression_syntax``.

A node of the parser is understood with exactly the parts that are listed for it (``_understand``); one that carries
anything more (``CEIL(x, 2)``, ``TRIM(LEADING ...)``) is refused, so that nothing is dropped silently.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from featurestore.datatypes import DataType
from featurestore.definitions.expression_functions import (
    ARITHMETIC,
    BOOL,
    CASTS,
    CHOICES,
    COMPARISONS,
    FLOAT,
    INT,
    NUMBERS,
    PARTS_OF_TIME,
    TEXT,
    TEXT_TESTS,
    TIME,
    TRIMS,
    UNARY,
    UNITS,
)
from featurestore.definitions.expression_nodes import (
    CAST_NAMES,
    Call,
    Case,
    Column,
    Literal,
    Node,
    Op,
    PatternError,
    depth_of,
    like_parts,
)
from featurestore.definitions.expression_syntax import MAX_DEPTH, SourceText, Tree, name_of, signature_hint
from featurestore.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_ROUND_DIGITS = 15


def read_expression(text: str, columns: Mapping[str, DataType | Node], *, where: str, unknown: str = "") -> Node:
    """Return the typed tree of a row expression; arguments as of ``Expression.parse``.

    Raises:
        ExpressionError: See ``Expression.parse``.
    """
    reader = _Reader(SourceText(text, where), columns, unknown)
    try:
        node = reader.read(reader.source.parse())
    except RecursionError:
        reader.source.too_deep()
    if node.type is None:
        raise reader.error("NULL alone has no type", None, hint="write CAST(NULL AS double).")
    return node


class _Reader:
    """Reads one text; every method returns the typed node of one of the parser's."""

    def __init__(self, source: SourceText, columns: Mapping[str, DataType | Node], unknown: str) -> None:
        self.source = source
        self.error = source.error
        self.columns = columns
        self.unknown = unknown
        self.depth = 0

    def read(self, node: Tree) -> Node:
        if self.depth >= MAX_DEPTH:
            self.source.too_deep()
        entry = _READERS.get(type(node))
        if entry is None:
            self.source.refuse(node)
        reader, parts = entry
        for part, value in node.args.items():
            if part not in parts and value not in (None, False, []):
                raise self.error(
                    f"{name_of(node)} is not understood with {part!r}", node, hint=signature_hint(name_of(node))
                )
        self.depth += 1
        try:
            return reader(self, node)
        finally:
            self.depth -= 1

    def read_as(self, node: Tree, kinds: Sequence[DataType], *, user: Tree) -> Node:
        """Return an argument, converted to the one type wanted, or refuse it."""
        found = self.read(node)
        if found.type is None:
            return Literal(None, kinds[-1])
        if found.type in kinds:
            return found
        if found.type == INT and FLOAT in kinds:
            return _as_float(found)
        hint = signature_hint(name_of(user))
        if found.type == TIME and set(kinds) & set(NUMBERS):
            hint = "EPOCH_US(x) gives microseconds: EPOCH_US(a) - EPOCH_US(b)."
        elif found.type == TEXT and set(kinds) & set(NUMBERS):
            hint = "CAST(x AS double) reads a number from text."
        elif kinds == (TEXT,) and found.type != TIME:
            hint = "CAST(x AS string) writes it as text."
        raise self.error(f"{name_of(user)} takes {' or '.join(kinds)}, not {found.type},", node, hint=hint)

    def unify(self, nodes: Sequence[Tree], *, user: Tree) -> list[Node]:
        """Return arguments as values of one type: theirs, or float64 where int64 and float64 meet."""
        found = [self.read(node) for node in nodes]
        kinds = {one.type for one in found if one.type is not None}
        if not kinds:
            raise self.error(
                f"{name_of(user)} of nothing but NULL has no type", user, hint="write CAST(NULL AS double)."
            )
        if kinds == {INT, FLOAT}:
            found = [_as_float(one) if one.type == INT else one for one in found]
        elif len(kinds) > 1:
            names = " and ".join(sorted(kinds))
            raise self.error(
                f"{name_of(user)} takes values of one type, not {names},", user, hint="convert one with CAST."
            )
        kind = FLOAT if FLOAT in kinds else next(iter(kinds))
        return [Literal(None, kind) if one.type is None else one for one in found]

    def column(self, node: Tree) -> Node:
        if not isinstance(node.this, exp.Identifier):
            self.source.refuse(node.this)
        name = ".".join(part.name for part in node.parts)
        if name not in self.columns:
            hint = did_you_mean(name, self.columns, what="columns")
            raise self.error(f"unknown column {name!r}", node, hint=f"{hint} {self.unknown}".rstrip())
        known = self.columns[name]
        found = Column(name, DataType(known)) if isinstance(known, str) else known
        if DataType(found.type).element is not None:
            raise self.error(f"{name!r} is {found.type}, and an expression takes single values,", node, hint=_OF_LISTS)
        if self.depth + depth_of(found) > MAX_DEPTH:
            self.source.too_deep()
        return found

    def literal(self, node: Tree) -> Node:
        return self.constant(node, 1)

    def constant(self, node: Tree, sign: int) -> Node:
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

    def truth(self, node: Tree) -> Node:
        return Literal(bool(node.this), BOOL)

    def null(self, _: Tree) -> Node:
        return Literal(None, _UNTYPED)

    def brackets(self, node: Tree) -> Node:
        return self.read(node.this)

    def negative(self, node: Tree) -> Node:
        if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return self.constant(node.this, -1)
        return self.unary(node)

    def unary(self, node: Tree) -> Node:
        op, kinds, result = UNARY[type(node)]
        argument = node.this.this if isinstance(node.this, exp.TsOrDsToDate) else node.this
        found = self.read_as(argument, kinds, user=node)
        return Call(op, (found,), result or found.type)

    def arithmetic(self, node: Tree) -> Node:
        op = ARITHMETIC[type(node)]
        kinds = (FLOAT,) if op in (Op.DIVIDE, Op.POWER) else (INT,) if op == Op.DIV else NUMBERS
        left, right = (self.read_as(one, kinds, user=node) for one in (node.this, node.expression))
        if left.type != right.type:
            nulls = [one for one in (left, right) if isinstance(one, Literal) and one.value is None]
            if nulls:
                kind = right.type if left in nulls else left.type
                left, right = (Literal(None, kind) if one in nulls else one for one in (left, right))
            else:
                left, right = _as_float(left), _as_float(right)
        return Call(op, (left, right), left.type)

    def comparison(self, node: Tree) -> Node:
        left, right = self.unify([node.this, node.expression], user=node)
        op, swapped, negated = COMPARISONS[type(node)]
        call = Call(op, (right, left) if swapped else (left, right), BOOL)
        return Call(Op.NOT, (call,), BOOL) if negated else call

    def connective(self, node: Tree) -> Node:
        op = Op.AND if isinstance(node, exp.And) else Op.OR
        left, right = (self.read_as(one, (BOOL,), user=node) for one in (node.this, node.expression))
        return Call(op, (left, right), BOOL)

    def is_(self, node: Tree) -> Node:
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

    def in_(self, node: Tree) -> Node:
        if node.args.get("query") is not None:
            self.source.refuse(node.args["query"])
        options = node.expressions
        if not options:
            raise self.error("IN takes a list of literals in brackets", node, hint="such as status IN ('a', 'b').")
        found = self.unify([node.this, *options], user=node)
        for option, value in zip(options, found[1:], strict=True):
            if not isinstance(value, Literal):
                raise self.error("IN takes literals only", option, hint="write OR for columns: a = b OR a = c.")
        return Call(Op.IN, tuple(found), BOOL)

    def between(self, node: Tree) -> Node:
        found = self.unify([node.this, node.args["low"], node.args["high"]], user=node)
        return Call(Op.BETWEEN, tuple(found), BOOL)

    def case(self, node: Tree) -> Node:
        tests = [branch.this for branch in node.args["ifs"]]
        subject: Node | None = None
        if node.this is not None:
            subject, *conditions = self.unify([node.this, *tests], user=node)
        else:
            conditions = [self.read_as(test, (BOOL,), user=node) for test in tests]
        default = node.args.get("default") or exp.Null()
        *values, otherwise = self.unify([*(branch.args["true"] for branch in node.args["ifs"]), default], user=node)
        return Case(tuple(zip(conditions, values, strict=True)), otherwise, otherwise.type, subject)

    def if_(self, node: Tree) -> Node:
        condition = self.read_as(node.this, (BOOL,), user=node)
        value, otherwise = self.unify([node.args["true"], node.args.get("false") or exp.Null()], user=node)
        return Case(((condition, value),), otherwise, otherwise.type)

    def choice(self, node: Tree) -> Node:
        op = CHOICES[type(node)]
        found = self.unify([node.this, *([node.expression] if op == Op.NULLIF else node.expressions)], user=node)
        return found[0] if len(found) == 1 else Call(op, tuple(found), found[0].type)

    def concat(self, node: Tree) -> Node:
        parts = [node.this, node.expression] if isinstance(node, exp.DPipe) else node.expressions
        found = tuple(self.read_as(part, (TEXT,), user=node) for part in parts)
        return found[0] if len(found) == 1 else Call(Op.CONCAT, found, TEXT)

    def whole(self, node: Tree | None, user: Tree, what: str) -> Literal:
        found = None if node is None else self.read(node)
        if not isinstance(found, Literal) or found.type != INT or found.value is None:
            raise self.error(
                f"{name_of(user)} takes {what} as a whole literal", node or user, hint=signature_hint(name_of(user))
            )
        return found

    def round(self, node: Tree) -> Node:
        value = self.read_as(node.this, NUMBERS, user=node)
        given = node.args.get("decimals")
        digits = Literal(0, INT) if given is None else self.whole(given, node, "the digits")
        if abs(int(digits.value or 0)) > _ROUND_DIGITS:
            raise self.error(f"ROUND takes -{_ROUND_DIGITS} to {_ROUND_DIGITS} digits, not {digits.value},", given)
        return Call(Op.ROUND, (value, digits), value.type)

    def substring(self, node: Tree) -> Node:
        text = self.read_as(node.this, (TEXT,), user=node)
        args = [self.whole(node.args.get("start"), node, "the first position")]
        if node.args.get("length") is not None:
            args.append(self.whole(node.args["length"], node, "the length"))
        return Call(Op.SUBSTRING, (text, *args), TEXT)

    def trim(self, node: Tree) -> Node:
        text = self.read_as(node.this, (TEXT,), user=node)
        return Call(TRIMS[node.args.get("position") or ""], (text,), TEXT)

    def texts(self, node: Tree) -> Node:
        if isinstance(node, exp.Replace):
            given = [node.this, node.expression, node.args.get("replacement")]
            if None in given:
                raise self.error("REPLACE takes three texts", node, hint=signature_hint("REPLACE"))
            return Call(Op.REPLACE, tuple(self.read_as(one, (TEXT,), user=node) for one in given), TEXT)
        parts = (self.read_as(one, (TEXT,), user=node) for one in (node.this, node.expression))
        return Call(TEXT_TESTS[type(node)], tuple(parts), BOOL)

    def log(self, node: Tree) -> Node:
        base = node.this
        if not (isinstance(base, exp.Literal) and base.this == "10" and node.expression is not None):
            raise self.error("LOG takes one base", node, hint="write LN(x), LOG10(x), or LN(x) / LN(base).")
        return Call(Op.LOG10, (self.read_as(node.expression, (FLOAT,), user=node),), FLOAT)

    def truncated(self, node: Tree) -> Node:
        unit = node.args["unit"].name.upper()
        if unit not in UNITS:
            raise self.error(f"DATE_TRUNC does not know {unit}", node, hint=f"units are {', '.join(UNITS)}.")
        return Call(Op.DATE_TRUNC, (Literal(unit, TEXT), self.read_as(node.this, (TIME,), user=node)), TIME)

    def like(self, node: Tree) -> Node:
        text = self.read_as(node.this, (TEXT,), user=node)
        pattern = self.read(node.expression)
        if not isinstance(pattern, Literal) or not isinstance(pattern.value, str):
            raise self.error("LIKE takes a pattern in quotes", node.expression, hint="such as name LIKE 'a%'.")
        try:
            like_parts(pattern.value)
        except PatternError as error:
            raise self.error(f"{error!s} escapes nothing", node.expression, hint=r"write \\ for a backslash.") from None
        call = Call(Op.LIKE, (text, pattern), BOOL)
        return Call(Op.NOT, (call,), BOOL) if node.args.get("negate") else call

    def cast(self, node: Tree) -> Node:
        kind = CASTS.get(node.args["to"].this)
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

    def extract(self, node: Tree) -> Node:
        part = node.this.name.upper()
        if part not in PARTS_OF_TIME:
            raise self.error(f"EXTRACT does not know {part}", node, hint=f"parts are {', '.join(PARTS_OF_TIME)}.")
        return Call(PARTS_OF_TIME[part], (self.read_as(node.expression, (TIME,), user=node),), INT)

    def unnamed(self, node: Tree) -> Node:
        name = name_of(node)
        if name not in (Op.EPOCH_US, Op.WEEKDAY):
            self.source.refuse(node)
        if len(node.expressions) != 1:
            raise self.error(f"{name} takes one timestamp", node)
        return Call(Op(name), (self.read_as(node.expressions[0], (TIME,), user=node),), INT)


_UNTYPED: Any = None
"""The type of a NULL until it is used beside something typed."""
_OF_LISTS = "a view with explode= has a row for each element of an array; features that are lists cannot be used."
_READERS: dict[type[Any], tuple[Callable[[_Reader, Tree], Node], frozenset[str]]] = {}


def _understand(method: Callable[[_Reader, Tree], Node], parts: str, *kinds: type[Any]) -> None:
    for kind in kinds:
        _READERS[kind] = (method, frozenset(parts.split()))


_understand(_Reader.column, "this table db catalog", exp.Column)
_understand(_Reader.literal, "this is_string", exp.Literal)
_understand(_Reader.truth, "this", exp.Boolean)
_understand(_Reader.null, "", exp.Null)
_understand(_Reader.brackets, "this", exp.Paren)
_understand(_Reader.unary, "this", *UNARY)
_understand(_Reader.negative, "this", exp.Neg)
_understand(_Reader.arithmetic, "this expression typed safe", *ARITHMETIC)
_understand(_Reader.comparison, "this expression", *COMPARISONS)
_understand(_Reader.connective, "this expression", exp.And, exp.Or)
_understand(_Reader.is_, "this expression", exp.Is)
_understand(_Reader.in_, "this expressions query", exp.In)
_understand(_Reader.between, "this low high", exp.Between)
_understand(_Reader.case, "this ifs default", exp.Case)
_understand(_Reader.if_, "this true false", exp.If)
_understand(_Reader.choice, "this expression expressions ignore_nulls is_nvl is_null", *CHOICES)
_understand(_Reader.concat, "this expression expressions safe", exp.Concat, exp.DPipe)
_understand(_Reader.round, "this decimals", exp.Round)
_understand(_Reader.substring, "this start length", exp.Substring)
_understand(_Reader.trim, "this position", exp.Trim)
_understand(_Reader.texts, "this expression replacement", exp.Replace, *TEXT_TESTS)
_understand(_Reader.log, "this expression", exp.Log)
_understand(_Reader.truncated, "this unit", exp.TimestampTrunc)
_understand(_Reader.like, "this expression negate", exp.Like)
_understand(_Reader.cast, "this to safe _type", exp.Cast, exp.TryCast)
_understand(_Reader.extract, "this expression", exp.Extract)
_understand(_Reader.unnamed, "this expressions", exp.Anonymous)


def _as_float(node: Node) -> Node:
    if isinstance(node, Literal):
        return Literal(None if node.value is None else float(node.value), FLOAT)
    return node if node.type == FLOAT else Call(Op.CAST, (node,), FLOAT)
