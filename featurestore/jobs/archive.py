"""The archive query: Kafka -> decode -> Delta, in longer batches. Event log, quarantine and tiles.

    events/SOURCE   the contract's columns, and _partition, _offset, _arrival, _event_time (microseconds); where events have ids,
                    _repeats is true for repetitions
    quarantine      what violates its contract: raw bytes, reason, detail and Kafka coordinates; nothing is dropped
    tiles           partials per (part of a view, key, tile) and batch, as rows (``algebra.rows``); merge them to get a
                    tile. Event-grained parts have none: the event log is theirs

Every table is appended to with Delta's transaction identifiers (query id, batch id), so a batch that is run again after a
crash changes nothing: each table takes each batch exactly once. An event log is written by one query only (``offline.owners``);
tiles and quarantine are written by the queries of all sources, and a write that met another's is made again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore.algebra import sequence_of
from featurestore.engines.packed import rows_to_arrow
from featurestore.engines.shape import shape, tiles
from featurestore.failpoints import reach
from featurestore.jobs.breaker import QuarantineBreaker
from featurestore.jobs.hot import kafka_stream
from featurestore.jobs.worker import decoder_of, spare_collections
from featurestore.offline.ids import REPEATS, LogIds
from featurestore.offline.owners import own_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView

_TRIES = 5
_CONFLICTS = ("io.delta.exceptions.", "DELTA_TABLE_ALREADY_EXISTS", "DELTA_PATH_EXISTS", "TABLE_OR_VIEW_ALREADY_EXISTS")
"""What Delta's errors contain where a table was created or changed while it was being written to."""

PLACE = "_topic string, _partition int, _offset bigint, _arrival bigint"
QUARANTINE_SCHEMA = f"source string, {PLACE}, reason string, detail string, raw binary"
TILES_SCHEMA = (
    "view string, fingerprint string, part int, key binary, tile bigint, oldest bigint, newest bigint, row binary"
)


def events_schema(source: EventSource) -> str:
    """Return the Spark schema of a source's event log."""
    columns = [f"`{name}` {kind.spark_name}" for name, kind in source.contract.columns.items()]
    return ", ".join([*columns, PLACE, "_event_time bigint"])


@dataclass(frozen=True)
class DecodeWorker:
    """Decodes Kafka rows of one source: accepted ones with the contract's columns, rejected ones with a reason."""

    source: EventSource

    @property
    def schema(self) -> str:
        """The event log's columns, then those of the quarantine; one of both sides is null."""
        return f"{events_schema(self.source)}, _reason string, _detail string, _raw binary"

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the decoded rows of every batch."""
        source, decoder = self.source, decoder_of(self.source)
        for batch in batches:
            if not batch.num_rows:
                continue
            arrival = batch.column("timestamp").cast(pa.timestamp("us", "UTC")).cast(pa.int64())
            decoded = decoder.decode(batch.column("value"), arrival.to_numpy())
            bad = pa.array([rejected.row for rejected in decoded.rejected], pa.int64())
            both = pa.concat_arrays([pa.array(decoded.rows, pa.int64()), bad])
            good, count = decoded.batch.num_rows, len(bad)
            columns = [
                pa.concat_arrays([column, pa.nulls(count, column.type)])
                for column in (decoded.batch.column(name) for name in source.contract.columns)
            ]
            columns += [batch.column(name).take(both) for name in ("topic", "partition", "offset")]
            columns += [arrival.take(both)]
            columns += [pa.concat_arrays([pa.array(decoded.event_time_us, pa.int64()), pa.nulls(count, pa.int64())])]
            columns += [
                pa.array([None] * good + [str(rejected.reason) for rejected in decoded.rejected], pa.string()),
                pa.array([None] * good + [rejected.detail for rejected in decoded.rejected], pa.string()),
                pa.concat_arrays([pa.nulls(good, pa.binary()), batch.column("value").take(bad).cast(pa.binary())]),
            ]
            names = [*source.contract.columns, "_topic", "_partition", "_offset", "_arrival", "_event_time"]
            yield pa.RecordBatch.from_arrays(columns, [*names, "_reason", "_detail", "_raw"])
        spare_collections("log")


@dataclass(frozen=True)
class MarkRepeats:
    """Adds ``_repeats`` to event log rows.

    Attributes:
        offsets: Partition to the offsets of repetitions.
    """

    offsets: Mapping[int, np.ndarray]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield every batch with the column."""
        for batch in batches:
            partition, offset = batch.column("_partition").to_numpy(), batch.column("_offset").to_numpy()
            repeats = np.zeros(batch.num_rows, bool)
            for number, offsets in self.offsets.items():
                repeats |= (partition == number) & np.isin(offset, offsets)
            marks = pa.array(repeats, mask=~repeats)
            yield pa.RecordBatch.from_arrays([*batch.columns, marks], [*batch.schema.names, REPEATS])


