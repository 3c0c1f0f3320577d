"""The scorer over the real writer, client and server, which is killed, stopped and brought back."""

from __future__ import annotations

import os
import signal

import httpx
import numpy as np
import pytest

from featurestore.algebra.additive import Count
from featurestore.definitions.view import FeatureView
from featurestore.errors import ModelError, UnknownNameError
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.scoring.service import build_app
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import HOUR, MINUTE
from tests.frozen import freeze
from tests.unit.scoring.conftest import running
from tests.unit.scoring.real import T, fill, payments, store_model

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return payments(tmp_path_factory.mktemp("payment"))


@pytest.fixture(scope="module")
def root(tmp_path_factory, service):
    root = tmp_path_factory.mktemp("models")
    store_model(root, service)
    return root


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
            freeze(store.pid)
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


# --- Policies ---------------------------------------------------------------------------------------------------------

BODY = {"keys": [{"card_id": "a"}, {"card_id": "nobody"}], "request": [{"amount": 1.0}] * 2, "explain": True}
LATE = T + 2 * HOUR  # two hours after what the store is complete through


def scored(url, **changed):
    with httpx.Client(base_url=url, trust_env=False) as http:
        plain = http.post("/score/fraud", json=BODY | changed)
        tensors = [
            {"name": "card_id", "datatype": "BYTES", "shape": [2], "data": ["a", "nobody"]},
            {"name": "amount", "datatype": "FP64", "shape": [2], "data": [1.0, 1.0]},
        ]
        parameters = {"now": changed["now"]} if "now" in changed else {}
        infer = http.post("/v2/models/fraud/infer", json={"inputs": tensors, "parameters": parameters})
        assert infer.status_code == plain.status_code
        return plain, infer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("on_stale", ["fail", "default", "serve_stale"])
def test_a_policy_decides_what_old_features_are_to_a_model(tmp_path, on_stale):
    defaults = {"defaults": {"count_1h": 7}} if on_stale == "default" else {}
    service = payments(tmp_path, max_staleness="10m", on_stale=on_stale, **defaults)
    store_model(tmp_path / "models", service)
    with OnlineServer(tmp_path / "store") as store:
        fill(store.url, service)
        app = build_app(tmp_path / "models", lambda: FeatureClient(store.url, timeout="5s"), allow_now=True)
        with running(app) as url:
            fresh, infer = scored(url, now=T)
            a, nobody = fresh.json()["predictions"]
            assert (a["statuses"], nobody["statuses"]) == ({"present": 2}, {"missing": 2})
            assert not {"stale", "degraded"} & (a.keys() | infer.json()["parameters"].keys())

            old, infer = scored(url, now=LATE)
            if on_stale == "fail":
                assert old.json()["type"] == "urn:featurestore:problem:stale-features"
                assert (old.status_code, old.headers["retry-after"]) == (503, "1")
                assert "card" in infer.json()["error"]
                return
            a, nobody = old.json()["predictions"]
            name = {"default": "degraded", "serve_stale": "stale"}[on_stale]
            features = ["card.count_1h", "card.spend_1h"]
            assert a["statuses"] == {name: 2}
            assert a[name] == features
            assert infer.json()["parameters"][name] == ",".join(features)
            if on_stale == "default":  # what has no default is null, and that is NaN to the model
                assert a["vector"] == nobody["vector"] == {"card.count_1h": 7, "card.spend_1h": None}
                assert a["score"] == pytest.approx(sigmoid(0.1 + 0.2 * 7), rel=1e-6)
            else:
                assert a["vector"] == {"card.count_1h": 0, "card.spend_1h": None}
                assert a["score"] == pytest.approx(sigmoid(0.1), rel=1e-6)


def test_a_store_away_is_defaults_where_every_view_has_them_and_else_an_error(tmp_path):
    service = payments(tmp_path, on_stale="default", defaults={"count_1h": 7, "spend_1h": 1.5})
    store_model(tmp_path / "models", service)
    with OnlineServer(tmp_path / "store") as store:
        fill(store.url, service)
        app = build_app(tmp_path / "models", lambda: FeatureClient(store.url, timeout="2s"), allow_now=True)
        with running(app) as url:
            scored(url, now=T)
            store.kill()
            answer, infer = scored(url, now=T)
            a, nobody = answer.json()["predictions"]
            assert a["score"] == nobody["score"] == pytest.approx(sigmoid(0.1 + 0.2 * 7 + 0.3 * 1.5), rel=1e-6)
            assert (a["statuses"], a["complete_through"]) == ({"degraded": 2}, None)
            assert infer.json()["parameters"]["degraded"] == "card.count_1h,card.spend_1h"
            with httpx.Client(base_url=url, trust_env=False) as http:
                assert http.get("/v2/health/ready").status_code == 503
