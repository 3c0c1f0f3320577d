"""The fenced writer and the client against a real server: exactly once, whatever the batches, and equal to the oracle."""

from __future__ import annotations

import inspect
import random
import socket
import threading
import time

import pytest
import redis

from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import Event, values_at
from featurestore.errors import (
    CodecError,
    ConfigError,
    DefinitionError,
    FenceError,
    OnlineError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    PastLookupError,
    UnknownNameError,
)
from featurestore.online.client import FeatureClient
from featurestore.online.codec import HEADER, base_length, record_size
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import ERRORS, RedisOnlineStore, mapped_errors, safe_url
from featurestore.online.redis_writer import FencedWriter
from featurestore.testing.streams import hostile_stream, shape_events
from featurestore.timeline import VirtualClock
from tests.conformance.cases import CONDITIONS, MANY, SHORT, SOURCE, assert_same

pytestmark = pytest.mark.server

VIEWS = (MANY, CONDITIONS)
SERVICE = FeatureService("cards", VIEWS)
SECOND = 1_000_000


def stream_of(seed, events=80, partitions=2):
    """Return a hostile stream for both views: every key text in it is a card."""
    return hostile_stream(MANY, seed=seed, events=events, probes=8, partitions=partitions)


class Online:
    """A store with a published service, a writer per partition and what has been applied so far."""

    def __init__(self, url, project="default", views=VIEWS, **options):
        self.store = RedisOnlineStore(url, project)
        self.views = views
        self.options = options
        self.store.publish_plan(LookupPlan("cards", tuple(view.layout for view in views)))
        self.client = FeatureClient(url, project=project, timeout="5s")
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
        """Return every value in the server, progress aside."""
        raw = self.store.redis
        keys = [key for key in raw.keys("*") if b":progress:" not in key]
        return {key: raw.get(key) if raw.type(key) == b"string" else raw.hgetall(key) for key in keys}

    def blobs(self):
        return {key: value for key, value in self.dump().items() if b":v:" in key}

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


@pytest.fixture
def online(online_url):
    made = Online(online_url)
    yield made
    made.client.close()
    made.store.close()


def batches(events, dice, size=25):
    done = 0
    while done < len(events):
        step = dice.randrange(1, size)
        yield events[done : done + step]
        done += step


# ------------------------------------------------------------------------------------------------ exactly once


@pytest.mark.parametrize("seed", range(4))
def test_any_batches_give_the_oracle(online_url, seed):
    dice = random.Random(seed)
    online = Online(online_url, tail_cap=dice.choice([0, 1, 4, 8]))
    stream = stream_of(seed)
    counts = [online.apply(batch) for batch in batches(stream.events, dice)]
    assert sum(count["fenced"] for count in counts) == 0
    assert sum(count["folded"] for count in counts) > 0
    online.assert_oracle(stream.events, stream.probes)


@pytest.mark.parametrize("seed", range(4))
def test_replays_of_overlapping_ranges_change_nothing(online, seed):
    """Crashes and lost checkpoints, written as input: every batch starts somewhere before where the last one ended."""
    dice = random.Random(100 + seed)
    stream = stream_of(seed)
    for partition in (0, 1):
        mine = [event for event in stream.events if event.partition == partition]
        applied = 0
        while applied < len(mine):
            begin, applied = dice.randrange(applied + 1), min(len(mine), applied + dice.randrange(1, 15))
            online.apply(mine[begin:applied], writer=online.new_writer() if dice.random() < 0.5 else None)
    before = online.dump()
    counts = online.apply(stream.events, writer=online.new_writer())
    assert counts["applied"] == counts["records"] == counts["folded"] == 0
    assert counts["fenced"] > 0
    assert online.dump() == before
    online.assert_oracle(stream.events, stream.probes)


def test_without_the_fence_a_replay_counts_twice(online):
    """The negative control of the test above."""
    stream = stream_of(1)
    online.apply(stream.events)
    for key in online.store.redis.keys("*:fence"):
        online.store.redis.delete(key)
    online.apply(stream.events)
    with pytest.raises(AssertionError, match="oracle"):
        online.assert_oracle(stream.events)


class Overtaken(FencedWriter):
    """A writer that another one overtakes between reading the fences and sending."""

    overtake = None

    def _send(self, *args):
        callback, self.overtake = self.overtake, None
        if callback is not None:
            callback()
        return super()._send(*args)


