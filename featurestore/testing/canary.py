"""Freshness by canaries: how long from producing an event until its feature can be read, at a steady rate in real time.

Canaries are events of entities that do not exist, sent through the real topic, job and store. Some are markers, with an
entity of their own: a reader asks for the outstanding ones, over and over, until their feature is there.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BURST_S, _READ_EVERY_S, _MOST_AT_ONCE = 0.005, 0.002, 100
_CROWD = 5_000
"""How many entities the canaries that are no markers share."""


@dataclass(frozen=True)
class Freshness:
    """Milliseconds from produced to readable.

    Attributes:
        rate: Events per second that were sent.
        markers: Markers that were measured.
        lost: Markers that were sent and never read; must be 0.
        p10_ms, p50_ms, p99_ms, worst_ms: Quantiles; nan when no marker was read.
    """

    rate: float
    markers: int
    lost: int
    p10_ms: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def measure_freshness(
    send: Callable[[str, int], None],
    readable: Callable[[Sequence[str]], Sequence[bool]],
    *,
    rate: int = 1_000,
    seconds: float = 15.0,
    warm_up: float = 5.0,
    markers_per_second: int = 20,
    patience: float = 30.0,
) -> Freshness:
    """Send canaries at a steady rate for ``warm_up + seconds`` and return the freshness of the markers after warm-up.

    Args:
        send: Produces one event of an entity, given the entity's name and the event's number; returns without waiting.
        readable: Says, for entities, whether a lookup finds an event of theirs; called in a thread of its own.
        rate: Events per second.
        seconds: How long to measure.
        warm_up: Seconds before, whose markers do not count.
        markers_per_second: How many of the events are markers.
        patience: Seconds after the last event in which outstanding markers are still waited for.

    Raises:
        Exception: What ``readable`` raised.
    """
    outstanding: dict[str, float] = {}
    delays: dict[str, float] = {}
    failed: list[Exception] = []
    lock, sent_all = threading.Lock(), threading.Event()
    give_up = [float("inf")]

    def read() -> None:
        try:
            while not sent_all.is_set() or (outstanding and time.monotonic() < give_up[0]):
                with lock:
                    waiting = list(outstanding)[:_MOST_AT_ONCE]
                found = readable(waiting) if waiting else ()
                now = time.monotonic()
                with lock:
                    delays.update(
                        (each, now - outstanding.pop(each)) for each, seen in zip(waiting, found, strict=True) if seen
                    )
                time.sleep(_READ_EVERY_S)
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            failed.append(error)

    reader = threading.Thread(target=read, name="canaries", daemon=True)
    reader.start()
    every, number, counted = max(1, rate // markers_per_second), 0, set()
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < warm_up + seconds and not failed:
        while number < int(elapsed * rate):
            name = f"canary-{number % _CROWD}"
            if number % every == 0:
                name = f"marker-{number}"
                if elapsed >= warm_up:
                    counted.add(name)
                with lock:
                    outstanding[name] = time.monotonic()
            send(name, number)
            number += 1
        time.sleep(_BURST_S)
    took = time.monotonic() - began
    give_up[0] = time.monotonic() + patience
    sent_all.set()
    reader.join(patience + 10)
    if failed:
        raise failed[0]
    found = np.array([delays[name] for name in counted if name in delays]) * 1_000
    p10, p50, p99, worst = np.quantile(found, [0.1, 0.5, 0.99, 1]) if len(found) else [float("nan")] * 4
    return Freshness(
        rate=number / took,
        markers=len(found),
        lost=len(counted) - len(found),
        p10_ms=float(p10),
        p50_ms=float(p50),
        p99_ms=float(p99),
        worst_ms=float(worst),
    )
