"""Expression: SQL scalar text over the columns of a row, parsed and typed when it is defined. Pure.

What is allowed and what it means is in ``expression_nodes.FUNCTIONS``; how text becomes a tree is in
``expression_parser``. ``engines.arrow`` evaluates trees over columns, ``engines.scalar`` over one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Node, column_types, render
from featurestore.definitions.expression_parser import read_expression

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Expression:
    """A parsed and typed row expression.

    Attributes:
        text: As the user wrote it.
        node: The tree that evaluators walk.
    """

    text: str
    node: Node

    @staticmethod
    def parse(
        text: str, columns: Mapping[str, DataType | Node], *, where: str = "expression", unknown: str = ""
    ) -> Expression:
        """Return the expression of a SQL text.

        Args:
            text: One scalar expression.
            columns: The columns it may use, with their types; a tree stands for what the name means.
            where: What the messages call it, for example "card_spend.spend".
            unknown: What else to advise about an unknown column.

        Raises:
            ExpressionError: It does not parse, names an unknown column or function, or does not type; the message tells
                the character.
        """
        return Expression(text, read_expression(text, columns, where=where, unknown=unknown))

    @property
    def type(self) -> DataType:
        """The type of its value."""
        return self.node.type

    @cached_property
    def canonical(self) -> str:
        """The same meaning written in one way; what a fingerprint is made from."""
        return render(self.node)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it reads, sorted."""
        return tuple(column_types(self.node))

    def to_dict(self) -> dict[str, Any]:
        """Return the expression as data: its text, and the types of the columns it reads."""
        return {"text": self.text, "columns": {name: str(kind) for name, kind in column_types(self.node).items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Expression:
        """Return the expression that ``to_dict`` wrote."""
        return Expression.parse(data["text"], {name: DataType(kind) for name, kind in data["columns"].items()})
