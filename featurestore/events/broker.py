"""Talking to Kafka outside of Spark: topics, offsets, producers. Foreign errors become ours here.

Settings are Kafka's own, verbatim: {"bootstrap.servers": "host:9092", "security.protocol": "SASL_SSL", ...}.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
)
from kafka.structs import OffsetAndMetadata

from featurestore.errors import BrokerUnavailableError, UnknownNameError, did_you_mean
from featurestore.events.kafka_options import client_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_WAIT_MS = 10_000


@contextmanager
def mapped_errors(settings: Mapping[str, str], doing: str) -> Iterator[None]:
    """Raise Kafka's errors as ours, naming the broker and what was tried."""
    heard = _Overheard()
    log = logging.getLogger("kafka.net.manager")
    log.addHandler(heard)
    try:
        yield
    except KafkaError as error:
        said = heard.cause if heard.cause is not None and isinstance(error, KafkaTimeoutError) else error
        servers = settings.get("bootstrap.servers", "")
        words = str(said) if type(said).__name__ in str(said) else f"{type(said).__name__}: {said}"
        raise BrokerUnavailableError(
            f"Kafka at {servers}: {doing} failed: {words}.", hint=_hint(settings, said)
        ) from error
    finally:
        log.removeHandler(heard)


class _Overheard(logging.Handler):
    """Keeps why connections failed: kafka-python tries on until its time is over, and then says no more than that."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cause: KafkaError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error that a line is about; what the broker says of the user comes before how it hung up."""
        for each in record.args if isinstance(record.args, tuple) else ():
            is_told = isinstance(self.cause, SaslAuthenticationFailedError)
            if isinstance(each, KafkaError) and not is_told and type(each) in _CAUSES:
                self.cause = each


_CAUSES = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, KafkaConnectionError)
_HANGS_UP = "socket disconnected"
"""What kafka-python may see by TLS of a refused user: the broker's answer and the end of the connection come at once."""


def _hint(settings: Mapping[str, str], error: BaseException) -> str:
    is_hung_up = _HANGS_UP in str(error) and "sasl.mechanism" in settings
    if is_hung_up or isinstance(error, SaslAuthenticationFailedError | UnsupportedSaslMechanismError):
        return "check kafka.'sasl.mechanism', 'sasl.plain.username' and 'sasl.plain.password'."
    if _HANGS_UP in str(error) or "Handshake" in str(error):
        return "check kafka.'security.protocol', and 'ssl.cafile': who may have signed the broker's certificate."
    return "is the broker running? check kafka.'bootstrap.servers'."


@contextmanager
def _admin(settings: Mapping[str, str], doing: str) -> Iterator[KafkaAdminClient]:
    """Give a client of the broker's administration for a block, whose errors are ours."""
    with mapped_errors(settings, doing):
        admin = KafkaAdminClient(**{**client_options(settings, KafkaAdminClient), "bootstrap_timeout_ms": _WAIT_MS})
        try:
            yield admin
        finally:
            admin.close()


def ensure_topics(
    settings: Mapping[str, str],
    topics: Mapping[str, int],
    *,
    config: Mapping[str, str] | None = None,
    replication_factor: int = 1,
) -> list[str]:
    """Create the topics that do not exist yet; return their names.

    Args:
        settings: Kafka settings.
        topics: Topic to number of partitions.
        config: Topic settings, for example {"retention.ms": "-1"} where old events are replayed.
        replication_factor: Copies of every partition.

    Raises:
        BrokerUnavailableError: The broker cannot be reached or refuses.
    """
    with _admin(settings, "creating topics") as admin:
        missing = sorted(set(topics) - set(admin.list_topics()))
        for topic in missing:
            new = NewTopic(topic, topics[topic], replication_factor, topic_configs=dict(config or {}))
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([new], timeout_ms=_WAIT_MS, wait_for_metadata=True)
        return missing


def producer(settings: Mapping[str, str], **options: Any) -> KafkaProducer:
    """Return an idempotent producer that waits for all replicas."""
    with mapped_errors(settings, "connecting a producer"):
        return KafkaProducer(
            **{
                **client_options(settings, KafkaProducer),
                "acks": "all",
                "enable_idempotence": True,
                "linger_ms": 5,
                **options,
            }
        )


