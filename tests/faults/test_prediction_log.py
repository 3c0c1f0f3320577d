"""The prediction log on a real broker, which is stopped in between: nothing that was scored is unaccounted for."""

from __future__ import annotations

import os
import signal
from collections import Counter

from kafka import KafkaConsumer, TopicPartition

from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.log_queue import KafkaSink, PredictionLog
from featurestore.scoring.manifest import load_model, save_model
from featurestore.scoring.prediction_log import from_json, value_text
from featurestore.scoring.routing import RoutedScorer
from tests.frozen import freeze
from tests.streaming.support import wait_for
from tests.unit.scoring.support import FIELDS, MemoryReader, onnx_bytes

VALUES = {f"k{i}": [float(i), i, 1.0] for i in range(50)}


def read(settings, topic):
    """Return every record of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings["bootstrap.servers"], auto_offset_reset="earliest", enable_auto_commit=False
    )
    places = [TopicPartition(topic, each) for each in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(places)
    ends, found = consumer.end_offsets(places), []
    while any(consumer.position(each) < ends[each] for each in places):
        found += [one for each in consumer.poll(timeout_ms=1000).values() for one in each]
    consumer.close()
    return found


def test_what_a_broker_acknowledged_is_logged_and_the_rest_is_counted(kafka_server, tmp_path):
    settings = {"bootstrap.servers": kafka_server.bootstrap_servers}
    save_model(tmp_path, "fraud", onnx_bytes(), **FIELDS)
    log = PredictionLog(KafkaSink(settings, "predictions", timeout_s=3.0))
    scorer = RoutedScorer(load_model(tmp_path, "fraud"), MemoryReader(VALUES), watchers=[log.watch])
    requests = [ScoreRequest({"card_id": f"k{i}"}, {"amount": i}) for i in range(50)]

    def score() -> list[str]:
        return [one.prediction_id for one in scorer.score(requests)]

    first = [each for _ in range(20) for each in score()]
    wait_for("the first predictions in the log", lambda: log.logged >= 1000)
    freeze(kafka_server.pid)
    try:
        score()
        # the fault has happened: what was sent while the broker stood still is lost, and counted
        wait_for("the loss", lambda: log.dropped)
        assert log.counts == Counter(logged=1000, sink_failed=50)
    finally:
        os.kill(kafka_server.pid, signal.SIGCONT)

    def is_back() -> bool:
        if log.offered == log.logged + log.dropped:
            score()
        return log.logged >= 1050

    wait_for("the log, now that the broker is back", is_back)
    log.close()
    assert log.offered == log.logged + log.dropped

    records = [(one.key, from_json(one.value)) for one in read(settings, "predictions")]
    ids = {record.prediction_id for _, record in records}
    assert ids >= set(first)
    # A broker that stood still may have taken more than it acknowledged in time, and never less.
    assert log.logged <= len(ids) == len(records) <= log.offered
    assert all(key == value_text(record.keys).encode() for key, record in records)
    places = {}
    for one in read(settings, "predictions"):
        places.setdefault(one.key, set()).add(one.partition)
    assert {len(each) for each in places.values()} == {1}  # a key's predictions stay in order
