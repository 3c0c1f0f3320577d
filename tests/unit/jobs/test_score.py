"""Scoring the records of a topic, on a real store: every record is a prediction or a refusal, whatever it is."""

from __future__ import annotations

import argparse
import base64
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import redis
from pyspark import cloudpickle

from featurestore.errors import ModelError, OnlineStoreUnavailableError
from featurestore.jobs.score import EventScorer, check_columns
from featurestore.jobs.score_driver import add_arguments, spec_of
from featurestore.jobs.score_log import once
from featurestore.jobs.score_spark import SCHEMA, ScoreRows
from featurestore.jobs.score_worker import FollowedModel, ScoreWorker
from featurestore.scoring.folder import write_aliases
from featurestore.scoring.kafka_envelope import Envelope, unwrap
from featurestore.scoring.manifest import find_model
from featurestore.scoring.prediction_log import PredictionRecord, from_json, to_arrow, to_json
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import SystemClock, format_instant
from tests.scored import Scored, assert_right, checkout


def scorer_of(scored, store, envelope=Envelope.NONE):
    return ScoreWorker(scored.spec(store, envelope=envelope)).scorer


def score(scorer, values, headers=None, first=100):
    offsets = np.arange(first, first + len(values))
    arrival = np.full(len(values), SystemClock().now())
    return scorer.score(1, offsets, arrival, values, headers)


def test_every_record_is_a_prediction_or_a_refusal_with_its_row(online_url, tmp_path):
    scored = Scored("unit_score")
    store = scored.open(tmp_path, "none:1", online_url)
    values = [
        checkout("c3", 1.0), b"{broken", None, checkout("nobody", 2.5), b'{"card_id": "c1"}', checkout("c0", 1e300),
        checkout("c9", 7.0), b"\xff\xfe", checkout("x" * 5_000, 1.0), checkout("c\x00\u00e9", 3.0),
    ]  # fmt: skip
    outcome = score(scorer_of(scored, store), values)
    assert sorted([*outcome.rows, *(one.row for one in outcome.refused)]) == list(range(len(values)))
    assert [(one.row, one.reason) for one in outcome.refused] == [
        (1, "not_json"), (2, "empty"), (4, "contract"), (5, "model_input"), (7, "not_json"), (8, "model_input"),
    ]  # fmt: skip
    assert_right(
        outcome.predictions, {(1, 100): (3, 1.0), (1, 103): (None, 2.5), (1, 106): (9, 7.0), (1, 109): (None, 3.0)}
    )
    assert outcome.predictions[0].prediction_id == f"{scored.checkouts.topic}/1/100"
    assert all(from_json(to_json(record)) == record for record in outcome.predictions)
    # Out of Arrow, as Spark hands them over, the same.
    again = score(scorer_of(scored, store), pa.array(values, pa.binary()))
    assert [one.score for one in again.predictions] == [one.score for one in outcome.predictions]
    assert again.refused == outcome.refused


def test_a_store_that_is_away_is_an_error_and_no_score_of_nulls(tmp_path):
    scored = Scored("unit_away")
    with OnlineServer(tmp_path / "online") as server:
        store = scored.open(tmp_path, "none:1", server.url)
        scorer = scorer_of(scored, store)
        assert len(score(scorer, [checkout("c1", 1.0)]).predictions) == 1
        server.kill()
        with pytest.raises(OnlineStoreUnavailableError):
            score(scorer, [checkout("c1", 1.0)])


def test_a_job_scores_with_the_version_named_or_the_champion_or_the_newest(online_url, tmp_path):
    scored = Scored("unit_version")
    store = scored.open(tmp_path, "none:1", online_url)
    scored.save(store)
    store.settings.to_json(tmp_path / "config.json")
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    def model_of(*more):
        words = ["--config-json", str(tmp_path / "config.json"), "--service", "fraud", "--source", "checkouts", *more]
        return spec_of(parser.parse_args(words)).model

    assert model_of() == "fraud:2"
    write_aliases(store.settings.models, "fraud", {"champion": 1})
    assert (model_of(), model_of("--model", "fraud"), model_of("--model", "fraud:2")) == (
        "fraud:1",
        "fraud:1",
        "fraud:2",
    )


