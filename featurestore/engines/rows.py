"""Events as the specification takes them: rows with their times and places, and the elements of an exploded array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featurestore.algebra import EventOrder, element_sequence, sequence_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Instant


@dataclass(frozen=True, slots=True)
class Event:
    """One accepted event: its row, its times and where it stands in Kafka."""

    row: Mapping[str, Any]
    event_time: Instant
    arrival: Instant
    partition: int
    offset: int
    position: int | None = None

    @property
    def order(self) -> EventOrder:
        """Its place among all events; of an element, among all elements."""
        sequence = sequence_of(self.partition, self.offset)
        return EventOrder(
            self.event_time, sequence if self.position is None else element_sequence(sequence, self.position)
        )


def rows_of(view: FeatureView, events: Iterable[Event]) -> list[Event]:
    """Return the events as the view takes them: each element of the exploded array by itself."""
    if view.explode is None:
        return list(events)
    names = [one.name for one in view.exploded]
    found = []
    for event in events:
        for position in range(len(event.row[names[0]] or ())):
            row = {**event.row, **{name: event.row[name][position] for name in names}}
            row |= {alias: row[name] for alias, name in view.aliases.items()}
            found.append(replace(event, row=row, position=position))
    return found