@dataclass(frozen=True)
class TileWorker:
    """Merges event log rows of one source into tiles of all its views."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the tiles of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            event_time, arrival = batch.column("_event_time").to_numpy(), batch.column("_arrival").to_numpy()
            sequence = sequence_of(1, 0) * batch.column("_partition").to_numpy().astype(np.int64)
            sequence = sequence | batch.column("_offset").to_numpy()
            for view in self.views:
                shaped = shape(view, batch, event_time, sequence, arrival)
                for part in view.layout.parts:
                    if part.is_event_grained or not len(shaped):
                        continue
                    rows = tiles(part, shaped)
                    yield pa.RecordBatch.from_pydict(
                        {
                            "view": pa.array([view.name] * len(rows)),
                            "fingerprint": pa.array([view.layout.fingerprint] * len(rows)),
                            "part": pa.array(np.full(len(rows), part.number, np.int32)),
                            "key": pa.array([shaped.keys[code] for code in rows.key.tolist()], pa.binary()),
                            "tile": rows.tile,
                            "oldest": rows.oldest,
                            "newest": rows.newest,
                            "row": rows_to_arrow(part.slots, rows.columns),
                        }
                    )
        spare_collections("tiles")


@dataclass(frozen=True)
class ArchiveBatch:
    """Writes one micro-batch to all tables; called by ``foreachBatch`` on the driver.

    Attributes:
        root: Directory or URI of the offline store.
        sources: Topic to source and the views on it.
        breakers: Source to what stops the query when too many of its records are no events.
        ids: Source to the ids of its newest events, where events have ids.
        owned: The sources whose event log is known to be this query's.
    """

    root: str
    sources: Mapping[str, tuple[EventSource, tuple[FeatureView, ...]]]
    breakers: dict[str, QuarantineBreaker] = field(default_factory=dict)
    ids: dict[str, LogIds] = field(default_factory=dict)
    owned: set[str] = field(default_factory=set)

    def __call__(self, rows: DataFrame, batch_id: int) -> None:
        """Write the batch; a batch that has been written before changes nothing."""
        # The query's own id, which lives in its checkpoint, scopes the batch ids: another checkpoint never collides.
        query_id = rows.sparkSession.sparkContext.getLocalProperty("sql.streaming.queryId")
        reach("archive.begin")
        cached: list[DataFrame] = []
        try:
            topics = list(self.sources)
            if len(topics) > 1:  # else its rows are read once alone
                rows = rows.persist()
                cached.append(rows)
                topics = sorted(row["topic"] for row in rows.select("topic").distinct().collect())
            writes: list[Callable[[], None]] = []
            rejected: list[DataFrame] = []
            tiled: list[DataFrame] = []
            for topic in topics:
                source, views = self.sources[topic]
                worker = DecodeWorker(source)
                decoded = rows.where(rows["topic"] == topic).mapInArrow(worker, worker.schema).persist()
                cached.append(decoded)
                total, refused = self._check(source, decoded)
                if not total:
                    continue
                if query_id is not None and source.name not in self.owned:
                    own_log(self.root, source.name, query_id)
                    self.owned.add(source.name)
                events = decoded.where("_reason is null").drop("_reason", "_detail", "_raw")
                if source.event_id is not None:
                    marks = MarkRepeats(self._repeats(source, events))
                    events = events.mapInArrow(marks, f"{events_schema(source)}, {REPEATS} boolean")
                writes.append(self._append(events, f"events/{source.name}", query_id, batch_id))
                if source.event_id is not None:
                    events = events.where(f"{REPEATS} is null")
                if refused:
                    bad = decoded.where("_reason is not null").selectExpr(
                        f"'{source.name}' source", "_topic", "_partition", "_offset", "_arrival", "_reason reason",
                        "_detail detail", "_raw raw",
                    )  # fmt: skip
                    rejected.append(bad)
                tiled.append(events.mapInArrow(TileWorker(views), TILES_SCHEMA))
            if rejected:
                writes.append(self._append(_union(rejected), "quarantine", query_id, batch_id))
            # Of marks of transactions alone there are none; the tiles know of every batch, see ``jobs.checkpoint``.
            made = _union(tiled or [rows.sparkSession.createDataFrame([], TILES_SCHEMA)])
            writes.append(self._append(made, "tiles", query_id, batch_id, partition_by="view"))
            with ThreadPoolExecutor(2) as pool:
                for done in [pool.submit(write) for write in writes]:
                    done.result()
            for each in self.ids.values():
                each.keep()
            reach("archive.tables")
        finally:
            for frame in cached:
                frame.unpersist()

    def _repeats(self, source: EventSource, events: DataFrame) -> dict[int, np.ndarray]:
        """Return, per partition, the offsets of the batch's repetitions: of earlier events, or of others in the batch."""
        rows = events.selectExpr(
            "_partition", "_offset", "_arrival", f"cast(`{source.event_id}` as string) id"
        ).toArrow()
        known = self.ids.get(source.name)
        if known is None:
            known = self.ids[source.name] = LogIds(source)
            firsts = rows.group_by("_partition").aggregate([("_offset", "min")]).to_pylist()
            known.load(self.root, {each["_partition"]: each["_offset_min"] for each in firsts})
        return known.judge(rows)

    def _check(self, source: EventSource, decoded: DataFrame) -> tuple[int, int]:
        """Return how many records there are, and how many are no events; raise, before anything is written, if too many."""
        breaker = self.breakers.setdefault(source.name, QuarantineBreaker(source))
        counts = decoded.selectExpr("count(1) total", "count(_reason) refused").first()
        assert counts is not None  # noqa: S101 - an aggregate over everything has one row
        breaker.count(
            counts["total"],
            counts["refused"],
            lambda: (
                decoded.where("_reason is not null")
                .selectExpr("concat(_topic, '-', _partition, ' offset ', _offset, ': ', _reason, ', ', _detail)")
                .limit(1)
                .collect()[0][0]
            ),
        )
        return counts["total"], counts["refused"]

    def _append(
        self, frame: DataFrame, table: str, query_id: str | None, batch_id: int, *, partition_by: str | None = None
    ) -> Callable[[], None]:
        def write() -> None:
            writer = (
                frame.coalesce(1)
                .write.format("delta")
                .mode("append")
                .option("txnAppId", str(query_id))
                .option("txnVersion", str(batch_id))
                .option("mergeSchema", "true")  # a newer version of a contract adds columns
            )
            if partition_by is not None:
                writer = writer.partitionBy(partition_by)
            for left in reversed(range(_TRIES)):
                try:
                    writer.save(f"{self.root}/{table}")
                    break
                except Exception as error:  # Spark raises what Java raised, as one class or another
                    if not left or not any(one in str(error) for one in _CONFLICTS):
                        raise
            reach("archive.table")

        return write


def _union(frames: Sequence[DataFrame]) -> DataFrame:
    return reduce(lambda one, other: one.unionByName(other), frames)


def start_archive(
    session: SparkSession,
    batch: ArchiveBatch,
    kafka: Mapping[str, str],
    *,
    checkpoint: str,
    every: str = "10 seconds",
    batch_rows: int = 200_000,
    lenient: bool = False,
) -> StreamingQuery:
    """Start the archive query and return it.

    Args:
        session: The Spark session, with Delta.
        batch: What to write, and where.
        kafka: Kafka settings.
        checkpoint: Directory of Spark's progress log.
        every: Trigger interval.
        batch_rows: The most records of one micro-batch.
        lenient: Whether to go on where Kafka no longer has what comes next (``jobs.resume``).
    """
    options = {"maxOffsetsPerTrigger": str(batch_rows), "failOnDataLoss": "false" if lenient else "true"}
    rows = kafka_stream(session, kafka, list(batch.sources), options)
    return (
        rows.writeStream.queryName("archive")
        .option("checkpointLocation", checkpoint)
        .trigger(processingTime=every)
        .foreachBatch(batch)
        .start()
    )
