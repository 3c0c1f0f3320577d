"""The archive and the micro-batches under faults: killed at every step, disks full, records gone, workers and checkpoints lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from featurestore.engines.oracle import without_repetitions
from featurestore.errors import JobError
from featurestore.failpoints import VARIABLE
from featurestore.jobs.archive import ArchiveBatch
from featurestore.jobs.resume import Resume
from featurestore.offline.losses import Losses
from tests.faults.feeding import ShopWithIds, Watcher, with_ids
from tests.faults.guards import assert_archived, forget_fences, forget_last_commit, once, tile_count
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    online_differences,
    places_of,
    process_tree,
    produce,
    produce_events,
    reached,
    simple_events,
    table,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 20


def doubled_without_guard(spark, store, shop, folder, events, monkeypatch):
    """Return which events the log has twice once Delta is not told which batch is written: the negative control."""
    append = ArchiveBatch._append

    def anonymous(self, frame, table, query_id, batch_id, **options):
        return append(self, frame, table, uuid.uuid4(), batch_id, **options)

    again = forget_last_commit(folder / "checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(ArchiveBatch, "_append", anonymous)
        job = InProcess(spark, store, shop, folder, queries=("archive",))
        wait_for("the batch that is run again", again.exists, job=job)
        job.stop()
    places = places_of(store.settings.offline, "events/payments")
    assert places.keys() == once(events).keys()
    return [place for place, count in places.items() if count > 1]


def test_a_driver_that_ends_at_any_step_of_an_archive_batch_writes_each_table_once(
    spark, kafka_server, online_server, tmp_path, monkeypatch
):
    """The batch is in one table, and the driver is killed; then in all of them, not in the checkpoint, and its query ends."""
    shop = Shop("steps")
    store = shop.open(tmp_path, kafka_server.bootstrap_servers, online_server.url)
    broker, topic, offline = kafka_server.bootstrap_servers, shop.source.topic, store.settings.offline
    first, later = simple_events(100, keys=KEYS), simple_events(100, keys=KEYS, begin=100)
    later = [replace(event, offset=event.offset + 1) for event in later]  # behind a record that is no event
    events, junk = [*first, *later], []

    def send(rows):
        produce_events(broker, topic, rows)
        junk.extend(produce(broker, topic, [(partition, b"{", rows[-1].arrival) for partition in (0, 1)]))

    monkeypatch.setenv(VARIABLE, "archive.table")
    send(first)
    job = store.submit("materialize", service="shop", queries="archive", archive_every="500 milliseconds")
    wait_for("the kill", lambda: not job.is_alive)
    monkeypatch.delenv(VARIABLE)
    assert job.status().state == "failed"
    assert "failed" not in Path(job.folder, "status.json").read_text(), "it was not killed, it said goodbye"
    commits = job.folder / "checkpoints" / "archive" / "commits"
    assert not list(commits.glob("[0-9]*")), "a batch had been finished"

    def end_at_all_tables(place):
        if place == "archive.tables":
            raise JobError(place)

    send(later)
    with monkeypatch.context() as patched:
        patched.setattr("featurestore.jobs.archive.reach", end_at_all_tables)
        ended = InProcess(spark, store, shop, job.folder, queries=("archive",))
        assert ended.wait_end() == 1
    assert "archive.tables" in ended.status().error
    assert not list(commits.glob("[0-9]*")), "a batch had been finished"
    assert_archived(offline, first)
    job = InProcess(spark, store, shop, job.folder, queries=("archive",))
    try:
        wait_archived(offline, len(events) + len(junk), job)
        assert_archived(offline, events)
        assert places_of(offline, "quarantine") == dict.fromkeys(junk, 1)
    finally:
        job.stop()
    assert doubled_without_guard(spark, store, shop, job.checkpoints.parent, events, monkeypatch), (
        "the test finds nothing"
    )


def test_a_killed_python_worker_ends_the_job_and_the_next_goes_on(spark, kafka_server, online_server, tmp_path):
    shop = Shop("worker")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    events = simple_events(6_000, keys=KEYS)
    produce_events(broker, shop.source.topic, events)
    with Watcher(shop, url, events) as watcher:
        job = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
        wait_for("the first write", lambda: sum(applied_offsets(url, shop.name).values()) > 0)
        workers = [pid for pid, _ in process_tree(os.getpid()) if _is_worker(pid)]
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        produce_events(broker, shop.source.topic, more := simple_events(500, keys=KEYS, begin=6_000))
        if job.wait_end() == 1:
            assert "query hot" in job.status().error
        again = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
        wait_for("the rest", lambda: reached(applied_offsets(url, shop.name), ends_of([*events, *more])))
        assert again.stop().state == "stopped"
    assert online_differences(store, shop, [*events, *more]) == []
    assert watcher.back == []

    # Negative control: without fences, what is run again counts twice.
    forget_fences(url, shop.name)
    shutil.rmtree(tmp_path / "job" / "checkpoints")
    again = InProcess(spark, store, shop, tmp_path / "job", queries=("hot",))
    wait_for("everything again", lambda: reached(applied_offsets(url, shop.name), ends_of([*events, *more])))
    assert again.stop().state == "stopped"
    assert len(online_differences(store, shop, [*events, *more])) >= KEYS, "without its guard the test finds nothing"


def _is_worker(pid):
    with contextlib.suppress(OSError):
        return b"pyspark.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes()
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


@pytest.mark.parametrize("full", ["tables", "checkpoint"])
def test_a_full_disk_ends_the_job_and_tears_nothing(spark, kafka_server, online_server, tmp_path, monkeypatch, full):
    shop = Shop(f"full_{full}")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    events = simple_events(400, keys=KEYS)
    with small_disk(tmp_path / "small", 24) as disk:
        offline = str(disk / "lake") if full == "tables" else str(tmp_path / "lake")
        folder = tmp_path / "job"
        if full == "checkpoint":
            folder.mkdir()
            (disk / "checkpoints").mkdir()
            (folder / "checkpoints").symlink_to(disk / "checkpoints")
        store = shop.open(tmp_path, broker, url, offline=offline)
        produce_events(broker, shop.source.topic, events[:200])
        job = InProcess(spark, store, shop, folder, queries=("archive",))
        wait_archived(offline, 200, job)
        filler = fill(disk)
        produce_events(broker, shop.source.topic, events[200:])
        assert job.wait_end() == 1
        assert "query archive" in job.status().error
        filler.unlink()
        job = InProcess(spark, store, shop, folder, queries=("archive",))
        wait_archived(offline, len(events), job)
        assert_archived(offline, events)
        assert job.stop().state == "stopped"
        assert doubled_without_guard(spark, store, shop, folder, events, monkeypatch), "the test finds nothing"


def test_records_gone_stop_the_queries_with_their_range_and_are_accepted_as_a_loss(
    spark, kafka_server, online_server, tmp_path, monkeypatch
):
    shop = Shop("gone")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    offline, events = store.settings.offline, simple_events(200, keys=KEYS)
    produce_events(broker, topic, events[:100])
    job = InProcess(spark, store, shop, tmp_path / "job")
    wait_for("online", lambda: reached(applied_offsets(url, shop.name), ends_of(events[:100])))
    wait_archived(offline, 100)
    assert job.stop().state == "stopped"
    produce_events(broker, topic, events[100:])
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.delete_records({TopicPartition(topic, 0): 90})
    admin.close()
    job = InProcess(spark, store, shop, tmp_path / "job")
    assert job.wait_end() == 1
    assert f"{topic}-0: offset 50 was next, Kafka has 90 to 100 (40 records lost)" in job.status().error
    assert "--accept-loss" in job.status().error
    assert Losses(offline).rows() == []
    kept = [event for event in events if event.partition == 1 or not 50 <= event.offset < 90]

    # Negative control, on a copy: without the look at Kafka the archive goes on and nobody learns what is missing.
    copy = shop.open(tmp_path / "copy", broker, url, offline=str(shutil.copytree(offline, tmp_path / "copy" / "lake")))
    shutil.copytree(tmp_path / "job" / "checkpoints", tmp_path / "copied" / "checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(Resume, "_gone", lambda *_: True)
        job = InProcess(spark, copy, shop, tmp_path / "copied", queries=("archive",))
        wait_archived(copy.settings.offline, len(kept), job)
        assert job.stop().state == "stopped"
    assert places_of(copy.settings.offline, "events/payments") == once(kept) != once(events)
    assert Losses(copy.settings.offline).rows() == []

    job = InProcess(spark, store, shop, tmp_path / "job", accept_loss=True)
    wait_for("online", lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    wait_archived(offline, len(kept))
    assert job.stop().state == "stopped"
    assert online_differences(store, shop, kept) == []
    assert_archived(offline, kept)
    lost = {(row["query"], row["partition"], row["begin"], row["end"]) for row in Losses(offline).rows()}
    assert lost == {("hot", 0, 50, 90), ("archive", 0, 50, 90)}

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
    more = simple_events(20, keys=KEYS, begin=200)
    produce_events(broker, topic, more)
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
