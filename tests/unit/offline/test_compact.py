"""Compaction on real Delta tables, without a JVM: the same rows in fewer files, the same tiles in fewer rows, nothing lost."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from featurestore.algebra.rows import row_format
from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.jobs.archive import TileWorker
from featurestore.offline import compact
from featurestore.offline.compact import TRIES, Compaction, retried
from featurestore.offline.events import write_events
from featurestore.offline.tile_merge import merge_tiles
from featurestore.testing.compare import values_agree
from featurestore.testing.replay import Replay
from featurestore.timeline import DAY, HOUR, VirtualClock
from tests.streaming.support import Shop
from tests.unit.offline.test_quarantine import write as write_quarantine

pytestmark = pytest.mark.thorough

SHOP = Shop("compacted")
VIEWS = SHOP.views


@pytest.fixture(scope="module")
def log():
    """The event log of a hostile stream."""
    run = Replay(SHOP.service)
    for event in SHOP.stream(7, 240).events:
        run.send("payments", event.row, arrival=event.arrival, partition=event.partition)
    return run.log("payments").archived()


def write(root, log, size, views=VIEWS):
    """Write events and tiles in batches, as the archive query does."""
    for begin in range(0, log.num_rows, size):
        batch = log.slice(begin, size)
        write_events(root, "payments", batch)
        for tiles in TileWorker(views)(iter(batch.combine_chunks().to_batches())):
            write_deltalake(f"{root}/tiles", tiles, mode="append", partition_by=["view"])


def tiles_of(root):
    """Return (view, fingerprint, part, key, tile) to its rows."""
    found = defaultdict(list)
    for row in DeltaTable(f"{root}/tiles").to_pyarrow_table().to_pylist():
        found[row["view"], row["fingerprint"], row["part"], row["key"], row["tile"]].append(row)
    return found


def compaction(root, now, **options):
    return Compaction(str(root), VIEWS, clock=VirtualClock(now), older_than=HOUR, **options)


def later(log):
    return max(log.column("_event_time").to_pylist()) + 2 * DAY


def values(view, number, rows):
    """Return what the tiles' partials come to, merged one by one."""
    part = next(each for each in view.layout.parts if each.number == number)
    form = row_format(part.slots)
    found = []
    for measure, aggregate in enumerate(part.measures):
        slots = slice(*part.slot_offsets[measure : measure + 2])
        merged = aggregate.empty()
        for row in rows:
            merged = aggregate.merge(merged, form.unpack(row["row"], 0, len(row["row"]))[0][slots])
        found.append((aggregate, merged))
    return found


def test_tiles_of_many_batches_become_one_row_each_and_mean_the_same(tmp_path, log):
    write(str(tmp_path), log, 11)
    before, events = tiles_of(tmp_path), DeltaTable(f"{tmp_path}/events/payments").to_pyarrow_table()
    assert any(len(rows) > 2 for rows in before.values())
    done = {each.table: each for each in compaction(tmp_path, later(log)).run()}
    after = tiles_of(tmp_path)
    assert after.keys() == before.keys()
    assert all(len(rows) == 1 for rows in after.values())
    assert done["tiles"].rows_merged == sum(map(len, before.values())) - len(after)
    by_name = {view.name: view for view in VIEWS}
    for name, (row,) in after.items():
        assert row["oldest"] == min(each["oldest"] for each in before[name])
        assert row["newest"] == max(each["newest"] for each in before[name])
        expected, found = values(by_name[name[0]], name[2], before[name]), values(by_name[name[0]], name[2], [row])
        for (aggregate, left), (_, right) in zip(expected, found, strict=True):
            assert all(
                values_agree(a, b, tolerance=aggregate.tolerance, slack=1e-6) for a, b in zip(left, right, strict=True)
            )
    assert done["events/payments"].files_before > done["events/payments"].files_after == 1
    order = [("_partition", "ascending"), ("_offset", "ascending")]
    table = DeltaTable(f"{tmp_path}/events/payments").to_pyarrow_table()
    assert table.select(events.column_names).sort_by(order).equals(events.sort_by(order))

    versions = {name: DeltaTable(f"{tmp_path}/{name}").version() for name in ("tiles", "events/payments")}
    again = compaction(tmp_path, later(log)).run()
    assert all(each.rows_merged == 0 and each.files_before == each.files_after for each in again)
    assert {name: DeltaTable(f"{tmp_path}/{name}").version() for name in versions} == versions, (
        "nothing to do, nothing committed"
    )


