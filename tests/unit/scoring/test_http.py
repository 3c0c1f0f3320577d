"""Every route, by a real client against a real uvicorn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.scoring.support import (
    AS_OF,
    COMPLETE_THROUGH,
    FINGERPRINT,
    GOOD,
    INFER,
    SCORE,
    TIMEOUT,
    UNAVAILABLE,
    expected_score,
    infer_body,
    raw,
    tensor,
)

# --- Open Inference Protocol ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(http, path):
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.json().keys() == {"name", "version", "extensions"}
    assert answer.json()["name"] == "featurestore"


def test_health(http):
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/fraud/ready").json() == {"name": "fraud", "ready": True}
    assert http.get("/v2/models/fraud/versions/1/ready").json() == {"name": "fraud", "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/fraud", "/v2/models/fraud/versions/1"])
def test_model_metadata_says_what_to_send(http, path):
    answer = http.get(path).json()
    assert answer["name"] == "fraud"
    assert answer["versions"] == ["1", "2"]
    assert answer["platform"] == "onnx_onnxruntime"
    assert answer["inputs"] == [
        {"name": "card_id", "datatype": "BYTES", "shape": [-1]},
        {"name": "amount", "datatype": "FP64", "shape": [-1]},
    ]
    assert answer["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]
    assert answer["properties"]["service_fingerprint"] == FINGERPRINT


def test_infer_scores_each_row_and_says_how_fresh_it_is(http):
    answer = http.post(INFER, json=infer_body(("c1", "c2", "nobody"), (1.5, 2, 3), id="42"))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("42", "fraud", "2")
    assert body["parameters"] == {
        "model_version": "2",
        "complete_through": COMPLETE_THROUGH,
        "as_of.card_spend": AS_OF,
        "statuses.missing": 2,
        "statuses.null": 1,
        "statuses.present": 3,
    }
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("score", "FP32", [3])
    rows = [(1.5, [10.0, 2, 5.0]), (2, [8.0, 1, None]), (3, None)]
    assert output["data"] == pytest.approx([expected_score(*row) for row in rows], rel=1e-6)


def test_infer_takes_columns_nested_and_flat_alike(http):
    expected = http.post(INFER, json=infer_body(("c1", "c2"), (1, 2))).json()["outputs"]
    for data in ([["c1"], ["c2"]], ["c1", "c2"]):
        inputs = [tensor("card_id", "BYTES", data, [2, 1]), tensor("amount", "INT64", [1, 2], [2, 1])]
        assert http.post(INFER, json={"inputs": inputs, "outputs": [{"name": "score"}]}).json()["outputs"] == expected


def test_a_version_in_the_path_is_the_one_that_scores(http):
    body = http.post("/v2/models/fraud/versions/1/infer", json=infer_body()).json()
    assert body["model_version"] == "1"


@pytest.mark.parametrize("now", [1_500_000, "1970-01-01T00:00:01.5Z"])
def test_a_replay_sets_the_time_of_the_lookup(http, reader, now):
    assert http.post(INFER, json=infer_body(parameters={"now": now})).status_code == 200
    assert (
        http.post(SCORE, json={"keys": {"card_id": "c1"}, "request": {"amount": 1}, "now": now}).json()["at"]
        == 1_500_000
    )
    assert reader.batches == [(1_500_000, 1), (1_500_000, 1)]


def test_now_may_be_the_epoch(http, reader):
    assert http.post(SCORE, json={"keys": {"card_id": "c1"}, "request": {"amount": 1}, "now": 0}).json()["at"] == 0
    assert reader.batches == [(0, 1)]


AMOUNT = tensor("amount", "FP64", [1.0])
CARD = tensor("card_id", "BYTES", ["c1"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "missing required field `inputs`"),
        ([], "Expected `object`, got `array`"),
        ({"inputs": []}, "the request has 0 rows"),
        ({"inputs": [CARD]}, "request input 'amount' is missing"),
        ({"inputs": [AMOUNT]}, "key 'card_id' is missing"),
        ({"inputs": [CARD, AMOUNT, AMOUNT]}, "'amount' is there twice"),
        ({"inputs": [CARD, AMOUNT, tensor("amuont", "FP64", [1])]}, "did you mean 'amount'"),
        ({"inputs": [CARD, tensor("amount", "FP64", [1, 2])]}, "has 2 rows, the one before it 1"),
        ({"inputs": [CARD, tensor("amount", "FP64", [1], [2])]}, "has 1 values, shape [2] says 2"),
        ({"inputs": [CARD, tensor("amount", "FP64", [1], [1, 1, 1])]}, "shape [1, 1, 1]"),
        ({"inputs": [CARD, tensor("amount", "FP64", [[1]], [1])]}, "is not FP64"),
        ({"inputs": [CARD, tensor("amount", "FP64", [[1, 2]], [1, 1])]}, "not nested as shape"),
        ({"inputs": [CARD, tensor("amount", "FP64", [], [-1])]}, "shape [-1]"),
        ({"inputs": [CARD, tensor("amount", "BF16", [1])]}, "datatype 'BF16'. Hint: allowed: BYTES"),
        ({"inputs": [CARD, tensor("amount", "FP64", ["1"])]}, "'1' is not FP64"),
        ({"inputs": [CARD, tensor("amount", "INT64", [1.5])]}, "'1.5' is not INT64"),
        ({"inputs": [CARD, tensor("amount", "INT32", [2**31])]}, "is not INT32"),
        ({"inputs": [CARD, tensor("amount", "BOOL", [1])]}, "is not BOOL"),
        ({"inputs": [CARD, tensor("amount", "FP32", [True])]}, "is not FP32"),
        ({"inputs": [tensor("card_id", "INT64", [1]), AMOUNT]}, "key 'card_id' is 1, not of type string"),
        ({"inputs": [CARD, AMOUNT], "outputs": [{"name": "label"}]}, "the only output is 'score'"),
        ({"inputs": [CARD, AMOUNT], "parameters": {"nwo": 1}}, "parameter 'nwo' is unknown"),
        ({"inputs": [CARD, AMOUNT], "parameters": {"now": "2013-01-01"}}, "no time zone"),
        ({"inputs": [CARD, AMOUNT], "parameters": {"now": 2**62}}, "outside the years"),
        ({"inputs": [CARD, AMOUNT], "parameters": {"now": True}}, "is not a time"),
        ({"inputs": [CARD, AMOUNT], "extra": 1}, "unknown field `extra`"),
        ({"inputs": [tensor("card_id", "BYTES", ["c"] * 1001), tensor("amount", "FP64", [1] * 1001)]}, "1001 rows"),
    ],
)
def test_infer_refuses_what_does_not_fit_with_a_400_that_names_it(http, reader, body, words):
    answer = http.post(INFER, json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    assert words in answer.json()["error"]
    assert reader.batches == []


# --- The plain route --------------------------------------------------------------------------------------------------


def test_score_one_row(http):
    answer = http.post(SCORE, json={"keys": {"card_id": "c1"}, "request": {"amount": 1.5}})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model": "fraud",
        "version": 2,
        "score": pytest.approx(expected_score(1.5, [10.0, 2, 5.0]), rel=1e-6),
        "at": COMPLETE_THROUGH + 1,
        "complete_through": COMPLETE_THROUGH,
        "statuses": {"present": 2},
    }


def test_explain_adds_the_vector_as_served(http):
    body = {"keys": [{"card_id": "c2"}], "request": [{"amount": None}], "explain": True}
    (one,) = http.post(SCORE, json=body).json()["predictions"]
    assert one["vector"] == {"card_spend.spend_1h": 8.0, "card_spend.mean_1h": None}
    assert one["status"] == {"card_spend.spend_1h": "present", "card_spend.mean_1h": "null"}
    assert one["as_of"] == {"card_spend": AS_OF}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"keys": []}, "0 rows"),
        ({"keys": {"card_id": "c1"}}, "'amount' is missing"),
        ({"keys": {"card_id": "c1"}, "request": [{"amount": 1}]}, "keys is one object and request a list"),
        ({"keys": [{"card_id": "c1"}], "request": {"amount": 1}}, "keys is a list of 1"),
        ({"keys": [{"card_id": "c1"}] * 2, "request": [{"amount": 1}]}, "keys is a list of 2"),
        ({"keys": [{"card_id": "c1"}, {}], "request": [{"amount": 1}] * 2}, "row 1: model fraud:2: key 'card_id'"),
        ({"keys": {"card_id": ["c1"]}, "request": {"amount": 1}}, "$.keys"),
        ({"keys": "c1"}, "$.keys"),
        ({"keys": {"card_id": "c1"}, "request": {"amount": 1}, "explian": True}, "unknown field `explian`"),
    ],
)
def test_score_refuses_with_a_problem_that_names_it(http, body, words):
    answer = http.post(SCORE, json=body, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "request_id"}
    assert (problem["status"], problem["title"], problem["request_id"]) == (400, "Bad Request", "abc-1")
    assert problem["type"] == "urn:featurestore:problem:invalid-input"
    assert words in problem["detail"]


# --- Paths, methods, ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nope",
        "/v2/models/fraud/versions/3",
        "/v2/models/fraud/versions/01",
        "/v2/models/fraud/versions/x/ready",
        "/v2/nope",
        "/v2/models/..%2f..%2fetc/ready",
    ],
)
def test_an_unknown_path_model_or_version_is_a_404_of_the_protocol(http, path):
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}
    assert answer.headers["x-request-id"]


def test_an_unknown_model_is_a_404_before_its_body_matters(http):
    assert http.post("/v2/models/nope/infer", content=b"x").json() == {"error": "model 'nope' is not served here."}
    assert http.post("/v2/models/fraud/versions/9/infer", content=b"x").status_code == 404
    problem = http.post("/score/nope", content=b"x")
    assert (problem.status_code, problem.json()["type"]) == (404, "urn:featurestore:problem:unknown-model")
    assert http.get("/nope").json()["type"] == "urn:featurestore:problem:unknown-route"


def test_another_method_is_a_405_that_names_the_right_one(http):
    assert http.get(SCORE).status_code == 405
    assert http.get(INFER).headers["allow"] == "POST"
    assert http.delete("/v2/models/fraud").status_code == 405


@pytest.mark.parametrize("path", ["/v2", "/openapi.json", "/nope"])
def test_every_answer_carries_an_id(http, path):
    assert http.get(path, headers={"x-request-id": "trace.7_a"}).headers["x-request-id"] == "trace.7_a"
    made_up = http.get(path, headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert len(made_up) == 16
    assert made_up != http.get(path).headers["x-request-id"]


# --- The store and bugs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "kind"), [(UNAVAILABLE, "store-unavailable"), (TIMEOUT, "store-timeout")])
def test_a_store_that_is_away_is_a_503_and_not_ready_until_it_is_back(http, reader, error, kind):
    reader.down = error
    answer = raw(http, SCORE, GOOD)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["type"] == f"urn:featurestore:problem:{kind}"
    protocol = http.post(INFER, json=infer_body())
    assert protocol.status_code == 503
    assert protocol.json().keys() == {"error"}
    for text in (answer.text, protocol.text):
        assert "secret-host" not in text
        assert "10.0.0.7" not in text
    assert (http.get("/v2/health/ready").status_code, http.get("/v2/health/live").status_code) == (503, 200)
    assert http.get("/v2/models/fraud/ready").json() == {"name": "fraud", "ready": False}
    reader.down = None
    assert http.get("/v2/health/ready").status_code == 200
    assert raw(http, SCORE, GOOD).status_code == 200


def test_another_definition_in_the_store_is_a_503_and_not_ready(http, reader):
    reader.fingerprint = "newer"
    assert raw(http, SCORE, GOOD).json()["type"] == "urn:featurestore:problem:not-ready"
    assert http.get("/v2/health/ready").status_code == 503
    assert reader.batches == []


def test_a_lookup_before_what_is_folded_is_the_callers_mistake(http):
    assert raw(http, SCORE, GOOD.replace(b"c1", b"past")).json()["type"] == "urn:featurestore:problem:past-lookup"


def test_a_bug_is_a_500_without_its_insides(http, caplog):
    answer = raw(http, SCORE, GOOD.replace(b"c1", b"bug"))
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "ZeroDivisionError" not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert raw(http, SCORE, GOOD).status_code == 200


# --- Concurrency ------------------------------------------------------------------------------------------------------


def test_concurrent_callers_share_batches_and_each_gets_its_own_rows(http, base_url, reader):
    def call(index):
        cards = [f"k{index}", f"k{(index * 7) % 64}"]
        amounts = [index / 32, -index / 32]
        with httpx.Client(base_url=base_url, trust_env=False, timeout=10) as client:
            for _ in range(8):
                answer = client.post(INFER, json=infer_body(cards, amounts, id=str(index))).json()
                assert answer["id"] == str(index)
                expected = [expected_score(a, reader.values[c]) for a, c in zip(amounts, cards, strict=True)]
                assert answer["outputs"][0]["data"] == pytest.approx(expected, rel=1e-6)
        return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(call, range(32)))
    assert sum(rows for _, rows in reader.batches) == 32 * 8 * 2
    assert len(reader.batches) < 32 * 8  # some shared a batch
    assert len(reader.threads) == 1


def test_metrics_count_routes_codes_and_statuses_without_keys(http, app):
    raw(http, SCORE, GOOD)
    raw(http, SCORE, b"{")
    http.get("/v2/health/ready")
    assert http.get("/metrics").status_code == 404  # it is on a listener of its own
    text = app.metrics.render().decode()
    assert "c1" not in text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    prefix = "featurestore_scorer"
    assert found[f"{prefix}_requests_total", "200", "score"] >= 1
    assert found[f"{prefix}_requests_total", "400", "score"] >= 1
    assert found[f"{prefix}_feature_values_total", "fraud", "present"] >= 2
    assert found[f"{prefix}_model_info", "2", FINGERPRINT, "fraud", "fraud_v1"] == 1
    for name in (
        "request_seconds",
        "lookup_seconds",
        "decode_seconds",
        "model_seconds",
        "batch_rows",
        "freshness_seconds",
    ):
        assert any(key[0] == f"{prefix}_{name}_count" and value >= 1 for key, value in found.items()), name
    assert found[(f"{prefix}_ready",)] == 1
