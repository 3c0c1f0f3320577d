"""The archive and the micro-batches under faults: killed at every step, disks full, records gone, workers and checkpoints lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from featurestore.engines.oracle import without_repetitions
from featurestore.jobs.resume import Resume
from featurestore.offline.losses import Losses
from tests.faults.feeding import Feed, ShopWithIds, Watcher, with_ids
from tests.faults.guards import assert_whole, doubled_without_guard, forget_fences, once, tile_count
from tests.frozen import freeze
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    online_differences,
    places_of,
    process_tree,
    produce_events,
    reached,
    simple_events,
    table,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 20


def test_a_killed_python_worker_ends_the_job_and_the_next_goes_on(spark, kafka_server, online_server, tmp_path):
    """That of either query, in its batch: the hot one's waits for a store that hangs, the archive's is at work for long."""
    shop = Shop("worker")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    feed = Feed(broker, shop, keys=KEYS)
    feed.send(1_000)
    with Watcher(shop, url, simple_events(10_000, keys=KEYS)) as watcher:
        job = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
        assert_whole(job, store, shop, feed.events, feed.junk, archived=False)
        freeze(online_server.pid)
        try:
            feed.send(1_000)
            kill_workers_of(job)
        finally:
            os.kill(online_server.pid, signal.SIGCONT)
        assert job.wait_end() == 1
        assert "query hot" in job.status().error
        assert "did not answer" not in job.status().error
        job = InProcess(spark, store, shop, tmp_path / "job", queries=("archive",))
        wait_for("its batch", (job.checkpoints / "archive" / "offsets" / "0").exists, job=job)
        kill_workers_of(job)
        assert job.wait_end() == 1
        assert "query archive" in job.status().error
        assert not (job.checkpoints / "archive" / "commits" / "0").exists(), "the batch was over before the kill"
        feed.send(1_000)
        job = InProcess(spark, store, shop, tmp_path / "job")
        assert_whole(job, store, shop, feed.events, feed.junk, began=job.began)
        assert job.stop().state == "stopped"
        watcher.assert_steady(feed.events)

    # Negative control: without fences, what is run again counts twice.
    forget_fences(url, shop.name, job.checkpoints)
    again = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
    wait_applied(url, shop.name, ends_of(feed.events), again)
    assert again.stop().state == "stopped"
    assert len(online_differences(store, shop, feed.events)) >= KEYS, "without its guard the test finds nothing"


def kill_workers_of(job):
    """Kill the Python workers of this process's Spark, those that take their place too, until the job's query has ended."""

    def has_ended():
        for pid in [pid for pid, _ in process_tree(os.getpid()) if _is_worker(pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not job.session.streams.active

    wait_for("the end of its query", has_ended, 30.0)


def _is_worker(pid):
    """Whether it is a process that Spark's daemon has made, not the daemon: that one waits for those that are killed."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return all(b"pyspark.daemon" in Path(f"/proc/{each}/cmdline").read_bytes() for each in (pid, parent))
    return False


@contextlib.contextmanager
def small_disk(folder, mebibytes):
    """Give a file system of its own that can be full."""
    folder.mkdir(parents=True)
    size = f"size={mebibytes}m"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Fill a file system to its last byte; return the file that does."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(folder).free < 4096
    return filler


def test_a_full_disk_ends_the_job_and_tears_nothing(spark, kafka_server, online_server, tmp_path, monkeypatch):
    """Each has a disk of its own: the checkpoint of either query, and the tables. They are full one after the other."""
    shop = Shop("full")
    broker, url, folder = kafka_server.bootstrap_servers, online_server.url, tmp_path / "job"
    feed = Feed(broker, shop, keys=KEYS)
    with contextlib.ExitStack() as stack:
        disks = {name: stack.enter_context(small_disk(tmp_path / name, 24)) for name in ("hot", "archive", "tables")}
        (folder / "checkpoints").mkdir(parents=True)
        for query in ("hot", "archive"):
            (disks[query] / "checkpoint").mkdir()
            (folder / "checkpoints" / query).symlink_to(disks[query] / "checkpoint")
        store = shop.open(tmp_path, broker, url, offline=str(disks["tables"] / "lake"))
        with Watcher(shop, url, simple_events(1_000, keys=KEYS)) as watcher:
            for name, disk in disks.items():
                job = InProcess(spark, store, shop, folder)
                feed.send(100)
                assert_whole(job, store, shop, feed.events, feed.junk, began=job.began)
                filler = fill(disk)
                feed.send(100)
                assert job.wait_end() == 1
                assert f"query {'hot' if name == 'hot' else 'archive'}" in job.status().error
                filler.unlink()
            job = InProcess(spark, store, shop, folder)
            assert_whole(job, store, shop, feed.events, feed.junk, began=job.began)
            assert job.stop().state == "stopped"
            watcher.assert_steady(feed.events)
        assert doubled_without_guard(spark, store, shop, folder, feed.events, monkeypatch), "the test finds nothing"


