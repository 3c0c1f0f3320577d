"""Quarantine and breaker on real parts: what is sent again through Kafka, and a job that stops instead of filing a topic away."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from kafka import KafkaConsumer, TopicPartition

from featurestore.definitions.contract import Contract
from featurestore.definitions.service import FeatureService
from featurestore.events.broker import ensure_topics
from featurestore.jobs.quarantine import HEADER, replay_quarantine
from tests.streaming.support import (
    InProcess,
    Shop,
    places_of,
    produce,
    simple_events,
    to_bytes,
    wait_applied,
    wait_archived,
    wait_for,
)
from tests.unit.offline.test_quarantine import definitions, write

pytestmark = pytest.mark.jvm


def records_of(broker, topic):
    """Return (partition, value, headers) of everything in a topic."""
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        places = [TopicPartition(topic, each) for each in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        found = []
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=200).values():
                found += [(one.partition, one.value, dict(one.headers)) for one in batch]
        return found
    finally:
        consumer.close()


def test_a_record_is_sent_again_once_as_it_was_and_says_where_it_came_from(kafka_server, tmp_path):
    broker, root = kafka_server.bootstrap_servers, str(tmp_path)
    kafka = {"bootstrap.servers": broker}
    ensure_topics(kafka, {"pay": 2})
    write(
        tmp_path,
        (1, 7, 100, "contract", b'{"us": 1}'),
        (0, 3, 50, "contract", b'{"us": 2}'),
        (1, 8, 100, "not_json", b"{"),
    )
    wanted = definitions(["us"])
    first = replay_quarantine(root, kafka, wanted, dry_run=False)
    assert (first.sent["payments"], first.refused["payments"]) == (2, 1)
    assert sorted(records_of(broker, "pay")) == [
        (0, b'{"us": 2}', {HEADER: b"pay/0/3"}),
        (1, b'{"us": 1}', {HEADER: b"pay/1/7"}),
    ]
    second = replay_quarantine(root, kafka, wanted, dry_run=False)
    assert (second.sent.total(), second.earlier) == (0, 2)
    assert len(records_of(broker, "pay")) == 2
    assert replay_quarantine(root, kafka, wanted, dry_run=False, again=True, limit=1).sent["payments"] == 1
    assert len(records_of(broker, "pay")) == 3


def loosened():
    """Return the test shop's contract with a card that may be missing: version 2 of what it was."""
    properties = {
        name: {"type": [kind, "null"]}
        for name, kind in {"card_id": "string", "shop": "integer", "online": "boolean", "amount": "number", "points": "integer", "status": "string"}.items()
    }  # fmt: skip
    properties["event_time"] = {"type": "string", "format": "date-time"}
    text = json.dumps({"type": "object", "properties": properties, "required": ["event_time"]})
    return Contract.from_json(text, "payment", version=2)


def test_a_job_stops_before_it_files_a_topic_away_and_goes_on_once_the_contract_is_mended(
    spark, kafka_server, online_server, tmp_path
):
    class Careful(Shop):
        @property
        def source(self):
            return replace(super().source, quarantine_after=1, quarantine_limit=0.5)

    shop = Careful("breaking")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    offline, topic = store.settings.offline, shop.source.topic
    events = simple_events(120, keys=7)
    produce(broker, topic, [(each.partition, to_bytes(each), each.arrival) for each in events])
    job = InProcess(spark, store, shop, tmp_path / "job")
    try:
        wait_applied(url, shop.name, {0: 60, 1: 60}, job)
        wait_archived(offline, 120, job)
        bad = [json.loads(to_bytes(each)) for each in events]
        nameless = [
            json.dumps({name: value for name, value in each.items() if name != "card_id"}).encode() for each in bad
        ]
        produce(
            broker,
            topic,
            [(each.partition, value, each.arrival) for each, value in zip(events, nameless, strict=True)] * 3,
        )
        wait_for("the job's end", lambda: not job.is_alive, 60.0)
        error = job.status().error
        assert "records are no events of contract payment version 1" in error
        assert "allowed are 50%" in error
        assert "card_id" in error
    finally:
        job.stop()
    assert not places_of(offline, "quarantine"), "what trips the breaker is not filed away"
    assert sum(places_of(offline, "events/payments").values()) == 120

    # With the contract mended the same records are read again, and are events now.
    mended = replace(shop.source, schema=loosened())
    views = [replace(view, source=mended) for view in shop.views]
    store.apply(FeatureService("shop", views))
    job = InProcess(spark, store, shop, tmp_path / "job")
    try:
        wait_applied(url, shop.name, {0: 240, 1: 240}, job)
        wait_archived(offline, 480, job)
    finally:
        job.stop()
    assert set(places_of(offline, "events/payments").values()) == {1}
    assert sum(places_of(offline, "events/payments").values()) == 480
