"""FeatureView: features of one entity, computed from the events of one source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.algebra import Aggregate, Window, Windowed
from featurestore.datatypes import DataType
from featurestore.definitions.cost import refuse_too_wide
from featurestore.definitions.derived import Derived, DerivedLayout, Ratio, ReadTime, read_time_from_dict
from featurestore.definitions.entity import Entity, check_name
from featurestore.definitions.expression import Expression
from featurestore.definitions.expression_nodes import Column, Node
from featurestore.definitions.layout import ViewLayout, aggregate_from_dict, aggregate_to_dict, compile_layout
from featurestore.definitions.policy import LookupPolicy, make_policy
from featurestore.errors import DefinitionError, DuplicateNameError, UnknownNameError, did_you_mean
from featurestore.timeline import format_duration, parse_duration

if TYPE_CHECKING:
    from featurestore.definitions.contract import ContractField
    from featurestore.definitions.source import EventSource
    from featurestore.timeline import Duration


@dataclass(frozen=True)
class FeatureView:
    """Features of one entity, computed from the events of one source.

    Args:
        name: Its name; the features are called ``name.feature_window``.
        entity: What the features describe. Its key columns are fields of the source.
        source: Where the events come from.
        where: SQL row condition; events for which it is not true do not enter the view.
        features: Name to aggregate over windows: ``{"spend": Sum("amount").over("1h", "24h")}``; or to ``Ratio`` or
            ``Derived`` of the others, which keep the name as it is and come after them in the view's order.
        columns: Name to SQL of columns derived from a row: ``{"amount_usd": "amount * fx_rate"}``. ``where``, aggregates and the
            columns after it take them as they take fields of the contract. They are not stored, and are no keys.
        explode: An array of the contract: each of its elements is a row of its own, in their order, with the event's other
            fields. A scalar goes by the array's name, a property by ``items.price``, or ``price`` where no field is called
            that; keys can be either. An event without elements has no row.
        owner: Who answers for it.
        description: For people.
        max_staleness: How far the source's ``complete_through`` may lie behind a lookup, such as "10m"; None for any age.
        on_stale: What a lookup then does: "fail", "default" or "serve_stale"; see ``definitions.policy``. Neither this nor
            the two others change what is stored, and a training set does not apply them.
        defaults: With on_stale="default", value by windowed feature: ``{"spend_1h": 0.0}``; the others are null.
        ttl: How long after its last event was applied a key is kept in the online store, such as "14d"; None for ever. At
            least the longest window with its hop and delay, and the source's allowed skew: no value is lost, an expired key
            is "missing" with the values of empty windows. Not with lifetime windows. Changes no stored value either.

    Raises:
        DefinitionError: Anything in it is not usable: names, types, expressions (with their position), windows.
    """

    name: str
    entity: Entity
    source: EventSource
    features: Mapping[str, Windowed | ReadTime]
    where: str | None = None
    owner: str = ""
    description: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    explode: str | None = None
    max_staleness: str | None = None
    on_stale: str = "fail"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ttl: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "view")
        arrays = self.source.contract.arrays
        if self.explode is not None and self.explode not in arrays:
            raise UnknownNameError(
                f"view {self.name}: explode {self.explode!r} is no array of contract {self.source.contract.name}.",
                hint=did_you_mean(str(self.explode), arrays, what="arrays"),
            )
        columns = {**self.fields, **{name: self.fields[column] for name, column in self.aliases.items()}}
        for column, kind in self.entity.keys.items():
            if column not in columns:
                raise UnknownNameError(
                    f"view {self.name}: key column {column!r} of entity {self.entity.name} is no field of contract "
                    f"{self.source.contract.name}.",
                    hint=did_you_mean(column, columns, what="fields"),
                )
            if columns[column] != kind:
                raise DefinitionError(
                    f"view {self.name}: key column {column!r} is {kind} in entity {self.entity.name} but "
                    f"{columns[column]} in contract {self.source.contract.name}."
                )
        if not isinstance(self.features, Mapping) or not self.features:
            raise DefinitionError(f"view {self.name} defines no feature.")
        for name, windowed in self.features.items():
            check_name(name, f"view {self.name}: feature")
            if isinstance(windowed, Aggregate):
                raise DefinitionError(
                    f"{self.name}.{name}: {windowed!r} has no window.", hint=f"write {windowed!r}.over('1h')."
                )
            if not isinstance(windowed, Windowed | Derived | Ratio):
                raise DefinitionError(
                    f"{self.name}.{name}: {windowed!r} is not an aggregate over windows.",
                    hint="for example Count().over('1h', '24h').",
                )
        object.__setattr__(self, "features", dict(self.features))
        if not self.windowed:
            raise DefinitionError(f"view {self.name} defines no feature over a window.")
        if not isinstance(self.columns, Mapping):
            raise DefinitionError(f"view {self.name}: columns is {self.columns!r}.", hint="write {name: expression}.")
        object.__setattr__(self, "columns", dict(self.columns))
        refuse_too_wide(self.layout)
        _ = self.policy, self.ttl_us
        object.__setattr__(self, "defaults", dict(self.defaults))

    @cached_property
    def policy(self) -> LookupPolicy:
        """What a lookup does when the view's features are too old or cannot be read."""
        return make_policy(
            self.name,
            {feature.name: feature.aggregate.result_type for feature in self.layout.features},
            max_staleness=self.max_staleness,
            on_stale=self.on_stale,
            defaults=self.defaults,
        )

    @cached_property
    def ttl_us(self) -> Duration | None:
        """The ``ttl`` in microseconds; None for ever."""
        if self.ttl is None:
            return None
        given = parse_duration(self.ttl)
        needed, longest = 0, ""
        for feature in self.layout.features:
            window = feature.window
            if window.length is None:
                raise DefinitionError(
                    f"view {self.name}: ttl={self.ttl!r} would forget what {self.name}.{feature.name} counts, "
                    "whose window has no beginning.",
                    hint="put features over a lifetime in a view of their own, without ttl.",
                )
            reach = window.length + (window.hop or 0) + window.delay
            if reach > needed:
                needed, longest = reach, feature.name
        needed += self.source.allowed_skew_us
        if given < needed:
            raise DefinitionError(
                f"view {self.name}: ttl={self.ttl!r} is shorter than {format_duration(needed)}, which {self.name}.{longest} "
                f"reaches back: its window, hop and delay, and the allowed skew of source {self.source.name}.",
                hint=f"use ttl={format_duration(needed)!r} or longer.",
            )
        return given

    @property
    def windowed(self) -> dict[str, Windowed]:
        """The features that are aggregates over windows, by name."""
        return {name: each for name, each in self.features.items() if isinstance(each, Windowed)}

    @cached_property
    def fields(self) -> dict[str, DataType]:
        """The contract's columns with their types; those of the exploded array with the types of its elements."""
        found = dict(self.source.contract.columns)
        for one in self.exploded:
            assert one.type.element is not None  # noqa: S101 - an array's column
            found[one.name] = one.type.element
        return found

    @property
    def exploded(self) -> tuple[ContractField, ...]:
        """The columns of the exploded array; none without ``explode``."""
        return () if self.explode is None else self.source.contract.arrays[self.explode]

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Other names of the exploded array's columns: ``items.price``, and ``price`` where no field is called that."""
        columns = self.source.contract.columns
        short = {str(one.property): one.name for one in self.exploded if one.property and one.property not in columns}
        return short | {f"{one.array}.{one.property}": one.name for one in self.exploded if one.property}

    @cached_property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the entity's keys, in order."""
        return tuple(self.aliases.get(name, name) for name in self.entity.keys)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The columns of the contract that the view is computed from."""
        used = [self.condition, *(each for pair in self.expressions for each in pair)]
        names = [*self.key_columns, *(name for each in used if each is not None for name in each.columns)]
        return tuple(dict.fromkeys([*names, *(one.name for one in self.exploded[:1])]))

    @cached_property
    def row(self) -> Mapping[str, DataType | Node]:
        """What a row expression can name: the contract's fields, with their types, and the trees of derived columns."""
        known: dict[str, DataType | Node] = dict(self.fields)
        for one in self.source.contract.fields:
            if one.property is not None:
                known[f"{one.array}.{one.property}"] = Column(one.name, self.fields[one.name])
        known |= {name: Column(column, self.fields[column]) for name, column in self.aliases.items()}
        for name, text in self.columns.items():
            check_name(name, f"view {self.name}: column")
            if name in known:
                raise DuplicateNameError(
                    f"view {self.name}: column {name!r} is a field of contract {self.source.contract.name} already.",
                    hint="choose another name.",
                )
            known[name] = Expression.parse(text, known, where=f"{self.name}: column {name}").node
        return known

    def _parse(self, text: str | None, where: str, *, boolean: bool = False) -> Expression | None:
        if text is None:
            return None
        expression = Expression.parse(text, self.row, where=where)
        if boolean and expression.type != DataType.BOOL:
            raise DefinitionError(f"{where}: {text!r} is {expression.type}, a condition must be bool.")
        return expression

    @cached_property
    def condition(self) -> Expression | None:
        """The parsed ``where``."""
        return self._parse(self.where, f"{self.name}.where", boolean=True)

    @cached_property
    def expressions(self) -> tuple[tuple[Expression | None, Expression | None], ...]:
        """For every measure of the layout: its parsed input and condition."""
        return tuple(
            (
                self._parse(measure.input, f"{self.name}: {measure!r}"),
                self._parse(measure.where, f"{self.name}: where of {measure!r}", boolean=True),
            )
            for measure in self.layout.measures
        )

    @cached_property
    def layout(self) -> ViewLayout:
        """How the view is stored and read."""
        bound: list[tuple[str, Aggregate, Window]] = []
        spelled: dict[str, str] = {}  # one spelling per meaning, so that white space never decides what is shared
        for name, windowed in self.windowed.items():
            aggregate = windowed.aggregate
            where = f"{self.name}.{name}"
            expression = self._parse(aggregate.input, where)
            condition = self._parse(aggregate.where, f"{where}: where", boolean=True)
            try:
                typed = aggregate.bind(None if expression is None else expression.type)
            except DefinitionError as error:
                raise DefinitionError(f"{where}: {error.message}", hint=error.hint) from None
            typed = replace(
                typed,
                input=None if expression is None else spelled.setdefault(expression.canonical, str(aggregate.input)),
                where=None if condition is None else spelled.setdefault(condition.canonical, str(aggregate.where)),
            )
            bound += [(f"{name}_{window.label}", typed, window) for window in windowed.windows]
        derived = {name: each for name, each in self.features.items() if not isinstance(each, Windowed)}
        names = [*(name for name, _, _ in bound), *derived]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DuplicateNameError(f"view {self.name}: two features would be called {self.name}.{twice[0]}.")
        _ = self.condition
        layout = compile_layout(
            view=self.name,
            fingerprint=self._stored_fingerprint(),
            source=self.source.name,
            keys={name: DataType(kind) for name, kind in self.entity.keys.items()},
            features=bound,
        )
        return replace(layout, derived=self._derived_layouts(derived, layout.types))

    def _derived_layouts(
        self, derived: Mapping[str, ReadTime], types: Mapping[str, DataType]
    ) -> tuple[DerivedLayout, ...]:
        """Return the compiled features of read time; each may use those before it."""
        known: dict[str, DataType | Node] = {name.partition(".")[2]: Column(name, kind) for name, kind in types.items()}
        found = []
        for name, each in derived.items():
            where = f"{self.name}.{name}"
            if isinstance(each, Ratio):
                for part in (each.numerator, each.denominator):
                    if part not in known:
                        raise UnknownNameError(
                            f"{where}: {each!r} names {part!r}, which is no feature of view {self.name}.",
                            hint=did_you_mean(str(part), known, what="features"),
                        )
            node = Expression.parse(each.expression, known, where=where, unknown="windows are part of the name.").node
            found.append(DerivedLayout(f"{self.name}.{name}", node))
            known[name] = Column(f"{self.name}.{name}", node.type)
        return tuple(found)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change exactly when the meaning of a feature does; names of owners do not count."""
        return self.layout.meaning

    def _stored_fingerprint(self) -> str:
        """Return 16 hex digits that change exactly when the meaning of a windowed feature does.

        Whatever decides the layout of stored bytes is in it: the types of the inputs too, which a contract can change.
        """

        def canonical(text: str | None) -> list[str] | None:
            expression = self._parse(text, self.name)
            return None if expression is None else [expression.canonical, str(expression.type)]

        meaning = {
            "keys": [[name, str(kind)] for name, kind in self.entity.keys.items()],
            "topic": self.source.topic,
            "event_time": self.source.event_time,
            **self.source.id_meaning,
            "where": canonical(self.where),
            **({} if self.explode is None else {"explode": self.explode, "keys_of": list(self.key_columns)}),
            "features": [
                {
                    **aggregate_to_dict(windowed.aggregate),
                    "input": canonical(windowed.aggregate.input),
                    "where": canonical(windowed.aggregate.where),
                    "name": name,
                    "windows": [window.to_dict() for window in windowed.windows],
                }
                for name, windowed in self.windowed.items()
            ],
        }
        text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the view as data; entity and source by name."""
        return {
            "name": self.name,
            "entity": self.entity.name,
            "source": self.source.name,
            "where": self.where,
            "features": {
                name: {
                    "aggregate": aggregate_to_dict(each.aggregate),
                    "windows": [window.to_dict() for window in each.windows],
                }
                if isinstance(each, Windowed)
                else each.to_dict()
                for name, each in self.features.items()
            },
            "owner": self.owner,
            "description": self.description,
            **({"columns": dict(self.columns)} if self.columns else {}),
            **({} if self.explode is None else {"explode": self.explode}),
            **({} if self.max_staleness is None else {"max_staleness": self.max_staleness}),
            **({} if self.on_stale == "fail" else {"on_stale": self.on_stale}),
            **({"defaults": dict(self.defaults)} if self.defaults else {}),
            **({} if self.ttl is None else {"ttl": self.ttl}),
        }

    @staticmethod
    def from_dict(
        data: Mapping[str, Any], entities: Mapping[str, Entity], sources: Mapping[str, EventSource]
    ) -> FeatureView:
        """Return the view that ``to_dict`` wrote."""
        return FeatureView(
            name=data["name"],
            entity=entities[data["entity"]],
            source=sources[data["source"]],
            where=data["where"],
            features={
                name: read_time_from_dict(feature)
                or Windowed(
                    aggregate_from_dict(feature["aggregate"]),
                    tuple(Window.from_dict(window) for window in feature["windows"]),
                )
                for name, feature in data["features"].items()
            },
            owner=data["owner"],
            description=data["description"],
            columns=data.get("columns", {}),
            explode=data.get("explode"),
            max_staleness=data.get("max_staleness"),
            on_stale=data.get("on_stale", "fail"),
            defaults=data.get("defaults", {}),
            ttl=data.get("ttl"),
        )
