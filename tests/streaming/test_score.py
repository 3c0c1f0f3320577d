"""Scoring jobs on real Kafka, Valkey and Spark: no event lost, each prediction once by id, whatever ends or stalls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from functools import partial

import pytest
import redis
from kafka import KafkaConsumer, TopicPartition

from featurestore.errors import JobError, SubmitError, UnknownNameError
from featurestore.events.broker import ensure_topics
from featurestore.jobs.score_log import read_predictions
from featurestore.jobs.score_realtime import ScoreConsumer
from featurestore.jobs.score_spark import start_score
from featurestore.scoring.folder import write_aliases
from featurestore.scoring.kafka_envelope import Envelope, unwrap
from featurestore.scoring.prediction_log import from_json
from featurestore.stack.valkey import OnlineServer
from tests.frozen import freeze
from tests.scored import Scored, assert_right, checkout
from tests.streaming.support import kill_driver, produce, table, wait_for

pytestmark = pytest.mark.jvm

COPY = "1 second"


@contextlib.contextmanager
def submitted(store, **options):
    """A scoring job, stopped at the end."""
    job = store.submit("score", service="fraud", source="checkouts", **options)
    try:
        yield job
    finally:
        job.stop()


class Topic:
    """Reads a topic from its beginning."""

    def __init__(self, broker, topic):
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker, enable_auto_commit=False, auto_offset_reset="earliest", group_id=None
        )
        self._topic = topic
        self.records = []

    def read(self):
        """Return all records so far."""
        if not self._consumer.assignment():
            found = self._consumer.partitions_for_topic(self._topic)
            if not found:
                return self.records
            self._consumer.assign([TopicPartition(self._topic, partition) for partition in sorted(found)])
        for new in self._consumer.poll(timeout_ms=100).values():
            self.records += new
        return self.records

    def predictions(self):
        """Return all predictions so far."""
        return [from_json(unwrap(record.value, record.headers)) for record in self.read()]

    def close(self):
        self._consumer.close()


@pytest.fixture
def reading(kafka_server):
    with contextlib.ExitStack() as stack:
        yield lambda topic: stack.enter_context(contextlib.closing(Topic(kafka_server.bootstrap_servers, topic)))


def send(broker, scored, count, begin=0, bad=()):
    """Send checkouts of the cards c0 to c9 and of strangers; return where they landed, and where bad ones did."""
    rows = [(number % 11 if number % 11 < 10 else None, float(number)) for number in range(begin, begin + count)]
    values = [checkout("stranger" if card is None else f"c{card}", amount) for card, amount in rows]
    values += bad
    records = [(number % 2, value, None) for number, value in enumerate(values)]
    places = _produce(broker, scored.checkouts.topic, records)
    return dict(zip(places, rows, strict=False)), places[count:]


def _produce(broker, topic, records):
    from featurestore.timeline import SystemClock

    now = SystemClock().now()
    return produce(broker, topic, [(partition, value, now) for partition, value, _ in records])


def in_delta(store):
    """Return the predictions in Delta, each once; none while there is no table."""
    return (
        []
        if table(store.settings.offline, "predictions") is None
        else read_predictions(store.settings.offline).to_pylist()
    )


def assert_delta_right(store, sent):
    rows = in_delta(store)
    assert Counter(row["prediction_id"].split("/", 1)[1] for row in rows) == Counter(
        f"{partition}/{offset}" for partition, offset in sent
    )


def test_light_workers_score_all_events_bad_ones_have_coordinates_and_a_stalled_store_is_waited_for(
    kafka_server, tmp_path, reading
):
    scored, broker = Scored("score_light"), kafka_server.bootstrap_servers
    with OnlineServer(tmp_path / "online") as online:
        store = scored.open(tmp_path, broker, online.url)
        bad = [b"{broken", b"", b'{"card_id": 3, "amount": 1, "event_time": "2026-01-01T00:00:00Z"}']
        sent, refused = send(broker, scored, 200, bad=bad)
        topic = reading("predictions_fraud")
        options = {"freshness": "realtime", "archive_every": COPY, "envelope": "cloudevents-binary", "consumers": 2}
        with submitted(store, **options) as job:
            wait_for("predictions", lambda: len(topic.predictions()) >= len(sent), job=job)
            # The store stalls: no prediction, the status says why, and all come when it goes on.
            freeze(online.pid)
            try:
                more, _ = send(broker, scored, 100, begin=200)
                wait_for("the error", lambda: job.status().queries.get("score", {}).get("error"), job=job)
                assert len(topic.predictions()) == len(sent)
            finally:
                os.kill(online.pid, signal.SIGCONT)
            sent |= more
            wait_for("the rest", lambda: len(topic.predictions()) >= len(sent), job=job)
            wait_for("Delta", lambda: len(in_delta(store)) >= len(sent), job=job)
            wait_for("the quarantine", lambda: len(table(store.settings.offline, "score_quarantine")) == 3, job=job)
            status = wait_for(
                "the counts", lambda: (s := job.status()).totals["consumed"] == len(sent) + 3 and s, job=job
            )
        assert_right(topic.predictions(), sent)
        assert_delta_right(store, sent)
        assert status.totals["applied"] == len(sent)
        assert status.totals["quarantined"] == 3
        rows = table(store.settings.offline, "score_quarantine").to_pylist()
        assert {(row["_partition"], row["_offset"]): (row["reason"], row["raw"]) for row in rows} == {
            refused[0]: ("not_json", bad[0]),
            refused[1]: ("empty", bad[1]),
            refused[2]: ("contract", bad[2]),
        }
        assert {record.headers[0] for record in topic.records} == {("ce_specversion", b"1.0")}
        assert job.status().state == "stopped"


def test_a_job_that_starts_at_the_latest_scores_only_what_comes_after_it_and_goes_on_from_there(
    kafka_server, online_url, tmp_path, reading
):
    scored, broker = Scored("score_latest"), kafka_server.bootstrap_servers
    store = scored.open(tmp_path, broker, online_url)
    send(broker, scored, 20)
    topic = reading("latest_out")
    sent = {}
    for begin in (20, 40):  # stopped in between: what came meanwhile is not left out
        if begin == 40:
            sent |= send(broker, scored, 10, begin=40)[0]
        with submitted(store, freshness="realtime", topic="latest_out", starting="latest", model="fraud:1") as job:
            job.wait_until("running")
            sent |= send(broker, scored, 20, begin=begin + 10)[0]
            wait_for("predictions", partial(_has, topic, len(sent)), job=job)
    assert_right(topic.predictions(), sent)


def _has(topic, count):
    return len(topic.predictions()) >= count


def committed(broker, group, topic):
    """Return up to where a group has got to, over all partitions."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False)
    with contextlib.closing(consumer):
        return sum(consumer.committed(TopicPartition(topic, partition)) or 0 for partition in (0, 1))


