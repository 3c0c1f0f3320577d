"""The scorer over the real writer, client and server, which is killed, stopped and brought back."""

from __future__ import annotations

import json
import os
import signal

import httpx
import numpy as np
import pyarrow as pa
import pytest

from featurestore.algebra.additive import Count, Sum
from featurestore.algebra.aggregate import sequence_of
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.engines.shape import shape
from featurestore.errors import ModelError, UnknownNameError
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.scoring.manifest import save_model
from featurestore.scoring.service import build_app
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import HOUR, MINUTE
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import onnx_bytes

pytestmark = pytest.mark.server

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


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    schema = tmp_path_factory.mktemp("payment") / "v1.json"
    schema.write_text(json.dumps(CONTRACT))
    features = {"count": Count().over("1h"), "spend": Sum("amount").over("1h")}
    source = EventSource("payments", topic="payments", schema=schema, event_time="event_time")
    return FeatureService("fraud", [FeatureView("card", Entity("card", {"card_id": "string"}), source, features)])


@pytest.fixture(scope="module")
def root(tmp_path_factory, service):
    root = tmp_path_factory.mktemp("models")
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
    return root


def fill(url: str, service: FeatureService) -> None:
    """Publish the plan and apply three events of two cards."""
    store = RedisOnlineStore(url, "default")
    store.publish_plan(LookupPlan(service.name, tuple(view.layout for view in service.views)))
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


def test_what_was_written_is_what_is_scored_and_a_store_away_is_a_503_until_it_is_back(root, service, tmp_path):
    body = {
        "keys": [{"card_id": card} for card in ("b", "a", "nobody")],
        "request": [{"amount": 1.0}] * 3,
        "explain": True,
        "now": T,
    }
    with OnlineServer(tmp_path) as store:
        fill(store.url, service)
        app = build_app(root, lambda: FeatureClient(store.url, timeout="200ms"), allow_now=True)
        with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:

            def scored() -> None:
                answer = http.post("/score/fraud", json=body)
                assert answer.status_code == 200, answer.text
                b, a, nobody = answer.json()["predictions"]
                assert b["vector"] == {"card.count_1h": 1, "card.spend_1h": 4.0}
                assert a["vector"] == {"card.count_1h": 2, "card.spend_1h": 3.0}
                assert a["as_of"] == {"card": T - 20 * MINUTE}
                assert (a["at"], a["complete_through"]) == (T, T)
                assert a["score"] == pytest.approx(1 / (1 + np.exp(-(0.1 + 0.2 * 2 + 0.3 * 3))), rel=1e-6)
                assert nobody["statuses"] == {"missing": 2}
                assert http.get("/v2/health/ready").status_code == 200

            def away(kind: str) -> None:
                answer = http.post("/score/fraud", json=body)
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, kind)
                assert store.url.partition("://")[2] not in answer.text
                assert http.get("/v2/health/ready").status_code == 503

            scored()
            os.kill(store.pid, signal.SIGSTOP)
            away("store-timeout")
            os.kill(store.pid, signal.SIGCONT)
            scored()
            store.kill()
            away("store-unavailable")
            store.start()
            fill(store.url, service)
            scored()


def test_another_definition_than_the_applied_one_refuses_to_start(root, service, tmp_path):
    (view,) = service.views
    other = FeatureView("card", view.entity, view.source, {"count": Count().over("2h")})
    with OnlineServer(tmp_path) as store:
        with pytest.raises(UnknownNameError, match="'fraud'"):
            build_app(root, lambda: FeatureClient(store.url))
        RedisOnlineStore(store.url, "default").publish_plan(LookupPlan(service.name, (other.layout,)))
        with pytest.raises(ModelError, match="was trained on feature service"):
            build_app(root, lambda: FeatureClient(store.url))