def test_a_moved_fence_stops_the_zombie_and_changes_nothing(online):
    stream = stream_of(2)
    first, rest = stream.events[:30], stream.events[30:]
    online.apply(first)
    zombie = Overtaken(online.store, SOURCE.name, VIEWS)
    mine = [event for event in rest if event.partition == 0]
    after = {}

    def overtake():
        online.apply(mine)
        after.update(online.dump())

    zombie.overtake = overtake
    with pytest.raises(FenceError, match=r"payments: FENCE many@.* is at .*another writer"):
        online.apply(mine, writer=zombie)
    assert online.dump() == after
    online.apply(rest)
    online.assert_oracle(stream.events)


def test_a_zombie_that_was_overtaken_in_some_buckets_only_finishes_on_retry(online):
    """Buckets whose fence moved are refused, the others are applied; the retry skips exactly those."""
    events = [one(i * SECOND, card=f"c{i % 40}", offset=i) for i in range(200)]
    zombie = Overtaken(online.store, SOURCE.name, VIEWS)
    zombie.overtake = lambda: online.apply(events[:3])
    with pytest.raises(FenceError):
        online.apply(events, writer=zombie)
    counts = online.apply(events, writer=zombie)
    assert counts["fenced"] > 0
    assert counts["applied"] > 0
    online.assert_oracle(events)


def one(event_time, *, card="c", offset=0, partition=0, arrival=None, **row):
    full = {"shop": None, "online": True, "amount": 1.0, "points": 1, "status": "a", "shipped": None}
    arrived = event_time if arrival is None else arrival
    return Event({**full, **row, "card_id": card, "event_time": event_time}, event_time, arrived, partition, offset)


