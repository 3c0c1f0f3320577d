from __future__ import annotations

import threading
from collections import Counter

import httpx
import numpy as np
import pytest

from featurestore.errors import ConfigError, ModelError
from featurestore.scoring.folder import write_aliases
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.log_queue import records_of
from featurestore.scoring.manifest import load_model, save_model
from featurestore.scoring.routing import Challenge, RoutedScorer, ShadowRunner, place_of
from featurestore.scoring.service import build_app
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import AS_OF, FIELDS, MemoryReader, infer_body, onnx_bytes

VALUES = {f"k{i}": [float(i), i, 1.0] for i in range(2000)}
CHAMPION, CHALLENGER = (0.001, 0.0, 0.0), (0.0, 0.001, 0.001)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_model(root, "fraud", onnx_bytes(weights=CHAMPION), **FIELDS)
    # The same things in another order: what is fetched once has to be put together for each.
    other = FIELDS | {"inputs": tuple(reversed(FIELDS["inputs"]))}
    save_model(root, "fraud", onnx_bytes(weights=CHALLENGER), **other)
    write_aliases(root, "fraud", {"champion": 1, "challenger": 2})
    return root


def requests(count: int = 2000) -> list[ScoreRequest]:
    return [ScoreRequest({"card_id": f"k{i}"}, {"amount": float(i % 7)}) for i in range(count)]


def routed(models, text: str, reader=None, **options) -> RoutedScorer:
    champion, challenger = load_model(models, "fraud", 1), load_model(models, "fraud", 2)
    reader = reader or MemoryReader(VALUES)
    return RoutedScorer(champion, reader, challenger=challenger, challenge=Challenge.parse(text), **options)


def alone(models, version: int, rows) -> list[float]:
    scorer = RoutedScorer(load_model(models, "fraud", version), MemoryReader(VALUES))
    return [one.score for one in scorer.score(rows)]


# Canary -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_places_are_spread_evenly_so_a_share_is_that_share(share):
    places = np.array([place_of({"card_id": f"card-{i}"}, "fraud") for i in range(20_000)])
    sigma = (share * (1 - share) / len(places)) ** 0.5
    assert abs((places < share).mean() - share) < 5 * sigma
    counts = np.histogram(places, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom, 0.1 %


def test_a_place_belongs_to_the_key_and_the_model_and_to_nothing_else():
    keys = {"card_id": "c1", "shop": 7}
    assert place_of(keys, "fraud") == place_of({"shop": 7, "card_id": "c1"}, "fraud") == 0.738824428138719
    assert place_of(keys, "fraud") != place_of(keys, "churn")
    distinct = [keys, {"card_id": "c1", "shop": "7"}, {"card_id": "c17", "shop": None}, {"card_id": None, "shop": 7}]
    assert len({place_of(each, "fraud") for each in distinct}) == 4


def test_a_canary_answers_for_its_share_of_the_keys_and_always_for_the_same(models):
    rows = requests()
    found = {text: routed(models, text).score(rows) for text in ("5%", "20%", "100%")}
    taken = {text: {i for i, one in enumerate(each) if one.version == 2} for text, each in found.items()}
    assert 60 < len(taken["5%"]) < 140
    assert (
        taken["5%"] < taken["20%"] < taken["100%"] == set(range(2000))
    )  # a larger share keeps the keys of a smaller one
    again = routed(models, "5%")
    for row in (*list(taken["5%"])[:5], *list(taken["20%"] - taken["5%"])[:5]):  # whoever else is in the batch
        assert (again.score([rows[row]])[0].version == 2) == (row in taken["5%"])
    champion, challenger = alone(models, 1, rows), alone(models, 2, rows)
    for index, one in enumerate(found["20%"]):
        assert one.score == (challenger if index in taken["20%"] else champion)[index]


def test_nothing_is_looked_up_twice(models):
    reader = MemoryReader(VALUES)
    scorer = routed(models, "50%", reader)
    scorer.score(requests(100))
    assert len(reader.batches) == 1


def test_a_canary_that_fails_costs_nobody_an_answer(models, monkeypatch):
    failed = []
    scorer = routed(models, "50%", failed=failed.append)

    def fail(_matrix):
        raise ModelError("out of order.")

    monkeypatch.setattr(scorer.challenger.model, "predict", fail)
    found = scorer.score(requests(100))
    assert {one.version for one in found} == {1}
    assert [one.score for one in found] == alone(models, 1, requests(100))
    assert failed == ["fraud:2"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"service_fingerprint": "0" * 16}, "has service_fingerprint"),
        (
            {"request_inputs": [], "feature_inputs": ["card_spend.spend_1h", "card_spend.mean_1h", "amount"]},
            "request_inputs",
        ),
        ({"keys": {"card_id": "int64"}}, "has keys"),
    ],
)
def test_a_challenger_that_takes_something_else_is_not_used(models, tmp_path, changes, words):
    save_model(tmp_path, "fraud", onnx_bytes(), **FIELDS | changes)
    with pytest.raises(ModelError, match=words):
        RoutedScorer(
            load_model(models, "fraud", 1),
            MemoryReader(VALUES),
            challenger=load_model(tmp_path, "fraud", 1),
            challenge=Challenge(0.5),
        )


