"""What training sets run inside Spark's workers, without Spark: event log rows and points in, the oracle's values out."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from featurestore.datatypes import DataType
from featurestore.engines.oracle import values_at
from featurestore.testing.streams import hostile_stream, to_batch
from tests.conformance.cases import LIFETIME, MANY, SEVERAL, SKETCHES, SOURCE, WIDE, WINDOWS, assert_same
from tests.effort import tries
from tests.unit.offline.local import run

pytestmark = pytest.mark.thorough

SERVICES = [
    pytest.param((SEVERAL, SKETCHES), id="several-sketches"),
    pytest.param((MANY, WIDE), id="many-wide"),
    pytest.param((WINDOWS, LIFETIME), id="windows-lifetime"),
]


def logged(events):
    """Return events as rows of the event log."""
    batch = to_batch(SOURCE, events)
    columns = [*batch.columns]
    columns += [pa.array([event.partition for event in events], pa.int32())]
    columns += [
        pa.array([getattr(event, name) for event in events], pa.int64()) for name in ("offset", "arrival", "event_time")
    ]
    return pa.RecordBatch.from_arrays(
        columns, [*batch.schema.names, "_partition", "_offset", "_arrival", "_event_time"]
    )


@pytest.mark.parametrize("views", SERVICES)
@pytest.mark.parametrize("as_served", [False, True])
def test_training_rows_are_the_oracle(views, as_served):
    for seed in range(tries(3)):
        dice = random.Random(seed)
        stream = hostile_stream(views[0], seed=seed, events=80, probes=20)
        events = list(stream.events)
        keys = [key for key, _ in stream.probes]
        at = np.array([t for _, t in stream.probes], dtype=np.int64)
        visible = at + np.array([dice.choice([0, -(10**8), 10**13]) for _ in at])
        spine = pa.table({"card_id": [key[0] for key in keys], "row": np.arange(len(at))})
        logs = {SOURCE.name: pa.Table.from_batches([logged(events)])}
        made, _ = run(
            views, logs, spine, at, visible=visible if as_served else None, buckets=dice.choice([1, 3]), batch=30
        )
        assert made.column("row").to_pylist() == list(range(len(at)))
        for view in views:
            columns = []
            for feature, name in zip(view.layout.features, view.layout.feature_ids, strict=True):
                column = made.column(name)
                if feature.aggregate.result_type == DataType.TIMESTAMP:
                    column = column.cast(pa.int64())
                elif feature.aggregate.result_type == DataType.LIST_TIMESTAMP:
                    column = column.cast(pa.list_(pa.int64()))
                columns.append(column.to_pylist())
            for row, (key, t) in enumerate(stream.probes):
                seen = int(visible[row]) if as_served else None
                expected = values_at(view, events, key, t, visible_at=seen)
                assert_same(view, expected, [column[row] for column in columns], f"training at {t}, {seen}")
