"""Arrays, derived features and request features through Spark and Delta: archive, training set, manifest, snapshot."""

from __future__ import annotations

import dataclasses
import random

import pyarrow as pa
import pytest

from featurestore.definitions.derived import RequestFeature
from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import values_at
from featurestore.engines.scalar import evaluate_row
from featurestore.errors import SpineError
from featurestore.jobs.archive import ArchiveBatch
from featurestore.offline.snapshot import snapshot
from featurestore.offline.training import rebuild, training_set
from featurestore.testing.compare import values_agree
from featurestore.testing.records import row_bytes
from featurestore.testing.streams import hostile_stream
from tests.conformance.exploded import BY_CARD, ORDERS, WHOLE
from tests.streaming.support import places_of

pytestmark = pytest.mark.jvm

SERVICE = FeatureService(
    "asked",
    [
        BY_CARD,
        RequestFeature("ratio", "amount / nullif(by_card.value_10m, 0)", request={"amount": "float64"}),
        WHOLE,
        RequestFeature("label", "concat(card_id, ':', coalesce(by_card.last_10m, 'none'), kind)", {"kind": "string"}),
    ],
)
STREAM = hostile_stream(BY_CARD, seed=4, events=80, probes=30, nan=0)


@pytest.fixture(scope="module")
def offline(spark, tmp_path_factory):
    root = str(tmp_path_factory.mktemp("orders"))
    batch = ArchiveBatch(root, {ORDERS.topic: (ORDERS, SERVICE.views)})
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", "read-time-test")
    rows = pa.table(
        {
            "topic": [ORDERS.topic] * len(STREAM.events),
            "partition": pa.array([event.partition for event in STREAM.events], pa.int32()),
            "offset": pa.array([event.offset for event in STREAM.events], pa.int64()),
            "timestamp": pa.array([event.arrival for event in STREAM.events], pa.timestamp("us", "UTC")),
            "value": [row_bytes(ORDERS, event.row, {}) for event in STREAM.events],
        }
    )
    batch(spark.createDataFrame(rows), 0)
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", None)
    assert places_of(root, "events/orders") == {(event.partition, event.offset): 1 for event in STREAM.events}
    return root


def spine():
    dice = random.Random(1)
    return pa.table(
        {
            "card_id": [key[0] for key, _ in STREAM.probes],
            "at": pa.array([t for _, t in STREAM.probes], pa.timestamp("us", "UTC")),
            "amount": pa.array([dice.choice([1, 2, None]) for _ in STREAM.probes], pa.int32()),
            "kind": [dice.choice(["x", None]) for _ in STREAM.probes],
        }
    )


def test_a_training_set_has_derived_and_request_features_and_is_made_again(spark, offline):
    made = training_set(spark, SERVICE, spine(), offline=offline, event_time="at", leak_report=True)
    table = made.to_arrow()
    assert table.column_names == [*spine().column_names, *SERVICE.feature_ids]
    for row, (key, t) in zip(table.to_pylist(), STREAM.probes, strict=True):
        spec = values_at(BY_CARD, STREAM.events, key, t) | values_at(WHOLE, STREAM.events, key, t)
        for name in ("by_card.items_1h", "by_card.last_10m", "by_card.prices_10m", "whole.n_10m", "by_card.big_share"):
            assert values_agree(spec[name], row[name]), name
        for layout in (*BY_CARD.layout.derived, *SERVICE.request_layouts):
            assert values_agree(evaluate_row(layout, row), row[layout.id]), layout.id
    assert any(row is not None for row in table.column("ratio").to_pylist())
    assert [leak.feature for leak in made.leaks] == [*BY_CARD.layout.feature_ids, *WHOLE.layout.feature_ids]
    again = rebuild(spark, made.manifest, spine(), offline=offline)
    assert again.digest() == made.digest()
    other = dataclasses.replace(SERVICE, request_features=SERVICE.request_features[:1])
    assert training_set(spark, other, spine(), offline=offline, event_time="at").digest() != made.digest()
    frame = spark.createDataFrame(spine())
    assert training_set(spark, SERVICE, frame, offline=offline, event_time="at").to_arrow() == table


def test_a_spine_without_a_request_value_is_refused_before_a_job_starts(spark, offline):
    for made in (spine().drop_columns("kind"), spark.createDataFrame(spine().drop_columns("kind"))):
        with pytest.raises(SpineError, match="the spine has no request value 'kind'; service asked needs it"):
            training_set(spark, SERVICE, made, offline=offline, event_time="at")


def test_a_snapshot_has_derived_features_and_no_request_features(spark, offline):
    at = max(event.event_time for event in STREAM.events) + 1
    rows = snapshot(spark, SERVICE, (at,), offline=offline).frame.toArrow().to_pylist()
    assert rows
    for row in rows:
        assert list(row) == ["card_id", "at", *BY_CARD.layout.feature_ids, *WHOLE.layout.feature_ids]
        spec = values_at(BY_CARD, STREAM.events, [row["card_id"]], at)
        assert values_agree(spec["by_card.big_share"], row["by_card.big_share"])
