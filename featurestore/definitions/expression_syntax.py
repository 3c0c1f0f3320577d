"""From SQL text to the parser's tree, and from a place in it to an error message.

Every message ends with the character it is about and the text itself, so that it can be read alone.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeAlias

from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import ParseError, TokenError

from featurestore.definitions.expression_nodes import CAST_NAMES, FUNCTIONS
from featurestore.errors import ExpressionError, did_you_mean

Tree: TypeAlias = Any
"""A node of sqlglot; which parts it has depends on its class."""

MAX_CHARACTERS = 10_000
MAX_DEPTH = 100

_NOT_OF_THE_ROW = frozenset(
    {
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
_ALIASES = {"POW": "POWER", "CEILING": "CEIL", "SUBSTR": "SUBSTRING", "LEN": "LENGTH", "STARTS_WITH": "STARTSWITH"}
_ALIASES |= {"ENDS_WITH": "ENDSWITH", "TIMESTAMP_TRUNC": "DATE_TRUNC", "DAY_OF_YEAR": "DAYOFYEAR"}
_AGGREGATES = frozenset({"MEAN", "FIRST", "LAST", "COLLECT_LIST", "PERCENTILE"})

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


class _RowSql(Spark):
    """Spark's spelling, with the quote of the SQL standard: ``'O''Hare'``, as Spark 4 reads it."""

    class Tokenizer(Spark.Tokenizer):
        STRING_ESCAPES = ["\\", "'"]  # noqa: RUF012 - sqlglot's form of a setting


_SYNTAX = _RowSql()


class SourceText:
    """The text of one expression: parses it, and words what is wrong with a place in it.

    Args:
        text: As the user wrote it.
        where: What messages call it.

    Raises:
        ExpressionError: It is empty or too long.
    """

    def __init__(self, text: str, where: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ExpressionError(
                f"{where}: {text!r} is no expression.", hint='write SQL over the fields, such as "amount * 2".'
            )
        if len(text) > MAX_CHARACTERS:
            raise ExpressionError(
                f"{where}: the expression has {len(text):,} characters, allowed are {MAX_CHARACTERS:,}."
            )
        self.text = text
        self.where = where

    def parse(self) -> Tree:
        """Return the tree of the one expression that the text must be."""
        try:
            tokens = _SYNTAX.tokenize(self.text)
            parsed = _SYNTAX.parser().parse_into(exp.Condition, tokens, self.text)
        except TokenError:
            start = self._unclosed()
            raise self.error(f"a quote ({self.text[start]}) is opened and never closed", start) from None
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
        lines = [f"{one}\n" for one in self.text.split("\n")]
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

    def error(self, problem: str, at: Tree | int | None, *, hint: str | None = None) -> ExpressionError:
        """Return an error about a place: a node, an index into the text, or None for the whole."""
        start = at if isinstance(at, int) or at is None else self._start(at)
        place = "in" if start is None else f"at character {start + 1} of"
        return ExpressionError(f"{self.where}: {problem} {place} {self.text!r}.", hint=hint)

    def _start(self, node: Tree) -> int | None:
        """Return where in the text a node starts, as far as the parser kept it or its name says."""
        starts = [one.meta["start"] for one in node.walk() if "start" in one.meta]
        if starts:
            return int(min(starts))
        named = re.search(rf"\b{re.escape(name_of(node))}\b", self.text, re.IGNORECASE)
        return None if named is None else named.start()

    def too_deep(self) -> NoReturn:
        """Refuse a text that is nested too deeply."""
        raise ExpressionError(
            f"{self.where}: the expression is nested more than {MAX_DEPTH} levels deep.",
            hint="use IN (...) instead of many ORs, COALESCE instead of nested CASEs, or fewer brackets.",
        )

    def refuse(self, node: Tree) -> NoReturn:
        """Refuse a node that has no meaning here, with the reason that helps."""
        name = name_of(node)
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


def name_of(node: Tree) -> str:
    """Return what the user would call a node: its symbol or the name of its function."""
    if type(node) in _SYMBOLS:
        return _SYMBOLS[type(node)]
    name = node.name if isinstance(node, exp.Anonymous) else node.sql_name() if isinstance(node, exp.Func) else node.key
    return _ALIASES.get(name.upper(), name.upper())


def signature_hint(name: str) -> str | None:
    """Return how a function is written, as a hint."""
    found = FUNCTIONS.get(name)
    return None if found is None else f"{found.signature}."
