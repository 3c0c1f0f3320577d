"""The online store goes away, and two drivers meet: nothing is lost, nothing doubled, and the status says what happened."""

from __future__ import annotations

import pytest

from featurestore.jobs.lease import Lease
from featurestore.stack.valkey import OnlineServer
from tests.faults.feeding import Watcher
from tests.faults.guards import once
from tests.faults.proxy import HoldingProxy
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    online_differences,
    places_of,
    produce_events,
    reached,
    simple_events,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm


def test_an_outage_of_the_store_ends_the_job_with_its_cause_and_loses_nothing(spark, kafka_server, tmp_path):
    shop = Shop("outage")
    with OnlineServer(tmp_path / "valkey", appendonly=True) as server:
        store = shop.open(tmp_path, kafka_server.bootstrap_servers, server.url)
        events = simple_events(600, keys=20)
        produce_events(kafka_server.bootstrap_servers, shop.source.topic, events[:200])
        folder = tmp_path / "job"

        with Watcher(shop, server.url, events) as watcher:
            job = InProcess(spark, store, shop, folder)
            wait_for("online", lambda: reached(applied_offsets(server.url, shop.name), ends_of(events[:200])))
            wait_archived(store.settings.offline, 200)
            server.stop()
            assert server.pid is None
            produce_events(kafka_server.bootstrap_servers, shop.source.topic, events[200:400])
            assert job.wait_end() == 1
            assert job.status().state == "failed"
            assert "OnlineStoreUnavailableError" in job.status().error
            assert "cannot be reached" in job.status().error

            # Still away: the next run says so before it starts anything.
            produce_events(kafka_server.bootstrap_servers, shop.source.topic, events[400:])
            job = InProcess(spark, store, shop, folder)
            assert job.wait_end() == 1
            assert "cannot be reached" in job.status().error
            assert "is the server running?" in job.status().error

            server.start()
            assert applied_offsets(server.url, shop.name) == ends_of(events[:200])
            job = InProcess(spark, store, shop, folder)
            wait_for("online", lambda: reached(applied_offsets(server.url, shop.name), ends_of(events)))
            wait_archived(store.settings.offline, len(events))
            assert job.stop().state == "stopped"
            assert job.exit_code == 0
            watcher.look()
        assert watcher.refused > 0, "the reader saw no outage"
        assert watcher.back == []
        assert online_differences(store, shop, events) == []
        assert places_of(store.settings.offline, "events/payments") == once(events)


def test_a_second_driver_is_refused_by_name_and_takes_over_only_when_told(spark, kafka_server, online_server, tmp_path):
    shop = Shop("leased")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    events = simple_events(200, keys=20)
    produce_events(broker, topic, events[:100])
    first = InProcess(spark, store, shop, tmp_path / "one", queries=("hot",))
    second = None
    try:
        wait_applied(url, shop.name, ends_of(events[:100]), first)
        second = InProcess(spark, store, shop, tmp_path / "two", queries=("hot",))
        assert second.wait_end() == 1
        assert "view visit: another job writes it, one (pid " in second.status().error
        assert "--take-over" in second.status().error
        assert first.is_alive

        second = InProcess(spark, store, shop, tmp_path / "two", queries=("hot",), take_over=True)
        assert first.wait_end() == 1
        assert "view visit: another job has taken it over, two (pid " in first.status().error
        produce_events(broker, topic, events[100:])
        wait_applied(url, shop.name, ends_of(events), second)
        assert second.stop().state == "stopped"
        assert online_differences(store, shop, events) == []
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
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    events = []
    with HoldingProxy(online_server.port, word=b"EVALSHA", seconds=0.7) as proxy:
        stores = [
            shop.open(tmp_path / "one", broker, url),
            shop.open(tmp_path / "two", broker, f"redis://127.0.0.1:{proxy.port}"),
        ]
        twins = [
            InProcess(spark, stores[0], shop, tmp_path / "heedless", queries=("hot",)),
            stores[1].submit("materialize", service="shop", queries="hot"),
        ]
        try:
            for twin in twins:
                wait_for("a driver", lambda twin=twin: twin.status().state == "running", job=twin)

            def overtaken():
                more = simple_events(100, keys=20, begin=len(events))
                produce_events(broker, topic, more)
                events.extend(more)
                return not twins[1].is_alive

            wait_for("a conflict", overtaken, 90.0, job=twins[0])
            assert proxy.held
        finally:
            states = [twin.stop() for twin in twins]
    assert [state.state for state in states] == ["stopped", "failed"]
    assert "FenceError" in states[1].error
    assert "another writer is active" in states[1].error

    # Alone, it goes on from its own checkpoint and brings everything in, once.
    produce_events(broker, topic, more := simple_events(100, keys=20, begin=len(events)))
    events += more
    store = shop.open(tmp_path / "two", broker, url)
    job = InProcess(spark, store, shop, store.settings.home / "jobs" / "materialize-shop", queries=("hot",))
    wait_applied(url, shop.name, ends_of(events), job)
    assert job.stop().state == "stopped"
    assert online_differences(store, shop, events) == []


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
