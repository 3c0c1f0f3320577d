"""ViewLayout: what a feature view looks like in storage, and how its features are read back from there.

A view is compiled once, from its definition, into

    measures   the distinct partials to keep: features that aggregate the same input under the same condition share one
    tile       the grid on which events are merged before they are stored: the greatest common divisor of all hops
    ladders    one per distinct hop: the suffix rows of the online store, for the measures whose windows move on that hop
    features   which measure, ladder and window give each feature

A layout is plain data. It is stored with the registry and published to the online store, so a client that knows only a
Redis URL can read, and never imports anybody's definitions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.algebra import AGGREGATES, Aggregate, Window
from featurestore.datatypes import DataType
from featurestore.timeline import DAY, Duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class FeatureLayout:
    """One feature: finalize(merge of ``measure`` over ``window``).

    Attributes:
        name: Without the view, for example "spend_1h".
        aggregate: The bound aggregate whose ``finalize`` gives the value.
        measure: Index of the measure it reads.
        ladder: Index of the ladder it reads.
        window: The window.
    """

    name: str
    aggregate: Aggregate
    measure: int
    ladder: int
    window: Window


@dataclass(frozen=True)
class Ladder:
    """Suffix rows on one hop.

    Attributes:
        hop: The grid step in microseconds; None for lifetime, which has a single row.
        reach: The longest window on this hop, in microseconds; None for lifetime.
        measures: Indices of the measures each row holds, ascending.
    """

    hop: Duration | None
    reach: Duration | None
    measures: tuple[int, ...]


@dataclass(frozen=True)
class ViewLayout:
    """The compiled view.

    Attributes:
        view: Name of the view.
        fingerprint: 16 hex digits; changes exactly when a feature's meaning does.
        source: Name of the source.
        keys: Key columns and their types, in order.
        measures: The bound aggregates whose partials are stored, in order.
        features: The features, in the user's order.
        ladders: The ladders, finest hop first, lifetime last.
        tile: The tile length in microseconds.
    """

    view: str
    fingerprint: str
    source: str
    keys: tuple[tuple[str, DataType], ...]
    measures: tuple[Aggregate, ...]
    features: tuple[FeatureLayout, ...]
    ladders: tuple[Ladder, ...]
    tile: Duration

    @cached_property
    def feature_ids(self) -> tuple[str, ...]:
        """The features' full names, ``view.feature_window``."""
        return tuple(f"{self.view}.{feature.name}" for feature in self.features)

    @cached_property
    def reach(self) -> Duration | None:
        """The longest look-back of any window, its hop included; None when one reaches back without end."""
        longest = 0
        for ladder in self.ladders:
            if ladder.hop is None or ladder.reach is None:
                return None
            longest = max(longest, ladder.reach + ladder.hop)
        return longest

    @cached_property
    def slot_offsets(self) -> tuple[int, ...]:
        """Where each measure's slots begin in a full row of all measures; one more for the end."""
        offsets = [0]
        for measure in self.measures:
            offsets.append(offsets[-1] + len(measure.slots))
        return tuple(offsets)

    @property
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
                    "ladder": feature.ladder,
                    "window": feature.window.to_dict(),
                }
                for feature in self.features
            ],
            "ladders": [[ladder.hop, ladder.reach, list(ladder.measures)] for ladder in self.ladders],
            "tile": self.tile,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ViewLayout:
        """Return the layout that ``to_dict`` wrote."""
        return ViewLayout(
            view=data["view"],
            fingerprint=data["fingerprint"],
            source=data["source"],
            keys=tuple((name, DataType(kind)) for name, kind in data["keys"]),
            measures=tuple(aggregate_from_dict(measure) for measure in data["measures"]),
            features=tuple(
                FeatureLayout(
                    name=feature["name"],
                    aggregate=aggregate_from_dict(feature["aggregate"]),
                    measure=feature["measure"],
                    ladder=feature["ladder"],
                    window=Window.from_dict(feature["window"]),
                )
                for feature in data["features"]
            ),
            ladders=tuple(Ladder(hop, reach, tuple(measures)) for hop, reach, measures in data["ladders"]),
            tile=data["tile"],
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
    used: dict[Duration | None, tuple[Duration | None, set[int]]] = {}
    placed: list[tuple[str, Aggregate, int, Window]] = []
    for name, aggregate, window in features:
        measure = measure_ids.setdefault(aggregate.partial_identity, len(measures))
        if measure == len(measures):
            measures.append(aggregate)
        reach, members = used.get(window.hop, (window.length, set()))
        if window.length is not None and reach is not None:
            reach = max(reach, window.length)
        used[window.hop] = (reach, members | {measure})
        placed.append((name, aggregate, measure, window))
    hops = sorted(hop for hop in used if hop is not None)
    order: list[Duration | None] = [*hops, *([None] if None in used else [])]
    return ViewLayout(
        view=view,
        fingerprint=fingerprint,
        source=source,
        keys=tuple(keys.items()),
        measures=tuple(measures),
        features=tuple(
            FeatureLayout(name, aggregate, measure, order.index(window.hop), window)
            for name, aggregate, measure, window in placed
        ),
        ladders=tuple(Ladder(hop, used[hop][0], tuple(sorted(used[hop][1]))) for hop in order),
        tile=math.gcd(*hops) if hops else DAY,
    )


def service_fingerprint(views: Sequence[tuple[str, str]]) -> str:
    """Return the fingerprint of a service from its views' names and fingerprints, in order."""
    text = ";".join(f"{name}@{fingerprint}" for name, fingerprint in views)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
