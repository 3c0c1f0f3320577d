"""The light scoring worker: a Kafka consumer that scores events as they come and sends the predictions on.

    Kafka --(poll: whatever has come)--> EventScorer --> predictions topic, acknowledged by all replicas --> offsets committed

Consumers form a group named after the job; partitions move by themselves. Offsets are committed after the broker has the
predictions, so none is lost; what was sent and not committed when a worker dies is scored and sent again under the same
``prediction_id``: at least once in the topic, once for whoever reads by id.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from featurestore.errors import OnlineError
from featurestore.events.broker import producer
from featurestore.jobs.consumer_process import run_consumer
from featurestore.jobs.realtime import RealtimeConsumer
from featurestore.jobs.score_worker import ScoreWorker
from featurestore.scoring.kafka_envelope import wrap
from featurestore.scoring.prediction_log import to_json

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from kafka import TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.jobs.intake import Polled
    from featurestore.jobs.score import Outcome, ScoreSpec

BATCH_ROWS = 256
"""Records of one partition that share a lookup and a model run: more would wait for each other."""
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_SEND_TIMEOUT_S = 120.0


class _Scorer:
    """What ``RealtimeConsumer`` asks of the worker it is given."""

    def __init__(self, spec: ScoreSpec) -> None:
        self.sources: dict[str, tuple[EventSource, tuple[FeatureView, ...]]] = {spec.source.topic: (spec.source, ())}
        self.model = ScoreWorker(spec)

    def prepare(self) -> None:
        """Bind the model; a store that is away is waited for later, with the first event."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.model.scorer.bind()

    def progress(self, _topic: str) -> dict[int, tuple[int, int]]:
        """Nothing: where a group of scorers has got to, its own offsets say, and nobody else."""
        return {}


class ScoreConsumer(RealtimeConsumer):
    """Scores records as they come; one of a group.

    Args:
        spec: What to score, and where to.
        group: Name of the consumer group.
        instance: A name that stays over restarts (``RealtimeConsumer``).
        batch_rows: The most records taken by one poll.

    Raises:
        ModelError: The model is not stored, or does not fit events or store.
        BrokerUnavailableError: The broker cannot be reached.
    """

    def __init__(
        self, spec: ScoreSpec, group: str, *, instance: str | None = None, batch_rows: int = BATCH_ROWS
    ) -> None:
        worker: Any = _Scorer(spec)
        self._spec, self._model = spec, worker.model
        self._sent: dict[TopicPartition, int] = {}
        self._producer = producer(spec.kafka, linger_ms=100)
        # Keys and headers are read here as kafka-python has them; the model, not the client, is what takes the time.
        super().__init__(worker, spec.kafka, group, batch_rows=batch_rows, instance=instance, client="kafka-python")

    def _apply(self, place: TopicPartition, polled: Polled, stop: threading.Event) -> None:
        """Score records and send their predictions, again and again until the broker has them."""
        began = perf_counter_ns()
        offsets, records = polled.offsets, polled.records
        headers = [record.headers for record in records]
        tries = 0
        while not stop.is_set():
            try:
                outcome = self._model.scorer.score(place.partition, offsets, polled.arrival, polled.values, headers)
                self._send(records, outcome)
            except (ConnectionError, TimeoutError, KafkaError) as error:
                self.error = f"Kafka: {type(error).__name__}: {error}" if isinstance(error, KafkaError) else str(error)
            except OnlineError as error:
                if tries == len(_PAUSES_S):
                    raise
                self.error = str(error)
            else:
                self.error = None
                self._sent[place] = int(offsets[-1]) + 1
                self.counts.update(
                    consumed=len(records), applied=len(outcome.predictions), quarantined=len(outcome.refused),
                    took_us=(perf_counter_ns() - began) // 1_000,
                )  # fmt: skip
                return
            stop.wait(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1

    def _send(self, records: Sequence[ConsumerRecord], outcome: Outcome) -> None:
        """Send what became of records; return when all replicas have it."""
        spec, waiting = self._spec, []
        for row, record in zip(outcome.rows, outcome.predictions, strict=True):
            value, headers = wrap(to_json(record), record, spec.envelope, source=spec.origin)
            waiting.append(self._producer.send(spec.topic, value, key=records[row].key, headers=headers))
        for one in outcome.refused:
            value = refusal_to_json(spec, records[one.row], one.reason, one.detail)
            waiting.append(self._producer.send(spec.quarantine_topic, value, key=records[one.row].key))
        self._producer.flush()
        for each in waiting:
            each.get(timeout=_SEND_TIMEOUT_S)

    def _commit(self) -> None:
        """Commit what has been sent, of the partitions that are still ours."""
        with contextlib.suppress(KafkaError):
            self._consumer.commit_async(self._reached())

    def _reached(self) -> dict[TopicPartition, OffsetAndMetadata]:
        mine = self._consumer.assignment()
        return {place: OffsetAndMetadata(offset, "", -1) for place, offset in self._sent.items() if place in mine}

    def close(self) -> None:
        """Commit what has been sent, leave the group, and close the connections."""
        with contextlib.suppress(KafkaError):
            self._consumer.commit(self._reached())
        self._consumer.close()
        self._producer.close()
        self._model.close()


def refusal_to_json(spec: ScoreSpec, record: ConsumerRecord, reason: str, detail: str) -> bytes:
    """Return a refused record with its coordinates and bytes, as the quarantine topic has it."""
    raw = record.value
    return json.dumps(
        {
            "source": spec.source.name,
            "_topic": record.topic,
            "_partition": record.partition,
            "_offset": record.offset,
            "_arrival": record.timestamp * 1_000,
            "reason": reason,
            "detail": detail,
            "raw": None if raw is None else base64.b64encode(raw).decode(),
        }
    ).encode()


def main(argv: Sequence[str]) -> int:
    """Run one worker of a job (``run_consumer``)."""
    from featurestore.jobs.score_driver import add_arguments, spec_of

    parser = argparse.ArgumentParser(description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--group", required=True, help="the consumer group")
    parser.add_argument("--instance", help="a name that stays over restarts")
    arguments = parser.parse_args(argv)
    return run_consumer(lambda: ScoreConsumer(spec_of(arguments), arguments.group, instance=arguments.instance))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
