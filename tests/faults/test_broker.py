"""The broker fails, under a real-time consumer, micro-batches and a reader: away and back, its leader gone, its topic made anew or longer."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import redis
from kafka.admin import KafkaAdminClient

from featurestore.errors import OffsetsGoneError
from featurestore.events.broker import OffsetReader, ensure_topics, producer, topic_ids
from featurestore.jobs.intake import CLIENTS
from featurestore.jobs.topics import TopicWatch
from tests.faults.consuming import Consuming
from tests.faults.feeding import Feed, Watcher, wrong_values
from tests.faults.guards import assert_whole
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    collect_forgotten_sockets,
    ends_of,
    entering,
    produce_events,
    reached,
    simple_events,
    to_bytes,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 20


_forgotten = pytest.fixture(autouse=True)(collect_forgotten_sockets)


@contextlib.contextmanager
def admin_of(broker):
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        yield admin
    finally:
        admin.close()


def wrong_without_fences(shop, url, broker, events):
    """Return what is wrong once the fences are gone and a consumer begins again: the negative control."""
    with redis.Redis.from_url(url) as raw:
        raw.delete(*raw.scan_iter(f"fs:{{{shop.name}.*}}:fence"), f"fs:{{{shop.name}}}:progress:payments")
    with Consuming(shop, url, broker, group="-again") as job:
        job.wait("everything again", lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    return wrong_values(shop, url, events)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_broker_that_is_killed_and_comes_back_loses_and_doubles_nothing(kafka_server, online_url, client):
    shop, broker = Shop(f"broker_back_{client[0]}"), kafka_server.bootstrap_servers
    events = simple_events(600, keys=KEYS)
    ensure_topics({"bootstrap.servers": broker}, {shop.source.topic: 2})
    produce_events(broker, shop.source.topic, events[:300])
    with Watcher(shop, online_url, events) as watcher, Consuming(shop, online_url, broker, client=client) as job:
        job.wait("the first half", lambda: reached(applied_offsets(online_url, shop.name), ends_of(events[:300])))
        before = kafka_server.pid
        kafka_server.kill()
        assert kafka_server.pid is None
        reads = watcher.reads
        wait_for("reads without a broker", lambda: watcher.reads > reads + 1)
        wait_for("a word", lambda: "no broker answers for group" in (job.consumer.error or ""), 30.0)
        kafka_server.start()
        assert kafka_server.pid != before
        produce_events(broker, shop.source.topic, events[300:])
        job.wait("the rest", lambda: reached(applied_offsets(online_url, shop.name), ends_of(events)))
        job.wait("no word more", lambda: job.consumer.error is None)
        watcher.assert_steady(events)
    assert wrong_values(shop, online_url, events) == []
    # A member that the broker missed begins at what was committed: what comes again is counted, and fenced.
    assert job.consumer.counts["consumed"] in {len(events), len(events) * 3 // 2}
    assert job.consumer.counts["applied"] == sum(entering(view, events) for view in shop.views)
    assert len(wrong_without_fences(shop, online_url, broker, events)) >= KEYS, "the test finds nothing"


@pytest.mark.thorough
def test_micro_batches_wait_for_a_broker_that_comes_back_and_count_every_record_once(
    spark, kafka_server, online_url, tmp_path
):
    shop, broker = Shop("broker_batches"), kafka_server.bootstrap_servers
    store = shop.open(tmp_path, broker, online_url)
    feed = Feed(broker, shop, keys=KEYS)
    feed.send(300)
    job = InProcess(spark, store, shop, tmp_path / "job")
    try:
        with Watcher(shop, online_url, simple_events(1_000, keys=KEYS)) as watcher:
            assert_whole(job, store, shop, feed.events, feed.junk)
            before, idle = kafka_server.pid, job.status().queries["hot"]["at"]
            kafka_server.kill()
            assert kafka_server.pid is None
            reads = watcher.reads
            wait_for("reads without a broker", lambda: watcher.reads > reads + 1, job=job)
            kafka_server.start()
            assert kafka_server.pid != before
            feed.send(300)
            assert_whole(job, store, shop, feed.events, feed.junk)
            assert job.status().totals["fenced"] == 0
            assert job.status().queries["hot"]["at"] > idle
            watcher.assert_steady(feed.events)
    finally:
        job.stop()
    assert len(wrong_without_fences(shop, online_url, broker, feed.events)) >= KEYS, "the test finds nothing"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_topic_that_was_made_anew_ends_the_job(kafka_server, online_url, monkeypatch, client):
    shop, broker = Shop(f"anew_{client[0]}"), kafka_server.bootstrap_servers
    topic, events = shop.source.topic, simple_events(100, keys=KEYS)
    ensure_topics({"bootstrap.servers": broker}, {topic: 2})
    produce_events(broker, topic, events)
    with Consuming(shop, online_url, broker, client=client) as job:
        job.wait("all", lambda: reached(applied_offsets(online_url, shop.name), {0: 50, 1: 50}))
        with admin_of(broker) as admin:
            admin.delete_topics([topic])
            wait_for("the topic's end", lambda: topic not in admin.list_topics())
        ensure_topics({"bootstrap.servers": broker}, {topic: 2})
        produce_events(broker, topic, simple_events(20, keys=KEYS))
        with pytest.raises(OffsetsGoneError, match="was made anew"):
            job.wait("the end", lambda: False)

    # Negative control: a consumer that goes on all the same has its new events dropped by the fences of the old ones.
    monkeypatch.setattr("featurestore.jobs.realtime.losses", lambda *_: [])
    with Consuming(shop, online_url, broker, group="-again", client=client) as job:
        job.wait("the new events", lambda: job.consumer.counts["consumed"] == 20)
    assert job.consumer.counts["applied"] == 0 < job.consumer.counts["fenced"]
    assert wrong_values(shop, online_url, events) == [], "nothing of the new topic counts"


def test_a_topic_made_anew_that_has_grown_past_the_old_offsets_is_told_by_its_id(
    kafka_server, online_url, tmp_path, monkeypatch
):
    shop, broker = Shop("regrown"), kafka_server.bootstrap_servers
    settings, topic = {"bootstrap.servers": broker}, shop.source.topic
    project = shop.open(tmp_path, broker, online_url)
    events = simple_events(100, keys=KEYS)
    produce_events(broker, topic, events)
    no_spark = SimpleNamespace(newSession=lambda: None)  # real-time consumers alone need none
    job = InProcess(no_spark, project, shop, tmp_path / "job", freshness="realtime", queries=("hot",))
    wait_for("all", lambda: reached(applied_offsets(online_url, shop.name), ends_of(events)), job=job)
    assert job.stop().state == "stopped"

    (before,) = topic_ids(settings, [topic]).values()
    ended = threading.Event()
    watch = TopicWatch(settings, {topic: before}, ended, every_s=0.1)
    watch.start()
    watch.check()
    with admin_of(broker) as admin:
        admin.delete_topics([topic])
        wait_for("the topic's end", lambda: topic not in admin.list_topics())
    ensure_topics(settings, {topic: 2})
    new = simple_events(300, keys=KEYS, begin=1_000)
    new = [replace(event, offset=event.offset - 500) for event in new]
    produce_events(broker, topic, new)
    try:
        wait_for("the word", lambda: not watch.is_alive(), 30.0)  # a running job learns it
        with pytest.raises(OffsetsGoneError, match=f"topic {topic} was made anew: its id is .*offsets of {before}"):
            watch.check()
    finally:
        ended.set()
    job = InProcess(no_spark, project, shop, tmp_path / "job", freshness="realtime", queries=("hot",))
    assert job.wait_end() == 1
    assert f"topic {topic} was made anew" in job.status().error
    assert "empty the online store" in job.status().error
    assert applied_offsets(online_url, shop.name) == ends_of(events)

    # Negative control: offsets alone do not tell, and the first events of the new topic are in no value.
    monkeypatch.setattr("featurestore.jobs.resume.refuse_other_topics", lambda *_: None)
    job = InProcess(no_spark, project, shop, tmp_path / "job", freshness="realtime", queries=("hot",))
    wait_for("the rest", lambda: reached(applied_offsets(online_url, shop.name), ends_of(new)), job=job)
    assert job.stop().state == "stopped"
    assert wrong_values(shop, online_url, [*events, *new])
    missed = [event for event in new if event.offset < 50]
    assert wrong_values(shop, online_url, [*events, *(event for event in new if event not in missed)]) == []


@pytest.mark.parametrize("client", CLIENTS)
def test_added_partitions_are_found_and_aborted_transactions_are_not_applied(kafka_server, online_url, client):
    shop, broker = Shop(f"added_{client[0]}"), kafka_server.bootstrap_servers
    topic = shop.source.topic
    ensure_topics({"bootstrap.servers": broker}, {topic: 1})
    events = simple_events(60, keys=5, partitions=1)
    # The second takes over by name what the first had: it has to see by itself that partitions are added.
    with Consuming(shop, online_url, broker, instance="one", client=client) as job:
        job.wait("its part", lambda: job.consumer._consumer.has_joined)
    with Consuming(shop, online_url, broker, instance="one", client=client) as job:
        sender = producer({"bootstrap.servers": broker}, transactional_id=shop.name)
        with contextlib.closing(sender):
            sender.init_transactions()
            for rows, end in ((events[:20], "commit"), (events[20:40], "abort"), (events[40:], "commit")):
                sender.begin_transaction()
                for event in rows:
                    sender.send(topic, value=to_bytes(event), partition=0, timestamp_ms=event.arrival // 1_000)
                sender.flush()
                getattr(sender, f"{end}_transaction")()
        kept = [*events[:20], *events[40:]]
        # The topic's end is behind the mark of the last transaction, which nobody applies.
        reader = OffsetReader({"bootstrap.servers": broker}, [topic])
        end = reader.end_offsets()[topic][0]
        reader.close()
        assert end == len(events) + 3
        job.wait("the end", lambda: job.consumer.reached.get(topic, {}).get(0) == end)
        assert applied_offsets(online_url, shop.name) == {0: end - 1}
        assert job.consumer.counts["consumed"] == len(kept)
        assert wrong_values(shop, online_url, kept) == []
        assert len(wrong_values(shop, online_url, events)) >= 5, "the aborted ones would be missed"

        with admin_of(broker) as admin:
            admin.create_partitions({topic: 2})
        more = [event for event in simple_events(20, keys=5, begin=100) if event.partition == 1]
        more = [type(event)(event.row, event.event_time, event.arrival, 1, place) for place, event in enumerate(more)]
        wait_for("the new partition", lambda: _has_partition(broker, topic, 1))
        produce_events(broker, topic, more)
        job.wait("the new partition's", lambda: applied_offsets(online_url, shop.name).get(1) == len(more))
        assert wrong_values(shop, online_url, [*kept, *more]) == []


def _has_partition(broker, topic, partition):
    reader = OffsetReader({"bootstrap.servers": broker}, [topic])
    try:
        return partition in reader.end_offsets()[topic]
    finally:
        reader.close()
