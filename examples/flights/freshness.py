"""Freshness: how long from producing an event until its feature can be read, at a steady rate in real time.

Canary flights of an airport that does not exist are sent through the same topics, views and store as the real ones, so
the path is the real one and no real key is touched. Every twentieth or so is a marker with an aircraft of its own; a
reader asks the lookup client for the outstanding markers, over and over, until their departure is counted.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaProducer

    from featurestore import FeatureClient

COUNT_FEATURE = "aircraft_departures.departures_24h"
_CANARY = {"origin": "ZZZ", "dest": "ZZZ", "carrier": "ZZ"}
_BURST_S = 0.01


@dataclass(frozen=True)
class Freshness:
    """Milliseconds from produced to readable.

    Attributes:
        rate: Events per second that were sent.
        markers: Markers measured.
        lost: Markers that were never seen; must be 0.
        p50_ms, p99_ms, worst_ms: Quantiles.
    """

    rate: float
    markers: int
    lost: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


def measure(
    producer: KafkaProducer,
    client: FeatureClient,
    service: str,
    *,
    rate: int = 1_000,
    seconds: float = 15.0,
    warm_up: float = 5.0,
    markers_per_second: int = 20,
) -> Freshness:
    """Send canaries at a steady rate for ``warm_up + seconds`` and return the freshness of the markers after warm-up."""
    sent: dict[str, float] = {}
    outstanding: dict[str, float] = {}
    seen: dict[str, float] = {}
    lock = threading.Lock()
    done = threading.Event()

    def read() -> None:
        while not (done.is_set() and not outstanding) and not (done.is_set() and time.monotonic() > give_up[0]):
            with lock:
                waiting = list(outstanding)[:200]
            if not waiting:
                done.wait(0.002)
                continue
            table = client.get_many(service, [_keys(tail) for tail in waiting])
            now = time.monotonic()
            for tail, vector in zip(waiting, table, strict=True):
                if vector[COUNT_FEATURE]:
                    with lock:
                        seen[tail] = now - outstanding.pop(tail)
            done.wait(0.003)

    give_up = [float("inf")]
    reader = threading.Thread(target=read, name="freshness-reader", daemon=True)
    reader.start()
    clock = SystemClock()
    began = time.monotonic()
    number = 0
    pace = threading.Event()
    every = max(1, rate // markers_per_second)
    while (elapsed := time.monotonic() - began) < warm_up + seconds:
        due = int(elapsed * rate)
        while number < due:
            is_marker = number % every == 0
            tail = f"MARK-{number}" if is_marker else f"CANARY-{number % 500}"
            event = _departure(tail, number, clock.now())
            if is_marker:
                with lock:
                    outstanding[tail] = time.monotonic()
                if elapsed >= warm_up:
                    sent[tail] = elapsed
            producer.send("flight_departures", event, key=tail.encode())
            number += 1
        pace.wait(_BURST_S)
    producer.flush()
    took = time.monotonic() - began
    give_up[0] = time.monotonic() + 20
    done.set()
    reader.join(25)
    delays = np.array([seen[tail] for tail in sent if tail in seen]) * 1000
    p50, p99 = np.quantile(delays, [0.5, 0.99]) if len(delays) else (float("nan"), float("nan"))
    return Freshness(
        rate=number / took,
        markers=len(delays),
        lost=len(sent) - len(delays),
        p50_ms=float(p50),
        p99_ms=float(p99),
        worst_ms=float(delays.max()) if len(delays) else float("nan"),
    )


def _keys(tail: str) -> Mapping[str, str]:
    return {**_CANARY, "tailnum": tail}


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
