"""The online store loses acknowledged writes, as a failover does, while nobody is there who could remember them."""

from __future__ import annotations

import contextlib

import pytest
import redis

from featurestore.events.broker import OffsetReader, ensure_topics, producer
from featurestore.jobs import resume
from featurestore.jobs.checkpoint import Checkpoint
from featurestore.jobs.intake import CLIENTS
from featurestore.jobs.realtime import RealtimeConsumer
from tests.faults.consuming import Consuming
from tests.faults.feeding import wrong_values
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    collect_forgotten_sockets,
    ends_of,
    produce_events,
    reached,
    simple_events,
    to_bytes,
    wait_applied,
    wait_for,
)

pytestmark = pytest.mark.jvm

_forgotten = pytest.fixture(autouse=True)(collect_forgotten_sockets)


def held(url):
    """Return all that a store holds."""
    with redis.Redis.from_url(url) as client:
        return {key: client.dump(key) for key in client.keys("*")}


def put_back(url, values):
    with redis.Redis.from_url(url) as client:
        client.flushall()
        for key, value in values.items():
            client.restore(key, 0, value)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_consumer_begins_at_what_the_store_waits_for_and_not_where_its_group_was(
    kafka_server, online_url, monkeypatch, client
):
    shop, broker = Shop(f"lost_{client[0]}"), kafka_server.bootstrap_servers
    ensure_topics({"bootstrap.servers": broker}, {shop.source.topic: 2})
    events = simple_events(400, keys=20)

    def consume(begin, end):
        """Send events, and return how many records a consumer took until the store had all."""
        produce_events(broker, shop.source.topic, events[begin:end])
        with Consuming(shop, online_url, broker, client=client) as job:
            job.wait("all", lambda: reached(applied_offsets(online_url, shop.name), ends_of(events[:end])))
        return job.consumer.counts["consumed"]

    assert consume(0, 100) == 100
    older = held(online_url)
    assert consume(100, 200) == 100
    put_back(online_url, older)
    assert len(wrong_values(shop, online_url, events[:200])) >= 20, "nothing was lost"
    assert consume(200, 300) == 200, "what was lost comes once more"
    assert wrong_values(shop, online_url, events[:300]) == []

    # Negative control: one that goes on where its group was leaves out what lies between.
    put_back(online_url, older)
    monkeypatch.setattr(RealtimeConsumer, "_goes_back", lambda *_: False)
    assert consume(300, 400) == 100
    assert len(wrong_values(shop, online_url, events)) >= 20, "the test finds nothing"


class Job:
    """Micro-batches without an archive beside them, that are started again and again."""

    def __init__(self, spark, folder, shop, broker, url):
        self.spark, self.shop, self.url, self.folder = spark, shop, url, folder / "job"
        self.store = shop.open(folder, broker, url)
        self.checkpoints = self.folder / "checkpoints"
        self.aside = self.checkpoints / "hot.ahead"

    def runs(self, applied, committed=None):
        """Run until the store has got to offsets, and the checkpoint to them or others; return how many records it took."""
        job = InProcess(self.spark, self.store, self.shop, self.folder, queries=("hot",))
        try:
            wait_applied(self.url, self.shop.name, applied, job)
            wait_for("the commit", lambda: self.committed() == (committed or applied), job=job)
        finally:
            told = job.stop()
        assert told.state == "stopped", told.error
        return told.totals["consumed"]

    def committed(self):
        found = Checkpoint.read(self.checkpoints / "hot")
        return {} if found is None else found.ends.get(self.shop.source.topic)

    def forgets(self):
        """Let it know nothing of what it has seen of the store, as one that was killed before it wrote that down."""
        (self.checkpoints / "online.json").unlink(missing_ok=True)


def test_micro_batches_begin_at_what_the_store_waits_for_and_not_where_their_checkpoint_is(
    spark, kafka_server, online_url, tmp_path, monkeypatch
):
    shop, broker = Shop("lost_batches"), kafka_server.bootstrap_servers
    job, events = Job(spark, tmp_path, shop, broker, online_url), simple_events(400, keys=20)

    def runs(begin, end):
        produce_events(broker, shop.source.topic, events[begin:end])
        return job.runs(ends_of(events[:end]))

    assert runs(0, 100) == 100
    older = held(online_url)
    assert runs(100, 200) == 100
    put_back(online_url, older)
    job.forgets()
    assert len(wrong_values(shop, online_url, events[:200])) >= 20, "nothing was lost"
    assert not job.aside.exists()
    assert runs(200, 300) == 200, "what was lost comes once more"
    assert wrong_values(shop, online_url, events[:300]) == []
    assert Checkpoint.read(job.aside).ends[shop.source.topic] == ends_of(events[:200])

    # Negative control: one that goes on where its checkpoint is leaves out what lies between.
    put_back(online_url, older)
    job.forgets()
    monkeypatch.setattr(resume.Resume, "step_back", lambda *_: None)
    assert runs(300, 400) == 100
    assert len(wrong_values(shop, online_url, events)) >= 20, "the test finds nothing"


def test_marks_of_transactions_behind_the_last_record_are_not_taken_for_lost_ones(
    spark, kafka_server, online_url, tmp_path, monkeypatch
):
    shop, broker = Shop("marked_batches"), kafka_server.bootstrap_servers
    topic, kafka = shop.source.topic, {"bootstrap.servers": broker}
    job, events = Job(spark, tmp_path, shop, broker, online_url), simple_events(60, keys=5, partitions=1)

    def send(rows, end="commit"):
        sender = producer(kafka, transactional_id=shop.name)
        with contextlib.closing(sender):
            sender.init_transactions()
            sender.begin_transaction()
            for event in rows:
                sender.send(topic, value=to_bytes(event), partition=0, timestamp_ms=event.arrival // 1_000)
            sender.flush()
            getattr(sender, f"{end}_transaction")()

    def end():
        reader = OffsetReader(kafka, [topic])
        with contextlib.closing(reader):
            return reader.end_offsets()[topic]

    send(events[:20])
    send(events[20:40], "abort")
    assert end()[0] == 42
    assert job.runs({0: 20}, end()) == 20
    send(events[40:])
    assert job.runs({0: 62}, end()) == 20
    assert not job.aside.exists()
    assert wrong_values(shop, online_url, [*events[:20], *events[40:]]) == []

    # Negative control: whoever does not look into the topic takes every mark for a loss.
    monkeypatch.setattr(resume, "holds_records", lambda *_: True)
    assert job.runs({0: 62}, end()) == 0
    assert job.aside.exists()
