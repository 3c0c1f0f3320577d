"""A feature service with three events in a real store, its model, and real processes that serve it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.algebra.additive import Count, Sum
from featurestore.algebra.aggregate import sequence_of
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.engines.shape import shape
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.scoring.manifest import save_model
from featurestore.timeline import HOUR, MINUTE
from tests.unit.scoring.support import onnx_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = 400_000 * HOUR
CONTRACT = {
    "title": "payment",
    "type": "object",
    "properties": {
        "event_time": {"type": "string", "format": "date-time"},
        "card_id": {"type": "string"},
        "amount": {"type": "number"},
    },
    "required": ["event_time", "card_id", "amount"],
}


def payments(folder: Path, **policy: Any) -> FeatureService:
    """Return the service; ``policy`` is that of its view."""
    schema = folder / "v1.json"
    schema.write_text(json.dumps(CONTRACT))
    features = {"count": Count().over("1h"), "spend": Sum("amount").over("1h")}
    source = EventSource("payments", topic="payments", schema=schema, event_time="event_time")
    view = FeatureView("card", Entity("card", {"card_id": "string"}), source, features, **policy)
    return FeatureService("fraud", [view])


def store_model(root: Path, service: FeatureService) -> None:
    """Store a model of the amount, the count and the spend."""
    save_model(
        root,
        "fraud",
        onnx_bytes(weights=(0.1, 0.2, 0.3)),
        service=service.name,
        service_fingerprint=service.fingerprint,
        keys=service.keys,
        inputs=["amount", *service.feature_ids],
        request_inputs=["amount"],
        feature_inputs=service.feature_ids,
    )


def fill(url: str, service: FeatureService) -> None:
    """Publish the plan and apply three events of two cards."""
    store = RedisOnlineStore(url, "default")
    store.publish_plan(LookupPlan.of(service))
    (view,) = service.views
    times = np.array([T - 30 * MINUTE, T - 20 * MINUTE, T - 10 * MINUTE], np.int64)
    events = pa.table(
        {
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "card_id": ["a", "a", "b"],
            "amount": [1.0, 2.0, 4.0],
        }
    )
    sequence = np.array([sequence_of(0, offset) for offset in range(3)], np.int64)
    FencedWriter(store, "payments", [view]).apply(0, 3, T, [shape(view, events, times, sequence, times)])
    store.publish_complete("payments", T)


@contextmanager
def served(root: Path, url: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Serve in a process of its own; yield it, and the URLs that it said: of the scorer, and of the metrics if it has them."""
    command = [sys.executable, "-m", "tests.unit.scoring.serve_real", str(root), url, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(1 + ("admin_port" in options))]
        if not lines[0]:
            raise AssertionError(process.stderr.read())
        yield process, [line.split()[-1] for line in lines]
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
