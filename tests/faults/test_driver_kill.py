"""SIGKILL of the whole driver in the middle of its batches: restarted, every event counts exactly once, here and in Delta."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.feeding import Watcher
from tests.faults.guards import (
    assert_archived,
    assert_whole,
    doubled_without_guard,
    forget_fences,
    forget_last_commit,
    once,
    tile_count,
)
from tests.faults.places import DRIVER_IN_A_BATCH, DRIVER_WITH_BATCHES, driver_killed_at
from tests.faults.proxy import HoldingProxy
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    online_differences,
    places_of,
    produce,
    produce_events,
    reached,
    simple_events,
    wait_applied,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 60
EVENTS = 4_000
OPTIONS = {
    "archive_every": "1 second",
    # Many small writes in one micro-batch, each held up on its way, so that a kill finds some of them done.
    "conf": {"spark.sql.execution.arrow.maxRecordsPerBatch": "25"},
}
HELD_S = 1.0


def test_a_killed_driver_neither_loses_nor_doubles_events(spark, kafka_server, online_server, tmp_path, monkeypatch):
    """At every step of an archive batch, which finds the hot query in the middle of one too."""
    shop = Shop("killed")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    offline, folder = store.settings.offline, store.settings.home / "jobs" / "materialize-shop"
    checkpoints = folder / "checkpoints"
    events, junk = simple_events(EVENTS, keys=KEYS), []
    produce_events(broker, topic, events)

    def killed_at(place, ends):
        """Kill a driver of its own at a place, while it is behind; what is killed after it goes on in the session of the tests."""
        with HoldingProxy(online_server.port, word=b"EVALSHA", seconds=HELD_S) as proxy:
            slow = shop.open(tmp_path, broker, f"redis://127.0.0.1:{proxy.port}")
            driver_killed_at(place, lambda: slow.submit("materialize", service="shop", **OPTIONS), monkeypatch)
            assert proxy.held
        assert not reached(applied_offsets(url, shop.name), ends), "everything was applied before the kill"

    def go_on(**options):
        return InProcess(spark, store, shop, folder, **options)

    job = None
    try:
        with Watcher(shop, url, simple_events(2 * EVENTS, keys=KEYS)) as watcher:
            for place in DRIVER_IN_A_BATCH:
                killed_at(place, ends_of(events))
                assert any(applied_offsets(url, shop.name).values()), "nothing was applied before the kill"
                assert not list((checkpoints / "archive" / "commits").glob("[0-9]*")), "a batch had been finished"
            assert_archived(offline, events)  # all tables have it, and the checkpoint does not know
            job = go_on()
            assert_whole(job, store, shop, events, began=job.began)
            assert job.stop().state == "stopped"

            # Killed as the next batch begins, and then without the hot query's checkpoint: the fences alone have to hold.
            events += simple_events(EVENTS, keys=KEYS, begin=EVENTS)
            produce_events(broker, topic, events[EVENTS:])
            junk += produce(broker, topic, [(partition, b"{", events[-1].arrival) for partition in (0, 1)])
            killed_at(DRIVER_WITH_BATCHES, ends_of(events, junk))
            assert sum(places_of(offline, "events/payments").values()) == EVENTS, "it came further than that"
            shutil.rmtree(checkpoints / "hot")
            job = go_on()
            assert_whole(job, store, shop, events, junk)  # it begins at the first record again
            assert job.status().totals["fenced"] > 0
            assert job.stop().state == "stopped"
            watcher.assert_steady(events)

        # The state a crash between the archive's write and its commit leaves: the batch is run again and changes nothing.
        # At the same time the negative control: without fences and checkpoint the online store doubles every event.
        replayed = forget_last_commit(checkpoints)
        forget_fences(url, shop.name, checkpoints)
        job = go_on()
        wait_applied(url, shop.name, ends_of(events), job)
        wrong = online_differences(store, shop, events)
        assert len(wrong) >= KEYS, "without its guard the test finds nothing"
        assert any("visit.n_lifetime" in each for each in wrong)
        wait_for("the batch that is run again", replayed.exists, job=job)
        assert places_of(offline, "events/payments") == once(events)
        assert tile_count(offline) == len(events)
        assert job.stop().state == "stopped"

        # Without the archive's checkpoint the job refuses; nothing is doubled.
        (checkpoints / "archive").rename(tmp_path / "kept")
        job = go_on(queries=("archive",))
        assert job.wait_end() == 1
        assert "archive is gone" in job.status().error
        assert "Hint: restore the checkpoint" in job.status().error
        assert places_of(offline, "events/payments") == once(events)
        assert not Path(checkpoints, "archive", "offsets").exists()

        # Negative control: where Delta is not told which batch it is, the one that is run again is there twice.
        (tmp_path / "kept").rename(checkpoints / "archive")
        assert doubled_without_guard(spark, store, shop, folder, events, monkeypatch), "the test finds nothing"
    finally:
        if job is not None:
            job.stop()
