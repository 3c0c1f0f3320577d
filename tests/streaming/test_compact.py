"""Compaction beside a running archive query: neither is in the other's way, and no event or tile is lost or doubled."""

from __future__ import annotations

import contextlib

import pytest
from deltalake import DeltaTable

from featurestore.errors import OfflineError
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
