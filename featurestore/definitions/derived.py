"""Features computed from features when they are read: ``Derived`` and ``Ratio`` of one view, ``RequestFeature`` of a service.

None of them is stored. They are compiled to a typed tree over feature ids, request values and keys, which training sets,
snapshots, lookups and the scorer evaluate on the values they have at hand, after the aggregates are finalized. So one that is
changed or added needs no new events and touches nothing in the online store.

A compiled one is plain data: a client evaluates it without the SQL parser and without anybody's definitions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.datatypes import SCALARS, DataType
from featurestore.definitions.entity import check_name
from featurestore.definitions.expression_nodes import Call, Case, Column, Literal, Node, Op, column_types
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True)
class Derived:
    """A feature of a view, computed from others of it when they are read.

    Args:
        expression: SQL over the names of the view's features, windows included, and of the derived ones before it. Null rules are
            those of row expressions; features that are lists cannot be used.

    >>> Derived("coalesce(spend_1h, 0) / spend_24h")
    Derived(expression='coalesce(spend_1h, 0) / spend_24h')
    """

    expression: str

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as data."""
        return {"derived": self.expression}


@dataclass(frozen=True)
class Ratio:
    """One feature of a view divided by another, when they are read: float64, null where the denominator is 0 or either is null.

    Args:
        numerator: Name of a feature of the view, window included.
        denominator: Likewise.

    >>> Ratio("declined_1h", "transactions_1h").expression
    '`declined_1h` / `transactions_1h`'
    """

    numerator: str
    denominator: str

    @property
    def expression(self) -> str:
        """What it means, as SQL."""
        return f"`{self.numerator}` / `{self.denominator}`"

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as data."""
        return {"ratio": [self.numerator, self.denominator]}


ReadTime: TypeAlias = Derived | Ratio


def read_time_from_dict(data: Mapping[str, Any]) -> ReadTime | None:
    """Return what ``to_dict`` of a ``Derived`` or ``Ratio`` wrote; None for anything else."""
    if "derived" in data:
        return Derived(data["derived"])
    return Ratio(*data["ratio"]) if "ratio" in data else None


@dataclass(frozen=True)
class RequestFeature:
    """A feature of a service, computed from request values, keys and features when it is read.

    Args:
        name: Its name, without a view.
        expression: SQL over request values, the service's key columns, feature ids (``view.feature_window``) and the request
            features before it.
        request: Name to type of request values: "int64", "float64", "bool", "string" or "timestamp". One that is not declared has
            the type of the field of that name in the contracts of the service's sources, where they agree.

    >>> RequestFeature("amount_ratio", "amount / nullif(card_spend.mean_spend_7d, 0)", request={"amount": "float64"}).name
    'amount_ratio'
    """

    name: str
    expression: str
    request: Mapping[str, str | DataType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "request feature")
        where = f"request feature {self.name}"
        if not isinstance(self.request, dict):
            raise DefinitionError(f"{where}: request is {self.request!r}.", hint='write {"amount": "float64"}.')
        for value, kind in self.request.items():
            if not isinstance(value, str) or not _FIELD.fullmatch(value):
                raise DefinitionError(
                    f"{where}: {value!r} is no name of a request value.", hint="use letters, digits and _."
                )
            if kind not in SCALARS:
                allowed = ", ".join(each for each in DataType if each in SCALARS)
                raise DefinitionError(
                    f"{where}: request value {value!r} has type {kind!r}.", hint=f"use one of {allowed}."
                )
        object.__setattr__(self, "request", {value: DataType(kind) for value, kind in self.request.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as data."""
        request = {value: str(kind) for value, kind in self.request.items()}
        return {"name": self.name, "expression": self.expression, **({"request": request} if request else {})}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RequestFeature:
        """Return the feature that ``to_dict`` wrote."""
        return RequestFeature(data["name"], data["expression"], data.get("request", {}))


@dataclass(frozen=True)
class DerivedLayout:
    """A compiled feature of read time.

    Attributes:
        id: Its full name: ``view.name``, or ``name`` of a request feature.
        node: What to compute; its columns are feature ids, request values and keys.
    """

    id: str
    node: Node

    @property
    def type(self) -> DataType:
        """The type of its value."""
        return self.node.type

    @cached_property
    def reads(self) -> dict[str, DataType]:
        """What it is computed from, by name, with the types."""
        return column_types(self.node)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data."""
        return {"id": self.id, "node": node_to_data(self.node)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> DerivedLayout:
        """Return what ``to_dict`` wrote."""
        return DerivedLayout(data["id"], node_from_data(data["node"]))


def meaning_text(layouts: Sequence[DerivedLayout]) -> str:
    """Return a text that changes exactly when what is computed does: what a fingerprint hashes."""
    return json.dumps([layout.to_dict() for layout in layouts], separators=(",", ":"))


def request_values_of(layouts: Sequence[DerivedLayout], others: Mapping[str, Any]) -> dict[str, DataType]:
    """Return the request values that some request features read, with their types, in order of first use.

    Args:
        layouts: The request features.
        others: Feature ids of the views, and key columns.
    """
    known = {*others, *(layout.id for layout in layouts)}
    return {name: kind for layout in layouts for name, kind in layout.reads.items() if name not in known}


def node_to_data(node: Node) -> list[Any]:
    """Return a tree as nested lists that JSON can hold."""
    kind = str(node.type)
    if isinstance(node, Column):
        return ["column", kind, node.name]
    if isinstance(node, Literal):
        return ["literal", kind, node.value]
    if isinstance(node, Case):
        branches = [[node_to_data(when), node_to_data(then)] for when, then in node.branches]
        subject = None if node.subject is None else node_to_data(node.subject)
        return ["case", kind, branches, node_to_data(node.otherwise), subject]
    return ["call", kind, str(node.op), *map(node_to_data, node.args)]


def node_from_data(data: Sequence[Any]) -> Node:
    """Return the tree that ``node_to_data`` wrote.

    Raises:
        ValueError: It is no such data.
    """
    sort, kind, *rest = data
    typed = DataType(kind)
    if sort == "column":
        return Column(str(rest[0]), typed)
    if sort == "literal":
        return Literal(rest[0], typed)
    if sort == "case":
        branches, otherwise, subject = rest
        return Case(
            tuple((node_from_data(when), node_from_data(then)) for when, then in branches),
            node_from_data(otherwise),
            typed,
            None if subject is None else node_from_data(subject),
        )
    if sort != "call":
        raise ValueError(f"{sort!r} is no kind of node.")
    return Call(Op(rest[0]), tuple(map(node_from_data, rest[1:])), typed)
