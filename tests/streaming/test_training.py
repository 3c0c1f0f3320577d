"""Training sets from Delta logs the archive wrote: one row per spine row in order, whatever the spine is made of."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import csv

from featurestore.errors import OfflineError, OfflineStoreUnavailableError, SpineError
from featurestore.jobs.archive import ArchiveBatch
from featurestore.offline.training import rebuild, training_set
from featurestore.timeline import to_datetime
from tests.streaming.support import Shop, differences, oracle, places_of, to_bytes

pytestmark = pytest.mark.jvm

SHOP = Shop("training")
STREAM = SHOP.stream(seed=5, events=150, probes=30)


@pytest.fixture(scope="module")
def offline(spark, tmp_path_factory):
    """Delta tables as the archive query writes them, in two batches, the second of them twice."""
    root = str(tmp_path_factory.mktemp("offline"))
    batch = ArchiveBatch(root, {SHOP.source.topic: (SHOP.source, SHOP.views)})
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", "training-test")
    halves = (STREAM.events[:80], STREAM.events[80:])
    for batch_id, events in ((0, halves[0]), (1, halves[1]), (1, halves[1])):
        rows = pa.table(
            {
                "topic": [SHOP.source.topic] * len(events),
                "partition": pa.array([event.partition for event in events], pa.int32()),
                "offset": pa.array([event.offset for event in events], pa.int64()),
                "timestamp": pa.array([event.arrival for event in events], pa.timestamp("us", "UTC")),
                "value": [to_bytes(event) for event in events],
            }
        )
        batch(spark.createDataFrame(rows), batch_id)
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", None)
    assert places_of(root, "events/payments") == {(event.partition, event.offset): 1 for event in STREAM.events}
    return root


def spine_table():
    """Return probes, duplicates of (key, t), unknown and null keys, with columns that are nobody's business."""
    probes = [*STREAM.probes, *STREAM.probes[:5], (("nobody", 3), STREAM.probes[0][1]), ((None, None), 0)]
    return pa.table(
        {
            "label": pa.array([None if row % 7 == 0 else row / 3 for row in range(len(probes))]),
            "card_id": pa.array([card for (card, _), _ in probes], pa.string()),
            "at": pa.array([t for _, t in probes], pa.timestamp("us", "UTC")),
            "shop": pa.array([shop for (_, shop), _ in probes], pa.int64()),
            "note": [f"row {row}" for row in range(len(probes))],
            "number": pa.array(range(len(probes)), pa.int64()),
        }
    )


def micros(table, name="at"):
    return table.column(name).cast(pa.int64()).to_pylist()


def test_every_spine_row_comes_back_in_order_with_the_oracles_values(spark, offline):
    spine = spine_table()
    result = training_set(spark, SHOP.service, spine, offline=offline, event_time="at").to_arrow()
    assert result.num_rows == spine.num_rows
    assert result.column_names == [*spine.column_names, *SHOP.service.feature_ids]
    for name in spine.column_names:
        assert result.column(name).to_pylist() == spine.column(name).to_pylist(), name
    wrong = []
    for row, t in zip(result.to_pylist(), micros(spine), strict=True):
        expected = oracle(SHOP.views, STREAM.events, row, t)
        wrong += differences(SHOP.views, expected, {name: row[name] for name in expected}, row["note"])
    assert not wrong, "\n".join(wrong[:10])


def test_spines_of_every_kind_give_equal_answers(spark, offline, tmp_path):
    spine = spine_table()
    pq.write_table(spine, tmp_path / "spine.parquet")
    write_deltalake(str(tmp_path / "delta"), spine)
    # a null and an empty text are one in CSV
    csv.write_csv(spine, tmp_path / "spine.csv")
    whole = spine.column("at").cast(pa.int64())
    kinds = {
        "arrow": spine,
        "polars": pl.from_arrow(spine),
        "pandas": spine.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get),
        "spark": spark.createDataFrame(spine),
        "path": str(tmp_path / "spine.parquet"),
        "csv": tmp_path / "spine.csv",
        "delta": str(tmp_path / "delta"),
        "repartitioned": spark.createDataFrame(spine).repartitionByRange(3, "note").sort("note"),
        "micros": spine.set_column(spine.column_names.index("at"), "at", whole),
    }
    answers = {}
    for kind, made in kinds.items():
        result = training_set(spark, SHOP.service, made, offline=offline, event_time="at").to_arrow()
        notes = spine.column("note").to_pylist()
        assert result.column("note").to_pylist() == (sorted(notes) if kind == "repartitioned" else notes), kind
        result = result.take(pc.sort_indices(result, [("number", "ascending")]))
        answers[kind] = result.select(SHOP.service.feature_ids).to_pylist()
    for kind, answer in answers.items():
        assert answer == answers["arrow"], kind


