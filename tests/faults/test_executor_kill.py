"""SIGKILL of an executor in the middle of a batch: Spark runs its tasks again elsewhere, the job goes on, all is there once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyspark
import pytest

from tests.faults.feeding import Feed, Watcher
from tests.faults.guards import assert_whole
from tests.streaming.support import (
    Shop,
    applied_offsets,
    birth,
    ends_of,
    process_tree,
    reached,
    simple_events,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 40
OPTIONS = {
    "master": "local-cluster[2,1,1024]",  # a master, two workers and an executor of one core each, as processes of their own
    "archive_every": "1 second",
    "conf": {
        "spark.executor.memory": "1g",
        "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",  # it lives for a minute
        "spark.sql.execution.arrow.maxRecordsPerBatch": "50",  # many small writes in one micro-batch
    },
}


def executors_of(job):
    """Return (pid, start time) of the executors of a job."""
    found = []
    for pid, born in process_tree(job.record["pid"]):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"CoarseGrainedExecutorBackend" in command:
            found.append((pid, born))
    return found


@pytest.fixture
def spark_home(tmp_path, monkeypatch):
    """A Spark whose workers write below the test's own folder."""
    home = tmp_path / "spark"
    home.mkdir()
    for each in Path(pyspark.__file__).parent.iterdir():
        (home / each.name).symlink_to(each)
    monkeypatch.setenv("SPARK_HOME", str(home))


@pytest.mark.usefixtures("spark_home")
def test_a_killed_executor_neither_loses_nor_doubles_events(kafka_server, online_server, tmp_path):
    shop = Shop("executors")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    feed = Feed(broker, shop, keys=KEYS)
    job = store.submit("materialize", service="shop", **OPTIONS)
    try:
        job.wait_until("running")
        before = wait_for("two executors", lambda: len(found := executors_of(job)) == 2 and found, job=job)
        with Watcher(shop, url, simple_events(4_000, keys=KEYS)) as watcher:
            feed.send(4_000)
            wait_for("the first write", lambda: sum(applied_offsets(url, shop.name).values()) > 0, job=job)
            victim, born = before[0]
            os.kill(victim, signal.SIGKILL)
            assert not reached(applied_offsets(url, shop.name), ends_of(feed.events)), "it was over before the kill"
            wait_for("its end", lambda: birth(victim) != born)
            assert_whole(job, store, shop, feed.events, feed.junk)
            watcher.assert_steady(feed.events)
        after = wait_for("another executor", lambda: len(found := executors_of(job)) == 2 and found, job=job)
        assert set(after) - set(before), "the executor was not replaced"
        assert job.stop().state == "stopped"
    finally:
        job.stop()
