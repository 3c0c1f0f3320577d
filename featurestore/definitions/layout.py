"""ViewLayout: what a feature view looks like in storage, and how its features are read back from there.

A view is compiled once, from its definition, into

    measures   the distinct partials to keep: features that aggregate the same input under the same condition share one
    features   which measure and window give each feature
    derived    what is computed from features when they are read
    parts      what the online store keeps per key: tiles, ladders of rows, and where each feature is read

A layout is plain data. It is stored with the registry and published to the online store, so a client that knows only a
Redis URL can read, and never imports anybody's definitions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.algebra import AGGREGATES, Aggregate, Window
from featurestore.datatypes import DataType
from featurestore.definitions.derived import DerivedLayout, meaning_text
from featurestore.definitions.parts import Part, compile_parts, slot_offsets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class FeatureLayout:
    """One feature: value(merge of ``measure`` over ``window``).

    Attributes:
        name: Without the view, for example "spend_1h".
        aggregate: The bound aggregate whose ``value`` is the feature's.
        measure: Index of the measure it reads.
        window: The window.
    """

    name: str
    aggregate: Aggregate
    measure: int
    window: Window


@dataclass(frozen=True)
class ViewLayout:
    """The compiled view.

    Attributes:
        view: Name of the view.
        fingerprint: 16 hex digits; changes exactly when the meaning of what is stored does.
        source: Name of the source.
        keys: Key columns and their types, in order.
        measures: The bound aggregates whose partials are stored, in order.
        features: The windowed features, in the user's order.
        parts: What is stored per key; at least one.
        derived: The features computed from those, in the user's order.
    """

    view: str
    fingerprint: str
    source: str
    keys: tuple[tuple[str, DataType], ...]
    measures: tuple[Aggregate, ...]
    features: tuple[FeatureLayout, ...]
    parts: tuple[Part, ...]
    derived: tuple[DerivedLayout, ...] = ()

    @cached_property
    def types(self) -> dict[str, DataType]:
        """Full name to type of every feature: ``view.feature_window``, then the derived ones."""
        found = {f"{self.view}.{feature.name}": feature.aggregate.result_type for feature in self.features}
        return found | {each.id: each.type for each in self.derived}

    @property
    def feature_ids(self) -> tuple[str, ...]:
        """The features' full names, as of ``types``."""
        return tuple(self.types)

    @cached_property
    def meaning(self) -> str:
        """16 hex digits that change exactly when the meaning of a feature does, derived ones included."""
        if not self.derived:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint};{meaning_text(self.derived)}".encode()).hexdigest()[:16]

    @cached_property
    def slot_offsets(self) -> tuple[int, ...]:
        """Where each measure's slots begin in a full row of all measures; one more for the end."""
        return slot_offsets(self.measures)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots of a full row of all measures."""
        return tuple(slot for measure in self.measures for slot in measure.slots)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as data."""
        return {
            "view": self.view,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "keys": [[name, str(kind)] for name, kind in self.keys],
            "measures": [aggregate_to_dict(measure) for measure in self.measures],
            "features": [
                {
                    "name": feature.name,
                    "aggregate": aggregate_to_dict(feature.aggregate),
                    "measure": feature.measure,
                    "window": feature.window.to_dict(),
                }
                for feature in self.features
            ],
            "parts": [part.to_dict() for part in self.parts],
            **({"derived": [each.to_dict() for each in self.derived]} if self.derived else {}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ViewLayout:
        """Return the layout that ``to_dict`` wrote."""
        measures = tuple(aggregate_from_dict(measure) for measure in data["measures"])
        return ViewLayout(
            view=data["view"],
            fingerprint=data["fingerprint"],
            source=data["source"],
            keys=tuple((name, DataType(kind)) for name, kind in data["keys"]),
            measures=measures,
            features=tuple(
                FeatureLayout(
                    name=feature["name"],
                    aggregate=aggregate_from_dict(feature["aggregate"]),
                    measure=feature["measure"],
                    window=Window.from_dict(feature["window"]),
                )
                for feature in data["features"]
            ),
            parts=tuple(
                Part.from_dict(part, data["view"], data["fingerprint"], number, measures)
                for number, part in enumerate(data["parts"])
            ),
            derived=tuple(DerivedLayout.from_dict(each) for each in data.get("derived", ())),
        )


def aggregate_to_dict(aggregate: Aggregate) -> dict[str, Any]:
    """Return an aggregate as data."""
    return {
        "kind": type(aggregate).__name__,
        "input": aggregate.input,
        "where": aggregate.where,
        "type": None if aggregate.value_type is None else str(aggregate.value_type),
        **({"parameters": aggregate.parameters} if aggregate.parameters else {}),
    }


def aggregate_from_dict(data: Mapping[str, Any]) -> Aggregate:
    """Return the aggregate that ``aggregate_to_dict`` wrote."""
    kind = AGGREGATES[data["kind"]]
    value_type = None if data["type"] is None else DataType(data["type"])
    return kind(input=data["input"], where=data["where"], value_type=value_type, **data.get("parameters", {}))


def compile_layout(
    *,
    view: str,
    fingerprint: str,
    source: str,
    keys: Mapping[str, DataType],
    features: Sequence[tuple[str, Aggregate, Window]],
) -> ViewLayout:
    """Return the layout of named, bound aggregates over windows."""
    measures: list[Aggregate] = []
    measure_ids: dict[tuple[Any, ...], int] = {}
    placed: list[FeatureLayout] = []
    for name, aggregate, window in features:
        measure = measure_ids.setdefault(aggregate.partial_identity, len(measures))
        if measure == len(measures):
            measures.append(aggregate)
        placed.append(FeatureLayout(name, aggregate, measure, window))
    return ViewLayout(
        view=view,
        fingerprint=fingerprint,
        source=source,
        keys=tuple(keys.items()),
        measures=tuple(measures),
        features=tuple(placed),
        parts=compile_parts(view, fingerprint, measures, [(feature.measure, feature.window) for feature in placed]),
    )


def service_fingerprint(views: Sequence[ViewLayout], request: Sequence[DerivedLayout] = ()) -> str:
    """Return the fingerprint of a service from its views and request features, in order."""
    text = ";".join(f"{view.view}@{view.meaning}" for view in views)
    if request:
        text += f";{meaning_text(request)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