class OffsetReader:
    """Reads the end offsets of topics, over one connection.

    Args:
        settings: Kafka settings.
        topics: The topics to look at.

    Raises:
        UnknownNameError: A topic does not exist.
        BrokerUnavailableError: The broker cannot be reached.
    """

    def __init__(self, settings: Mapping[str, str], topics: Iterable[str]) -> None:
        self._settings = settings
        with mapped_errors(settings, "connecting"):
            self._consumer = KafkaConsumer(
                **{**client_options(settings), "enable_auto_commit": False, "bootstrap_timeout_ms": _WAIT_MS}
            )
            self._partitions: list[TopicPartition] = []
            try:
                self._find(topics)
            except BaseException:
                self._consumer.close()
                raise

    def _find(self, topics: Iterable[str]) -> None:
        known = self._consumer.topics()
        for topic in topics:
            if topic not in known:
                raise UnknownNameError(
                    f"Kafka at {self._settings['bootstrap.servers']}: no topic {topic!r}.",
                    hint=did_you_mean(topic, known, what="topics"),
                )
            found = self._consumer.partitions_for_topic(topic)
            self._partitions += [TopicPartition(topic, partition) for partition in sorted(found)]

    def end_offsets(self) -> dict[str, dict[int, int]]:
        """Return, per topic and partition, the offset the next record will get."""
        with mapped_errors(self._settings, "reading end offsets"):
            ends = self._consumer.end_offsets(self._partitions)
        offsets: dict[str, dict[int, int]] = {}
        for place, offset in ends.items():
            offsets.setdefault(place.topic, {})[place.partition] = offset
        return offsets

    def first_offsets(self) -> dict[str, dict[int, int]]:
        """Return, per topic and partition, the offset of the oldest record that Kafka still has."""
        with mapped_errors(self._settings, "reading first offsets"):
            firsts = self._consumer.beginning_offsets(self._partitions)
        offsets: dict[str, dict[int, int]] = {}
        for place, offset in firsts.items():
            offsets.setdefault(place.topic, {})[place.partition] = offset
        return offsets

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def holds_records(
    settings: Mapping[str, str], begins: Mapping[str, Mapping[int, int]], ends: Mapping[str, Mapping[int, int]]
) -> bool:
    """Return whether some partition has a record between two offsets; marks of transactions, and what they took back, are none.

    Args:
        settings: Kafka settings.
        begins: Topic to partition to the first offset to look at.
        ends: Likewise to the offset to stop at, at least of the same partitions.

    Raises:
        BrokerUnavailableError: The broker cannot be reached.
    """
    until = {
        TopicPartition(topic, partition): ends[topic][partition]
        for topic, offsets in begins.items()
        for partition in offsets
    }
    with mapped_errors(settings, "looking for records"):
        options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest", "enable_auto_commit": False}
        consumer = KafkaConsumer(**{**client_options(settings), **options, "bootstrap_timeout_ms": _WAIT_MS})
        try:
            consumer.assign(list(until))
            for place in until:
                consumer.seek(place, begins[place.topic][place.partition])
            give_up = time.monotonic() + _WAIT_MS / 1_000
            while any(consumer.position(place) < end for place, end in until.items()):
                for place, records in consumer.poll(timeout_ms=100).items():
                    if records[0].offset < until[place]:
                        return True
                if time.monotonic() > give_up:
                    raise KafkaTimeoutError(f"nothing came of {', '.join(begins)}")
        finally:
            consumer.close()
    return False


def begin_at_the_end(settings: Mapping[str, str], group: str, topic: str) -> None:
    """Let a group that has no offsets yet begin behind what a topic holds now; partitions added later, at their first record.

    Raises:
        BrokerUnavailableError: The broker cannot be reached.
    """
    with mapped_errors(settings, "beginning a consumer group"):
        consumer = KafkaConsumer(**{**client_options(settings), "group_id": group, "enable_auto_commit": False})
        try:
            places = [
                TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic) or ())
            ]
            new = [place for place in places if consumer.committed(place) is None]
            if new:
                ends = consumer.end_offsets(new)
                consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in ends.items()})
        finally:
            consumer.close()


def stamps_on_append(settings: Mapping[str, str], topic: str) -> bool:
    """Return whether the broker stamps the topic's records itself (LogAppendTime)."""
    with _admin(settings, f"describing topic {topic}") as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return "LogAppendTime" in repr(found)


def topic_ids(settings: Mapping[str, str], topics: Iterable[str]) -> dict[str, str]:
    """Return the ids that Kafka gave topics when they were made; none of those that are not there, and none before Kafka 2.8."""
    with _admin(settings, "describing topics") as admin:
        found = admin.describe_topics(sorted(topics))
    ids = {each["name"]: each.get("topic_id") for each in found if not each["error_code"]}
    return {topic: str(made) for topic, made in ids.items() if made and getattr(made, "int", 1)}