def test_events_that_lack_what_the_model_takes_are_refused_before_the_job_starts(online_url, tmp_path):
    scored = Scored("unit_columns")
    store = scored.open(tmp_path, "none:1", online_url)
    manifest = find_model(store.settings.models, "fraud").manifest
    from dataclasses import replace

    lacking = replace(
        manifest, inputs=(*manifest.inputs, "amunt"), request_inputs=("amount", "amunt")
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"takes 'amunt', which events of source checkouts do not have"):
        check_columns(scored.checkouts, lacking)
    with pytest.raises(ModelError, match=r"takes 'card_id' as int64, events of source checkouts have it as string"):
        check_columns(scored.checkouts, replace(manifest, keys={"card_id": "int64"}))


def test_cloud_events_of_both_modes_and_bare_ones_are_scored_and_false_ones_refused(online_url, tmp_path):
    scored = Scored("unit_envelope")
    store = scored.open(tmp_path, "none:1", online_url)
    kind = [("content-type", b"application/cloudevents+json; charset=UTF-8")]

    def structured(**changes):
        event = {"specversion": "1.0", "id": "1", "source": "/till", "type": "checkout"} | changes
        return json.dumps({name: value for name, value in event.items() if value is not None}).encode()

    data = checkout("c2", 4.0)
    records = [
        (structured(data=json.loads(data)), kind),
        (structured(data_base64=base64.b64encode(data).decode()), kind),
        (data, [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("content-type", b"application/json")]),
        (data, []),
        (structured(data=json.loads(data), specversion="0.3"), kind),
        (structured(data=json.loads(data), id=""), kind),
        (structured(data="x", datacontenttype="text/plain"), kind),
        (structured(data=1, data_base64="eA=="), kind),
        (structured(data_base64="!"), kind),
        (b"nothing", kind),
        (data, [("ce_specversion", b"0.3")]),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")]),
        (structured(), kind),
    ]
    scorer: EventScorer = scorer_of(scored, store, Envelope.STRUCTURED)
    outcome = score(scorer, [value for value, _ in records], [headers for _, headers in records])
    assert_right(outcome.predictions, {(1, 100 + row): (2, 4.0) for row in range(4)})
    assert [(one.row, one.reason) for one in outcome.refused] == [
        *((row, "contract") for row in range(4, 12)), (12, "empty"),
    ]  # fmt: skip


def test_of_copies_of_a_prediction_the_one_scored_first_is_read(online_url, tmp_path):
    scored = Scored("unit_once")
    store = scored.open(tmp_path, "none:1", online_url)
    first = score(scorer_of(scored, store), [checkout("c1", 1.0), checkout("c2", 2.0)]).predictions
    fields = PredictionRecord.__struct_fields__
    later = [
        PredictionRecord(**{**{n: getattr(one, n) for n in fields}, "scored_at": one.scored_at + 5, "score": 0.0})
        for one in first
    ]
    shadow = PredictionRecord(**{**{n: getattr(first[0], n) for n in fields}, "role": "shadow"})
    read = once(to_arrow([*later, *first, shadow])).to_pylist()
    assert len(read) == 3
    assert all(row["score"] != 0.0 for row in read)


