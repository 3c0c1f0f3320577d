"""The scoring query on Spark: Kafka -> mapInArrow(score) -> Delta and the predictions topic, in micro-batches.

A batch is sent first, for somebody waits for it, and then goes to Delta, with Delta's transaction identifiers (query id, batch
id): run again after a crash it changes nothing there. Kafka has no such thing in Spark, so predictions of a batch that is run
again are sent again, with the same ids.
"""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from featurestore.jobs.archive import QUARANTINE_SCHEMA
from featurestore.jobs.hot import _runs
from featurestore.jobs.java_settings import java_settings
from featurestore.jobs.score_log import PREDICTIONS, QUARANTINE
from featurestore.jobs.score_worker import ScoreWorker
from featurestore.jobs.worker import spare_collections
from featurestore.scoring.kafka_envelope import Envelope, wrap
from featurestore.scoring.prediction_log import arrow_schema, to_arrow, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.jobs.score import Outcome, ScoreSpec

BATCH_ROWS = 20_000
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_PREDICTION = (
    "prediction_id string, request_id string, model string, version bigint, role string, service string, "
    "service_fingerprint string, keys map<string,string>, request map<string,string>, "
    "features map<string,struct<value:string,status:string,as_of:timestamp>>, score double, `at` timestamp, "
    "scored_at timestamp, complete_through timestamp, latency_us bigint"
)
_SENT = "_key binary, _value binary, _headers array<struct<key:string,value:binary>>"
SCHEMA = f"{_PREDICTION}, {_SENT}, {QUARANTINE_SCHEMA}"
_HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

_WORKERS: dict[tuple[str, str, str], tuple[str, ScoreWorker]] = {}
"""By project, model and topic, one per worker process: model and connections outlive a micro-batch, not a run."""


