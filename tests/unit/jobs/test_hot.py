"""How the hot query's Arrow batches are cut into topics and partitions."""

from __future__ import annotations

import pyarrow as pa
import pytest

from featurestore.jobs.hot import _runs


def batch(rows, *, named):
    topics, partitions = zip(*rows, strict=True)
    columns = {"partition": pa.array(partitions, pa.int32()), "offset": list(range(len(rows)))}
    return pa.RecordBatch.from_pydict({"topic": list(topics), **columns} if named else columns)


@pytest.mark.parametrize("named", [True, False])
def test_a_batch_is_cut_where_the_partition_changes_in_order_of_offsets(named):
    rows = [("a", 1), ("a", 1), ("a", 0), ("a", 1)]
    found = [
        (topic, partition, part.column("offset").to_pylist())
        for topic, partition, part in _runs(batch(rows, named=named), "a")
    ]
    assert found == [("a", 1, [0, 1]), ("a", 0, [2]), ("a", 1, [3])]


def test_a_batch_of_several_topics_is_cut_where_the_topic_changes():
    rows = [("a", 0), ("b", 0), ("b", 0), ("a", 0)]
    found = [(topic, part.column("offset").to_pylist()) for topic, _, part in _runs(batch(rows, named=True), "a")]
    assert found == [("a", [0]), ("b", [1, 2]), ("a", [3])]
