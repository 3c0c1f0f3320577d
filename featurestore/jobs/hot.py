"""The hot query: Kafka -> decode -> row expressions -> partials -> the online store, in short micro-batches.

    Kafka rows  --(Arrow batches of one topic partition)-->  HotWorker  --(nothing)-->  noop sink
                                                                 |
                                                                 +--(what became of the records)-->  an accumulator

The query has no shuffle, no Spark state and no watermark. What makes it exactly-once is the writer's fence, not the
checkpoint: see ``online.writer``.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.jobs.breaker import QuarantineBreaker
from featurestore.jobs.java_settings import java_settings
from featurestore.jobs.worker import SourceWorker, decoder_of, spare_collections, writer_of
from featurestore.online.redis_store import RedisOnlineStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyspark.accumulators import Accumulator
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Instant

SCHEMA = "nothing boolean"
"""Of what the workers return to Spark: no row. Spark makes code for every task out of what it reads and sums up: nine counts,
as rows with an aggregate over them (``observe``), were a third of what a small micro-batch cost the JVM in its tasks."""

SLOT_ROWS = 90_000
"""A little less than Spark puts into one Arrow batch, so that a task has one. However many records a micro-batch has, a worker
holds one Arrow batch at a time, of 64 MB at most: a larger one takes more time, not more memory."""

_DEADLINES = {
    "kafka.request.timeout.ms": "10000",
    "kafka.default.api.timeout.ms": "15000",
    "fetchOffset.numRetries": "12",
}
"""Of Spark's questions to brokers. One that a dying leader took with it is asked again at its deadline, and no micro-batch is
planned until then: a minute by default. Asked so often, brokers that are away are waited for as long as by default."""

_WORKERS: dict[tuple[str, str], SourceWorker] = {}
"""By run and source, one per worker process: decoders and connections outlive a micro-batch, not a run."""


@dataclass(frozen=True)
class HotWorker:
    """Applies Arrow batches of Kafka rows to the online store; runs in Spark's Python workers.

    Attributes:
        url: The online store.
        project: Namespace of its keys.
        sources: Topic to source and the views on it.
        epoch: The epoch that the store must have (``online.epoch``); None writes to whatever is there.
        run: Tells one run of a job from the next in the same Spark session, whose worker processes live on.
        counts: Where to count what became of the records (``jobs.counting``); None does not.
    """

    url: str
    project: str
    sources: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]]
    epoch: int | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    counts: Accumulator[dict[str, int]] | None = field(default=None, compare=False)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Apply all batches, and yield nothing."""
        for batch in batches:
            if not batch.num_rows:
                continue
            for topic, partition, rows in _runs(batch, next(iter(self.sources))):
                found = self.apply(topic, partition, rows)
                if self.counts is not None:
                    self.counts.add(found)
        spare_collections("hot")
        yield from ()

    def apply(self, topic: str, partition: int, rows: pa.RecordBatch) -> dict[str, int]:
        """Apply the records of one partition, in offset order."""
        arrival = rows.column("timestamp").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        return self.apply_records(topic, partition, rows.column("offset").to_numpy(), arrival, rows.column("value"))

    def apply_records(
        self,
        topic: str,
        partition: int,
        offsets: np.ndarray,
        arrival: np.ndarray,
        values: pa.Array | Sequence[bytes | None],
    ) -> dict[str, int]:
        """Apply consecutive records of one partition (``SourceWorker.apply``)."""
        return self._worker(*self.sources[topic]).apply(partition, offsets, arrival, values)

    def progress(self, topic: str) -> dict[int, tuple[int, Instant]]:
        """Return how far the records of a topic are applied (``OnlineStore.progress``)."""
        source, views = self.sources[topic]
        return self._worker(source, views).writer.store.progress(source.name)

    def prepare(self) -> None:
        """Make decoders and connections of all sources and run them on nothing, so that the first record waits for neither.

        pyarrow imports pandas with the first array it makes of a list: the largest of what would be waited for.
        """
        for source, views in self.sources.values():
            self._worker(source, views).rehearse()

    def _worker(self, source: EventSource, views: tuple[FeatureView, ...]) -> SourceWorker:
        identity = (self.run, source.name)
        worker = _WORKERS.get(identity)
        if worker is None:
            writer = writer_of(RedisOnlineStore(self.url, self.project), source, views, epoch=self.epoch)
            worker = _WORKERS[identity] = SourceWorker(source, decoder_of(source), writer, QuarantineBreaker(source))
        return worker


