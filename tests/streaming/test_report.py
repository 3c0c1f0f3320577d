"""What a job reports of its queries: every record counted once, however often it looks."""

from __future__ import annotations

import pytest

from featurestore.jobs.counting import counter
from featurestore.jobs.report import Reporter
from featurestore.jobs.worker import COUNTS
from tests.streaming.support import wait_for

pytestmark = pytest.mark.jvm

ROWS = 7


def test_every_record_is_counted_once_however_often_a_job_looks(spark, tmp_path):
    counts = counter(spark)

    def work(batches):
        for batch in batches:
            counts.add(dict.fromkeys(COUNTS, batch.num_rows))
        yield from ()

    rows = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", ROWS).load()
    query = (
        rows.mapInArrow(work, "nothing boolean")
        .writeStream.format("noop")
        .queryName("counted")
        .option("checkpointLocation", str(tmp_path / "c"))
        .start()
    )
    often, once = Reporter(None), Reporter(None)
    looks = 0

    def look():
        nonlocal looks
        often.collect(query)
        often.count(counts.value)
        looks += 1
        return often.totals["consumed"] >= 12 * ROWS

    try:
        wait_for("a dozen batches", look, 60.0)
    finally:
        query.stop()
    for each in (often, once):
        each.collect(query)
        each.count(counts.value)
    batches = [progress["batchId"] for progress in query.recentProgress if progress["numInputRows"]]
    assert len(batches) == len(set(batches)) < 100
    assert often.totals["consumed"] >= ROWS * len(batches)
    assert often.totals == once.totals == dict.fromkeys(COUNTS, often.totals["consumed"])
    assert often.queries == once.queries
    assert often.queries["counted"]["batch"] >= max(batches)
    assert looks > 1
