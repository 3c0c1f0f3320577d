"""scripts/bench score --kafka: events per second and added latency of scoring jobs, on a real broker and a real store.

A job is submitted as a user submits it. First it has to catch up with a topic: events per second between its first and its last
prediction, by the times its producer gave them. Then events come at a steady rate, and a consumer beside the job's notes when it
sees an event and when it sees the event's prediction: the difference is what scoring adds to the way through the broker.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

import scripts.benchmarks.lookup as data
from featurestore import FeatureStore
from featurestore.events.broker import producer
from featurestore.stack.kafka import KafkaServer
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import SystemClock, format_instant
from scripts.benchmarks.score import store_model, train, vectors
from scripts.benchmarks.score_servers import cpu_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

MODES: dict[str, dict[str, Any]] = {"realtime": {"freshness": "realtime"}, "micro-batch": {"master": "local[2]"}}
PARTITIONS = 2
WARM_UP_S, PATIENCE_S = 3.0, 60.0


def measure_kafka(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one result per mode."""
    data.NOW = SystemClock().now()  # these lookups are as of the clock, and the windows should not be empty
    service = data.definitions(folder)
    found = []
    with KafkaServer(folder / "kafka") as kafka, OnlineServer(folder / "online") as server:
        data.fill(server.url, service, "usual", given.cards)
        booster = train(
            vectors(server.url, [f"c{card}" for card in range(given.cards)], data.NOW), folder / "model.txt"
        )
        for mode in given.modes.split(","):
            store = FeatureStore.open(
                root=folder / mode, kafka={"bootstrap.servers": kafka.bootstrap_servers},
                online={"url": server.url, "timeout": "5s"},
            )  # fmt: skip
            store.apply(service, create_topics=True, partitions=PARTITIONS)
            store_model(booster, service, store.settings.models)
            found.append({"mode": mode, **_one(store, mode, given)})
    return found


def _one(store: FeatureStore, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    kafka = store.settings.kafka
    sender = producer(kafka, linger_ms=5)
    watch = _Watch(kafka["bootstrap.servers"], f"out-{mode}")
    job = None
    try:
        for number in range(given.events):
            sender.send("cards", _event(number % given.cards), partition=number % PARTITIONS)
        sender.flush()
        began_at = _end(kafka["bootstrap.servers"])
        job = store.submit("score", service="cards", topic=f"out-{mode}", **MODES[mode])
        job.wait_until("running", 300)
        watch.start()
        watch.wait_for(began_at)
        sent = np.sort(np.array(watch.sent_ms))
        caught_up = {"events": len(sent), "events_per_s": round(len(sent) / max(0.001, (sent[-1] - sent[0]) / 1000))}
        pid = job.record["pid"]
        delays = _steady(sender, watch, given, lambda: cpu_of(pid))
    finally:
        watch.stop()
        sender.close()
        if job is not None:
            job.stop()
    return {**caught_up, **delays}


def _steady(sender: Any, watch: _Watch, given: argparse.Namespace, cpu_s: Callable[[], float]) -> dict[str, Any]:
    """Send events at a steady rate; return quantiles of what scoring adds, in milliseconds, and the CPU of an event."""
    seconds = 2.0 if given.quick else 20.0
    rate = given.rate or 200.0
    places: list[Any] = []
    began, number = time.monotonic(), 0
    pace = threading.Event()
    spent: float | None = None
    while (elapsed := time.monotonic() - began) < WARM_UP_S + seconds:
        while number < int(elapsed * rate):
            future = sender.send("cards", _event(number % given.cards), partition=number % PARTITIONS)
            if elapsed > WARM_UP_S:
                spent = -cpu_s() if spent is None else spent
                places.append(future)
            number += 1
        pace.wait(0.002)
    sender.flush()
    ids = [f"cards/{done.partition}/{done.offset}" for done in (each.get(30) for each in places)]
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up and not all(each in watch.predicted for each in ids):
        pace.wait(0.05)
    spent = (spent or 0.0) + cpu_s()
    known = [each for each in ids if each in watch.predicted and each in watch.seen]
    added = np.array([watch.predicted[each] - watch.seen[each] for each in known]) * 1000
    return {
        "rate": rate, "predictions": len(known), "lost": len(ids) - len(known), "load": round(os.getloadavg()[0], 1),
        "cpu_ms_per_event": round(spent / max(1, len(known)) * 1000, 2),
        **({f"p{q}_ms": round(float(np.quantile(added, q / 100)), 2) for q in (10, 50, 99)} if known else {}),
    }  # fmt: skip


class _Watch(threading.Thread):
    """Notes when each event and each prediction can be read."""

    def __init__(self, broker: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, float] = {}
        self.predicted: dict[str, float] = {}
        self.sent_ms: list[int] = []
        self._broker, self._topic = broker, topic
        self._done = threading.Event()

    def run(self) -> None:
        """Read until stopped."""
        consumer = KafkaConsumer(
            bootstrap_servers=self._broker, group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=10
        )
        consumer.assign([TopicPartition(topic, part) for topic in ("cards", self._topic) for part in range(PARTITIONS)])
        while not self._done.is_set():
            polled = consumer.poll(timeout_ms=50)
            now = time.monotonic()
            for place, records in polled.items():
                for record in records:
                    if place.topic == "cards":
                        self.seen[f"cards/{place.partition}/{record.offset}"] = now
                    else:
                        self.predicted[json.loads(record.value)["prediction_id"]] = now
                        self.sent_ms.append(record.timestamp)
        consumer.close()

    def wait_for(self, predictions: int) -> None:
        """Return once so many predictions have been seen."""
        give_up = time.monotonic() + 300.0
        while len(self.predicted) < predictions and time.monotonic() < give_up:
            self._done.wait(0.05)

    def stop(self) -> None:
        """End."""
        self._done.set()
        if self.is_alive():
            self.join(10.0)


def _end(broker: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=broker)
    ends = consumer.end_offsets([TopicPartition("cards", part) for part in range(PARTITIONS)])
    consumer.close()
    return sum(ends.values())


def _event(card: int) -> bytes:
    event = {
        "card_id": f"c{card}",
        "event_time": format_instant(SystemClock().now()),
        "amount": 1.5,
        "fee": 0.1,
        "points": 1,
    }
    return json.dumps(event).encode()


def table_kafka(found: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| job | events | events/s | steady, per s | added p10 ms | p50 ms | p99 ms | lost | CPU ms per event | load |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each['mode']} | {each['events']:,} | {each['events_per_s']:,} | {each['rate']:,.0f} | {each.get('p10_ms')} | "
        f"{each.get('p50_ms')} | {each.get('p99_ms')} | {each['lost']} | {each['cpu_ms_per_event']} | {each['load']} |"
        for each in found
    ]
    return "\n".join(lines)