def _runs(batch: pa.RecordBatch, only: str = "") -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Yield the batch cut into runs of one topic and partition; where no row names its topic, there is ``only`` one."""
    partitions = batch.column("partition").to_numpy()
    if "topic" in batch.schema.names:
        topics = batch.column("topic").dictionary_encode()
        codes, names = topics.indices.to_numpy(), topics.dictionary.to_pylist()
    else:
        codes, names = np.zeros(len(partitions), np.int32), [only]
    edges = np.flatnonzero((codes[1:] != codes[:-1]) | (partitions[1:] != partitions[:-1])) + 1
    starts = [0, *edges.tolist(), len(codes)]
    for begin, end in pairwise(starts):
        yield names[codes[begin]], int(partitions[begin]), batch.slice(begin, end - begin)


def kafka_stream(
    session: SparkSession, kafka: Mapping[str, str], topics: list[str], options: Mapping[str, str]
) -> DataFrame:
    """Return the stream of raw Kafka rows: topic, partition, offset, timestamp, value."""
    reader = session.readStream.format("kafka").option("subscribe", ",".join(sorted(topics)))
    for name, value in {
        **({} if any(name.endswith("timeout.ms") for name in kafka) else _DEADLINES),
        **{f"kafka.{name}": value for name, value in java_settings(kafka).items()},
        "kafka.isolation.level": "read_committed",
        "startingOffsets": "earliest",
        "failOnDataLoss": "true",
        **options,
    }.items():
        reader = reader.option(name, value)
    return reader.load().select("topic", "partition", "offset", "timestamp", "value")


def start_hot(
    session: SparkSession,
    worker: HotWorker,
    kafka: Mapping[str, str],
    *,
    checkpoint: str,
    batch_rows: int | None = None,
    starting: Mapping[str, Mapping[int, int]] | None = None,
    lenient: bool = False,
) -> StreamingQuery:
    """Start the hot query and return it.

    Args:
        session: The Spark session.
        worker: What to do with the rows.
        kafka: Kafka settings.
        checkpoint: Directory of Spark's progress log.
        batch_rows: The most records of one micro-batch, over all partitions; ``SLOT_ROWS`` per task slot when None.
        starting: Topic to partition to the offset at which a new checkpoint begins; the earliest when None.
        lenient: Whether to go on where Kafka no longer has what comes next (``jobs.resume``).
    """
    if batch_rows is None:
        batch_rows = SLOT_ROWS * max(2, session.sparkContext.defaultParallelism)
    # Spark seeks at the start of every task, behind which a consumer's long poll of 500 ms may still be running.
    # Short polls took a micro-batch of three tasks from 244 to 76 ms; between batches nothing polls at all.
    # A poll has a price of its own: 10,000 records a poll instead of 500 take a tenth off what the JVM does per record.
    quick = {
        "maxOffsetsPerTrigger": str(batch_rows),
        "kafka.fetch.max.wait.ms": "10",
        "kafka.max.poll.records": "10000",
    }
    if lenient:
        quick["failOnDataLoss"] = "false"
    if starting is not None:
        quick["startingOffsets"] = json.dumps(starting)
    rows = kafka_stream(session, kafka, list(worker.sources), quick)
    if len(worker.sources) == 1:
        rows = rows.drop("topic")
    return (
        rows.mapInArrow(worker, SCHEMA)
        .writeStream.format("noop")
        .queryName("hot")
        .option("checkpointLocation", checkpoint)
        .option("asyncProgressTrackingEnabled", "true")
        .option("asyncProgressTrackingCheckpointIntervalMs", "1000")
        .option("_asyncProgressTrackingOverrideSinkSupportCheck", "true")
        .trigger(processingTime="0 seconds")
        .start()
    )


def warm_up(session: SparkSession, worker: HotWorker) -> None:
    """Run the worker on no records once per core: Python workers, imports and code paths are then ready."""
    cores = session.sparkContext.defaultParallelism
    empty: Any = session.range(cores, numPartitions=cores).selectExpr(
        "'' topic", "0 partition", "id offset", "current_timestamp() timestamp", "cast('' as binary) value"
    )

    def touch(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            worker.prepare()
            yield from worker(iter([batch.slice(0, 0)]))

    empty.mapInArrow(touch, SCHEMA).write.format("noop").mode("overwrite").save()