def test_two_partitions_writing_one_key_at_once_lose_nothing(online):
    events = [one(i * SECOND, offset=i // 4, partition=i % 4, amount=float(i)) for i in range(400)]
    failures = []

    def run(partition):
        writer = FencedWriter(online.store, SOURCE.name, VIEWS, tail_cap=2)
        mine = [event for event in events if event.partition == partition]
        try:
            for begin in range(0, len(mine), 7):
                online.apply(mine[begin : begin + 7], partition, writer)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    online.assert_oracle(events)


def test_rejected_records_move_the_progress_but_no_value(online):
    online.apply([one(0, offset=0)])
    before = online.dump()
    online.writer.apply(0, 10, 5 * SECOND, [shape_events(view, []) for view in VIEWS])
    assert online.dump() == before
    assert online.store.progress(SOURCE.name) == {0: (10, 5 * SECOND)}


def test_progress_never_goes_back(online):
    online.apply([one(0, offset=i, arrival=7 * SECOND) for i in range(5)])
    online.apply([one(0, offset=0, arrival=SECOND)])
    assert online.store.progress(SOURCE.name) == {0: (5, 7 * SECOND)}
    assert online.store.progress("other") == {}


# ----------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("cap", [0, 1, 5])
def test_no_tail_is_longer_than_its_cap_after_a_write(online_url, cap):
    online = Online(online_url, tail_cap=cap)
    for begin in range(0, 120, 10):
        online.apply([one(i * 40 * SECOND, card=f"c{i % 3}", offset=i) for i in range(begin, begin + 10)])
        for key, blob in online.blobs().items():
            view = next(view for view in VIEWS if f":{view.name}@".encode() in key)
            assert (len(blob) - base_length(blob)) // record_size(view.layout) <= cap


class Interrupted(RedisOnlineStore):
    """A store where something happens between a read and what follows it."""

    then = None

    def read(self, keys):
        values = super().read(keys)
        callback, self.then = self.then, None
        if callback is not None:
            callback()
        return values


def test_a_fold_that_lost_the_race_is_not_made_and_nothing_is_lost(online, online_url):
    events = [one(i * SECOND, offset=i) for i in range(60)]
    slow = Interrupted(online_url, "default")
    writer = FencedWriter(slow, SOURCE.name, VIEWS, tail_cap=2)
    online.writer = FencedWriter(online.store, SOURCE.name, VIEWS, tail_cap=1_000)
    for begin in range(0, 20, 4):
        online.apply(events[begin : begin + 4])
    grown = {
        i: [(key, len(blob)) for key, blob in online.blobs().items() if f":{view.name}@".encode() in key]
        for i, view in enumerate(VIEWS)
    }
    slow.then = lambda: online.apply(events[20:40])
    before = online.blobs()
    assert writer.fold(grown, clock=events[39].arrival) == 1  # the first view lost, the second was read afterwards
    changed = {key for key, blob in online.blobs().items() if base_length(blob) != base_length(before[key])}
    assert len(changed) == 1
    online.apply(events[40:])
    online.assert_oracle(events)


def test_writers_that_fold_the_same_keys_at_once_lose_nothing(online_url):
    online = Online(online_url, tail_cap=1_000)
    stream = stream_of(5)
    for begin in range(0, len(stream.events), 10):
        online.apply(stream.events[begin : begin + 10])
    grown = {
        i: [(key, len(blob)) for key, blob in online.blobs().items() if f":{view.name}@".encode() in key]
        for i, view in enumerate(VIEWS)
    }
    clock = max(event.arrival for event in stream.events)
    writers = [FencedWriter(RedisOnlineStore(online_url, "default"), SOURCE.name, VIEWS, tail_cap=0) for _ in range(4)]
    done = []
    threads = [threading.Thread(target=lambda w=writer: done.append(w.fold(grown, clock=clock))) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert sum(done) >= len(online.blobs())
    online.assert_oracle(stream.events, stream.probes)


# --------------------------------------------------------------------------------------------- a store that fails


def test_a_store_that_lost_its_scripts_recovers_on_retry(online):
    stream = stream_of(3)
    online.apply(stream.events[:40])
    online.store.redis.script_flush()
    with pytest.raises(OnlineError, match="lost its scripts"):
        online.apply(stream.events)
    online.apply(stream.events)
    online.assert_oracle(stream.events, stream.probes)


def test_a_store_that_lost_its_scripts_still_records_progress_when_nothing_is_new(online):
    online.apply([one(0)])
    online.store.redis.script_flush()
    assert online.apply([one(0)])["fenced"] == len(VIEWS)
    assert online.store.progress(SOURCE.name) == {0: (1, 0)}


def test_scripts_lost_before_a_fold_cost_only_that_fold(online):
    for i in range(5):
        online.apply([one(i * SECOND, offset=i)])
    grown = {0: [(key, len(blob)) for key, blob in online.blobs().items() if b":many@" in key]}
    online.store.redis.script_flush()
    online.writer.tail_cap = 1
    assert online.writer.fold(grown, clock=10 * SECOND) == 0
    assert online.writer.fold(grown, clock=10 * SECOND) == 1


def test_a_blob_that_is_not_ours_is_a_codec_error(online):
    online.apply([one(0, card="c")])
    for key in online.blobs():
        online.store.redis.set(key, b"garbage")
    with pytest.raises(CodecError, match="many"):
        online.client.get("cards", {"card_id": "c"})


def test_an_unknown_service_is_named_with_the_closest(online, online_url):
    with pytest.raises(UnknownNameError, match=r"no service 'card'.*did you mean 'cards'"):
        online.client.get("card", {"card_id": "c"})
    with pytest.raises(UnknownNameError, match="run featurestore apply first"):
        FeatureClient(online_url, project="empty").get("cards", {"card_id": "c"})


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_store_that_is_down_is_unavailable_and_its_password_stays_secret():
    url = f"redis://user:secret@127.0.0.1:{closed_port()}"
    with pytest.raises(OnlineStoreUnavailableError, match="cannot be reached") as caught:
        FeatureClient(url).get("cards", {"card_id": "c"})
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value.__cause__, redis.exceptions.ConnectionError)
    assert "secret" not in str(caught.value)
    with pytest.raises(OnlineStoreUnavailableError):
        FencedWriter(RedisOnlineStore(url, "p"), "s", [])


def test_a_store_that_never_answers_times_out_within_the_deadline():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        client = FeatureClient(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout="100ms")
        begin = time.monotonic()
        with pytest.raises(OnlineStoreTimeoutError, match="did not answer in time") as caught:
            client.get("cards", {"card_id": "c"})
        assert time.monotonic() - begin < 1
        assert isinstance(caught.value, TimeoutError)
        client.close()


def test_a_store_that_hangs_times_out_and_then_answers_the_right_question(online, online_url):
    online.apply([one(0, card="a"), one(0, card="b", amount=7.0, offset=1)])
    client = FeatureClient(online_url, timeout="50ms")
    assert client.get("cards", {"card_id": "a"}, now=1)["many.high_1h"] == 1.0
    online.store.redis.execute_command("CLIENT", "PAUSE", 600, "ALL")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreTimeoutError):
        client.get("cards", {"card_id": "a"}, now=1)
    assert time.monotonic() - begin < 0.3
    online.store.ping()  # answers when the pause is over
    assert client.get("cards", {"card_id": "b"}, now=1)["many.high_1h"] == 7.0
    client.close()


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "", "redis://localhost:port", "redis://h:1/notanumber"]
)
def test_a_url_that_is_none_is_a_config_error(url):
    with pytest.raises(ConfigError, match="not usable"):
        RedisOnlineStore(url, "p")


