"""Takes what was scored to the prediction log, without ever holding up an answer.

Rules:
    1. ``watch`` never blocks: a batch is taken into a bounded queue, or dropped.
    2. Every prediction is logged or dropped, and counted as one of the two: ``offered == logged + dropped`` once closed.
    3. Records are made on the log's own thread, and written in batches by a sink, which may wait and may fail. What a sink
       could not write is dropped, with the reason; it is not tried again, for whoever reads labels can do without a few.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import FeatureStoreError
from featurestore.scoring.prediction_log import PredictionRecord, ServedValue, to_json, value_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featurestore.scoring.routing import ScoredBatch

_LOG = logging.getLogger("featurestore.scoring")
MAX_ROWS = 50_000
_WRITE_ROWS = 2_000

LOGGED, QUEUE_FULL, SINK_FAILED, CLOSING = "logged", "queue_full", "sink_failed", "closing"


class Sink(Protocol):
    """Where records go."""

    def write(self, records: list[PredictionRecord]) -> int:
        """Write records and return how many are safe; the others are lost.

        Raises:
            FeatureStoreError: None of them could be written.
        """

    def close(self) -> None:
        """Let go of connections."""


class PredictionLog:
    """A bounded queue before a sink, and the thread between the two.

    Args:
        sink: Where records go.
        max_rows: Predictions that may wait.
        count: Called with "logged", or why a record was dropped, and a number of records.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        max_rows: int = MAX_ROWS,
        count: Callable[[str, int], None] = lambda _outcome, _rows: None,
    ) -> None:
        self.offered = 0
        self.counts: Counter[str] = Counter()
        self._sink = sink
        self._max_rows = max_rows
        self._count_also = count
        self._waiting: deque[ScoredBatch] = deque()
        self._rows = 0
        self._closing = self._given_up = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def logged(self) -> int:
        """Records that are safe in the sink."""
        return self.counts[LOGGED]

    @property
    def dropped(self) -> int:
        """Records that were given up, for whatever reason."""
        return self.counts.total() - self.counts[LOGGED]

    def watch(self, batch: ScoredBatch) -> None:
        """Take a scored batch, or drop it where too many rows wait. Never blocks."""
        rows = sum(len(part.scores) for part in batch.parts)
        with self._changed:
            self.offered += rows
            if self._closing or self._rows + rows > self._max_rows:
                self._count(CLOSING if self._closing else QUEUE_FULL, rows)
                return
            self._waiting.append(batch)
            self._rows += rows
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, for so long; count the rest as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._given_up = True
            self._count(CLOSING, self._rows)
            self._rows = 0
            self._waiting.clear()
        if not self._thread.is_alive():
            self._sink.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                taken = [self._waiting.popleft()]
                rows = _rows_of(taken[0])
                while self._waiting and rows + _rows_of(self._waiting[0]) <= _WRITE_ROWS:
                    taken.append(self._waiting.popleft())
                    rows += _rows_of(taken[-1])
            outcome, safe = self._write(taken)
            with self._changed:
                if self._given_up:  # close has counted them as dropped already
                    return
                self._rows -= rows
                self._count(LOGGED, safe)
                self._count(outcome, rows - safe)

    def _write(self, batches: list[ScoredBatch]) -> tuple[str, int]:
        """Write the records of some batches; return why the others were lost, and how many are safe."""
        try:
            return SINK_FAILED, self._sink.write([record for batch in batches for record in records_of(batch)])
        except FeatureStoreError as error:
            _LOG.warning("prediction log: %s", error)
        except Exception:  # noqa: BLE001 - a bug, of ours or of a sink, must not end the log
            _LOG.exception("prediction log: the sink failed")
        return SINK_FAILED, 0

    def _count(self, outcome: str, rows: int) -> None:
        if rows:
            self.counts[outcome] += rows
            self._count_also(outcome, rows)