def test_a_worker_killed_between_sending_and_committing_loses_nothing_and_repeats_only_ids(
    kafka_server, online_url, tmp_path, reading
):
    scored, broker = Scored("score_killed"), kafka_server.bootstrap_servers
    store = scored.open(tmp_path, broker, online_url)
    sent, _ = send(broker, scored, 6_000)
    topic = reading("killed_out")
    with submitted(store, freshness="realtime", archive_every=COPY, topic="killed_out") as job:
        wait_for("the first prediction", topic.read, job=job)
        (victim,) = job.status().queries["score"]["pids"]
        freeze(victim)
        before = len(topic.predictions())
        known = committed(broker, f"featurestore.{scored.name}.score-fraud", scored.checkouts.topic)
        assert known < before < len(sent), "it was not killed between sending and committing"
        os.kill(victim, signal.SIGKILL)
        wait_for("another worker", lambda: job.status().queries["score"]["pids"] != [victim], job=job)
        wait_for("all", lambda: len({one.prediction_id for one in topic.predictions()}) == len(sent), job=job)
        wait_for("Delta", lambda: len(in_delta(store)) == len(sent), job=job)
    copies = {}
    for one in topic.predictions():
        copies.setdefault(one.prediction_id, []).append(one)
    twice = [same for same in copies.values() if len(same) > 1]
    assert len(twice) >= before - known, "nothing was repeated: the test does not see what it is about"
    for same in twice:
        first, second = same
        assert (first.model, first.version, first.keys, first.request) == (
            second.model, second.version, second.keys, second.request,
        )  # fmt: skip
        assert first.at < second.at
        assert first.score == second.score, "the features have not changed in between"
    assert_right([same[0] for same in copies.values()], sent)
    assert_delta_right(store, sent)
    # Without reading by id, the table holds the copies: it is a copy of the topic, record for record.
    assert len(table(store.settings.offline, "predictions")) == len(topic.predictions()) > len(sent)


