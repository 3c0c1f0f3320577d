"""Conservation of the prediction log: everything that was scored is logged, or dropped and counted; and nothing waits for it."""

from __future__ import annotations

import threading
from collections import Counter

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.predictions import DeltaSink
from featurestore.scoring.folder import write_aliases
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.log_queue import PredictionLog
from featurestore.scoring.manifest import load_model, save_model
from featurestore.scoring.routing import Challenge, RoutedScorer
from featurestore.scoring.service import build_app
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import AS_OF, COMPLETE_THROUGH, FIELDS, MemoryReader, infer_body, onnx_bytes

VALUES = {f"k{i}": [float(i), i, None if i % 2 else 1.0] for i in range(100)}


class MemorySink:
    """Keeps what it is given; waits while ``gate`` is closed, fails while ``broken`` is set, loses every third of ``lossy``."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.records: list = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.broken: Exception | None = None
        self.lossy = self.closed = False
        if is_open:
            self.gate.set()

    def write(self, records):
        self.entered.set()
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        kept = [one for at, one in enumerate(records) if not (self.lossy and at % 3 == 0)]
        self.records += kept
        return len(kept)

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for weights in ((0.5, -0.25, 0.125), (0.0, 0.1, 0.1)):
        save_model(root, "fraud", onnx_bytes(weights=weights), **FIELDS)
    write_aliases(root, "fraud", {"champion": 1, "challenger": 2})
    return root


def requests(count: int, start: int = 0) -> list[ScoreRequest]:
    return [ScoreRequest({"card_id": f"k{i}"}, {"amount": i / 2}) for i in range(start, start + count)]


def logged_by(models, log, share: float | None = None) -> RoutedScorer:
    return RoutedScorer(
        load_model(models, "fraud", 1),
        MemoryReader(VALUES),
        challenger=load_model(models, "fraud", 2),
        challenge=None if share is None else Challenge(share),
        watchers=[log.watch],
    )


def test_a_record_says_what_was_served_and_by_whom(models):
    sink = MemorySink()
    log = PredictionLog(sink)
    answers = logged_by(models, log, 0.5).score(requests(60))
    log.close()
    assert sink.closed
    records = {one.prediction_id: one for one in sink.records}
    assert len(records) == len(sink.records) == 60
    for index, answer in enumerate(answers):
        record = records[answer.prediction_id]
        assert (record.score, record.version) == (answer.score, answer.version)
        assert record.role == ("canary" if record.version == 2 else "champion")
        assert record.keys == {"card_id": f"k{index}"}
        assert record.request == {"amount": index / 2}
        assert (record.service, record.service_fingerprint) == (FIELDS["service"], FIELDS["service_fingerprint"])
        spend, mean = record.features["card_spend.spend_1h"], record.features["card_spend.mean_1h"]
        assert (spend.value, spend.status, spend.as_of) == (float(index), "present", AS_OF)
        assert (mean.value, mean.status) == ((None, "null") if index % 2 else (1.0, "present"))
        assert (record.at, record.complete_through) == (COMPLETE_THROUGH + 1, COMPLETE_THROUGH)
        assert record.scored_at > COMPLETE_THROUGH
        assert 0 < record.latency_us < 60_000_000
    assert {one.role for one in sink.records} == {"canary", "champion"}


def score_all(models, log, *, rounds: int = 40) -> int:
    scorer, scored = logged_by(models, log), 0
    for _ in range(rounds):
        scored += len(scorer.score(requests(25)))
    return scored


def conserved(log, scored: int) -> bool:
    return log.offered == scored == log.logged + log.dropped


def test_a_sink_that_keeps_up_logs_everything(models):
    sink = MemorySink()
    log = PredictionLog(sink)
    scored = score_all(models, log)
    log.close()
    assert conserved(log, scored)
    assert log.counts == Counter(logged=1000)
    assert len({one.prediction_id for one in sink.records}) == 1000


def test_a_sink_that_hangs_holds_up_no_answer_and_what_does_not_fit_is_counted(models):
    sink = MemorySink(is_open=False)
    counted: Counter[str] = Counter()
    log = PredictionLog(sink, max_rows=300, count=lambda outcome, rows: counted.update({outcome: rows}))
    scored = score_all(models, log, rounds=1)
    assert sink.entered.wait(20)  # the fault has happened: the sink sits in a write
    scored += score_all(models, log)  # and all of it was answered
    assert log.counts == Counter(queue_full=scored - 300)
    assert sink.records == []
    sink.gate.set()
    log.close()
    assert conserved(log, scored)
    assert log.counts == counted == Counter(logged=300, queue_full=scored - 300)
    assert len(sink.records) == 300


def test_without_the_bound_the_same_sink_would_drop_nothing(models):
    """The negative control: it is the bound that drops, and the count that knows."""
    sink = MemorySink(is_open=False)
    log = PredictionLog(sink, max_rows=10**9)
    scored = score_all(models, log)
    assert sink.entered.wait(20)
    assert log.dropped == 0
    sink.gate.set()
    log.close()
    assert conserved(log, scored)
    assert len(sink.records) == scored
    log.counts["logged"] -= 1  # a single record that nobody counts
    assert not conserved(log, scored)


@pytest.mark.parametrize("error", [OfflineStoreUnavailableError("away."), ZeroDivisionError("a bug")])
def test_what_a_broken_sink_loses_is_counted_and_the_log_goes_on(models, error):
    sink = MemorySink()
    sink.broken = error
    log = PredictionLog(sink)
    scored = score_all(models, log, rounds=4)
    while log.dropped < scored:
        assert log.logged == 0
    sink.broken = None
    scored += score_all(models, log, rounds=4)
    log.close()
    assert conserved(log, scored)
    assert log.counts == Counter(sink_failed=100, logged=100)
    assert len(sink.records) == 100


def test_what_a_sink_could_not_keep_is_counted_as_lost(models):
    sink = MemorySink()
    sink.lossy = True
    log = PredictionLog(sink)
    scored = score_all(models, log)
    log.close()
    assert conserved(log, scored)
    assert log.counts["logged"] == len(sink.records)
    assert 300 < log.counts["sink_failed"] < 500


def test_a_sink_that_never_returns_does_not_keep_the_scorer_from_ending(models):
    sink = MemorySink(is_open=False)
    log = PredictionLog(sink)
    scored = score_all(models, log, rounds=3)
    assert sink.entered.wait(20)
    log.close(timeout_s=0.05)
    scored += score_all(models, log, rounds=1)
    assert conserved(log, scored)
    assert log.counts == Counter(closing=100)
    sink.gate.set()
    log._thread.join(20)
    assert log.counts == Counter(closing=100)  # each is counted once, though the sink woke up after all


def test_delta_gets_the_same_records(models, tmp_path):
    log = PredictionLog(DeltaSink(str(tmp_path)))
    scored = score_all(models, log)
    log.close()
    assert log.counts == Counter(logged=scored)
    rows = DeltaTable(str(tmp_path / "predictions")).to_pyarrow_table()
    assert len(rows) == len(set(rows["prediction_id"].to_pylist())) == scored
    (one,) = rows.slice(3, 1).to_pylist(maps_as_pydicts="strict")
    assert one["keys"] == {"card_id": '"k3"'}
    assert one["features"]["card_spend.spend_1h"]["value"] == "3.0"


def test_delta_that_cannot_be_written_is_an_error_of_ours(models, tmp_path):
    (tmp_path / "predictions").write_text("a file")
    log = PredictionLog(DeltaSink(str(tmp_path)))
    scored = score_all(models, log, rounds=2)
    log.close()
    assert log.counts == Counter(sink_failed=scored)


def test_the_service_logs_champion_and_shadow_under_the_ids_that_it_answers(models):
    sink = MemorySink()
    app = build_app(models, lambda: MemoryReader(VALUES), follow_s=0.02, challenger="shadow", sink_factory=lambda: sink)
    answered = []
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        while 'outcome="swapped"} 1.0' not in app.metrics.render().decode():
            http.get("/v2/health/live")
        for _ in range(30):
            body = {"keys": [{"card_id": "k1"}, {"card_id": "k2"}], "request": [{"amount": 1}] * 2}
            answered += [one["prediction_id"] for one in http.post("/score/fraud", json=body).json()["predictions"]]
    found = Counter((one.prediction_id, one.version, one.role) for one in sink.records)
    assert found == Counter(
        {(each, version, role): 1 for each in answered for version, role in ((1, "champion"), (2, "shadow"))}
    )
    assert 'prediction_log_records_total{outcome="logged"} 120.0' in app.metrics.render().decode()


# Ids ----------------------------------------------------------------------------------------------------------------------


def test_a_request_and_its_predictions_are_found_in_the_log_by_their_ids(models):
    sink = MemorySink()
    app = build_app(models, lambda: MemoryReader(VALUES), sink_factory=lambda: sink)
    row = {"keys": {"card_id": "k1"}, "request": {"amount": 1}}
    arrow = {"accept": "application/vnd.apache.arrow.stream"}
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        infer, score = "/v2/models/fraud/infer", "/score/fraud"
        answers = [
            http.post(score, json=row, headers={"x-request-id": "by-header"}),
            http.post(score, json=row),
            http.post(infer, json=infer_body(("k1", "k2"), (1, 2), id="by-id")),
            http.post(infer, json=infer_body(("k1",), id="other"), headers={"x-request-id": "by-header-2"}),
            http.post(infer, json=infer_body(("k1",), id="x" * 65)),
            http.post(infer, json=infer_body(("k1",), id="two words\r\nx: y")),
            http.post(infer, json=infer_body(("k1",))),
        ]
        table = pa.ipc.open_stream(http.post(score, json=row, headers=arrow).content).read_all()
        refused = http.post(infer, json=infer_body(("k1",), id="by-id-2", parameters={"no": 1}))
    assert refused.status_code == 400
    assert refused.headers["x-request-id"] == "by-id-2"
    ids = [one.headers["x-request-id"] for one in answers]
    assert [ids[at] for at in (0, 2, 3)] == ["by-header", "by-id", "by-header-2"]
    assert all(len(ids[at]) == 16 for at in (1, 4, 5, 6))
    assert [one.json().get("id") for one in answers[2:]] == ["by-id", "other", "x" * 65, "two words\r\nx: y", ids[6]]
    by_prediction = {one.prediction_id: one for one in sink.records}
    for answer, request_id in zip(answers, ids, strict=True):
        body = answer.json()
        for each in (body.get("parameters") or body)["prediction_id"].split(","):
            assert by_prediction.pop(each).request_id == request_id
    assert [*by_prediction] == table["prediction_id"].to_pylist()  # and nothing else was logged
