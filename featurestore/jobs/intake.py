"""Where the records of a consumer group come from: kafka-python, or librdkafka where it is installed.

What a consumer asks of its client is a part of kafka-python's ``KafkaConsumer``, and its errors, with one difference: records
come as columns (``Polled``). ``intake_rdkafka`` gives the same out of librdkafka, for a fifth of the processor's time per record.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from featurestore.errors import ConfigError
from featurestore.events.kafka_options import client_options
from featurestore.jobs.membership import Membership, member_options
from featurestore.jobs.rdkafka_settings import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

CLIENTS = ("kafka-python", "librdkafka")
METADATA_MS = 10_000
"""Added partitions are found within this time."""


@dataclass(frozen=True, slots=True)
class Polled:
    """Consecutive records of one partition.

    Attributes:
        offsets: Their offsets, int64, ascending.
        arrival: When the broker has them from, microseconds, int64.
        values: Their values.
        records: The same as kafka-python has them; none of librdkafka's.
    """

    offsets: np.ndarray
    arrival: np.ndarray
    values: Sequence[bytes | None]
    records: Sequence[Any] = ()


class Intake(Protocol):
    """One of a consumer group, as far as it is asked for here; see kafka-python for what these do."""

    @property
    def name(self) -> str:
        """Which of ``CLIENTS`` this is."""

    @property
    def has_joined(self) -> bool:
        """Whether it knows which partitions are its own."""

    def waiting(self) -> str | None:
        """Return, in one line, for whom it has waited longer than usual; None when it has not."""

    def take(self, timeout_ms: int) -> dict[TopicPartition, Polled]:
        """Return what has come, or comes within a time.

        Raises:
            NoOffsetForPartitionError: The group has no offset of these partitions.
            OffsetOutOfRangeError: Kafka does not have the offsets that come next.
            LogTruncationError: A partition has lost its end.
            KafkaError: Something else is wrong, which may pass.
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at an offset."""

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go on at the first records there are."""

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset of each partition."""

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset after the last record of each partition."""

    def assignment(self) -> set[TopicPartition]:
        """Return the partitions that are this one's now."""

    def highwater(self, partition: TopicPartition) -> int | None:
        """Return where a partition ended when last heard of; None while nothing is known of it."""

    def position(self, partition: TopicPartition) -> int:
        """Return the offset that comes next; known where ``highwater`` is."""

    def commit_async(self, offsets: Any = None, callback: Callable[..., Any] | None = None) -> Any:
        """Say where the group has got to: at the given offsets, or at the positions."""

    def commit(self, offsets: Any = None) -> None:
        """The same, and wait for it."""

    def close(self) -> None:
        """Leave the group."""


class PythonIntake(KafkaConsumer):  # type: ignore[misc]
    """kafka-python's consumer.

    Args:
        topics: What to subscribe to.
        kafka: Kafka settings.
        group: Name of the consumer group.
        batch_rows: The most records taken at once.
        instance: A name that stays over restarts.
    """

    name = "kafka-python"

    def __init__(
        self, topics: Iterable[str], kafka: Mapping[str, str], group: str, *, batch_rows: int, instance: str | None
    ) -> None:
        super().__init__(
            *sorted(topics),
            **{
                **member_options(kafka, group, instance),
                "enable_auto_commit": False,
                "auto_offset_reset": "none",  # where to begin, and what is gone, is decided by whoever asks
                "isolation_level": "read_committed",
                "max_poll_records": batch_rows,
                "metadata_max_age_ms": METADATA_MS,
            },
        )
        self._membership = Membership(self)

    @property
    def has_joined(self) -> bool:
        """Whether it knows which partitions are its own."""
        return self._membership.has_joined

    def waiting(self) -> str | None:
        """Return for whom it has waited longer than usual."""
        return self._membership.waiting()

    def take(self, timeout_ms: int) -> dict[TopicPartition, Polled]:
        """Return what has come, or comes within a time."""
        self._membership.check()
        polled = self.poll(timeout_ms=timeout_ms)
        if self._membership.asks_again():
            for place, records in polled.items():
                self.seek(place, records[0].offset)
            return {}
        return {place: _columns(records) for place, records in polled.items()}


def _columns(records: Sequence[Any]) -> Polled:
    offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
    arrival = np.fromiter((record.timestamp for record in records), np.int64, len(records)) * 1_000
    return Polled(offsets, arrival, [record.value for record in records], records)


def open_intake(
    client: str | None,
    topics: Iterable[str],
    kafka: Mapping[str, str],
    group: str,
    *,
    batch_rows: int,
    instance: str | None,
) -> Intake:
    """Return a new member of a group.

    Args:
        client: Which of ``CLIENTS`` to use; None for librdkafka where it is installed and takes the settings.
        topics: What to subscribe to.
        kafka: Kafka settings.
        group: Name of the consumer group.
        batch_rows: The most records taken at once.
        instance: A name that stays over restarts.

    Raises:
        ConfigError: There is no such client, or it is not installed, or cannot have these settings.
        KafkaError: The broker cannot be reached.
    """
    if client not in {None, *CLIENTS}:
        raise ConfigError(f"client {client!r} is none of {', '.join(CLIENTS)}.")
    client_options(kafka)
    given: dict[str, Any] = {"batch_rows": batch_rows, "instance": instance}
    if client == "kafka-python":
        return PythonIntake(topics, kafka, group, **given)
    try:
        return _by_librdkafka(topics, kafka, group, **given)
    except ConfigError:
        if client is not None:
            raise
        return PythonIntake(topics, kafka, group, **given)


def _by_librdkafka(topics: Iterable[str], kafka: Mapping[str, str], group: str, **given: Any) -> Intake:
    if find_spec("confluent_kafka") is None:
        raise ConfigError("client 'librdkafka' is not installed.", hint="pip install 'featurestore[librdkafka]'.")
    options, unknown = translated(kafka)
    if unknown:
        raise ConfigError(
            f"client 'librdkafka' does not have the kafka settings {', '.join(unknown)}.",
            hint="use client 'kafka-python'.",
        )
    from featurestore.jobs.intake_rdkafka import RdkafkaIntake

    return RdkafkaIntake(topics, options, group, **given)