class Dies(Exception):  # noqa: N818 - what a killed worker does
    pass


class DyingConsumer(ScoreConsumer):
    """Dies with scored events in its hands; commits before it sends, if told so, which is what must not be."""

    commits_first = False

    def _send(self, records, outcome):
        if self.commits_first:
            self._consumer.commit()
        raise Dies


@pytest.mark.parametrize("commits_first", [False, True])
def test_offsets_are_committed_after_the_predictions_or_events_would_be_lost(
    kafka_server, online_url, tmp_path, reading, commits_first
):
    scored, broker = Scored(f"score_order_{int(commits_first)}"), kafka_server.bootstrap_servers
    store = scored.open(tmp_path, broker, online_url)
    sent, _ = send(broker, scored, 400)
    spec, group = scored.spec(store, topic=f"{scored.name}_out"), scored.name
    ensure_topics(spec.kafka, {spec.topic: 2})
    dying = DyingConsumer(spec, group, batch_rows=50)
    dying.commits_first = commits_first
    with pytest.raises(Dies):
        dying.run(threading.Event())
    dying._consumer.close()
    dying._producer.close()
    dying._model.close()
    successor, stop = ScoreConsumer(spec, group), threading.Event()
    thread = threading.Thread(target=successor.run, args=(stop,))
    thread.start()
    try:
        wait_for("the end of the topic", lambda: committed(broker, group, spec.source.topic) >= len(sent))
    finally:
        stop.set()
        thread.join(30)
        successor.close()
    topic = reading(spec.topic)
    wait_for("predictions", partial(_has, topic, successor.counts["applied"]))
    lost = len(sent) - len({one.prediction_id for one in topic.predictions()})
    assert (lost > 0) == commits_first, f"{lost} events lost"


def test_spark_scores_every_batch_once_in_delta_and_sends_again_under_the_same_ids(
    spark, kafka_server, online_url, tmp_path, reading
):
    scored, broker = Scored("score_spark"), kafka_server.bootstrap_servers
    store = scored.open(tmp_path, broker, online_url)
    bad = [b"{broken"]
    sent, refused = send(broker, scored, 300, bad=bad)
    topic = reading("spark_out")
    offline = store.settings.offline
    checkpoint = store.settings.home / "jobs" / "score-fraud" / "checkpoints" / "score"
    with submitted(store, topic="spark_out", envelope="cloudevents-structured") as job:
        job.wait_until("running", 240)
        wait_for("predictions", lambda: len(topic.predictions()) >= len(sent), job=job)
        wait_for("the counts", lambda: job.status().totals["consumed"] == len(sent) + 1, job=job)
        assert job.status().totals["quarantined"] == 1
        kill_driver(job)
    assert_right(topic.predictions(), sent)
    (row,) = table(offline, "score_quarantine").to_pylist()
    assert ((row["_partition"], row["_offset"]), row["raw"]) == (refused[0], bad[0])
    # A crash between the writes and Spark's own commit, whether the kill came before that or not: the last batch is run again.
    last = max(int(file.name) for file in (checkpoint / "offsets").glob("[0-9]*"))
    for name in (f"{last}", f".{last}.crc"):
        (checkpoint / "commits" / name).unlink(missing_ok=True)
    more, _ = send(broker, scored, 50, begin=300)
    spec = scored.spec(store, topic="spark_out", envelope=Envelope.STRUCTURED)
    query, _ = start_score(spark.newSession(), spec, checkpoint=str(checkpoint))
    try:
        wait_for("the rest", lambda: len({one.prediction_id for one in topic.predictions()}) == len(sent | more))
        wait_for("Delta", lambda: len(in_delta(store)) == len(sent | more))
        assert query.exception() is None
    finally:
        query.stop()
    assert len(topic.predictions()) > len(sent | more), "no batch was run again"
    assert len(table(offline, "predictions")) == len(sent | more), "a batch entered Delta twice"
    assert len(table(offline, "score_quarantine")) == 1
    rows = {row["prediction_id"]: row["score"] for row in in_delta(store)}
    assert {one.prediction_id: one.score for one in topic.predictions()} == rows
    assert json.loads(topic.records[0].value)["type"] == "featurestore.prediction.v1"


