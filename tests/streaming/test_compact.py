"""Compaction beside a running archive query: neither is in the other's way, and no event or tile is lost or doubled."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from featurestore.errors import OfflineError
from featurestore.offline import compact, tile_merge
from featurestore.offline.compact import Compaction
from featurestore.timeline import HOUR, SystemClock
from tests.streaming.support import InProcess, Shop, places_of, produce_events, simple_events, wait_archived, wait_for
from tests.unit.offline.test_compact import tiles_of, values

pytestmark = pytest.mark.jvm


def wait_for_version(log, count, offline, job):
    """Return when the event log holds so many events; it is read when it has a new version, not more often."""
    seen = [-1]

    def archived():
        version = DeltaTable(log).version() if DeltaTable.is_deltatable(log) else -1
        if version == seen[0]:
            return False
        seen[0] = version
        return sum(places_of(offline, "events/payments").values()) >= count

    wait_for(f"{count} events in Delta", archived, job=job)


def test_the_archive_goes_on_beside_a_compaction_and_each_event_is_there_once(
    spark, kafka_server, online_url, tmp_path
):
    from featurestore.jobs.archive import TileWorker

    shop = Shop("compacting")
    broker, topic = kafka_server.bootstrap_servers, shop.source.topic
    store = shop.open(tmp_path, broker, online_url)
    offline = store.settings.offline
    events = simple_events(400, keys=9)
    job = InProcess(spark, store, shop, tmp_path / "job", queries=("archive",), archive_every="0 seconds")
    compaction = Compaction(offline, shop.views, older_than=HOUR, clock=SystemClock())
    optimized, log = 0, f"{offline}/events/payments"
    try:
        for begin in range(0, len(events), 80):
            produce_events(broker, topic, events[begin : begin + 80])
            with contextlib.suppress(OfflineError):  # the archive was in the way each time: the table is as it was
                for done in compaction.run():  # while the archive writes what has just been produced
                    optimized += done.table == "events/payments" and done.files_after < done.files_before
            wait_for_version(log, begin + 80, offline, job)
        assert optimized, "a compaction fell between the batches of the archive"
        assert job.is_alive
        wait_archived(offline, len(events), job)
    finally:
        job.stop()
    assert job.status().state == "stopped", job.status()
    places = places_of(offline, "events/payments")
    assert (len(places), set(places.values())) == (len(events), {1})

    compaction.run()
    assert len(DeltaTable(f"{offline}/events/payments").file_uris()) == 1
    log = DeltaTable(f"{offline}/events/payments").to_pyarrow_table().combine_chunks()
    expected = {}
    for batch in TileWorker(shop.views)(iter(log.to_batches())):
        for row in batch.to_pylist():
            expected.setdefault((row["view"], row["fingerprint"], row["part"], row["key"], row["tile"]), []).append(row)
    found = tiles_of(offline)
    assert found.keys() == expected.keys()
    views = {view.name: view for view in shop.views}
    for name, rows in found.items():
        assert len(rows) == 1
        left, right = (values(views[name[0]], name[2], each) for each in (rows, expected[name]))
        assert [partial for _, partial in left] == [partial for _, partial in right]


def counted(offline):
    """Return how many events the tiles of a view hold: the first slot of its first measure counts them."""
    rows = DeltaTable(f"{offline}/tiles").to_pyarrow_table().to_pylist()
    return sum(int.from_bytes(row["row"][:8], "little") for row in rows if row["view"] == "visit")


def test_a_merge_that_the_archive_got_into_is_made_again_and_no_tile_is_lost_or_doubled(
    spark, kafka_server, online_url, tmp_path, monkeypatch
):
    """The archive query commits between what a merge has read and its own commit: a conflict of two real writers."""
    shop = Shop("conflict")
    broker, topic = kafka_server.bootstrap_servers, shop.source.topic
    store = shop.open(tmp_path, broker, online_url)
    offline, visit = store.settings.offline, shop.views[0]
    tiles = f"{offline}/tiles"
    events = simple_events(300, keys=9)
    job = InProcess(spark, store, shop, tmp_path / "job", queries=("archive",), archive_every="0 seconds")
    attempts, seen = [], []

    def archive(upto):
        produce_events(broker, topic, events[upto - 100 : upto])
        wait_for("the tiles", lambda: DeltaTable.is_deltatable(tiles) and counted(offline) == upto, job=job)

    def merge(path, view, before):
        table = DeltaTable(path)
        attempts.append(view.name)
        if len(attempts) == 1:
            seen.append(table.version())
            archive(300)
        try:
            return tile_merge.merge_tiles(table, view, before=before)
        except CommitFailedError as error:
            seen.append(str(error))
            raise

    try:
        archive(100)
        archive(200)
        monkeypatch.setattr(compact, "_merge", merge)
        compaction = Compaction(offline, (visit,), older_than=HOUR, clock=SystemClock())
        (done,) = compaction.run(["tiles"])
    finally:
        job.stop()
    assert job.status().state == "stopped", job.status()
    version, conflict = seen
    assert "concurrent" in conflict.lower(), conflict
    assert attempts == ["visit", "visit"]
    assert done.rows_merged
    assert counted(offline) == len(events)
    places = places_of(offline, "events/payments")
    assert (len(places), set(places.values())) == (len(events), {1})

    # Negative control, on a copy as it was: without the look at what was committed meanwhile, the newest tiles are lost.
    copy = shutil.copytree(offline, tmp_path / "copy")
    DeltaTable(f"{copy}/tiles").restore(version)
    old = DeltaTable(f"{copy}/tiles")
    newest = DeltaTable(tiles, version=version + 1).to_pyarrow_table()
    known = {tuple(row.values()) for row in DeltaTable(tiles, version=version).to_pyarrow_table().to_pylist()}
    appended = newest.filter([tuple(row.values()) not in known for row in newest.to_pylist()])
    write_deltalake(f"{copy}/tiles", appended, mode="append")
    both = counted(copy)
    assert both > 200

    def heedless(table, merged, **options):
        rows = merged.read_all()
        table.update_incremental()
        write_deltalake(table, rows, **options)

    monkeypatch.setattr(tile_merge, "write_deltalake", heedless)
    tile_merge.merge_tiles(old, visit, before=SystemClock().now())
    assert counted(copy) == 200 < both