def test_recent_tiles_and_those_of_other_definitions_stay_as_they_are(tmp_path, log):
    write(str(tmp_path), log, 40)
    foreign = DeltaTable(f"{tmp_path}/tiles").to_pyarrow_table().slice(0, 4)
    position = foreign.schema.get_field_index("fingerprint")
    foreign = foreign.set_column(position, "fingerprint", pa.array(["f" * 16] * 4))
    for _ in range(2):
        write_deltalake(f"{tmp_path}/tiles", foreign, mode="append")
    before = tiles_of(tmp_path)
    cut = sorted(log.column("_event_time").to_pylist())[log.num_rows // 2]
    compaction(tmp_path, cut + HOUR).run(["tiles"])
    after = tiles_of(tmp_path)
    longest = max(part.tile for view in VIEWS for part in view.layout.parts)
    assert after.keys() == before.keys()
    kept = {name: rows for name, rows in after.items() if name[1] == "f" * 16 or name[4] >= cut}
    assert any(len(rows) > 1 for rows in kept.values())
    canonical = lambda rows: sorted(map(repr, rows))  # noqa: E731
    assert {name: canonical(rows) for name, rows in kept.items()} == {name: canonical(before[name]) for name in kept}
    assert all(len(rows) == 1 for name, rows in after.items() if name[1] != "f" * 16 and name[4] < cut - longest)


def test_tiles_that_arrive_during_a_merge_are_kept_and_the_merge_has_to_be_made_again(tmp_path, log):
    write(str(tmp_path), log, 40)
    path = f"{tmp_path}/tiles"
    late = DeltaTable(path).to_pyarrow_table().filter(pc.field("view") == VIEWS[0].name).slice(0, 3)
    opened, before = DeltaTable(path), sum(map(len, tiles_of(tmp_path).values()))
    write_deltalake(path, late, mode="append")
    with pytest.raises(CommitFailedError):
        merge_tiles(opened, VIEWS[0], before=later(log))
    assert sum(map(len, tiles_of(tmp_path).values())) == before + 3
    assert merge_tiles(opened, VIEWS[1], before=later(log)) > 0, "another view's tiles are in nobody's way"
    merge_tiles(DeltaTable(path), VIEWS[0], before=later(log))
    assert all(len(rows) == 1 for rows in tiles_of(tmp_path).values())


def test_of_two_compactions_at_once_one_is_made_again_and_finds_nothing_left(tmp_path, log, monkeypatch):
    write(str(tmp_path), log, 40)
    before, attempts, merged = tiles_of(tmp_path), [], []

    def merge(path, view, before):
        table = DeltaTable(path)
        attempts.append(view.name)
        if len(attempts) == 1:  # the other commits between what this one has read and its own commit
            merged.append(merge_tiles(DeltaTable(path), view, before=before))
        return merge_tiles(table, view, before=before)

    monkeypatch.setattr(compact, "_merge", merge)
    (done,) = compaction(tmp_path, later(log)).run(["tiles"])
    first, second = (view.name for view in VIEWS)
    assert attempts == [first, first, second]
    after = tiles_of(tmp_path)
    assert after.keys() == before.keys()
    assert all(len(rows) == 1 for rows in after.values())
    assert merged[0] + done.rows_merged == sum(map(len, before.values())) - len(after)


def test_tiles_are_merged_share_by_share_of_the_keys_to_the_same(tmp_path, log):
    write(str(tmp_path), log, 40)
    before = tiles_of(tmp_path)
    for view in VIEWS:
        assert merge_tiles(DeltaTable(f"{tmp_path}/tiles"), view, before=later(log), pass_rows=50) > 0
    after = tiles_of(tmp_path)
    assert after.keys() == before.keys()
    assert all(len(rows) == 1 for rows in after.values())


def test_a_clash_is_tried_again_a_few_times_with_growing_pauses():
    pauses = []

    def clash(times):
        left = iter([CommitFailedError("busy")] * times)

        def attempt():
            for error in left:
                raise error
            return 7

        return attempt

    assert retried("tiles", clash(TRIES - 1), pauses.append) == 7
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == TRIES - 1
    with pytest.raises(OfflineError, match="tiles: other writers were in the way 5 times"):
        retried("tiles", clash(TRIES), pauses.append)


def test_times_of_all_years_survive(tmp_path, log):
    odd = [datetime(1, 1, 2, tzinfo=UTC), datetime(1500, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    position = log.schema.get_field_index("event_time")
    for year in odd:
        table = log.slice(0, 5).set_column(position, "event_time", pa.array([year] * 5, pa.timestamp("us", "UTC")))
        write_events(str(tmp_path), "payments", table)
    compaction(tmp_path, later(log)).run()
    found = (
        DeltaTable(f"{tmp_path}/events/payments").to_pyarrow_table().column("event_time").cast(pa.int64()).to_pylist()
    )
    assert sorted(set(found)) == sorted(int(year.timestamp()) * 1_000_000 for year in odd)


def test_tables_are_named_and_quarantine_is_compacted_too(tmp_path, log):
    for offset in range(4):
        write_quarantine(tmp_path, (0, offset, 1, "contract", b"{}"))
    write(str(tmp_path), log, 240)
    assert compaction(tmp_path, 0).tables() == ["events/payments", "tiles", "quarantine"]
    (done,) = compaction(tmp_path, 0).run(["quarantine"])
    assert (done.files_before, done.files_after) == (4, 1)
    with pytest.raises(
        OfflineStoreUnavailableError, match=r"no table 'tile'.*tables: events/payments, tiles, quarantine"
    ):
        compaction(tmp_path, 0).run(["tile"])


def test_vacuum_keeps_a_week_and_what_a_training_set_was_made_of(tmp_path, log):
    write(str(tmp_path), log, 60)
    version = DeltaTable(f"{tmp_path}/events/payments").version()
    manifest = tmp_path / "sets" / "one" / "_manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"tables": {"events/payments": version}}))
    before = DeltaTable(f"{tmp_path}/events/payments").to_pyarrow_table().num_rows
    with pytest.raises(OfflineError, match=r"younger than 7 days \(0 hours asked\).*nothing was changed"):
        compaction(tmp_path, later(log), retention_hours=0).run()
    assert DeltaTable(f"{tmp_path}/events/payments").version() == version
    compaction(tmp_path, later(log), retention_hours=168).run()
    old = DeltaTable(f"{tmp_path}/events/payments", version=version)
    assert old.to_pyarrow_table().num_rows == before, "a week is kept whatever is vacuumed"

    # Time cannot be waited for: the guard of the week is forced off, that of the manifest is asked by itself.
    young = Compaction(str(tmp_path), VIEWS, retention_hours=0, manifests=[tmp_path / "sets"], force=False)
    with pytest.raises(
        OfflineError, match=r"would delete 4 files of version \d+, which the training set .*_manifest.json"
    ):
        young._vacuum("events/payments", f"{tmp_path}/events/payments", 0)
    (counted,) = compaction(
        tmp_path, later(log), retention_hours=0, force=True, dry_run=True, manifests=[manifest]
    ).run(["events/payments"])
    assert counted.deleted == 4
    assert old.to_pyarrow_table().num_rows == before
    manifest.write_text("{")
    with pytest.raises(OfflineError, match="cannot be read, so what it needs is not known"):
        young._vacuum("events/payments", f"{tmp_path}/events/payments", 0)
    (done,) = compaction(tmp_path, later(log), retention_hours=0, force=True, manifests=[manifest]).run(
        ["events/payments"]
    )
    assert done.deleted == 4
    assert DeltaTable(f"{tmp_path}/events/payments").to_pyarrow_table().num_rows == before
