"""Predictions in Delta: the predictions topic copied into a table, and read back with every prediction once.

    predictions        ``scoring.prediction_log.arrow_schema``
    score_quarantine   what could not be scored: as the table ``quarantine``, of events that a model was to score

The copy is exactly-once: with every append, Delta notes how far each partition of the topics has been copied, and a new copier
begins there. The topic itself may hold a prediction more than once, where a worker died between sending and committing;
``read_predictions`` keeps the one that was scored first.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from featurestore.errors import ContractError, OfflineError, OfflineStoreUnavailableError, OffsetsGoneError
from featurestore.events.broker import ensure_topics, mapped_errors
from featurestore.events.kafka_options import client_options
from featurestore.offline.tables import ensure_table
from featurestore.scoring.kafka_envelope import unwrap
from featurestore.scoring.prediction_log import arrow_schema, from_json, to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

PREDICTIONS, QUARANTINE = "predictions", "score_quarantine"
IDENTITY = ("prediction_id", "model", "version", "role")
QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("_topic", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_arrival", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.binary()),
    ]
)
_MAX_ROWS = 50_000


def read_predictions(offline: str) -> pa.Table:
    """Return the predictions of an offline store, each once: the copy that was scored first. Memory grows with the table.

    Raises:
        OfflineError: There are none yet, or the table cannot be read.
    """
    path = f"{offline.rstrip('/')}/{PREDICTIONS}"
    try:
        found = DeltaTable(path).to_pyarrow_table()
    except (DeltaError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise OfflineError(f"{path} cannot be read: {reason}.", hint="submit a scoring job first.") from error
    return once(found)


def once(predictions: pa.Table) -> pa.Table:
    """Return predictions with every identity once: the copy with the smallest ``scored_at``, in order of that time."""
    ordered = predictions.sort_by([("scored_at", "ascending")])
    numbered = ordered.select(IDENTITY).append_column("row", pa.array(range(len(ordered)), pa.int64()))
    firsts = numbered.group_by(list(IDENTITY)).aggregate([("row", "min")])["row_min"]
    return ordered.take(firsts.combine_chunks().take(pc.array_sort_indices(firsts.combine_chunks())))


class PredictionCopier(threading.Thread):
    """Copies predictions and refusals from their topics into Delta, until stopped.

    Args:
        kafka: Kafka settings.
        topics: Topic to table: PREDICTIONS or QUARANTINE; topics that do not exist are created.
        offline: Root of the Delta tables.
        every_s: Seconds between two appends.
        partitions: Partitions of topics that have to be created.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        topics: Mapping[str, str],
        offline: str,
        *,
        every_s: float = 10.0,
        partitions: int = 2,
    ) -> None:
        super().__init__(name="predictions", daemon=True)
        self.copied = 0
        """Records copied since the start."""
        self.error: str | None = None
        """What keeps it from going on right now; None when nothing does."""
        self._kafka, self._topics, self._every_s = kafka, topics, every_s
        self._root = offline.rstrip("/")
        self._halt = threading.Event()
        self._failure: Exception | None = None
        ensure_topics(kafka, dict.fromkeys(topics, partitions))
        for table in topics.values():
            schema = arrow_schema() if table == PREDICTIONS else QUARANTINE_SCHEMA
            ensure_table(f"{self._root}/{table}", schema)

    def run(self) -> None:
        """Copy until stopped; whatever fails is tried again from where Delta stands."""
        while not self._halt.is_set():
            try:
                self._copy()
            except (KafkaError, DeltaError, OSError) as error:  # a broker or a disk that is away is no reason to end
                self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._halt.wait(1.0)
            except Exception as error:  # noqa: BLE001 - the thread's outer boundary: the job asks for it
                self._failure = error
                return

    def check(self) -> None:
        """Raise what ended it.

        Raises:
            OffsetsGoneError: Kafka no longer has records that were to be copied next.
        """
        if self._failure is not None:
            raise self._failure

    def copy_once(self) -> int:
        """Copy what the topics hold now, on the caller's thread, and return how many records that were.

        Raises:
            OffsetsGoneError: Kafka no longer has records that were to be copied next.
            BrokerUnavailableError: The broker cannot be reached.
            OfflineStoreUnavailableError: A table cannot be written; what was copied before is noted.
        """
        before = self.copied
        try:
            with mapped_errors(self._kafka, "copying predictions"), self._consuming() as (consumer, places):
                ends = consumer.end_offsets(places)
                while any(consumer.position(place) < ends[place] for place in places):
                    self._round(consumer, last=True)
        except (DeltaError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(f"{self._root}: predictions cannot be written: {reason}.") from error
        return self.copied - before

    def stop(self) -> None:
        """Copy what is there, then end."""
        self._halt.set()
        self.join(30.0)

    def _copy(self) -> None:
        with self._consuming() as (consumer, places):
            last = False
            while not last and self._places(consumer) == places:  # partitions may be added
                last = self._halt.is_set()
                self._round(consumer, last=last)

    @contextlib.contextmanager
    def _consuming(self) -> Iterator[tuple[KafkaConsumer, list[TopicPartition]]]:
        """Yield a consumer that stands where Delta does, and its partitions."""
        with mapped_errors(self._kafka, "connecting a copier"):
            consumer = KafkaConsumer(
                **{
                    **client_options(self._kafka), "enable_auto_commit": False, "auto_offset_reset": "none",
                    "group_id": None, "isolation_level": "read_committed", "max_poll_records": _MAX_ROWS,
                    "metadata_max_age_ms": 10_000,
                }
            )  # fmt: skip
        try:
            places = self._places(consumer)
            consumer.assign(places)
            self._seek(consumer, places)
            yield consumer, places
        finally:
            consumer.close()

    def _places(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        return [
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in sorted(consumer.partitions_for_topic(topic) or ())
        ]

    def _seek(self, consumer: KafkaConsumer, places: list[TopicPartition]) -> None:
        firsts = consumer.beginning_offsets(places)
        for place in places:
            done = DeltaTable(f"{self._root}/{self._topics[place.topic]}").transaction_version(_application(place))
            if done is not None and done < firsts[place]:
                raise OffsetsGoneError(
                    f"{place.topic}-{place.partition}: offset {done:,} was to be copied next, Kafka begins at {firsts[place]:,}.",
                    hint="keep the predictions topic longer than a copier may be away.",
                )
            consumer.seek(place, firsts[place] if done is None else done)

    def _round(self, consumer: KafkaConsumer, *, last: bool) -> None:
        """Gather for a while, then append what has come, a table at a time."""
        gathered: dict[str, dict[TopicPartition, list[ConsumerRecord]]] = {}
        give_up = time.monotonic() + (2.0 if last else self._every_s)
        rows = 0
        while rows < _MAX_ROWS and time.monotonic() < give_up and (last or not self._halt.is_set()):
            polled = consumer.poll(timeout_ms=200)
            for place, records in polled.items():
                gathered.setdefault(self._topics[place.topic], {}).setdefault(place, []).extend(records)
                rows += len(records)
            if last and not polled:
                break
        for table, mine in gathered.items():
            records = [record for each in mine.values() for record in each]
            noted = [Transaction(_application(place), each[-1].offset + 1) for place, each in mine.items()]
            write_deltalake(
                DeltaTable(f"{self._root}/{table}"),
                _predictions(records) if table == PREDICTIONS else _refusals(records),
                mode="append",
                commit_properties=CommitProperties(app_transactions=noted),
            )
            self.copied += len(records)
        self.error = None


def _application(place: TopicPartition) -> str:
    return f"featurestore-copy/{place.topic}/{place.partition}"


def _predictions(records: Sequence[ConsumerRecord]) -> pa.Table:
    """Return records of the predictions topic as rows; what is none, somebody else's, is left out."""
    found = []
    for record in records:
        try:
            found.append(from_json(unwrap(record.value, record.headers) or b""))
        except ContractError:
            continue
    return to_arrow(found)


def _refusals(records: Sequence[ConsumerRecord]) -> pa.Table:
    """Return records of the quarantine topic as rows; what is none, somebody else's, is left out."""
    rows: list[dict[str, Any]] = []
    for record in records:
        with contextlib.suppress(ValueError):
            row = json.loads(record.value or b"")
            if isinstance(row, dict) and row.keys() == set(QUARANTINE_SCHEMA.names):
                rows.append(row)
    return pa.Table.from_pylist(
        [{**row, "raw": None if row["raw"] is None else base64.b64decode(row["raw"])} for row in rows],
        QUARANTINE_SCHEMA,
    )
