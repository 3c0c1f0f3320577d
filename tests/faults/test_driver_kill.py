"""SIGKILL of the whole driver in the middle of a micro-batch: restarted, every event counts exactly once, here and in Delta."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.feeding import Watcher
from tests.faults.guards import assert_whole, forget_fences, forget_last_commit, once, tile_count
from tests.faults.places import DRIVER_WITH_BATCHES, driver_killed_at
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    kill_driver,
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
    # Many small writes in one micro-batch, so that a kill finds some of them done.
    "conf": {"spark.sql.execution.arrow.maxRecordsPerBatch": "50"},
}


def kill_in_the_middle(job, url, shop, ends):
    """Kill the driver as soon as part of a backlog is applied."""

    wait_for("the first write", lambda: any(applied_offsets(url, shop.name).values()), job=job)
    kill_driver(job)
    assert not reached(applied_offsets(url, shop.name), ends), (
        "everything was applied before the kill: the backlog is too small"
    )
    assert job.status().state == "failed"


def test_a_killed_driver_neither_loses_nor_doubles_events(spark, kafka_server, online_server, tmp_path, monkeypatch):
    shop = Shop("killed")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    offline, folder = store.settings.offline, store.settings.home / "jobs" / "materialize-shop"
    checkpoints = folder / "checkpoints"
    events, junk = simple_events(EVENTS, keys=KEYS), []
    produce_events(broker, topic, events)

    def start():
        return store.submit("materialize", service="shop", **OPTIONS)

    def go_on(**options):
        """The job goes on in the session of the tests: only what is killed needs a driver of its own."""
        return InProcess(spark, store, shop, folder, **options)

    job = start()
    try:
        with Watcher(shop, url, simple_events(2 * EVENTS, keys=KEYS)) as watcher:
            kill_in_the_middle(job, url, shop, ends_of(events))
            job = go_on()
            assert_whole(job, store, shop, events, began=job.began)
            assert job.stop().state == "stopped"

            # Killed as a batch of the archive begins, and then without the hot query's checkpoint: the fences alone have to hold.
            events += simple_events(EVENTS, keys=KEYS, begin=EVENTS)
            produce_events(broker, topic, events[EVENTS:])
            junk += produce(broker, topic, [(partition, b"{", events[-1].arrival) for partition in (0, 1)])
            job = driver_killed_at(DRIVER_WITH_BATCHES, start, monkeypatch)
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
        forget_fences(url, shop.name)
        shutil.rmtree(checkpoints / "hot")
        (checkpoints / "online.json").unlink()  # or the job would refuse the store as an older one
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
    finally:
        job.stop()