def test_what_cannot_be_scored_is_said_before_anything_runs(kafka_server, online_url, tmp_path):
    scored = Scored("score_refused")
    store = scored.open(tmp_path, kafka_server.bootstrap_servers, online_url)
    with pytest.raises(SubmitError, match="a score job takes no queries"):
        store.submit("score", service="fraud", queries="hot")
    with pytest.raises(SubmitError, match="a materialize job takes no model"):
        store.submit("materialize", service="fraud", model="fraud")
    with pytest.raises(UnknownNameError):
        store.submit("score", service="frau")
    job = store.submit("score", service="fraud", freshness="realtime", model="fraud:7")
    with pytest.raises(JobError, match="has no version 7"):
        job.wait_until("running")


class Promoting:
    """A project with two versions of a model, the first of them champion, while a job scores events with the champion."""

    def __init__(self, name, broker, url, folder, reading):
        self._scored, self._broker = Scored(name), broker
        self.store = self._scored.open(folder, broker, url)
        self._scored.save(self.store)
        self.promote(1)
        self.spec = self._scored.spec(self.store, topic=f"{name}_out", follow_s=0.1)
        ensure_topics(self.spec.kafka, {self.spec.topic: 2})
        self.topic, self.sent = reading(self.spec.topic), {}

    def promote(self, version):
        write_aliases(self.store.settings.models, "fraud", {"champion": version})

    def scored_more(self, count, failure=lambda: None):
        """Send events; return their predictions' versions once all are there."""
        more, _ = send(self._broker, self._scored, count, begin=len(self.sent))
        self.sent |= more
        wait_for("predictions", lambda: failure() or len(self.topic.predictions()) >= len(self.sent))
        assert failure() is None
        places = {f"{self.spec.source.topic}/{partition}/{offset}" for partition, offset in more}
        return {one.version for one in self.topic.predictions() if one.prediction_id in places}


def test_a_light_worker_scores_with_what_is_promoted_while_it_runs(kafka_server, online_url, tmp_path, reading):
    job = Promoting("score_promoted", kafka_server.bootstrap_servers, online_url, tmp_path, reading)
    consumer, stop = ScoreConsumer(job.spec, "score_promoted"), threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    try:
        assert job.scored_more(20) == {1}
        job.promote(2)
        wait_for("predictions of the new champion", lambda: 2 in job.scored_more(2))
    finally:
        stop.set()
        thread.join(30)
        consumer.close()
    assert_right(job.topic.predictions(), job.sent)


def test_spark_goes_over_to_what_is_promoted_while_it_scores_every_event_once_with_a_client_per_worker(
    spark, kafka_server, online_url, tmp_path, reading
):
    job = Promoting("score_spark_promoted", kafka_server.bootstrap_servers, online_url, tmp_path, reading)
    joined = connections_so_far(online_url)
    query, counts = start_score(spark.newSession(), job.spec, checkpoint=str(tmp_path / "checkpoint"))
    try:
        assert [job.scored_more(10, query.exception) for _ in range(3)] == [{1}] * 3
        job.promote(2)
        # A worker process looks at the first batch that comes later than that after its last look.
        looked = time.monotonic() + job.spec.follow_s
        wait_for("every worker's next look", lambda: job.scored_more(2, query.exception) and time.monotonic() > looked)
        assert job.scored_more(20, query.exception) == {2}
        wait_for("Delta, which comes after the topic", lambda: query.exception() or counts["applied"] >= len(job.sent))
    finally:
        query.stop()
    assert_right(job.topic.predictions(), job.sent)
    assert_delta_right(job.store, job.sent)
    assert counts["applied"] == len(job.sent)
    batches = len(list((tmp_path / "checkpoint" / "offsets").glob("[0-9]*")))
    assert batches >= 5
    # A batch is two tasks, each on one of two worker processes; asking the store for this number takes a connection too.
    assert connections_so_far(online_url) - joined < batches


def connections_so_far(url):
    """Return how many connections the store has taken."""
    with redis.Redis.from_url(url) as client:
        return client.info("stats")["total_connections_received"]
