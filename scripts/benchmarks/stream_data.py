"""Events and definitions of scripts/bench stream: payments of a hundred thousand cards, four windows of three measures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Max, Sum
from featurestore.events.broker import ensure_topics
from featurestore.timeline import DAY, to_datetime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WINDOWS = ("5m", "1h", "24h", "7d")
START = 1_750_000_000_000_000
SPAN = DAY
_QUEUED = 100_000
CONTRACT = {
    "type": "object",
    "required": ["card_id", "event_time", "amount"],
    "properties": {
        "card_id": {"type": "string"},
        "event_time": {"type": "string", "format": "date-time"},
        "amount": {"type": "number"},
        "merchant": {"type": "integer"},
        "status": {"type": "string"},
    },
}
SPARK_SCHEMA = "card_id string, event_time timestamp, amount double, merchant bigint, status string"


def definitions(folder: Path, topic: str) -> FeatureService:
    """Return the service: counts, sums and maxima over four windows."""
    contract = folder / "v1.json"
    contract.write_text(json.dumps(CONTRACT))
    source = EventSource("payments", topic=topic, schema=contract, event_time="event_time")
    features = {
        "n": Count().over(*WINDOWS),
        "spend": Sum("amount").over(*WINDOWS),
        "most": Max("amount").over(*WINDOWS),
    }
    view = FeatureView("card", entity=Entity("card", keys={"card_id": "string"}), source=source, features=features)
    return FeatureService("cards", [view])


def columns(events: int, keys: int, hot: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return card, event time and amount of every event, in order of time; a share of all belongs to card 0."""
    dice = np.random.default_rng(3)
    card = dice.integers(keys, size=events)
    card[dice.random(events) < hot] = 0
    time = START + np.sort(dice.integers(SPAN, size=events))
    return card, time, np.round(dice.random(events) * 100, 2)


def records(events: int, keys: int, hot: float) -> Iterator[tuple[int, bytes]]:
    """Yield card and JSON of every event."""
    for card, time, amount in zip(*(column.tolist() for column in columns(events, keys, hot)), strict=True):
        text = (
            f'{{"card_id":"c{card}","event_time":"{to_datetime(time).isoformat()}","amount":{amount},'
            f'"merchant":{card % 997},"status":"approved"}}'
        )
        yield card, text.encode()


def fill(broker: str, topic: str, events: int, *, partitions: int, keys: int, hot: float = 0.0) -> None:
    """Make a topic and send the events, a card always to the same partition."""
    from confluent_kafka import Producer  # filling a topic is not measured, and ten million events are many

    ensure_topics({"bootstrap.servers": broker}, {topic: partitions}, config={"retention.ms": "-1"})
    sender = Producer(
        {"bootstrap.servers": broker, "linger.ms": 50, "acks": 1, "queue.buffering.max.messages": _QUEUED}
    )
    # Arrival just after the latest event time, so that nothing counts as ahead of the clock.
    arrival = (START + SPAN) // 1_000 + 1
    for number, (card, value) in enumerate(records(events, keys, hot)):
        place = (card + number if card == 0 else card) % partitions
        sender.produce(topic, value, partition=place, timestamp=arrival)
        if number % (_QUEUED // 2) == 0:
            sender.flush()
    left = sender.flush(60)
    if left:
        raise SystemExit(f"{left} events did not get into topic {topic}.")


def expected(events: int, keys: int, hot: float, sample: int = 200) -> dict[str, tuple[int, float, float]]:
    """Return count, sum and maximum over seven days of some cards, from the columns."""
    card, _, amount = columns(events, keys, hot)
    found = {}
    for number in np.unique(card)[:sample].tolist():
        mine = amount[card == number]
        found[f"c{number}"] = (len(mine), float(mine.sum()), float(mine.max()))
    return found