@pytest.mark.parametrize("envelope", list(Envelope))
def test_what_spark_is_handed_has_a_row_for_every_record_and_the_schema_it_was_told(online_url, tmp_path, envelope):
    scored = Scored(f"unit_rows_{envelope.name.lower()}")
    store = scored.open(tmp_path, "none:1", online_url)
    values = [checkout("c3", 1.0), b"{broken", None, checkout("nobody", 2.5), b"", checkout("c1", 3.0)]
    columns = {
        "topic": [scored.checkouts.topic] * 6,
        "partition": pa.array([0, 0, 0, 1, 1, 1], pa.int32()),
        "offset": [0, 1, 2, 0, 1, 2],
        "timestamp": pa.array([SystemClock().now()] * 6, pa.timestamp("us", "UTC")),
        "key": pa.array([b"k", None, b"k", None, b"k", b"k"], pa.binary()),
        "value": pa.array(values, pa.binary()),
    }
    if envelope is not Envelope.NONE:
        columns["headers"] = pa.array([None] * 6, pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())])))
    score_rows = cloudpickle.loads(cloudpickle.dumps(ScoreRows(scored.spec(store, envelope=envelope))))
    found = pa.Table.from_batches(score_rows(iter([pa.RecordBatch.from_pydict(columns)])))
    assert found.column_names == [part.strip("` ").split("`")[0].split(" ")[0] for part in _columns(SCHEMA)]
    rows = found.to_pylist()
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    predicted = {row["prediction_id"]: row for row in rows if row["prediction_id"]}
    refused = {(row["_partition"], row["_offset"]): row for row in rows if row["reason"]}
    assert len(predicted) + len(refused) == len(rows) == len(places)
    assert set(predicted) == {f"{scored.checkouts.topic}/{place}" for place in ("0/0", "1/0", "1/2")}
    assert {place: (row["reason"], row["raw"]) for place, row in refused.items()} == {
        (0, 1): ("not_json", b"{broken"), (0, 2): ("empty", None), (1, 1): ("empty", b""),
    }  # fmt: skip
    for place, row in predicted.items():
        headers = [(one["key"], one["value"]) for one in row["_headers"]]
        assert from_json(unwrap(row["_value"], headers)).prediction_id == place
    assert [row["_key"] for row in predicted.values()] == [b"k", None, b"k"]


def _columns(schema):
    """Return the top-level columns of a Spark schema."""
    depth, parts = 0, [""]
    for letter in schema:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def versions(outcome):
    return {one.version for one in outcome.predictions}


def test_a_job_goes_over_to_the_champion_between_two_batches_and_keeps_what_it_has_over_a_refused_one(
    online_url, tmp_path, caplog
):
    scored = Scored("unit_follow")
    store = scored.open(tmp_path, "none:1", online_url)
    scored.save(store)
    scored.save(store, service_fingerprint="0" * 16)
    scored.save(store, service="other")
    models, now = store.settings.models, [100.0]
    followed = FollowedModel(scored.spec(store, follow_s=2.0), clock=lambda: now[0])
    fixed = FollowedModel(scored.spec(store), clock=lambda: now[0])

    def promoted(version, after):
        write_aliases(models, "fraud", {"champion": version})
        now[0] += after
        outcome = score(followed.scorer(), [checkout("c1", 1.0), checkout("c2", 2.0)])
        assert_right(outcome.predictions, {(1, 100): (1, 1.0), (1, 101): (2, 2.0)})
        return versions(outcome)

    assert promoted(1, 2.1) == {1}
    assert promoted(2, 1.9) == {1}  # it is looked at every two seconds
    assert promoted(2, 0.2) == {2}
    for refused, words in ((3, "trained on"), (4, "of service 'other', not of 'fraud'"), (9, "fraud")):
        caplog.clear()
        assert promoted(refused, 2.1) == {2}
        (line,) = caplog.messages
        assert f"model fraud:{refused} is refused, version 2 stays" in line
        assert words in line
        assert promoted(refused, 2.1) == {2}
        assert len(caplog.messages) == 1  # not tried again at once
    for _ in range(5):
        scored.save(store)
    assert promoted(9, 61.0) == {9}  # what was refused may be right a minute later
    assert promoted(1, 2.1) == {1}
    assert versions(score(fixed.scorer(), [checkout("c1", 1.0)])) == {1}


