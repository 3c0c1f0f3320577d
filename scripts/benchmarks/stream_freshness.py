"""Freshness: how long from producing an event until its feature can be read, at a steady rate in real time.

The whole job is submitted as a user submits it; the archive query runs beside the hot one unless it is left out. One event in
fifty is a marker with a card of its own; a reader asks the lookup client for the outstanding markers until they are counted.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore import FeatureClient, FeatureStore
from featurestore.events.broker import producer
from featurestore.timeline import SystemClock, format_instant
from scripts.benchmarks.stream_data import definitions

if TYPE_CHECKING:
    from pathlib import Path

MODES: dict[str, dict[str, Any]] = {
    "micro-batch": {"queries": "hot"},
    "micro-batch, archive": {},
    "realtime": {"queries": "hot", "freshness": "realtime"},
    "realtime, archive": {"freshness": "realtime"},
}
_WARM_UP_S, _EVERY, _BURST_S, _PATIENCE_S = 10.0, 50, 0.005, 30.0


def freshness(mode: str, broker: str, url: str, folder: Path, *, rate: int, seconds: float) -> dict[str, Any]:
    """Submit the job, measure, stop it; return quantiles in milliseconds."""
    topic = f"fresh_{list(MODES).index(mode)}"
    kafka = {"bootstrap.servers": broker}
    root = folder / topic
    store = FeatureStore.open(root=root, project=topic, kafka=kafka, online={"url": url, "timeout": "5s"})
    store.apply(definitions(folder, topic), create_topics=True)
    job = store.submit("materialize", service="cards", master="local[2]", **MODES[mode])
    try:
        job.wait_until("running", timeout=300)
        sender = producer(kafka, linger_ms=0)
        with FeatureClient(url, project=topic, timeout="5s") as client:
            delays, lost, sent_per_s = _markers(sender, client, topic, rate, seconds)
        sender.close()
        status = job.status()
    finally:
        job.stop()
    quantiles = {f"p{q}_ms": float(np.quantile(delays, q / 100)) * 1000 for q in (10, 50, 99)} if len(delays) else {}
    return {
        "mode": mode, "rate": sent_per_s, "markers": len(delays), "lost": lost, **quantiles,
        "worst_ms": float(np.max(delays, initial=0)) * 1000, "load": os.getloadavg()[0], "last_batch": status.queries.get("hot"),
    }  # fmt: skip


def _markers(
    sender: Any, client: FeatureClient, topic: str, rate: int, seconds: float
) -> tuple[np.ndarray, int, float]:
    outstanding: dict[str, float] = {}
    delays: list[float] = []
    lock, ended = threading.Lock(), threading.Event()
    warm = [True]

    def read() -> None:
        give_up = float("inf")
        while not ended.is_set() or (outstanding and time.monotonic() < give_up):
            if ended.is_set() and give_up == float("inf"):
                give_up = time.monotonic() + _PATIENCE_S
            with lock:
                waiting = list(outstanding)[:100]
            if waiting:
                rows = client.get_many("cards", [{"card_id": card} for card in waiting])
                now = time.monotonic()
                with lock:
                    for card, row in zip(waiting, rows, strict=True):
                        if row["card.n_1h"]:
                            began = outstanding.pop(card)
                            if card.startswith("mark"):
                                delays.append(now - began)
            ended.wait(0.001) if not ended.is_set() else time.sleep(0.001)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    clock, pace = SystemClock(), threading.Event()
    began, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < _WARM_UP_S + seconds:
        warm[0] = elapsed < _WARM_UP_S
        while number < int(elapsed * rate):
            card = f"c{number % 5_000}"
            if number % _EVERY == 0:
                card = f"{'warm' if warm[0] else 'mark'}-{number}"
                with lock:
                    outstanding[card] = time.monotonic()
            event = {
                "card_id": card,
                "event_time": format_instant(clock.now()),
                "amount": 1.5,
                "merchant": number % 997,
            }
            sender.send(topic, json.dumps(event).encode(), key=card.encode())
            number += 1
        pace.wait(_BURST_S)
    sender.flush()
    took = time.monotonic() - began
    ended.set()
    reader.join(_PATIENCE_S + 10)
    with lock:
        lost = sum(card.startswith("mark") for card in outstanding)
    return np.array(delays), lost, number / took