@pytest.mark.parametrize("text", ["", "5", "0%", "101%", "-1%", "on", "5 %"])
def test_what_a_challenger_does_is_said_in_three_ways(text):
    with pytest.raises(ConfigError, match=r'write "off", "shadow", or a share'):
        Challenge.parse(text)


# Shadow -----------------------------------------------------------------------------------------------------------------


def shadowed(models, runner, reader=None) -> RoutedScorer:
    def watch(batch):
        runner.watch(scorer.shadow, batch)

    scorer = routed(models, "shadow", reader, watchers=[watch])
    return scorer


def test_a_shadow_scores_the_values_that_were_fetched_though_the_store_has_moved_on(models):
    reader, batches = MemoryReader(dict(VALUES)), []
    runner = ShadowRunner([batches.append])
    rows = requests(50)
    answers = shadowed(models, runner, reader).score(rows)
    reader.values.clear()
    runner.close()
    assert {one.version for one in answers} == {1}
    (batch,) = batches
    records = records_of(batch)
    assert [one.score for one in records] == alone(models, 2, rows)
    assert {(one.version, one.role) for one in records} == {(2, "shadow")}
    assert [one.prediction_id for one in records] == [one.prediction_id for one in answers]
    first = records[3]
    assert (first.keys, first.request) == ({"card_id": "k3"}, {"amount": 3.0})
    assert {name: one.value for name, one in first.features.items()} == {
        "card_spend.spend_1h": 3.0,
        "card_spend.mean_1h": 1.0,
    }
    assert {one.as_of for one in first.features.values()} == {AS_OF}
    assert len(reader.batches) == 1
    assert runner.counts == Counter(scored=50)


def test_a_shadow_that_hangs_or_fails_holds_up_no_answer_and_is_counted(models, monkeypatch):
    runner = ShadowRunner(max_batches=2)
    scorer = shadowed(models, runner)
    predict, entered, go_on = scorer.challenger.model.predict, threading.Event(), threading.Event()

    def hang(matrix):
        entered.set()
        assert go_on.wait(20)
        return predict(matrix)

    monkeypatch.setattr(scorer.challenger.model, "predict", hang)
    scorer.score(requests(10))
    assert entered.wait(20)  # the shadow is in its first batch
    for _ in range(5):
        assert len(scorer.score(requests(10))) == 10
    assert runner.counts == Counter(dropped=30)  # two wait, three were dropped
    go_on.set()
    runner.close()
    assert runner.counts == Counter(dropped=30, scored=30)

    def fail(_matrix):
        raise ModelError("out of order.")

    runner = ShadowRunner()
    scorer = shadowed(models, runner)
    monkeypatch.setattr(scorer.challenger.model, "predict", fail)
    assert len(scorer.score(requests(10))) == 10
    runner.close()
    assert runner.counts == Counter(failed=10)


# Over HTTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("challenger", "versions"), [("off", {1}), ("shadow", {1}), ("50%", {1, 2})])
def test_the_service_lets_the_challenger_in_as_it_is_told(models, challenger, versions):
    app = build_app(models, lambda: MemoryReader(VALUES), follow_s=0.02, challenger=challenger)
    body = {"keys": [{"card_id": f"k{i}"} for i in range(40)], "request": [{"amount": 1}] * 40}
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        while challenger != "off" and 'outcome="swapped"} 1.0' not in app.metrics.render().decode():
            http.get("/v2/health/live")
        answer = http.post("/score/fraud", json=body).json()
        assert {one["version"] for one in answer["predictions"]} == versions
        card = next(f"k{i}" for i in range(100) if place_of({"card_id": f"k{i}"}, "fraud") < 0.5)
        wanted = 2 if challenger == "50%" else 1
        one = http.post("/score/fraud", json={"keys": {"card_id": card}, "request": {"amount": 1}}).json()
        assert one["version"] == wanted
        infer = http.post("/v2/models/fraud/infer", json=infer_body((card,))).json()
        assert infer["model_version"] == infer["parameters"]["model_version"] == str(wanted)
    outcome = 'challenger_rows_total{outcome="scored"} 42.0'
    assert (outcome in app.metrics.render().decode()) == (challenger == "shadow")
