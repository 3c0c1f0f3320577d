"""Freshness: how long from producing an event until its feature can be read, at a steady rate in real time.

The whole job is submitted as a user submits it; the archive query runs beside the hot one unless it is left out.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore import FeatureClient, FeatureStore
from featurestore.events.broker import producer
from featurestore.testing.canary import measure_freshness
from featurestore.timeline import SystemClock, format_instant
from scripts.benchmarks.stream_data import definitions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODES: dict[str, dict[str, Any]] = {
    "micro-batch": {"queries": "hot"},
    "micro-batch, archive": {},
    "realtime": {"queries": "hot", "freshness": "realtime"},
    "realtime, archive": {"freshness": "realtime"},
}
_WARM_UP_S = 10.0


def freshness(mode: str, broker: str, url: str, folder: Path, *, rate: int, seconds: float) -> dict[str, Any]:
    """Submit the job, measure, stop it; return quantiles in milliseconds."""
    topic = f"fresh_{list(MODES).index(mode)}"
    kafka = {"bootstrap.servers": broker}
    root = folder / topic
    store = FeatureStore.open(root=root, project=topic, kafka=kafka, online={"url": url, "timeout": "5s"})
    store.apply(definitions(folder, topic), create_topics=True)
    job = store.submit("materialize", service="cards", master="local[4]", **MODES[mode])
    try:
        job.wait_until("running", timeout=300)
        sender = producer(kafka)
        with FeatureClient(url, project=topic, timeout="5s") as client:
            found = measure_freshness(
                partial(_send, sender, topic),
                partial(_readable, client),
                rate=rate,
                seconds=seconds,
                warm_up=_WARM_UP_S,
            )
        sender.close()
        status = job.status()
    finally:
        job.stop()
    return {"mode": mode, **asdict(found), "load": os.getloadavg()[0], "last_batch": status.queries.get("hot")}


def _send(sender: Any, topic: str, card: str, number: int) -> None:
    event = {
        "card_id": card, "event_time": format_instant(SystemClock().now()), "amount": 1.5, "merchant": number % 997
    }  # fmt: skip
    sender.send(topic, json.dumps(event).encode(), key=card.encode())


def _readable(client: FeatureClient, cards: Sequence[str]) -> list[bool]:
    rows = client.get_many("cards", [{"card_id": card} for card in cards])
    return [bool(row["card.n_1h"]) for row in rows]