def test_the_manifest_says_what_it_was_made_from_and_the_digest_is_the_same_again(spark, offline):
    spine = spine_table()
    first = training_set(spark, SHOP.service, spine, offline=offline, event_time="at")
    again = training_set(spark, SHOP.service, spine, offline=offline, event_time="at")
    assert first.manifest == again.manifest
    assert first.manifest["tables"] == {"events/payments": 1}
    assert first.manifest["rows"] == spine.num_rows
    assert first.manifest["views"] == {view.name: view.fingerprint for view in SHOP.views}
    assert first.digest() == again.digest()
    other = training_set(spark, SHOP.service, spine.slice(1), offline=offline, event_time="at")
    assert other.digest() != first.digest()


def with_column(table, name, column):
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("as_frame", [False, True], ids=["arrow", "spark"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda spine: spine.drop_columns("shop"), r"no key column 'shop'"),
        (lambda spine: spine.drop_columns("at"), r"no time column 'at'"),
        (lambda spine: with_column(spine, "at", spine.column("at").cast(pa.timestamp("us"))), "naive"),
        (lambda spine: spine.append_column("__row", spine.column("note")), "already has a column '__row'"),
        (lambda spine: with_column(spine, "at", spine.column("note")), "not a time"),
        (
            lambda spine: with_column(spine, "at", pa.array([None, *spine.column("at").to_pylist()[1:]])),
            "has 1 nulls, the first in row 0",
        ),
        (lambda spine: with_column(spine, "card_id", pa.array(range(spine.num_rows))), "key column 'card_id' is int64"),
        (lambda spine: spine.append_column("visit.n_10m", spine.column("note")), "already has a column 'visit.n_10m'"),
    ],
)
def test_a_spine_that_cannot_be_answered_is_refused(spark, offline, spoil, message, as_frame):
    spine = spoil(spine_table())
    made = spark.createDataFrame(spine) if as_frame else spine
    if as_frame and message == "naive":
        # Spark reads Arrow's naive times as instants of its session's zone; its own naive type is what tells
        made = made.selectExpr("* except (at)", "cast(at as timestamp_ntz) at")
    with pytest.raises(SpineError, match=message):
        training_set(spark, SHOP.service, made, offline=offline, event_time="at")


@pytest.mark.parametrize("kind", ["parquet", "csv", "delta"])
def test_a_spine_at_a_path_is_checked_like_any_other(spark, offline, tmp_path, kind):
    path = str(tmp_path / f"spine.{kind}")
    write = {
        "parquet": pq.write_table,
        "csv": csv.write_csv,
        "delta": lambda table, path: write_deltalake(path, table),
    }[kind]

    def refused(spine, message):
        shutil.rmtree(path, ignore_errors=True)
        write(spine, path)
        with pytest.raises(SpineError, match=message):
            training_set(spark, SHOP.service, path, offline=offline, event_time="at")

    spine = spine_table()
    refused(spine.drop_columns("shop"), r"no key column 'shop'")
    refused(spine.drop_columns("at"), r"no time column 'at'")
    refused(spine.append_column("visit.n_10m", spine.column("note")), r"already has a column 'visit.n_10m'")
    refused(with_column(spine, "at", spine.column("at").cast(pa.timestamp("us"))), "naive timestamp")


def test_something_that_is_no_spine_and_a_project_without_a_log_are_errors(spark, offline, tmp_path):
    with pytest.raises(SpineError, match="of type list is not understood"):
        training_set(spark, SHOP.service, [1], offline=offline, event_time="at")
    with pytest.raises(OfflineStoreUnavailableError, match=r"no event log at .*start the materialize job"):
        training_set(spark, SHOP.service, spine_table(), offline=str(tmp_path), event_time="at")


