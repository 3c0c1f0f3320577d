"""What a job reports of its queries: every batch once, however often it looks."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from featurestore.jobs.report import Reporter
from featurestore.jobs.worker import COUNTS
from tests.streaming.support import wait_for

pytestmark = pytest.mark.jvm

ROWS = 7


def test_every_batch_is_counted_once_however_often_a_job_looks(spark, tmp_path):
    rows = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", ROWS).load()
    counted = rows.observe("hot", *[F.count(F.lit(1)).alias(name) for name in COUNTS])
    query = (
        counted.writeStream.format("noop")
        .queryName("counted")
        .option("checkpointLocation", str(tmp_path / "c"))
        .start()
    )
    often, once = Reporter(None), Reporter(None)
    looks = 0

    def look():
        nonlocal looks
        often.collect(query)
        looks += 1
        return often.totals["consumed"] >= 12 * ROWS

    try:
        wait_for("a dozen batches", look, 60.0)
    finally:
        query.stop()
    often.collect(query)
    once.collect(query)
    batches = [progress["batchId"] for progress in query.recentProgress if progress["observedMetrics"]]
    assert len(batches) == len(set(batches)) < 100
    assert often.totals == once.totals == dict.fromkeys(COUNTS, ROWS * len(batches))
    assert often.queries == once.queries
    assert often.queries["counted"]["batch"] >= max(batches)
    assert looks > 1