def test_a_url_is_shown_without_credentials():
    assert safe_url("redis://u:p@h:6379/0") == "redis://h:6379/0"
    assert safe_url("redis://h:6379/0?password=p") == "redis://h:6379/0"
    assert safe_url("unix:///run/valkey.sock") == "unix:///run/valkey.sock"


FOREIGN = [
    kind
    for _, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, redis.exceptions.RedisError)
]


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_redis_error_becomes_one_of_ours(kind):
    made = kind.__new__(kind)
    Exception.__init__(made, "foreign words")
    with pytest.raises(OnlineError, match=r"online store redis://h:1 ") as caught, mapped_errors("redis://u:p@h:1"):
        raise made
    assert caught.value.__cause__ is made


def test_no_row_of_the_error_map_hides_another():
    for i, (foreign, _, _) in enumerate(ERRORS):
        assert not any(issubclass(foreign, earlier) for earlier, _, _ in ERRORS[:i])
    assert ERRORS[-1][0] is redis.exceptions.RedisError


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (redis.exceptions.TimeoutError, OnlineStoreTimeoutError),
        (redis.exceptions.ConnectionError, OnlineStoreUnavailableError),
        (redis.exceptions.BusyLoadingError, OnlineStoreUnavailableError),
        (redis.exceptions.AuthenticationError, OnlineStoreUnavailableError),
        (redis.exceptions.MaxConnectionsError, OnlineStoreUnavailableError),
        (redis.exceptions.ReadOnlyError, OnlineStoreUnavailableError),
        (redis.exceptions.ClusterDownError, OnlineStoreUnavailableError),
        (redis.exceptions.MasterDownError, OnlineStoreUnavailableError),
        (redis.exceptions.ResponseError, OnlineError),
    ],
)
def test_what_means_come_back_later_is_unavailable(kind, ours):
    made = kind.__new__(kind)
    with pytest.raises(OnlineError) as caught, mapped_errors("redis://h:1"):
        raise made
    assert type(caught.value) is ours


def test_errors_that_are_not_the_stores_pass_through():
    with pytest.raises(KeyError), mapped_errors("redis://h:1"):
        raise KeyError("x")


# ------------------------------------------------------------------------------------------------------ client


def test_two_projects_do_not_see_each_other(online_url):
    left, right = Online(online_url, "left"), Online(online_url, "left_right")
    left.apply([one(0, card="c", amount=1.0)])
    right.apply([one(0, card="c", amount=5.0), one(1, card="c", amount=5.0, offset=1)])
    left.assert_oracle([one(0, card="c", amount=1.0)])
    assert right.client.get("cards", {"card_id": "c"}, now=2)["many.n_1h"] == 2
    assert not set(left.store.progress(SOURCE.name)) - {0}
    raw = left.store.redis
    names = [{key.split(b"}")[0] for key in raw.keys(f"fs:{{{each.store.project}.*")} for each in (left, right)]
    assert all(names)
    assert not names[0] & names[1]


