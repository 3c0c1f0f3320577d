"""Two archive queries on new tables at the same moment: of one source one writes, of two sources both do."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from featurestore.errors import CheckpointMismatchError
from featurestore.jobs.archive import ArchiveBatch
from tests.streaming.support import Shop, places_of, wait_for

pytestmark = pytest.mark.jvm


class WaitForTable:
    """Yields its rows once a table is there: so it had none when its write began, and has one when it ends."""

    def __init__(self, folder, table):
        self.begun, self.log = str(folder / "begun"), str(folder / table / "_delta_log/00000000000000000000.json")

    def __call__(self, batches):
        Path(self.begun).touch()
        give_up = time.monotonic() + 60
        while not Path(self.log).exists():
            if time.monotonic() > give_up:
                raise TimeoutError(self.log)
            time.sleep(0.01)
        yield from batches


@pytest.mark.parametrize("is_ours", [False, True], ids=["delta", "archive"])
def test_a_table_that_another_query_created_meanwhile_takes_the_rows_all_the_same(spark, tmp_path, is_ours):
    root = str(tmp_path)
    slow = spark.range(3, numPartitions=1).mapInArrow(WaitForTable(tmp_path, "tiles"), "id bigint")
    write = ArchiveBatch(root, {})._append(slow, "tiles", "slow", 0)
    if not is_ours:  # the control: Delta alone refuses one that way
        write = lambda: slow.write.format("delta").mode("append").save(f"{root}/tiles")  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        wait_for("the first write", Path(root, "begun").exists, 60.0)
        ArchiveBatch(root, {})._append(spark.range(10, 12, numPartitions=1), "tiles", "quick", 0)()
        if is_ours:
            writing.result(60)
        else:
            with pytest.raises(Exception, match=r"io\.delta\.exceptions|DELTA_"):
                writing.result(60)
    table = DeltaTable(f"{root}/tiles")
    ids = sorted(table.to_pyarrow_table().column("id").to_pylist())
    assert ids == ([0, 1, 2, 10, 11] if is_ours else [10, 11])
    assert table.transaction_version("slow") == (0 if is_ours else None)


def test_of_two_queries_of_one_source_one_writes_and_the_other_writes_nothing(spark, tmp_path):
    shop, root, together = Shop("twice"), str(tmp_path), threading.Barrier(2)
    values = [b'{"broken": true}'] * 5
    rows = pa.table(
        {
            "topic": [shop.source.topic] * 5,
            "partition": pa.array([0] * 5, pa.int32()),
            "offset": pa.array(range(5), pa.int64()),
            "timestamp": pa.array([1_000_000] * 5, pa.timestamp("us", "UTC")),
            "value": pa.array(values, pa.binary()),
        }
    )

    def archive(query):
        spark.sparkContext.setLocalProperty("sql.streaming.queryId", query)
        together.wait(60)
        try:
            ArchiveBatch(root, {shop.source.topic: (shop.source, shop.views)})(spark.createDataFrame(rows), 0)
        except CheckpointMismatchError as refused:
            return str(refused)
        finally:
            spark.sparkContext.setLocalProperty("sql.streaming.queryId", None)
        return query

    with ThreadPoolExecutor(2) as pool:
        won, refused = sorted(pool.map(archive, ("one", "two")), key=len)
    assert f"source payments: another archive query ({won}) writes its event log" in refused
    assert places_of(root, "quarantine") == {(0, offset): 1 for offset in range(5)}
    lost = ({"one", "two"} - {won}).pop()
    for name in ("tiles", "quarantine", "events/payments"):
        assert DeltaTable(f"{root}/{name}").transaction_version(lost) is None
        assert DeltaTable(f"{root}/{name}").transaction_version(won) == 0
