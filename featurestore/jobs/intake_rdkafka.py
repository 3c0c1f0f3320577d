"""librdkafka's consumer as ``jobs.intake`` wants it: kafka-python's names and errors, records as columns.

Background threads of librdkafka fetch ahead while a batch is applied, so that what comes next is large where there is a backlog,
and a single record where there is none. The group's protocol and assignors are those of kafka-python: both may be in one group.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import confluent_kafka
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, OFFSET_STORED, Consumer, KafkaException, Message
from kafka import TopicPartition
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)

from featurestore.errors import ConfigError
from featurestore.jobs import membership
from featurestore.jobs.intake import METADATA_MS, Polled
from featurestore.jobs.membership import HEARTBEAT_MS, SESSION_MS, Patience, another_member, no_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_WAIT_S = 10.0
_LOOK_S = 0.25
_AT_ONCE = 4096
"""Messages that are objects at one time: what makes them is slow where it has no memory of others before them to take."""
_CODES = confluent_kafka.KafkaError


@contextmanager
def _mapped() -> Iterator[None]:
    """Raise librdkafka's errors as kafka-python's."""
    try:
        yield
    except KafkaException as error:
        raise KafkaError(_words(error.args[0])) from error


def _place(message: Any) -> TopicPartition:
    return TopicPartition(message.topic(), message.partition())


def _joined(parts: list[Polled]) -> Polled:
    offsets, arrival = (np.concatenate([getattr(part, name) for part in parts]) for name in ("offsets", "arrival"))
    return Polled(offsets, arrival, [value for part in parts for value in part.values])


def _theirs(place: TopicPartition, offset: int = OFFSET_INVALID, epoch: int | None = None) -> Any:
    return confluent_kafka.TopicPartition(
        place.topic, place.partition, offset, leader_epoch=-1 if epoch is None else epoch
    )


def _words(error: Any) -> str:
    return f"{error.name()}: {error.str()}" if isinstance(error, _CODES) else str(error)


class RdkafkaIntake:
    """One of a consumer group.

    Args:
        topics: What to subscribe to.
        options: Settings of librdkafka.
        group: Name of the consumer group.
        batch_rows: The most records taken at once.
        instance: A name that stays over restarts.

    Raises:
        ConfigError: librdkafka refuses a setting.
        KafkaError: The broker cannot be reached.
    """

    name = "librdkafka"

    def __init__(
        self, topics: Iterable[str], options: Mapping[str, Any], group: str, *, batch_rows: int, instance: str | None
    ) -> None:
        self._topics, self._rows = sorted(topics), batch_rows
        self._options = {
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": HEARTBEAT_MS,
            "max.poll.interval.ms": membership.RETURN_WITHIN_MS,
            "reconnect.backoff.max.ms": 1_000,
            **options,
            "group.id": group,
            **({} if instance is None else {"group.instance.id": instance}),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # where to begin, and what is gone, is decided by whoever asks
            "enable.partition.eof": True,  # tells of positions behind the marks of transactions, which are no records
            "isolation.level": "read_committed",
            "check.crcs": True,
            "log.connection.close": False,
            "log_level": 2,  # ``take`` tells errors; a broker that is away would be twenty lines a second
            "fetch.queue.backoff.ms": 20,  # a second by default, for which a full queue stays empty once it was taken
            "topic.metadata.refresh.interval.ms": METADATA_MS,
            "error_cb": self._hear,
            "on_commit": self._committed,
        }
        self._places: set[TopicPartition] = set()
        self._next: dict[TopicPartition, tuple[int, int | None]] = {}  # offset that comes next, epoch of the leader
        self._begin: dict[TopicPartition, int] = {}  # where to begin, of those of which nothing has come yet
        self._errors: deque[Any] = deque()
        self._is_sought = self.has_joined = False
        self._handed_out = 0  # how often partitions were taken away
        self._patience = Patience()
        self._down = self._fatal = ""
        self._refusal: KafkaError | None = None
        self._when_committed: Callable[..., Any] | None = None
        self._open()
        try:
            self._reach()
        except BaseException:
            self._consumer.close()
            raise

    def _open(self) -> None:
        try:
            self._consumer = Consumer(self._options)
        except KafkaException as error:
            raise ConfigError(
                f"kafka settings: librdkafka refuses them: {_words(error.args[0])}.",
                hint="without the extra librdkafka, or with client 'kafka-python', the other client is used.",
            ) from error
        with _mapped():
            self._consumer.subscribe(self._topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)

    def _reach(self) -> None:
        try:
            self._consumer.list_topics(self._topics[0], timeout=_WAIT_S)
        except KafkaException as error:
            self._consumer.poll(0)  # here it tells of what it tried meanwhile
            raise (self._refusal or KafkaError(_words(error.args[0]))) from error

    def waiting(self) -> str | None:
        """Return for whom it has waited longer than usual; that no broker answers is an error of ``take``."""
        gone_ms, busy_ms = self._options["session.timeout.ms"], self._options["max.poll.interval.ms"]
        whom = None if self.has_joined else another_member(self._options["group.id"], int(gone_ms), int(busy_ms))
        return self._patience.told(whom)

    def take(self, timeout_ms: int) -> dict[TopicPartition, Polled]:
        """Return what has come, or comes within a time."""
        if self._fatal:  # another of this name has joined, for example: join anew, as kafka-python does
            words, self._fatal = self._fatal, ""
            self.close()
            self._revoke(None, self._places)
            self._open()
            raise KafkaError(words)
        if self._errors:
            self._raise()
        if self._is_sought:
            self._is_sought = False
            self._place_again()
        with _mapped():
            first = self._consumer.poll(timeout_ms / 1_000)
            if first is None:
                self._look()
                return {}
        self._down = ""
        found: dict[TopicPartition, list[Polled]] = {}
        messages, left, handed_out = [first], self._rows, self._handed_out
        while messages:
            if handed_out != self._handed_out:  # what came before comes again, to whoever has its partition now
                found, handed_out = {}, self._handed_out
            for place, part in self._sorted_out(messages).items():
                found.setdefault(place, []).append(part)
            left -= len(messages)
            messages = self._more(min(left, _AT_ONCE))
        return {place: parts[0] if len(parts) == 1 else _joined(parts) for place, parts in found.items()}

    def _more(self, most: int) -> list[Any]:
        """Return what has been fetched besides; an error is left to the next poll, for what was taken before must not be lost."""
        try:
            return self._consumer.consume(most, 0) if most else []
        except KafkaException:
            return []

    def _sorted_out(self, messages: list[Any]) -> dict[TopicPartition, Polled]:
        """Return the records among messages per partition; errors wait for the next call."""
        errors = list(map(Message.error, messages))
        if any(errors):
            told = [message for message, error in zip(messages, errors, strict=True) if error]
            messages = [message for message, error in zip(messages, errors, strict=True) if not error]
        else:
            told = []
        parts: dict[TopicPartition, list[Any]] = {}
        rows = zip(map(Message.topic, messages), map(Message.partition, messages), messages, strict=True)
        for place, run in groupby(rows, itemgetter(0, 1)):
            parts.setdefault(TopicPartition(*place), []).extend(map(itemgetter(2), run))
        found = {place: self._columns(place, part) for place, part in parts.items()}
        for message in told:
            if message.error().code() == _CODES._PARTITION_EOF:  # noqa: SLF001 - that is its name
                place = _place(message)
                if place in self._places:
                    offset, epoch = self._next.get(place, (0, None))
                    self._next[place] = max(offset, message.offset()), epoch
            elif message.error().code() == _CODES._FATAL:  # noqa: SLF001 - so is that
                self._fatal = _words(message.error())
            else:
                self._errors.append(message)
        return found

    def _columns(self, place: TopicPartition, messages: list[Any]) -> Polled:
        count, first, last = len(messages), messages[0].offset(), messages[-1].offset()
        if place in self._places:
            self._next[place] = last + 1, messages[-1].leader_epoch()
        if last - first == count - 1:  # offsets ascend, so none is left out
            offsets = np.arange(first, last + 1)
        else:
            offsets = np.fromiter(map(Message.offset, messages), np.int64, count)
        times = map(itemgetter(1), map(Message.timestamp, messages))
        arrival = np.fromiter(times, np.int64, count) * 1_000
        return Polled(offsets, arrival, list(map(Message.value, messages)))

    def _raise(self) -> None:
        """Raise the first of the errors that wait; those about where to begin together, and again until it is sought."""
        error = self._errors[0].error()
        if error.code() != _CODES._AUTO_OFFSET_RESET:  # noqa: SLF001
            self._errors.popleft()
            raise KafkaError(_words(error))
        told = {_place(each): each.error() for each in self._errors if each.error().code() == error.code()}
        if any("truncation" in each.str() for each in told.values()):
            raise LogTruncationError("; ".join(each.str() for each in told.values()))
        wanted = self._wanted(list(told))
        if wanted:
            raise OffsetOutOfRangeError(wanted)
        raise NoOffsetForPartitionError(list(told))

    def _wanted(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return which offsets come next, of those partitions that have one."""
        found = {place: self._next[place][0] if place in self._next else self._begin.get(place, -1) for place in places}
        unknown = [_theirs(place) for place, offset in found.items() if offset < 0]
        if unknown:
            with _mapped():
                committed = self._consumer.committed(unknown, timeout=_WAIT_S)
            found |= {TopicPartition(each.topic, each.partition): each.offset for each in committed}
        return {place: offset for place, offset in found.items() if offset >= 0}

    def _look(self) -> None:
        """Where something was wrong with the brokers, see whether it still is."""
        if self._down:
            try:
                self._consumer.list_topics(self._topics[0], timeout=_LOOK_S)
            except KafkaException as error:
                away = no_broker(self._options["group.id"], self._options.get("bootstrap.servers"))
                raise KafkaError(f"{away} ({self._down})") from error
            self._down = ""

    def _hear(self, error: Any) -> None:
        if error.fatal():
            self._fatal = _words(error)
            return
        if error.code() == _CODES._AUTHENTICATION:  # noqa: SLF001 - that is its name
            self._refusal = SaslAuthenticationFailedError(error.str())
        elif error.code() == _CODES._SSL:  # noqa: SLF001 - so is that
            self._refusal = KafkaConnectionError(f"Handshake failed: {error.str()}")
        self._down = _words(error)

    def _assign(self, _consumer: Any, given: Iterable[Any]) -> None:
        self._places = {TopicPartition(each.topic, each.partition) for each in given}
        self.has_joined = True

    def _revoke(self, _consumer: Any, _taken: Any) -> None:
        self.has_joined = False
        self._handed_out += 1
        self._places, self._next, self._begin, self._is_sought = set(), {}, {}, False
        self._errors.clear()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at an offset, from the next ``take`` on."""
        self._next.pop(partition, None)
        self._errors = deque(each for each in self._errors if _place(each) != partition)
        self._begin[partition] = offset
        self._is_sought = True

    def _place_again(self) -> None:
        """Assign what is assigned: after an error that leaves a partition without an offset, librdkafka takes none alone."""
        offsets = {place: offset for place, (offset, _) in self._next.items()}
        places = [_theirs(place, (self._begin | offsets).get(place, OFFSET_STORED)) for place in self._places]
        with _mapped():
            self._consumer.assign(places)

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go on at the first records there are."""
        for place in partitions:
            self.seek(place, OFFSET_BEGINNING)

    def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset of each partition."""
        return {place: self._bounds(place)[0] for place in partitions}

    def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset after the last record of each partition."""
        return {place: self._bounds(place)[1] for place in partitions}

    def _bounds(self, place: TopicPartition) -> tuple[int, int]:
        with _mapped():
            found = self._consumer.get_watermark_offsets(_theirs(place), timeout=_WAIT_S)
        if found is None:
            raise KafkaError(f"no answer about the offsets of {place.topic}-{place.partition}")
        return int(found[0]), int(found[1])

    def assignment(self) -> set[TopicPartition]:
        """Return the partitions that are this one's now."""
        return set(self._places)

    def highwater(self, partition: TopicPartition) -> int | None:
        """Return where a partition ended when last heard of; None while nothing is known of it."""
        if partition not in self._next:
            return None
        try:
            found = self._consumer.get_watermark_offsets(_theirs(partition), cached=True)
        except KafkaException:  # its topic is gone, for example
            return None
        return int(found[1]) if found and found[1] >= 0 else None

    def position(self, partition: TopicPartition) -> int:
        """Return the offset that comes next."""
        return self._next[partition][0]

    def commit_async(self, offsets: Any = None, callback: Callable[..., Any] | None = None) -> None:
        """Say where the group has got to; ``callback`` is called while taking, once it is known."""
        self._when_committed = callback
        self._commit(offsets, is_waited_for=False)

    def commit(self, offsets: Any = None) -> None:
        """Say where the group has got to, and wait for it."""
        self._commit(offsets, is_waited_for=True)

    def _commit(self, offsets: Any, *, is_waited_for: bool) -> None:
        places = self._next if offsets is None else {place: (each.offset, None) for place, each in offsets.items()}
        made = [_theirs(place, offset, epoch) for place, (offset, epoch) in places.items()]
        if made:
            with _mapped():
                commit: Any = self._consumer.commit
                commit(offsets=made, asynchronous=not is_waited_for)

    def _committed(self, error: Any, _offsets: Any) -> None:
        if error is None and self._when_committed is not None:
            self._when_committed()

    def close(self) -> None:
        """Leave the group."""
        with _mapped():
            self._consumer.close()