def records_of(batch: ScoredBatch) -> list[PredictionRecord]:
    """Return one record for each row and model of a batch."""
    records = []
    for part in batch.parts:
        manifest = part.manifest
        places = {name: index for index, name in enumerate(batch.table.names)}
        for index, score in zip(part.rows, part.scores, strict=True):
            row, checked = batch.table[index], batch.rows[index]
            values, status, as_of = row.to_list(), row.status, row.as_of
            records.append(
                PredictionRecord(
                    prediction_id=f"{batch.batch_id}-{index}",
                    request_id=checked.request_id,
                    model=manifest.name,
                    version=manifest.version,
                    role=part.role,
                    service=manifest.service,
                    service_fingerprint=manifest.service_fingerprint,
                    keys=checked.keys,
                    request={**dict(zip(manifest.request_inputs, checked.values, strict=True)), **checked.request},
                    features={
                        name: ServedValue(
                            value=values[places[name]],
                            status=status[name],
                            as_of=as_of.get(name.partition(".")[0]),
                        )
                        for name in manifest.feature_inputs
                    },
                    score=score,
                    at=batch.table.at,
                    scored_at=batch.scored_at,
                    complete_through=batch.table.complete_through,
                    latency_us=batch.latency_us,
                )
            )
    return records


def _rows_of(batch: ScoredBatch) -> int:
    return sum(len(part.scores) for part in batch.parts)


class KafkaSink:
    """Writes records as JSON to a topic, keyed by the entity key, so that a key's predictions stay in order.

    Args:
        settings: Kafka settings.
        topic: The topic; it is made if it does not exist.
        timeout_s: How long a write may wait for the broker.

    Raises:
        BrokerUnavailableError: The broker cannot be reached.
    """

    def __init__(self, settings: Mapping[str, str], topic: str, *, timeout_s: float = 10.0) -> None:
        from featurestore.events.broker import ensure_topics

        ensure_topics(settings, {topic: 2})
        self._settings, self._topic, self._timeout_s = settings, topic, timeout_s
        self._producer: Any = self._connected()

    def write(self, records: list[PredictionRecord]) -> int:
        """Send records and wait until they are acknowledged.

        A producer that lost one is given up for a new one: an idempotent one does not get over a gap in its sequence.
        """
        from kafka.errors import KafkaError

        if self._producer is None:
            self._producer = self._connected()
        sent: list[Any] = []
        try:
            for one in records:  # one by one: what was sent before an error counts
                sent.append(self._send(one))  # noqa: PERF401
            self._producer.flush(timeout=self._timeout_s)
        except KafkaError as error:  # those that were acknowledged meanwhile are safe
            _LOG.warning("prediction log: topic %s: %s: %s", self._topic, type(error).__name__, error)
        safe: int = sum(one.succeeded() for one in sent)
        if safe < len(records):
            self._let_go()
        return safe

    def close(self) -> None:
        """Close the producer."""
        closing = self._let_go()
        if closing is not None:
            closing.join(self._timeout_s)

    def _send(self, one: PredictionRecord) -> Any:
        return self._producer.send(self._topic, key=value_text(one.keys).encode(), value=to_json(one))

    def _connected(self) -> Any:
        from featurestore.events.broker import producer

        wait_ms = int(
            self._timeout_s * 1000
        )  # kafka-python wants the delivery to take longer than a request and its linger
        return producer(
            self._settings, max_block_ms=wait_ms, delivery_timeout_ms=wait_ms, request_timeout_ms=wait_ms // 2
        )

    def _let_go(self) -> threading.Thread | None:
        """Close the producer behind the scenes: it does not close while it holds records, which expire after a while."""
        found, self._producer = self._producer, None
        if found is None:
            return None
        closing = threading.Thread(target=_close, args=(found, self._timeout_s), name="closing-producer", daemon=True)
        closing.start()
        return closing


def _close(producer: Any, timeout_s: float) -> None:
    from kafka.errors import KafkaTimeoutError

    while True:
        try:
            producer.close(timeout=timeout_s)
        except KafkaTimeoutError:
            continue
        return
