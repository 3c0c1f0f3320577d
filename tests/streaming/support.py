"""What the streaming and fault tests share: hostile definitions of a project's own, producing, waiting, and the oracle."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from deltalake import DeltaTable

from featurestore import FeatureStore
from featurestore.algebra import Count, Last, Max, Mean, Min, Sum
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.engines.oracle import Event, values_at
from featurestore.engines.scalar import evaluate_row
from featurestore.events.broker import producer
from featurestore.jobs.checkpoint import Checkpoint
from featurestore.jobs.consumers import consumer_command
from featurestore.jobs.driver import MaterializeSpec, materialize
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.compare import values_agree
from featurestore.testing.streams import hostile_stream
from featurestore.timeline import HOUR, to_datetime

MILLISECOND = 1_000
DEADLINE_S = 120.0
SLACK = 1e-6
"""Absolute, for sums of values up to 1e16 that cancel; what must be exact is compared exactly."""


def contract():
    """Return a contract with nullable columns of every type."""
    properties = {
        "card_id": {"type": "string"},
        "shop": {"type": ["integer", "null"]},
        "online": {"type": ["boolean", "null"]},
        "amount": {"type": ["number", "null"]},
        "points": {"type": ["integer", "null"]},
        "status": {"type": ["string", "null"]},
        "event_time": {"type": "string", "format": "date-time"},
    }
    text = json.dumps({"type": "object", "properties": properties, "required": ["card_id", "event_time"]})
    return Contract.from_json(text, "payment")


@dataclass(frozen=True)
class Shop:
    """The definitions of one test: a source with a topic of its own and a service over two views."""

    name: str

    @property
    def source(self):
        return EventSource("payments", topic=f"{self.name}_payments", schema=contract(), event_time="event_time")

    @property
    def views(self):
        visit = FeatureView(
            "visit",
            Entity("visit", keys={"card_id": "string", "shop": "int64"}),
            self.source,
            {
                "n": Count().over("10m", "1h", "lifetime"),
                "spend": Sum("amount").over("10m", "lifetime"),
                "points": Sum("points", where="online").over("1h"),
                "last": Last("amount").over("1h", "lifetime"),
            },
        )
        card = FeatureView(
            "card",
            Entity("card", keys={"card_id": "string"}),
            self.source,
            {
                "n": Count(where="amount > 0").over("5m", "lifetime"),
                "mean": Mean("amount").over("1h"),
                "low": Min("points").over("1h", "lifetime"),
                "high": Max("amount").over("10m"),
                "online": Last("online").over("lifetime"),
            },
            where="status = 'a' OR amount < 50",
        )
        return (visit, card)

    @property
    def service(self):
        return FeatureService("shop", list(self.views))

    def open(self, folder, broker, url, **overrides):
        """Return the project's store, its definitions applied and its topic created; ``broker`` is an address, or settings."""
        kafka = {"bootstrap.servers": broker} if isinstance(broker, str) else broker
        store = FeatureStore.open(
            root=folder, project=self.name, kafka=kafka, online={"url": url, "timeout": "5s"}, **overrides
        )
        store.apply(self.service, create_topics=True)
        return store

    def stream(self, seed, events, **options):
        """Return a hostile stream as Kafka can carry it: arrivals in whole milliseconds, none before 1970."""
        stream = hostile_stream(self.views[0], seed=seed, events=events, nan=0.0, **options)
        arrivals = [max(0, -(-event.arrival // MILLISECOND) * MILLISECOND) for event in stream.events]
        events = tuple(replace(event, arrival=arrival) for event, arrival in zip(stream.events, arrivals, strict=True))
        return replace(stream, events=events)


def simple_events(count, *, keys, begin=0, partitions=2):
    """Return many plain events: one a second over all partitions, numbered from ``begin``."""
    made = []
    for number in range(begin, begin + count):
        time_us = 1_700_000_000_000_000 + number * 1_000_000
        row = {
            "card_id": f"c{number % keys}",
            "shop": number % keys % 3,
            "online": number % 2 == 0,
            "amount": float(number % 97),
            "points": number % 11,
            "status": "a" if number % 3 else "b",
            "event_time": time_us,
        }
        made.append(Event(row, time_us, time_us, number % partitions, number // partitions))
    return made


def to_bytes(event):
    """Return an event as strict JSON."""
    row = {**event.row, "event_time": to_datetime(event.event_time).isoformat()}
    return json.dumps(row, allow_nan=False).encode()


def produce(broker, topic, records):
    """Send (partition, value, arrival) records in order; return the coordinates of each."""
    sender = producer({"bootstrap.servers": broker}, linger_ms=20, batch_size=1 << 18)
    with contextlib.closing(sender):
        sent = [
            sender.send(topic, value=value, key=b"k", partition=partition, timestamp_ms=arrival // MILLISECOND)
            for partition, value, arrival in records
        ]
        sender.flush()
        return [(each.get(30).partition, each.get(30).offset) for each in sent]


def produce_events(broker, topic, events):
    """Send events; they land where they say they are."""
    places = produce(broker, topic, [(event.partition, to_bytes(event), event.arrival) for event in events])
    assert places == [(event.partition, event.offset) for event in events]


class InProcess:
    """A materialize job on a thread of this process, in a Spark session of its own: what a submitted job does, without its JVM.

    It answers what tests ask of a submitted job: ``is_alive``, ``status()``, ``logs()`` and ``stop()``.
    """

    def __init__(
        self, spark, store, shop, folder, *, freshness="micro-batch", archive_every="500 milliseconds", **options
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = folder / "checkpoints"
        self.exit_code = None
        self._reported = folder / "status.json"
        self._reported.unlink(missing_ok=True)
        before = Checkpoint.read(self.checkpoints / "hot")
        self.began = {} if before is None else before.ends.get(shop.source.topic, {})
        """Where its hot query goes on, by partition; nothing where it begins."""
        if freshness == "realtime":
            store.settings.to_json(folder / "config.json")
            options["realtime"] = consumer_command(folder / "config.json", "shop")
        self._spec = MaterializeSpec(
            project=shop.name,
            views=store.definitions().service("shop").views,
            online_url=store.settings.online.url,
            offline=store.settings.offline,
            kafka=store.settings.kafka,
            checkpoints=str(self.checkpoints),
            status_file=self._reported,
            archive_every=archive_every,
            **options,
        )
        self._stop = threading.Event()
        self.session = spark.newSession()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        self.exit_code = materialize(self.session, self._spec, stop=self._stop)

    @property
    def is_alive(self):
        return self._thread.is_alive()

    def status(self):
        """Return what the driver last reported."""
        with contextlib.suppress(FileNotFoundError):
            return SimpleNamespace(**json.loads(self._reported.read_text()))
        return SimpleNamespace(state="starting", queries={}, totals={}, sources={}, error=None)

    def logs(self, _tail):
        """Nothing: its words are among those of the tests."""
        return ""

    def wait_end(self):
        """Return its exit code once it has ended by itself."""
        wait_for("the job's end", lambda: not self.is_alive, 60.0)
        return self.exit_code

    def stop(self):
        """End it; return its last status."""
        self._stop.set()
        self.wait_end()
        return self.status()


def collect_forgotten_sockets():
    """Be a fixture: kafka-python leaves sockets open whose connection was refused; collect them, not in the middle of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def wait_for(what, condition, seconds=DEADLINE_S, job=None):
    """Return the first truthy answer of ``condition``.

    A job that ended fails the wait at once, with the end of its log.
    """
    give_up = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if job is not None and not job.is_alive:
            raise AssertionError(f"waiting for {what}: {job.status()}\n{job.logs(40)}")
        assert time.monotonic() < give_up, f"waited {seconds:g} s for {what}; {job and job.status()}"
        time.sleep(0.01)


def ends_of(events, junk=()):
    """Return partition to the offset after its newest record, be it an event or one of (partition, offset)."""
    ends = {}
    for partition, offset in (*((event.partition, event.offset) for event in events), *junk):
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    return ends


def applied_offsets(url, project, source="payments"):
    """Return partition to the next offset of a source that the online store expects."""
    store = RedisOnlineStore(url, project)
    try:
        return {partition: offset for partition, (offset, _) in store.progress(source).items()}
    finally:
        store.close()


def wait_applied(url, project, ends, job=None, *, source="payments"):
    """Return when the online store has everything up to the offsets."""
    wait_for(f"offsets {ends} online", lambda: reached(applied_offsets(url, project, source), ends), job=job)


def reached(offsets, ends):
    return all(offsets.get(partition, 0) >= end for partition, end in ends.items())


_TABLES = {}


def table(offline, name):
    """Return a Delta table as Arrow, without a JVM; None while there is none. It is read when it has a new version, not more often."""
    path = Path(offline) / name
    newest = max((each.name for each in (path / "_delta_log").glob("*.json")), default=None)
    if newest is None:
        return None
    if _TABLES.get(path, (None,))[0] != newest:
        _TABLES[path] = newest, DeltaTable(str(path)).to_pyarrow_table()
    return _TABLES[path][1]


def places_of(offline, name):
    """Return how often each (partition, offset) is in a table of the archive."""
    found = table(offline, name)
    if found is None:
        return Counter()
    columns = [found.column(column).to_pylist() for column in ("_partition", "_offset")]
    return Counter(zip(*columns, strict=True))


def wait_archived(offline, count, job=None):
    """Return when event log and quarantine hold ``count`` records together."""

    def archived():
        found = [table(offline, name) for name in ("events/payments", "quarantine")]
        return sum(each.num_rows for each in found if each is not None)

    wait_for(f"{count} records in Delta", lambda: archived() >= count, job=job)
    assert archived() == count


def oracle(views, events, key, t, visible_at=None):
    """Return the features of a service for one key, from the specification."""
    values = {}
    for view in views:
        entity = [key[column] for column in view.entity.keys]
        values |= values_at(view, events, entity, t, visible_at=visible_at)
    return values


def differences(views, expected, actual, where=""):
    """Return in words where two rows of feature values differ."""
    tolerances = {
        f"{view.name}.{feature.name}": feature.aggregate.tolerance for view in views for feature in view.layout.features
    }
    assert expected.keys() == set(actual)
    return [
        f"{where} {name}: oracle {value!r}, got {actual[name]!r}"
        for name, value in expected.items()
        if not values_agree(value, actual[name], tolerance=tolerances[name], slack=SLACK if tolerances[name] else 0.0)
    ]


def entering(view, events):
    """Return how many events enter a view."""
    return sum(view.condition is None or evaluate_row(view.condition, event.row) is True for event in events)


def by_card(events):
    """Return the events of every card; the oracle asks about one card at a time."""
    groups = defaultdict(list)
    for event in events:
        groups[event.row["card_id"]].append(event)
    return groups


def online_differences(store, shop, events):
    """Return where the online store differs from the oracle, over all keys, an hour after the last event."""
    t = max(event.event_time for event in events) + HOUR
    groups = by_card(events)
    pairs = sorted({(event.row["card_id"], event.row["shop"]) for event in events}, key=repr)
    keys = [{"card_id": card, "shop": number} for card, number in pairs]
    wrong = []
    with store.client(timeout="5s") as client:
        for key, vector in zip(keys, client.get_many("shop", keys, now=t), strict=True):
            wrong += differences(shop.views, oracle(shop.views, groups[key["card_id"]], key, t), dict(vector), f"{key}")
    return wrong


def process_tree(pid):
    """Return a process and all its descendants, as (pid, start time): Spark's workers lead groups of their own."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        born = birth(current)
        if born is None:
            continue
        found.append((current, born))
        try:
            threads = list(Path(f"/proc/{current}/task").glob("*/children"))
        except OSError:  # it has ended meanwhile
            continue
        for children in threads:
            try:
                todo += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def birth(pid):
    """Return when a process started, None when it is gone or only waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def kill_driver(job):
    """SIGKILL the driver's process group; return when nothing it started is left."""
    pid = job.record["pid"]
    tree = process_tree(pid)
    assert os.getpgid(pid) == pid
    os.killpg(pid, 9)
    wait_for("the end of the driver and its workers", lambda: all(birth(each) != born for each, born in tree), 30.0)
