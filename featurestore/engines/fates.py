"""What becomes of every event in one value: whether it counts, and if not, why. The specification, told event by event.

A fate is decided by the rules ``oracle.values_at`` follows, with the scalar evaluator; the events whose fate is COUNTED or
NULL are those it merges, and a null adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from featurestore.engines.rows import rows_of
from featurestore.engines.scalar import evaluate_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.definitions.expression import Expression
    from featurestore.definitions.layout import FeatureLayout
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.rows import Event
    from featurestore.timeline import Instant


class Fate(StrEnum):
    """Why an event of the key counts or does not; the first that applies, in this order."""

    BEFORE = "before the window"
    AFTER = "at or after its end"
    UNSEEN = "had not arrived"
    NOT_IN_VIEW = "where of the view"
    NOT_IN_FEATURE = "where of the feature"
    NULL = "null input"
    COUNTED = "counted"


MERGED = frozenset({Fate.COUNTED, Fate.NULL})
"""Fates of the events that an aggregate merges."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An event, the aggregate's input (None is null, and also where there is none), and its fate."""

    event: Event
    value: Any
    fate: Fate


def fates(
    view: FeatureView,
    feature: FeatureLayout,
    events: Iterable[Event],
    key: Sequence[Any],
    t: Instant,
    *,
    visible_at: Instant | None = None,
) -> list[Judged]:
    """Return the fate of every event of a key in one value, in the order of event time, partition and offset.

    Args:
        view: The definition.
        feature: One of its windowed features.
        events: Events of the view's source, of any key, in any order.
        key: The entity key's values.
        t: The time of the value.
        visible_at: Hides events that arrived after this instant; None hides nothing.
    """
    expression, condition = view.expressions[feature.measure]
    window = feature.window.interval(t)
    found = []
    for event in rows_of(view, events):
        if [event.row[column] for column in view.entity.keys] != list(key):
            continue
        value = None if expression is None else evaluate_row(expression, event.row)
        if window.start is not None and event.event_time < window.start:
            fate = Fate.BEFORE
        elif event.event_time not in window:
            fate = Fate.AFTER
        elif visible_at is not None and event.arrival > visible_at:
            fate = Fate.UNSEEN
        elif not _is_true(view.condition, event):
            fate = Fate.NOT_IN_VIEW
        elif not _is_true(condition, event):
            fate = Fate.NOT_IN_FEATURE
        elif expression is not None and value is None:
            fate = Fate.NULL
        else:
            fate = Fate.COUNTED
        found.append(Judged(event, value, fate))
    return sorted(found, key=lambda one: one.event.order)


def _is_true(condition: Expression | None, event: Event) -> bool:
    return condition is None or evaluate_row(condition, event.row) is True


def inputs_at(
    view: FeatureView,
    feature: FeatureLayout,
    events: Iterable[Event],
    key: Sequence[Any],
    t: Instant,
    *,
    visible_at: Instant | None = None,
) -> list[Any]:
    """Return what one value is made of: the inputs of the events in its window, nulls as None. Arguments as of ``fates``."""
    judged = fates(view, feature, events, key, t, visible_at=visible_at)
    return [one.value for one in judged if one.fate in MERGED]