def test_a_process_that_begins_after_its_version_was_deleted_scores_with_the_champion(online_url, tmp_path):
    scored = Scored("unit_deleted")
    store = scored.open(tmp_path, "none:1", online_url)
    scored.save(store)
    scored.save(store, service="other")
    models = store.settings.models
    write_aliases(models, "fraud", {"champion": 2})
    following, fixed = scored.spec(store, follow_s=2.0), scored.spec(store)
    shutil.rmtree(models / "fraud" / "1")
    worker = ScoreWorker(following)
    outcome = score(worker.scorer, [checkout("c1", 1.0), checkout("c2", 2.0)])
    assert_right(outcome.predictions, {(1, 100): (1, 1.0), (1, 101): (2, 2.0)})
    assert versions(outcome) == {2}
    worker.close()
    with pytest.raises(ModelError, match="fraud"):
        _ = ScoreWorker(fixed).scorer
    write_aliases(models, "fraud", {"champion": 3})
    with pytest.raises(ModelError, match="of service 'other', not of 'fraud'"):
        _ = ScoreWorker(following).scorer


def test_what_spark_unpickles_for_every_task_shares_a_model_and_a_client_which_another_run_closes(online_url, tmp_path):
    scored = Scored("unit_follow_spark")
    store = scored.open(tmp_path, "none:1", online_url)
    scored.save(store)
    spec = scored.spec(store, follow_s=1e-9)
    runs = [cloudpickle.dumps(ScoreRows(spec)) for _ in range(2)]
    seen, known = set(), connections(online_url)
    for run, version in ((0, 1), (0, 2), (0, 2), (0, 1), (1, 1), (1, 2)):
        write_aliases(store.settings.models, "fraud", {"champion": version})
        worker = cloudpickle.loads(runs[run]).worker
        assert versions(score(worker.scorer, [checkout("c1", 1.0)])) == {version}
        seen.add(worker)
        assert connections(online_url) == known + 1
    assert len(seen) == 2
    worker.close()
    fixed = ScoreWorker(scored.spec(store)).scorer
    assert versions(score(fixed, [checkout("c1", 1.0)])) == {1}


def connections(url):
    """Return how many clients the store has, this one left out."""
    with redis.Redis.from_url(url) as client:
        return len(client.client_list()) - 1


def test_features_of_the_events_own_time_or_a_refusal(online_url, tmp_path):
    scored = Scored("unit_event_time")
    begin = SystemClock().now() - 60_000_000
    store = scored.open(tmp_path, "none:1", online_url)

    def count(record):
        return record.features["card.count_lifetime"].value

    def event(card, at):
        return json.dumps(json.loads(checkout(card, 1.0)) | {"event_time": format_instant(at)}).encode()

    newest = score(ScoreWorker(scored.spec(store)).scorer, [checkout("c9", 1.0)]).predictions[0]
    assert count(newest) == 10
    last = newest.features["card.count_lifetime"].as_of
    times = [last + 1, last, last - 3, begin + 30_000_000]
    values = [event("c9", at) for at in times] + [event("nobody", last), event("c9", last)]
    outcome = score(ScoreWorker(scored.spec(store, at="event")).scorer, values)
    assert outcome.rows == [0, 3, 4]
    assert [(one.at, count(one)) for one in outcome.predictions] == [
        (last + 1, 10),
        (begin + 30_000_000, 10),
        (last, None),
    ]
    # The store has counted these cards' events at those times already, and cannot take them out again.
    assert [(one.row, one.reason) for one in outcome.refused] == [(1, "features"), (2, "features"), (5, "features")]
    assert all("is not after the newest applied event" in one.detail for one in outcome.refused)
    assert {one.at for one in score(ScoreWorker(scored.spec(store)).scorer, values).predictions}.isdisjoint(times)