def test_negative_times_are_instants_like_any_other(spark, offline):
    spine = pa.table({"card_id": ["a"], "shop": pa.array([1], pa.int64()), "at": pa.array([-5], pa.int64())})
    row = training_set(spark, SHOP.service, spine, offline=offline, event_time="at").to_arrow().to_pylist()[0]
    expected = oracle(SHOP.views, STREAM.events, row, -5)
    assert not differences(SHOP.views, expected, {name: row[name] for name in expected})
    assert to_datetime(-5).year == 1969


def test_a_manifest_makes_the_same_set_again_after_the_log_has_grown_and_says_what_changed(spark, offline, tmp_path):
    root = str(tmp_path / "offline")
    shutil.copytree(offline, root)
    spine = spine_table()
    made = training_set(spark, SHOP.service, spine, offline=root, event_time="at", as_served=True)
    manifest = made.write(str(tmp_path / "out"))
    read = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert read == json.loads(json.dumps(manifest))
    assert pq.read_table(tmp_path / "out").column("note").to_pylist() == spine.column("note").to_pylist()
    with pytest.raises(OfflineError, match=r"cannot be written.*choose another"):
        made.write(str(tmp_path / "out"))
    path = f"{root}/events/payments"
    write_deltalake(path, DeltaTable(path).to_pyarrow_table(), mode="append")
    grown = training_set(spark, SHOP.service, spine, offline=root, event_time="at", as_served=True)
    assert grown.digest() != manifest["digest"]
    again = rebuild(spark, read, spark.createDataFrame(spine), offline=root)
    assert again.manifest == made.manifest
    assert again.to_arrow().equals(made.to_arrow())
    with pytest.raises(SpineError, match=r"the spine is not the one of the manifest.*order all count"):
        rebuild(spark, read, spine.slice(1), offline=root)
    with pytest.raises(OfflineError, match=r"another result.*made with featurestore"):
        rebuild(spark, {**read, "digest": "0" * 64}, spine, offline=root)
    with pytest.raises(OfflineError, match=r"means .* now, then 0000.*made it; this is"):
        rebuild(spark, {**read, "service_fingerprint": "0000"}, spine, offline=root)
    with pytest.raises(OfflineError, match=r"events/payments at version 99 cannot be read.*retention"):
        rebuild(spark, {**read, "tables": {"events/payments": 99}}, spine, offline=root)
    with pytest.raises(OfflineError, match="the manifest has no 'digest'"):
        rebuild(spark, {name: read[name] for name in read if name != "digest"}, spine, offline=root)


def test_the_leak_report_says_which_features_differ_where(spark, offline):
    spine = spine_table()
    made = training_set(spark, SHOP.service, spine, offline=offline, event_time="at", leak_report=True)
    expected = dict.fromkeys(SHOP.service.feature_ids, 0)
    for row, t in zip(spine.to_pylist(), micros(spine), strict=True):
        left, right = (oracle(SHOP.views, STREAM.events, row, t, visible_at=seen) for seen in (None, t))
        for name in expected:
            expected[name] += bool(differences(SHOP.views, {**right, name: left[name]}, right))
    assert {leak.feature: leak.rows for leak in made.leaks} == expected
    assert list(expected) == [leak.feature for leak in made.leaks]
    worst = max(made.leaks, key=lambda leak: leak.rows)
    assert worst.rows, "the stream has no late event that matters"
    assert worst.example["key"]["card_id"] == spine.column("card_id")[worst.row].as_py()
    assert worst.example["by_event_time"] != worst.example["as_served"]
    assert f"{worst.rows} rows" in str(worst)
    with pytest.raises(OfflineError, match=r"without a leak report.*leak_report=True"):
        _ = training_set(spark, SHOP.service, spine, offline=offline, event_time="at").leaks


def test_an_empty_spine_gives_an_empty_set(spark, offline):
    result = training_set(spark, SHOP.service, spine_table().slice(0, 0), offline=offline, event_time="at")
    assert result.to_arrow().num_rows == 0
    assert result.manifest["rows"] == 0