def test_records_gone_stop_the_queries_with_their_range_and_are_accepted_as_a_loss(
    spark, kafka_server, online_server, tmp_path, monkeypatch
):
    shop = Shop("gone")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    offline, feed = store.settings.offline, Feed(broker, shop, keys=KEYS)
    with Watcher(shop, url, simple_events(1_000, keys=KEYS)) as watcher:
        feed.send(100)
        job = InProcess(spark, store, shop, tmp_path / "job")
        assert_whole(job, store, shop, feed.events, feed.junk)
        assert job.stop().state == "stopped"
        feed.send(100)
        admin = KafkaAdminClient(bootstrap_servers=broker)
        admin.delete_records({TopicPartition(topic, 0): 90})
        admin.close()
        job = InProcess(spark, store, shop, tmp_path / "job")
        assert job.wait_end() == 1
        assert f"{topic}-0: offset 51 was next, Kafka has 90 to 102 (39 records lost)" in job.status().error
        assert "--accept-loss" in job.status().error
        assert Losses(offline).rows() == []
        kept = [event for event in feed.events if event.partition == 1 or not 51 <= event.offset < 90]
        copied = shutil.copytree(offline, tmp_path / "copy" / "lake")
        shutil.copytree(tmp_path / "job" / "checkpoints", tmp_path / "copied" / "checkpoints")

        job = InProcess(spark, store, shop, tmp_path / "job", accept_loss=True)
        assert_whole(job, store, shop, kept, feed.junk, began=job.began)
        assert job.stop().state == "stopped"
        lost = {(row["query"], row["partition"], row["begin"], row["end"]) for row in Losses(offline).rows()}
        assert lost == {("hot", 0, 51, 90), ("archive", 0, 51, 90)}
        watcher.assert_steady(kept)

    # Negative control, on a copy: without the look at Kafka the archive goes on and nobody learns what is missing.
    copy = shop.open(tmp_path / "copy", broker, url, offline=str(copied))
    with monkeypatch.context() as patched:
        patched.setattr(Resume, "_gone", lambda *_: True)
        job = InProcess(spark, copy, shop, tmp_path / "copied", queries=("archive",))
        wait_archived(copy.settings.offline, len(kept) + len(feed.junk), job)
        assert job.stop().state == "stopped"
    assert places_of(copy.settings.offline, "events/payments") == once(kept) != once(feed.events)
    assert Losses(copy.settings.offline).rows() == []

    # An older copy of the checkpoint: Delta would take its next batches for ones it has, and leave their events out.
    archive = tmp_path / "job" / "checkpoints" / "archive"
    newest = max(int(each.name) for each in (archive / "commits").glob("[0-9]*"))
    for name in ("offsets", "commits"):
        (archive / name / str(newest)).unlink()
        (archive / name / f".{newest}.crc").unlink(missing_ok=True)
    job = InProcess(spark, store, shop, tmp_path / "job", queries=("archive",))
    assert job.wait_end() == 1
    assert "is older than the tables" in job.status().error

    # Negative control: it does.
    feed.send(20)
    with monkeypatch.context() as patched:
        patched.setattr("featurestore.jobs.resume.refuse_other_tables", lambda *_: None)
        job = InProcess(spark, store, shop, tmp_path / "job", queries=("archive",), accept_loss=True)
        wait_for("the batch that is taken for another", (archive / "commits" / str(newest)).exists, job=job)
        job.stop()
    assert places_of(offline, "events/payments") == once(kept), "the newest events are left out"


def test_repetitions_are_in_the_log_marked_and_in_no_value(spark, kafka_server, online_server, tmp_path):
    shop = ShopWithIds("repeats")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    offline = store.settings.offline
    events = with_ids(simple_events(400, keys=KEYS))
    kept = without_repetitions(shop.source, events)
    assert 0 < len(kept) < len(events)
    produce_events(broker, shop.source.topic, events[:200])
    job = InProcess(spark, store, shop, tmp_path / "job")
    wait_archived(offline, 200)
    assert job.stop().state == "stopped"
    produce_events(broker, shop.source.topic, events[200:])
    job = InProcess(spark, store, shop, tmp_path / "job")  # the ids of before are read from the log, and from the store
    wait_for("online", lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    wait_archived(offline, len(events))
    wait_for("the counts", lambda: job.status().totals["consumed"] >= 200)
    assert job.stop().state == "stopped"
    assert online_differences(store, shop, kept) == []
    rows = table(offline, "events/payments").to_pylist()
    unmarked = {(row["_partition"], row["_offset"]) for row in rows if row["_repeats"] is None}
    assert unmarked == {(event.partition, event.offset) for event in kept}
    assert {row["_repeats"] for row in rows} == {None, True}
    assert tile_count(offline) == len(kept)
    later = [event for event in events[200:] if event not in kept]
    assert job.status().totals["duplicate"] == len(later)
    assert len(online_differences(store, shop, events)) >= KEYS, "a repetition that counted would be seen"
    at = [max(event.event_time for event in events) + 1]
    spine = pa.table({"card_id": ["c1"], "shop": [1], "at": pa.array(at, pa.timestamp("us", "UTC"))})
    made = store.training_set("shop", spine, event_time="at").to_arrow()
    mine = [event for event in kept if event.row["card_id"] == "c1"]
    assert made.column("visit.n_lifetime").to_pylist() == [len(mine)]
