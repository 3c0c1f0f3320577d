"""The online store loses acknowledged writes, as a failover does, while no consumer is there that could remember them."""

from __future__ import annotations

import pytest
import redis

from featurestore.events.broker import ensure_topics
from featurestore.jobs.intake import CLIENTS
from featurestore.jobs.realtime import RealtimeConsumer
from tests.faults.consuming import Consuming
from tests.faults.feeding import wrong_values
from tests.streaming.support import (
    Shop,
    applied_offsets,
    collect_forgotten_sockets,
    ends_of,
    produce_events,
    reached,
    simple_events,
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
