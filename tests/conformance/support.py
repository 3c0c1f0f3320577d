"""A store with a published service and a writer: what the writer's, the client's and the checks' cases share."""

from __future__ import annotations

from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import Event, values_at
from featurestore.errors import PastLookupError
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.streams import hostile_stream, shape_events
from tests.conformance.cases import CONDITIONS, MANY, SOURCE, assert_same
from tests.raw import raw

VIEWS = (MANY, CONDITIONS)
SERVICE = FeatureService("cards", VIEWS)
SECOND = 1_000_000


def stream_of(seed, events=80, partitions=2):
    """Return a hostile stream for both views: every key text in it is a card."""
    return hostile_stream(MANY, seed=seed, events=events, probes=8, partitions=partitions)


def one(event_time, *, card="c", offset=0, partition=0, arrival=None, **row):
    full = {"shop": None, "online": True, "amount": 1.0, "points": 1, "status": "a", "shipped": None}
    arrived = event_time if arrival is None else arrival
    return Event({**full, **row, "card_id": card, "event_time": event_time}, event_time, arrived, partition, offset)


def batches(events, dice, size=25):
    done = 0
    while done < len(events):
        step = dice.randrange(1, size)
        yield events[done : done + step]
        done += step


class Online:
    """A store with a published service, a writer per partition and what has been applied so far."""

    def __init__(self, store, views=VIEWS, **options):
        self.store = store
        self.views = views
        self.options = options
        self.store.publish_plan(LookupPlan("cards", tuple(view.layout for view in views)))
        self.client = FeatureClient.over(store)
        self.writer = self.new_writer()

    def new_writer(self):
        return FencedWriter(self.store, SOURCE.name, self.views, **self.options)

    def apply(self, events, partition=None, writer=None):
        """Apply events, partition by partition; ``until`` is the offset after the newest."""
        counts = {}
        for each in sorted({event.partition for event in events}) if partition is None else [partition]:
            mine = [event for event in events if event.partition == each]
            until, arrival = max(e.offset for e in mine) + 1, max(e.arrival for e in mine)
            done = (writer or self.writer).apply(
                each, until, arrival, [shape_events(view, mine) for view in self.views]
            )
            counts = {name: counts.get(name, 0) + value for name, value in done.items()}
        return counts

    def dump(self):
        """Return every value and fence of the store, plans and progress aside."""
        if isinstance(self.store, MemoryOnlineStore):
            fences = {(b"fences", bucket): dict(each) for bucket, each in enumerate(self.store.bucket_fences)}
            return {**self.store.values, **fences}
        admin = raw(self.store)
        skipped = (b"progress", b"plan", b"services")
        keys = [key for key in admin.scan_iter("*", 1000) if key.split(b":")[2] not in skipped]
        return {key: admin.get(key) if admin.type(key) == b"string" else admin.hgetall(key) for key in keys}

    def forget_fences(self):
        """Remove the fences, which nothing but a test of them would."""
        if isinstance(self.store, MemoryOnlineStore):
            for fences in self.store.bucket_fences:
                fences.clear()
        else:
            raw(self.store).delete(*raw(self.store).scan_iter("*:fence", 1000))

    def put(self, name, value):
        """Write a value past the writer."""
        if isinstance(self.store, MemoryOnlineStore):
            self.store.values[name] = value
        else:
            raw(self.store).set(name, value)

    def blobs(self):
        return {key: value for key, value in self.dump().items() if isinstance(key, bytes) and b":v:" in key}

    def grown(self):
        """Return all blobs, as ``FencedWriter.fold`` takes them."""
        return {
            i: [(key, len(blob)) for key, blob in self.blobs().items() if f":{view.name}@".encode() in key]
            for i, view in enumerate(self.views)
        }

    def assert_oracle(self, events, probes=()):
        """Compare every key after everything applied, and at the probes that are not refused."""
        newest = max(event.event_time for event in events)
        for key in {event.row["card_id"] for event in events} | {"nobody"}:
            self.assert_one(events, key, newest + 1)
            self.assert_one(events, key, newest + 3_600 * SECOND)
        for (key,), t in probes:
            try:
                self.assert_one(events, key, t)
            except PastLookupError:
                assert any(event.event_time >= t for event in events)

    def assert_one(self, events, key, t):
        vector = self.client.get("cards", {"card_id": key}, now=t)
        begin = 0
        for view in self.views:
            expected = values_at(view, events, [key], t)
            got = vector.to_list()[begin : begin + len(expected)]
            if vector.known[view.name]:
                assert_same(view, expected, got, f"online for {key!r} at {t}")
            else:
                assert set(got) == {None} or list(expected.values()) == got
            begin += len(expected)
        assert vector.at == t
