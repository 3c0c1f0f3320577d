"""Replay: events, job, online store, lookup and training set on a virtual clock, inside a test, without a service.

    with replay(fraud_v1) as run:
        run.send("transactions", {"card_id": "c1", "amount": 12.0}, at="2024-01-01T00:00:00Z")
        run.advance("1h")
        assert run.get({"card_id": "c1"})["card_spend.spend_1h"] == 12.0
        run.assert_equal()

What runs is production's: decoder, row expressions, shaping, the fenced writer, folding, codec and lookup, over a store in
memory; the training set is the points kernel over the same records. Kafka, Spark and Redis are what is left out. The clock
moves only when it is told to, or when a record arrives later than it shows. ``assert_equal`` holds three answers against
each other: the online store's, the training set's, and the specification's (``engines.oracle``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from featurestore.definitions.cost import TAIL_CAP
from featurestore.definitions.service import FeatureService
from featurestore.definitions.view import FeatureView
from featurestore.errors import DefinitionError, UnknownNameError, did_you_mean
from featurestore.jobs.worker import COUNTS, SourceWorker, by_topic, complete_through, decoding_of
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.crashing import CrashingStore, SimulatedCrashError
from featurestore.testing.judge import Difference, differences, report
from featurestore.testing.log import EventLog, Quarantined
from featurestore.testing.records import Record, ReplayDecoder, row_bytes, typed_row
from featurestore.timeline import Instant, VirtualClock, parse_duration, to_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    import pyarrow as pa

    from featurestore.definitions.source import EventSource
    from featurestore.online.store import OnlineStore
    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector

_YEAR_1: Instant = -62_135_596_800_000_000


@dataclass(slots=True)
class _Partition:
    """The records of one partition, and how many of them the job has committed."""

    source: EventSource
    records: list[Record]
    committed: int = 0


class Replay:
    """A feature service, or several, replayed by hand. Use ``replay(...)``.

    Attributes:
        clock: The virtual clock: what the job and the lookups take for now.
        counts: What became of the records so far, by fate (``jobs.worker.COUNTS``).
        store: The online store.
    """

    def __init__(
        self,
        *what: FeatureService | FeatureView,
        start: Instant | str | datetime | None = None,
        tail_cap: int = TAIL_CAP,
        store: OnlineStore | None = None,
    ) -> None:
        services = [each for each in what if isinstance(each, FeatureService)]
        services += [FeatureService(each.name, [each]) for each in what if isinstance(each, FeatureView)]
        if not services or len(services) != len(what):
            raise DefinitionError(f"replay takes feature services and views, got {what!r}.")
        self.clock = VirtualClock(_YEAR_1 if start is None else to_instant(start, name="start"))
        self.store: OnlineStore = CrashingStore(store or MemoryOnlineStore())
        self.services = {service.name: service for service in services}
        self.views: tuple[FeatureView, ...] = tuple({view.name: view for s in services for view in s.views}.values())
        self.counts = dict.fromkeys(COUNTS, 0)
        self._tail_cap = tail_cap
        self._sources = {source.name: (source, views) for source, views in by_topic(self.views).values()}
        self._unusual: dict[bytes, dict[str, float]] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._logs = {name: EventLog(source, self._decoder(source)) for name, (source, _) in self._sources.items()}
        self._running = True
        for service in services:
            self.store.publish_plan(LookupPlan.of(service))
        self._client = FeatureClient.over(self.store, clock=self.clock)
        self._workers = self._start_workers()

    def _decoder(self, source: EventSource) -> ReplayDecoder:
        return ReplayDecoder(source.contract, **decoding_of(source), unusual=self._unusual)

    def _start_workers(self) -> dict[str, SourceWorker]:
        return {
            name: SourceWorker(
                source, self._decoder(source), FencedWriter(self.store, name, views, tail_cap=self._tail_cap)
            )
            for name, (source, views) in self._sources.items()
        }

    # ---------------------------------------------------------------------------------------------- producing

    def send(
        self,
        source: str,
        event: Mapping[str, Any] | bytes | None,
        *,
        at: Instant | str | datetime | None = None,
        arrival: Instant | str | datetime | None = None,
        partition: int = 0,
    ) -> Record:
        """Append one record to a source's topic; the clock moves to its arrival. Return the record.

        Args:
            source: Name of the source, or its topic.
            event: A row, or the record's raw bytes, however malformed; None is a tombstone.
            at: The event time; sets the row's event-time field.
            arrival: When the broker receives it. By default at its event time, or now if that has passed: a late event.
            partition: The partition it goes to.

        Raises:
            UnknownNameError: No such source.
            DefinitionError: The arrival lies before the clock: records are sent in the order in which they arrive.
        """
        found = self._source(source)
        row: dict[str, Any] | None = None
        value: bytes | None
        if event is None or isinstance(event, bytes):
            value = event
        else:
            given = dict(event)
            if at is not None:
                given[found.event_time] = to_instant(at, name="at")
            value, row = row_bytes(found, given, self._unusual), typed_row(found, given)
        happened = None if row is None else row[found.event_time]
        now = self.clock.now()
        if arrival is not None:
            arrived = to_instant(arrival, name="arrival")
            if arrived < now:
                raise DefinitionError(
                    f"arrival {arrival!r} lies before the replay's clock.", hint="send records in order of arrival."
                )
        else:
            arrived = max(now, happened) if isinstance(happened, int) else now
        self.clock.advance_to(arrived)
        place = self._partitions.setdefault((found.name, partition), _Partition(found, []))
        record = Record(found, partition, len(place.records), arrived, value, row)
        place.records.append(record)
        self._logs[found.name].append(record)
        return record

    def send_many(
        self,
        source: str,
        events: Iterable[Mapping[str, Any]],
        *,
        arrivals: Iterable[Instant | str | datetime] | None = None,
    ) -> None:
        """Append rows that carry their event times, in their order.

        Args:
            source: Name of the source, or its topic.
            events: The rows.
            arrivals: One per row; by default as ``send`` does.
        """
        if arrivals is None:
            for event in events:
                self.send(source, event)
        else:
            for event, arrival in zip(events, arrivals, strict=True):
                self.send(source, event, arrival=arrival)

    def advance(self, duration: str | timedelta) -> None:
        """Let time pass; the job applies what has been sent."""
        self.clock.advance_to(self.clock.now() + parse_duration(duration))
        self.drain()

    def advance_to(self, instant: Instant | str | datetime) -> None:
        """Let time pass until an instant; the job applies what has been sent."""
        self.clock.advance_to(to_instant(instant, name="instant"))
        self.drain()

    # ------------------------------------------------------------------------------------------------ the job

    def drain(self) -> None:
        """Let the job apply everything sent so far, as one micro-batch; nothing while it is stopped."""
        if not self._running:
            return
        for (name, number), place in self._partitions.items():
            fresh = place.records[place.committed :]
            if fresh:
                counts = self._workers[name].apply(
                    number,
                    np.array([record.offset for record in fresh], dtype=np.int64),
                    np.array([record.arrival for record in fresh], dtype=np.int64),
                    [record.value for record in fresh],
                )
                place.committed = len(place.records)
                for fate, count in counts.items():
                    self.counts[fate] += count
        self._publish_complete()

    def _publish_complete(self) -> None:
        now = self.clock.now()
        for name in self._sources:
            ends = {number: len(place.records) for (of, number), place in self._partitions.items() if of == name}
            complete = complete_through(self.store.progress(name), ends, read_at=now)
            if complete is not None:
                self.store.publish_complete(name, complete)

    def stop(self) -> None:
        """Stop the job: what is sent from now on waits, and lookups see what has been applied."""
        self.drain()
        self._running = False

    def start(self) -> None:
        """Start the job again; it goes on from its checkpoint."""
        self._running = True
        self._workers = self._start_workers()

    def crash(self, *, after: int = 0, lost_checkpoint: bool = False) -> None:
        """Let the job die in the middle of applying what has been sent, and come back.

        Args:
            after: How many buckets of keys are still written before it dies.
            lost_checkpoint: Whether it then starts from the beginning of every topic, instead of from its checkpoint.
        """
        assert isinstance(self.store, CrashingStore)  # noqa: S101 - made in __init__
        self.store.buckets_to_live = after
        try:
            self.drain()
        except SimulatedCrashError:
            pass
        finally:
            self.store.buckets_to_live = None
        if lost_checkpoint:
            for place in self._partitions.values():
                place.committed = 0
        self.start()

    # ------------------------------------------------------------------------------------------------ reading

    def get(
        self,
        keys: Mapping[str, Any],
        *,
        service: str | None = None,
        now: Instant | str | datetime | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> FeatureVector:
        """Return the features of one entity as the client does, at the clock's time or at ``now``.

        Raises:
            PastLookupError: ``now`` is given and lies before events that are already merged.
        """
        self.drain()
        return self._client.get(self._service(service).name, keys, now=now, request=request)

    def get_many(
        self,
        keys: Sequence[Mapping[str, Any]],
        *,
        service: str | None = None,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> FeatureTable:
        """Return the features of many entities as the client does."""
        self.drain()
        return self._client.get_many(self._service(service).name, keys, now=now, request=request)

    def training_set(
        self, spine: Any, *, event_time: str = "event_time", service: str | None = None, as_served: bool | str = False
    ) -> pa.Table:
        """Return a spine with the features of a service, each row as of its own time: all records sent are in the log.

        Args:
            spine: A list of rows, or a pandas, Polars or Arrow table: key columns, a time, and anything else.
            event_time: The spine's time column: aware datetimes, ISO 8601 texts in a list of rows, or microseconds.
            service: Whose features; the first service's by default.
            as_served: True also hides what had not arrived by then; the name of a column of times, by that.

        Raises:
            SpineError: A key or time column is missing or not usable.
        """
        from featurestore.testing.log import training_set

        return training_set(self._service(service), self._logs, spine, event_time=event_time, as_served=as_served)

    def log(self, source: str) -> EventLog:
        """Return the records sent to a source, by its name or topic, as its event log."""
        return self._logs[self._source(source).name]

    @property
    def quarantine(self) -> list[Quarantined]:
        """The records that are no events, with reason and coordinates, in order of arrival."""
        found = [one for log in self._logs.values() for one in log.quarantine]
        return sorted(found, key=lambda one: (one.arrival, one.source, one.partition, one.offset))

    # ------------------------------------------------------------------------------------------------ judging

    def differences(
        self,
        keys: Mapping[str, Any] | None = None,
        *,
        at: Instant | str | datetime | None = None,
        visible_at: Instant | str | datetime | None = None,
    ) -> list[Difference]:
        """Return where the training set or the online store differ from the specification; nothing where all is well.

        Args:
            keys: Key columns and their values; every key that ever had an event when None.
            at: The time; the clock's when None.
            visible_at: Hides what arrived later, from the training set; the online store is left out then.
        """
        self.drain()
        t = self.clock.now() if at is None else to_instant(at, name="at")
        seen = None if visible_at is None else to_instant(visible_at, name="visible_at")
        found: list[Difference] = []
        for view in self.views:
            found += differences(
                view, self._logs[view.source.name], self.store, keys, t, self.clock.now(), visible_at=seen
            )
        return found

    def assert_equal(
        self,
        keys: Mapping[str, Any] | None = None,
        *,
        at: Instant | str | datetime | None = None,
        visible_at: Instant | str | datetime | None = None,
    ) -> None:
        """Fail unless online store, training set and specification agree. Arguments as for ``differences``."""
        found = self.differences(keys, at=at, visible_at=visible_at)
        if found:
            raise AssertionError(report(found))

    # ---------------------------------------------------------------------------------------------------- names

    def _source(self, name: str) -> EventSource:
        for source, _ in self._sources.values():
            if name in (source.name, source.topic):
                return source
        raise UnknownNameError(
            f"no source {name!r} in this replay.", hint=did_you_mean(name, list(self._sources), what="sources")
        )

    def _service(self, name: str | None) -> FeatureService:
        if name is None:
            return next(iter(self.services.values()))
        if name not in self.services:
            raise UnknownNameError(
                f"no service {name!r} in this replay.", hint=did_you_mean(name, list(self.services), what="services")
            )
        return self.services[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


def replay(
    *what: FeatureService | FeatureView,
    start: Instant | str | datetime | None = None,
    tail_cap: int = TAIL_CAP,
    store: OnlineStore | None = None,
) -> Replay:
    """Return a replay of feature services or views; a context manager.

    Args:
        what: The services, or views, which count as a service of their own name.
        start: Where the clock begins; the first record moves it to its arrival.
        tail_cap: Records in a key's tail before it is folded; small values fold often, as a busy key does.
        store: An empty online store; one in memory when None.
    """
    return Replay(*what, start=start, tail_cap=tail_cap, store=store)
