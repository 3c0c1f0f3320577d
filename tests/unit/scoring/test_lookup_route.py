"""``POST /lookup/{service}`` over real HTTP and a real server: the client's own numbers, and refusals that say why."""

from __future__ import annotations

import json

import httpx
import pyarrow as pa
import pytest

from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import values_at
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.scoring.auth import ApiKeys, Gate, new_key
from featurestore.scoring.http import ScorerLimits
from featurestore.scoring.manifest import save_model
from featurestore.scoring.service import build_app
from featurestore.stack.valkey import OnlineServer
from tests.conformance.cases import MANY, SOURCE
from tests.conformance.support import SERVICE, Online, one
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import onnx_bytes

pytestmark = pytest.mark.server

EVENTS = [one(i, card=f"c{i % 20}", amount=i / 3, offset=i) for i in range(50)]
NOW = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with OnlineServer(tmp_path_factory.mktemp("online")) as server:
        yield from filled(RedisOnlineStore(server.url, "over_http"))


def filled(store):
    online = Online(store)
    online.apply(EVENTS)
    store.publish_complete(SOURCE.name, NOW)
    yield store
    store.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_model(
        root,
        "m",
        onnx_bytes(weights=(0.1, 0.2, 0.3)),
        service=SERVICE.name,
        service_fingerprint=SERVICE.fingerprint,
        keys=SERVICE.keys,
        inputs=["many.n_1h", "many.spend_1h", "many.high_1h"],
        request_inputs=[],
        feature_inputs=["many.n_1h", "many.spend_1h", "many.high_1h"],
    )
    return root


def app_of(root, store, **options):
    return build_app(root, lambda: FeatureClient(store.url, project=store.project, timeout="5s"), **options)


@pytest.fixture(scope="module")
def http(root, store):
    app = app_of(root, store, allow_now=True, limits=ScorerLimits(rows=100))
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        yield http


def plain(value):
    return None if isinstance(value, float) and value != value else value


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_numbers_are_those_of_the_client_and_the_specification(http, store, count):
    keys = [{"card_id": f"c{i}"} for i in range(count)]
    vectors = http.post("/lookup/cards", json={"keys": keys, "now": NOW}).raise_for_status().json()["vectors"]
    table = FeatureClient.over(store).get_many("cards", keys, now=NOW)
    for key, shown, vector in zip(keys, vectors, table, strict=True):
        assert shown["values"] == {name: plain(value) for name, value in vector.values_by_name.items()}
        assert (shown["status"], shown["as_of"]) == (vector.status, dict(vector.as_of))
        assert (shown["complete_through"], shown["at"]) == (NOW, NOW)
        expected = values_at(MANY, EVENTS, [key["card_id"]], NOW)
        assert shown["values"]["many.n_1h"] == expected["many.n_1h"]
        assert shown["values"]["many.spend_1h"] == pytest.approx(expected["many.spend_1h"])


def test_one_key_gives_one_vector_of_the_chosen_features(http):
    body = {"keys": {"card_id": "c3"}, "features": ["many.n_1h"], "now": NOW}
    shown = http.post("/lookup/cards", json=body).raise_for_status().json()
    assert shown["service"] == "cards"
    assert (shown["values"], shown["status"]) == ({"many.n_1h": 3}, {"many.n_1h": "present"})


def test_arrow_holds_the_same_with_types(http, store):
    keys = [{"card_id": f"c{i}"} for i in range(30)]
    answer = http.post(
        "/lookup/cards",
        json={"keys": keys, "now": NOW},
        headers={"accept": "application/vnd.apache.arrow.stream"},
    ).raise_for_status()
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    found = pa.ipc.open_stream(answer.content).read_all()
    table = FeatureClient.over(store).get_many("cards", keys, now=NOW)
    assert found.select(list(table.names)).replace_schema_metadata(None).equals(table.to_arrow())
    assert found.column("status:many.n_1h").to_pylist() == [vector.status["many.n_1h"] for vector in table]
    as_of = found.column("as_of:many").cast(pa.int64()).to_pylist()
    assert as_of == [vector.as_of["many"] for vector in table]
    assert found.schema.metadata == {b"complete_through": b"100", b"at": b"100"}


@pytest.mark.parametrize(
    ("service", "body", "status", "kind"),
    [
        ("nothing", '{"keys": {"card_id": "c"}}', 404, "unknown-service"),
        ("cards", '{"keys": {"card": "c"}}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": 1}}', 400, "invalid-input"),
        ("cards", '{"keys": []}', 400, "invalid-input"),
        ("cards", json.dumps({"keys": [{"card_id": "c"}] * 101}), 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c"}, "features": ["many.n_2h"]}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c"}, "features": []}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c"}, "request": []}', 400, "invalid-input"),
        ("cards", '{"keys": [{"card_id": "c"}], "request": []}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c", "card_id": "d"}}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": NaN}}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c"}, "more": 1}', 400, "invalid-input"),
        ("cards", '{"keys": {"card_id": "c0"}, "now": 1}', 400, "past-lookup"),
    ],
)
def test_what_cannot_be_looked_up_is_a_problem_that_says_why(http, service, body, status, kind):
    answer = http.post(f"/lookup/{service}", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:featurestore:problem:{kind}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_other_methods_and_types_are_refused(http):
    assert http.get("/lookup/cards").status_code == 405
    assert http.post("/lookup/cards", content="{}", headers={"content-type": "text/plain"}).status_code == 415


def test_features_too_old_are_a_503(store, http):
    policed = FeatureService("cards", SERVICE.views)
    plan = LookupPlan.of(policed).to_json().replace(
        b'"service":"cards"', b'"service":"old","policies":{"many":{"max_staleness":1,"on_stale":"fail","defaults":{}}}'
    )  # fmt: skip
    store.publish_plan(LookupPlan.from_json(plan))
    answer = http.post("/lookup/old", json={"keys": {"card_id": "c"}, "now": NOW + 2})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:featurestore:problem:stale-features")
    assert answer.headers["retry-after"] == "1"


def test_it_needs_a_key_where_the_scorer_does(root, store, tmp_path):
    key, line = new_key("team")
    (tmp_path / "keys").write_text(line + "\n")
    app = app_of(root, store, gate=Gate(ApiKeys.from_file(tmp_path / "keys")))
    body = {"keys": {"card_id": "c"}}
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        assert http.post("/lookup/cards", json=body).status_code == 401
        assert http.get("/openapi.json").status_code == 401
        assert http.post("/lookup/cards", json=body, headers={"x-api-key": key}).status_code == 200


def test_the_description_names_the_route_and_every_status(http):
    found = http.get("/openapi.json").raise_for_status().json()
    assert found["openapi"] == "3.1.0"
    described = found["paths"]["/lookup/{name}"]["post"]
    assert set(described["responses"]) >= {"200", "400", "401", "404", "408", "413", "415", "429", "503"}
    assert "application/vnd.apache.arrow.stream" in described["responses"]["200"]["content"]
