"""What a job's driver does, once and small: run by ``engines.class_archive`` to learn which classes drivers load.

    python -m featurestore.engines.spark_rehearsal FOLDER '{"spark.driver.extraJavaOptions": "-XX:ArchiveClassesAtExit=..."}'

A stream of a few files through a Python worker into Delta tables of the folder, reads and joins of those, and a look at a
Kafka broker that is not there. Nothing depends on its results; its JVM writes the archive as it ends.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import functions

from featurestore.engines.session import JOB_CONF, build_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

_OPTIONS = "spark.driver.extraJavaOptions"
_BATCHES = 2
_NO_BROKER = {
    "kafka.bootstrap.servers": "127.0.0.1:9",
    "kafka.request.timeout.ms": "500",
    "kafka.default.api.timeout.ms": "500",
    "fetchOffset.numRetries": "1",
    "subscribe": "none",
}


def main(folder: Path, flags: dict[str, str]) -> int:
    """Run it in a folder that is empty, with what the JVM is told besides; return the exit code of the JVM."""
    conf = JOB_CONF | flags
    conf[_OPTIONS] = f"{JOB_CONF[_OPTIONS]} {flags[_OPTIONS]}"
    session = build_session("rehearsal", master="local[1]", conf=conf)
    gateway: Any = session.sparkContext._gateway  # noqa: SLF001 - its process, to wait for its end
    try:
        _stream(session, folder)
        _read(session, folder)
        with contextlib.suppress(PySparkException, Py4JJavaError):
            session.read.format("kafka").options(**_NO_BROKER).load().collect()
    finally:
        session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    return int(gateway.proc.wait())


def _stream(session: SparkSession, folder: Path) -> None:
    """Micro-batches as those of the archive: decoded by Python, kept, counted, written to tables with and without partitions."""
    (folder / "in").mkdir()
    for number in range(_BATCHES):
        (folder / "in" / f"{number}.txt").write_text("1\n2\n3\n")

    def write(rows: DataFrame, batch_id: int) -> None:
        rows = rows.persist()
        rows.select("value").distinct().collect()
        decoded = rows.mapInArrow(_as_they_are, rows.schema).persist()
        events = decoded.where("value is not null").selectExpr("value", "cast(value as bigint) % 2 part", "1.5 amount")
        for table, partitions in (("events", []), ("tiles", ["part"])):
            frame = events.write.format("delta").mode("append").option("txnAppId", table).option("txnVersion", batch_id)
            frame.partitionBy(*partitions).save(str(folder / table))
        decoded.groupBy("value").agg(functions.max("value")).collect()
        decoded.unpersist()
        rows.unpersist()

    source = session.readStream.format("text").option("maxFilesPerTrigger", 1).load(str(folder / "in"))
    query = source.writeStream.foreachBatch(write).option("checkpointLocation", str(folder / "checkpoint"))
    query.trigger(availableNow=True).start().awaitTermination()


def _read(session: SparkSession, folder: Path) -> None:
    """Reads, joins and windows over the tables, as Arrow, and a merge that replaces rows."""
    events = session.read.format("delta").load(str(folder / "events"))
    tiles = session.read.format("delta").load(str(folder / "tiles")).where("part = 1").select("value")
    joined = events.join(tiles, "value", "left").selectExpr(
        "*", "row_number() over (partition by value order by amount) n"
    )
    joined.toPandas()
    joined.write.format("delta").mode("overwrite").save(str(folder / "joined"))


def _as_they_are(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    return batches


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
