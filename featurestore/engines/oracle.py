"""The specification, executed: the value of a feature straight from all events, one event at a time. Never optimized.

    value(key, t) = aggregate.value(merge of all events with that key and start(t) <= event time < end(t), t, window)

Nothing here is shared with the fast paths but the scalar laws of the aggregates, the window's edges and the definition;
rows are decided by the scalar evaluator. It costs O(events) per value and is what every other path is judged by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.engines.rows import Event, rows_of
from featurestore.engines.scalar import evaluate_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Instant

__all__ = ["Event", "values_at", "without_repetitions"]


def without_repetitions(source: EventSource, events: Sequence[Event]) -> list[Event]:
    """Return the events of a source that enter values: of events of one id, those that come soon after another do not."""
    name = str(source.event_id)
    with_id = [event for event in events if source.event_id is not None and event.row[name] is not None]

    def until(one: Event) -> list[Event]:
        return [each for each in with_id if each.partition == one.partition and each.offset <= one.offset]

    def is_repetition(one: Event) -> bool:
        before = [each for each in until(one) if each.row[name] == one.row[name] and each is not one]
        last = until(max(before, key=lambda each: each.offset)) if before else []
        return bool(last) and newest(until(one)) - newest(last) <= source.id_horizon_us

    def newest(some: list[Event]) -> Instant:
        return max(each.arrival for each in some)

    return [event for event in events if source.event_id is None or event.row[name] is None or not is_repetition(event)]


def values_at(
    view: FeatureView, events: Iterable[Event], key: Sequence[Any], t: Instant, *, visible_at: Instant | None = None
) -> dict[str, Any]:
    """Return every feature of one key at ``t``; None is null.

    Args:
        view: The definition.
        events: Events of the view's source, of any key, in any order.
        key: The entity key's values.
        t: The time; events at or after it do not count.
        visible_at: Hides events that arrived after this instant; None hides nothing.
    """
    mine = [
        event
        for event in rows_of(view, events)
        if [event.row[column] for column in view.entity.keys] == list(key)
        and (visible_at is None or event.arrival <= visible_at)
        and (view.condition is None or evaluate_row(view.condition, event.row) is True)
    ]
    values = {}
    for feature in view.layout.features:
        expression, condition = view.expressions[feature.measure]
        span = feature.window.interval(t)
        partial = feature.aggregate.empty()
        for event in mine:
            if event.event_time in span and (condition is None or evaluate_row(condition, event.row) is True):
                value = None if expression is None else evaluate_row(expression, event.row)
                partial = feature.aggregate.merge(partial, feature.aggregate.prepare(value, event.order))
        values[f"{view.name}.{feature.name}"] = feature.aggregate.value(partial, t, feature.window)
    for derived in view.layout.derived:
        values[derived.id] = evaluate_row(derived, values)
    return values
