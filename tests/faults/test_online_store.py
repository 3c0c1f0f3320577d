"""The online store goes away, and two drivers meet: nothing is lost, nothing doubled, and the status says what happened."""

from __future__ import annotations

import pytest
import redis

from featurestore.jobs.lease import Lease
from featurestore.stack.valkey import OnlineServer
from tests.faults.feeding import Feed, Watcher
from tests.faults.guards import assert_whole, forget_fences
from tests.faults.proxy import HoldingProxy
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    online_differences,
    places_of,
    produce_events,
    simple_events,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 20


def test_a_store_that_fails_ends_the_job_with_its_cause_and_loses_nothing(spark, kafka_server, tmp_path):
    """Micro-batches end, and the next job goes on: the store is away, then out of memory, then read-only."""
    shop, broker = Shop("outage"), kafka_server.bootstrap_servers
    with OnlineServer(tmp_path / "valkey", appendonly=True) as server:
        store = shop.open(tmp_path, broker, server.url)
        feed = Feed(broker, shop, keys=KEYS)

        def started():
            """A job that has everything."""
            job = InProcess(spark, store, shop, tmp_path / "job")
            assert_whole(job, store, shop, feed.events, feed.junk, began=job.began)
            return job

        with Watcher(shop, server.url, simple_events(1_000, keys=KEYS)) as watcher:
            feed.send(200)
            job, before = started(), ends_of(feed.events, feed.junk)
            server.stop()
            assert server.pid is None
            feed.send(200)
            assert job.wait_end() == 1
            assert job.status().state == "failed"
            assert "OnlineStoreUnavailableError" in job.status().error
            assert "cannot be reached" in job.status().error

            # Still away: the next run says so before it starts anything.
            job = InProcess(spark, store, shop, tmp_path / "job")
            assert job.wait_end() == 1
            assert "cannot be reached" in job.status().error
            assert "is the server running?" in job.status().error
            assert watcher.refused > 0, "the reader saw no outage"
            server.start()
            assert applied_offsets(server.url, shop.name) == before

            with redis.Redis.from_url(server.url) as admin:
                for word, begin, end in (
                    ("is out of memory", ("CONFIG SET", "maxmemory", 1), ("CONFIG SET", "maxmemory", 0)),
                    ("is a read-only replica", ("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
                ):
                    job = started()
                    admin.execute_command(*begin)
                    feed.send(100)
                    assert job.wait_end() == 1
                    assert word in job.status().error
                    admin.execute_command(*end)
            assert started().stop().state == "stopped"
            watcher.assert_steady(feed.events)
        forget_fences(server.url, shop.name, tmp_path / "job" / "checkpoints")
        job = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
        wait_applied(server.url, shop.name, ends_of(feed.events), job)
        assert job.stop().state == "stopped"
        assert len(online_differences(store, shop, feed.events)) >= KEYS, "without its guard the test finds nothing"


def test_a_second_driver_is_refused_by_name_and_takes_over_only_when_told(spark, kafka_server, online_server, tmp_path):
    shop = Shop("leased")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    feed = Feed(broker, shop, keys=KEYS)
    feed.send(100)
    first = InProcess(spark, store, shop, tmp_path / "one", queries=("hot",))
    second = None
    try:
        with Watcher(shop, url, simple_events(1_000, keys=KEYS)) as watcher:
            assert_whole(first, store, shop, feed.events, feed.junk, archived=False)
            second = InProcess(spark, store, shop, tmp_path / "two", queries=("hot",))
            assert second.wait_end() == 1
            assert "view visit: another job writes it, one (pid " in second.status().error
            assert "--take-over" in second.status().error
            assert first.is_alive

            second = InProcess(spark, store, shop, tmp_path / "two", queries=("hot",), take_over=True)
            assert first.wait_end() == 1
            assert "view visit: another job has taken it over, two (pid " in first.status().error
            feed.send(100)
            assert_whole(second, store, shop, feed.events, feed.junk, archived=False)
            assert second.stop().state == "stopped"
            watcher.assert_steady(feed.events)
    finally:
        for job in (first, second):
            if job is not None:
                job.stop()


def test_of_two_drivers_without_a_lease_one_is_refused_by_the_fences(
    spark, kafka_server, online_server, tmp_path, monkeypatch
):
    """The one in this process heeds no lease; the appends of the other are held up on their way, so that it is overtaken.

    Both on the two cores of one Spark would wait for each other, and the wrong one might be refused.
    """
    for word in ("take", "renew", "release"):
        monkeypatch.setattr(Lease, word, lambda *_, **__: None)
    shop = Shop("twins")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    with (
        HoldingProxy(online_server.port, word=b"EVALSHA", seconds=0.7) as proxy,
        Watcher(shop, url, simple_events(20_000, keys=KEYS)) as watcher,
    ):
        stores = [
            shop.open(tmp_path / "one", broker, url),
            shop.open(tmp_path / "two", broker, f"redis://127.0.0.1:{proxy.port}"),
        ]
        feed = Feed(broker, shop, keys=KEYS)
        twins = [
            InProcess(spark, stores[0], shop, tmp_path / "heedless", queries=("hot",)),
            stores[1].submit("materialize", service="shop", queries="hot"),
        ]
        try:
            for twin in twins:
                wait_for("a driver", lambda twin=twin: twin.status().state == "running", job=twin)
            wait_for("a conflict", lambda: feed.send(100) and not twins[1].is_alive, 90.0, job=twins[0])
            assert proxy.held
        finally:
            states = [twin.stop() for twin in twins]
        assert [state.state for state in states] == ["stopped", "failed"]
        assert "FenceError" in states[1].error
        assert "another writer is active" in states[1].error

        # Alone, it goes on from its own checkpoint and brings everything in, once.
        feed.send(100)
        store = shop.open(tmp_path / "two", broker, url)
        job = InProcess(spark, store, shop, store.settings.home / "jobs" / "materialize-shop", queries=("hot",))
        assert_whole(job, store, shop, feed.events, feed.junk, began=job.began, archived=False)
        assert job.stop().state == "stopped"
        watcher.assert_steady(feed.events)


def test_a_second_job_on_a_project_does_not_write_the_event_log_again(spark, kafka_server, online_server, tmp_path):
    shop = Shop("second")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    events = simple_events(100, keys=5)
    produce_events(broker, shop.source.topic, events)
    first = InProcess(spark, store, shop, tmp_path / "one", queries=("archive",))
    try:
        wait_archived(store.settings.offline, len(events))
        other = InProcess(spark, store, shop, tmp_path / "two", queries=("archive",))
        assert other.wait_end() == 1
        assert "holds events it has written" in other.status().error
        assert sum(places_of(store.settings.offline, "events/payments").values()) == len(events)
    finally:
        assert first.stop().state == "stopped"
