"""Freshness: how long from producing an event until its feature can be read, at a steady rate in real time.

Canary flights of an airport that does not exist are sent through the same topics, views and store as the real ones, so
the path is the real one and no real key is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from featurestore.testing.canary import Freshness, measure_freshness
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka import KafkaProducer

    from featurestore import FeatureClient

COUNT_FEATURE = "aircraft_departures.departures_24h"
_CANARY = {"origin": "ZZZ", "dest": "ZZZ", "carrier": "ZZ"}


def measure(
    producer: KafkaProducer,
    client: FeatureClient,
    service: str,
    *,
    rate: int = 1_000,
    seconds: float = 15.0,
    warm_up: float = 5.0,
) -> Freshness:
    """Send canary departures at a steady rate; return how soon their aircraft's departures are counted."""
    clock = SystemClock()

    def send(tail: str, number: int) -> None:
        producer.send("flight_departures", _departure(tail, number, clock.now()), key=tail.encode())

    def readable(tails: Sequence[str]) -> list[bool]:
        table = client.get_many(service, [{**_CANARY, "tailnum": tail} for tail in tails])
        return [bool(vector[COUNT_FEATURE]) for vector in table]

    return measure_freshness(send, readable, rate=rate, seconds=seconds, warm_up=warm_up)


def _departure(tail: str, number: int, now_us: int) -> bytes:
    at = format_instant(now_us)
    return msgspec.json.encode(
        {
            "flight_id": f"ZZ-{number}-ZZZ-{now_us}",
            "event_time": at,
            **_CANARY,
            "tailnum": tail,
            "scheduled_departure": at,
            "dep_delay": float(number % 60),
            "distance": 100,
        }
    )