@dataclass(frozen=True)
class ScoreRows:
    """Scores Arrow batches of Kafka rows; runs in Spark's Python workers. While the store is away, it waits.

    Attributes:
        spec: What to score.
        run: Tells one run of a job from the next in the same Spark session, whose worker processes live on.
    """

    spec: ScoreSpec
    run: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    @property
    def worker(self) -> ScoreWorker:
        """This process's own; that of an earlier run of the job is closed."""
        spec = self.spec
        job = (spec.project, spec.model.partition(":")[0], spec.topic)
        run, worker = _WORKERS.get(job, (None, None))
        if worker is None or run != self.run:
            if worker is not None:
                worker.close()
            worker = ScoreWorker(spec)
            _WORKERS[job] = (self.run, worker)
        return worker

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row per record: a prediction with what is sent, or a refusal; one of both sides is null."""
        for batch in batches:
            if not batch.num_rows:
                continue
            for _, partition, rows in _runs(batch):
                yield self._scored(partition, rows)
        spare_collections("scores")

    def _scored(self, partition: int, rows: pa.RecordBatch) -> pa.RecordBatch:
        arrival = rows.column("timestamp").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        headers = None
        if self.spec.envelope is not Envelope.NONE:
            headers = [[(one["key"], one["value"]) for one in own or ()] for own in rows.column("headers").to_pylist()]
        pause, tries = threading.Event(), 0
        while True:
            try:
                outcome = self.worker.scorer.score(
                    partition, rows.column("offset").to_numpy(), arrival, rows.column("value"), headers
                )
            except (ConnectionError, TimeoutError):
                pause.wait(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
                tries += 1
            else:
                return self._rows(rows, arrival, outcome)

    def _rows(self, rows: pa.RecordBatch, arrival: object, outcome: Outcome) -> pa.RecordBatch:
        spec = self.spec
        sent = [wrap(to_json(one), one, spec.envelope, source=spec.origin) for one in outcome.predictions]
        good, bad = len(sent), len(outcome.refused)
        taken = pa.array([one.row for one in outcome.refused], pa.int64())
        refused = {
            "source": pa.array([spec.source.name] * bad, pa.string()),
            **{f"_{name}": rows.column(name).take(taken) for name in ("topic", "partition", "offset")},
            "_arrival": pa.array(arrival, pa.int64()).take(taken),
            "reason": pa.array([one.reason for one in outcome.refused], pa.string()),
            "detail": pa.array([one.detail for one in outcome.refused], pa.string()),
            "raw": rows.column("value").take(taken).cast(pa.binary()),
        }
        predictions = to_arrow(outcome.predictions).combine_chunks()
        keys = rows.column("key").take(pa.array(outcome.rows, pa.int64())).cast(pa.binary())
        made = {
            **{name: _chunk(predictions, name) for name in arrow_schema().names},
            "_key": keys,
            "_value": pa.array([value for value, _ in sent], pa.binary()),
            "_headers": pa.array([[{"key": n, "value": v} for n, v in headers] for _, headers in sent], _HEADERS),
        }
        columns = [pa.concat_arrays([column, pa.nulls(bad, column.type)]) for column in made.values()]
        columns += [pa.concat_arrays([pa.nulls(good, column.type), column]) for column in refused.values()]
        return pa.RecordBatch.from_arrays(columns, names=[*made, *refused])


def _chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


@dataclass(frozen=True)
class ScoreBatch:
    """Writes one scored micro-batch; called by ``foreachBatch`` on the driver.

    Attributes:
        spec: Where to.
        counts: How many records met which fate so far.
    """

    spec: ScoreSpec
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("consumed", "applied", "quarantined"), 0))

    def __call__(self, rows: DataFrame, batch_id: int) -> None:
        """Send the batch, then write it to Delta."""
        query_id = str(rows.sparkSession.sparkContext.getLocalProperty("sql.streaming.queryId"))
        rows = rows.persist()
        try:
            predictions = rows.where("prediction_id is not null")
            sink = predictions.selectExpr("_key key", "_value value", "_headers headers").write.format("kafka")
            for name, value in java_settings(self.spec.kafka).items():
                sink = sink.option(f"kafka.{name}", value)
            sink.option("topic", self.spec.topic).option("includeHeaders", "true").save()
            counted = rows.selectExpr(
                "count(1) consumed", "count(prediction_id) applied", "count(reason) quarantined"
            ).first()
            assert counted is not None  # noqa: S101 - an aggregate over everything has one row
            self._append(predictions.select(*arrow_schema().names), PREDICTIONS, query_id, batch_id)
            if counted["quarantined"]:
                refused = rows.where("reason is not null").select(
                    "source", "_topic", "_partition", "_offset", "_arrival", "reason", "detail", "raw"
                )
                self._append(refused, QUARANTINE, query_id, batch_id)
            for name in self.counts:
                self.counts[name] += counted[name]
        finally:
            rows.unpersist()

    def _append(self, frame: DataFrame, table: str, query_id: str, batch_id: int) -> None:
        (
            frame.coalesce(1)
            .write.format("delta")
            .mode("append")
            .option("txnAppId", query_id)
            .option("txnVersion", str(batch_id))
            .save(f"{self.spec.offline}/{table}")
        )


def start_score(
    session: SparkSession, spec: ScoreSpec, *, checkpoint: str, batch_rows: int = BATCH_ROWS
) -> tuple[StreamingQuery, dict[str, int]]:
    """Start the query; return it and the counts that it keeps.

    Args:
        session: The Spark session, with Delta.
        spec: What to score.
        checkpoint: Directory of Spark's progress log.
        batch_rows: The most records of one micro-batch.
    """
    reader = session.readStream.format("kafka").option("subscribe", spec.source.topic)
    for name, value in {
        **{f"kafka.{name}": value for name, value in java_settings(spec.kafka).items()},
        "kafka.isolation.level": "read_committed",
        "startingOffsets": spec.starting,
        "failOnDataLoss": "true",
        "includeHeaders": json.dumps(spec.envelope is not Envelope.NONE),
        "maxOffsetsPerTrigger": str(batch_rows),
        "kafka.fetch.max.wait.ms": "10",
    }.items():
        reader = reader.option(name, value)
    columns = ["topic", "partition", "offset", "timestamp", "key", "value"]
    if spec.envelope is not Envelope.NONE:
        columns.append("headers")
    batch = ScoreBatch(spec)
    scored = reader.load().select(*columns).mapInArrow(ScoreRows(spec), SCHEMA)
    query = (
        scored.writeStream.queryName("score")
        .option("checkpointLocation", checkpoint)
        .trigger(processingTime="0 seconds")
        .foreachBatch(batch)
        .start()
    )
    return query, batch.counts