def test_missing_null_and_present_are_told_apart(online):
    missing = online.client.get("cards", {"card_id": "c"}, now=0)
    assert set(missing.status.values()) == {"missing"}
    assert set(missing.to_list()) == {None}  # an empty store says nothing, not zero
    assert missing.complete_through is None
    online.store.publish_complete(SOURCE.name, 9)
    unknown = online.client.get("cards", {"card_id": "c"}, now=0)
    assert (unknown["many.n_1h"], unknown["many.spend_1h"], unknown.complete_through) == (0, None, 9)
    online.apply([one(0, card="c", amount=None)])
    vector = online.client.get("cards", {"card_id": "c"}, now=1)
    assert (vector["many.n_1h"], vector["many.known_1h"], vector["many.spend_1h"]) == (1, 0, None)
    assert (vector.status["many.n_1h"], vector.status["many.spend_1h"]) == ("present", "null")
    assert vector.as_of == {"many": 0, "conditions": 0}


def test_now_is_the_clocks_and_moves_past_what_is_applied(online, online_url):
    online.apply([one(5 * SECOND, card="c")])
    clock = VirtualClock(3 * SECOND)
    client = FeatureClient(online_url, clock=clock)
    assert client.get("cards", {"card_id": "c"})["many.n_1h"] == 0
    for i in range(1, 20):
        online.apply([one((5 + i) * SECOND, card="c", offset=i)])
    assert client.get("cards", {"card_id": "c"})["many.n_1h"] == 20 - tail_after(online, 3 * SECOND)
    with pytest.raises(PastLookupError, match="training set"):
        client.get("cards", {"card_id": "c"}, now=3 * SECOND)
    clock.advance_to(3_700 * SECOND)
    assert client.get("cards", {"card_id": "c"})["many.n_1h"] == 20
    clock.advance_to(40_000 * SECOND)
    assert client.get("cards", {"card_id": "c"})["many.n_1h"] == 0


def tail_after(online, t):
    """Return how many events lie in tail records that a lookup just after the base's newest event skips."""
    (blob,) = [blob for key, blob in online.blobs().items() if b":many@" in key]
    newest = HEADER.unpack_from(blob)[5]
    return sum(1 for i in range(20) if (5 + i) * SECOND > max(newest, t))


def test_many_entities_come_back_in_order(online):
    online.apply([one(0, card=f"c{i}", amount=float(i), offset=i) for i in range(10)])
    cards = [{"card_id": f"c{i}"} for i in (3, 9, 0, 3)]
    table = online.client.get_many("cards", cards, now=1)
    assert len(table) == 4
    assert [vector["many.high_1h"] for vector in table] == [3.0, 9.0, 0.0, 3.0]
    column = table.names.index("many.high_1h")
    assert table.to_numpy()[:, column].tolist() == [3.0, 9.0, 0.0, 3.0]
    arrow = table.to_arrow()
    assert arrow.column("many.high_1h").to_pylist() == [3.0, 9.0, 0.0, 3.0]
    assert str(arrow.schema.field("many.shipped_lifetime").type) == "timestamp[us, tz=UTC]"
    assert str(arrow.schema.field("conditions.last_lifetime").type) == "bool"
    assert arrow.column("conditions.last_lifetime").to_pylist() == [True] * 4
    assert list(table.to_pandas().columns) == list(table.names)


@pytest.mark.parametrize("count", [0, 10_001])
def test_too_many_or_no_entities_are_refused(online, count):
    with pytest.raises(DefinitionError, match="1 to 10,000"):
        online.client.get_many("cards", [{"card_id": "c"}] * count)


@pytest.mark.parametrize("keys", [{}, {"card": "c"}])
def test_a_missing_key_is_refused_by_name(online, keys):
    with pytest.raises(UnknownNameError, match="'card_id'"):
        online.client.get("cards", keys)


@pytest.mark.parametrize("value", [1, 1.5, b"c", ["c"]])
def test_a_key_of_another_type_is_refused_by_name(online, value):
    with pytest.raises(DefinitionError, match=r"key \(card_id\).*expected string"):
        online.client.get("cards", {"card_id": value})


def test_a_client_needs_no_definitions_and_refreshes(online, online_url):
    with FeatureClient(online_url) as client:
        assert client.service_fingerprint("cards") == SERVICE.fingerprint
        assert client.get("cards", {"card_id": "c"}).names == SERVICE.feature_ids
        online.store.publish_plan(LookupPlan("cards", (SHORT.layout,)))
        assert client.get("cards", {"card_id": "c"}).names == SERVICE.feature_ids
        client.refresh()
        assert client.get("cards", {"card_id": "c"}).names == SHORT.layout.feature_ids
