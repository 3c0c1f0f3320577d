"""Is what was served what Delta says? Captured vectors against training sets of the same keys and times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.testing.compare import values_match
from featurestore.timeline import format_instant

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.definitions.service import FeatureService
    from featurestore.definitions.view import FeatureView


@dataclass(frozen=True)
class Comparison:
    """How many values two tables of the same rows share.

    Attributes:
        vectors: Rows compared.
        equal_vectors: Rows in which every value is equal.
        compared: Values compared.
        different: (row, feature id) of every difference.
    """

    vectors: int
    equal_vectors: int
    compared: int
    different: list[tuple[int, str]]


def compare(served: pd.DataFrame, offline: pd.DataFrame, service: FeatureService) -> Comparison:
    """Return where two frames with the same rows differ, by the rule that every check has; null equals null only."""
    features = [(f"{view.name}.{each.name}", each) for view in service.views for each in view.layout.features]
    unequal = np.zeros((len(served), len(features)), dtype=bool)
    for column, (name, feature) in enumerate(features):
        left, right = (frame[name].astype("float64").to_numpy() for frame in (served, offline))
        same = (np.isnan(left) & np.isnan(right)) | (left == right)
        for row in np.flatnonzero(~same):
            both = (None if np.isnan(value) else float(value) for value in (left[row], right[row]))
            unequal[row, column] = not values_match(feature, *both)
    rows, columns = np.nonzero(unequal)
    return Comparison(
        vectors=len(served),
        equal_vectors=int((~unequal.any(axis=1)).sum()),
        compared=unequal.size,
        different=[(int(row), features[column][0]) for row, column in zip(rows, columns, strict=True)],
    )


@dataclass(frozen=True)
class Explained:
    """Differences by cause.

    Attributes:
        by_late_event: Differences for which an event that had happened but not arrived lies in the window.
        unexplained: The rest.
        events: The late events involved, named.
        example: One difference in words, or None.
    """

    by_late_event: int
    unexplained: list[tuple[int, str]]
    events: list[str]
    example: str | None


def explain_by_late_events(
    different: list[tuple[int, str]], spine: pd.DataFrame, service: FeatureService, logs: dict[str, pd.DataFrame]
) -> Explained:
    """Name the late event behind every difference.

    Args:
        different: (spine row, feature id), from ``compare``.
        spine: Rows with the key columns, ``t_us`` and ``visible_us``.
        service: The definitions.
        logs: Per source, the event log's late rows: contract columns, ``_event_time``, ``_arrival``, place in Kafka.
    """
    named: dict[str, None] = {}
    unexplained = []
    example = None
    windows = {
        f"{view.name}.{feature.name}": (view, feature.window)
        for view in service.views
        for feature in view.layout.features
    }
    by_key = {view.name: _by_key(logs[view.source.name], view) for view in service.views}
    asked_rows = spine.to_dict("records")
    for row, feature in different:
        view, window = windows[feature]
        asked = asked_rows[row]
        interval = window.interval(asked["t_us"])
        late = by_key[view.name].get(tuple(asked[column] for column in view.entity.keys), [])
        hidden = [
            event for event in late if event["_event_time"] in interval and event["_arrival"] > asked["visible_us"]
        ]
        if not hidden:
            unexplained.append((row, feature))
            continue
        named.update((f"{event['_topic']}[{event['_partition']}]@{event['_offset']}", None) for event in hidden)
        if example is None:
            example = _in_words(feature, asked, hidden[0])
    return Explained(len(different) - len(unexplained), unexplained, list(named), example)


def _by_key(log: pd.DataFrame, view: FeatureView) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the log's rows by entity key."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for event in log.to_dict("records"):
        found.setdefault(tuple(event[column] for column in view.entity.keys), []).append(event)
    return found


def _in_words(feature: str, asked: Any, event: Any) -> str:
    minutes = (int(event["_arrival"]) - int(event["_event_time"])) / 60e6
    return (
        f"{feature} of {asked['flight_id']} at {format_instant(int(asked['t_us']))}: "
        f"{event['flight_id']} ({event['_topic']} partition {event['_partition']} offset {event['_offset']}) "
        f"happened at {format_instant(int(event['_event_time']))} and arrived {minutes:.0f} minutes later"
    )
