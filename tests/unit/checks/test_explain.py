"""explain over replays whose event log is written to a real Delta table: the value, every event's fate, and the cause."""

from __future__ import annotations

import json
import struct
from collections import Counter

import pytest
from deltalake import write_deltalake

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Last, Lifetime, Sum, Tumbling
from featurestore.checks.explain import explain
from featurestore.checks.names import find_feature
from featurestore.definitions.contract import Contract
from featurestore.definitions.keys import encode_key
from featurestore.definitions.registry import Definitions
from featurestore.engines.fates import Fate
from featurestore.engines.oracle import values_at
from featurestore.errors import OfflineStoreUnavailableError, UnknownNameError
from featurestore.jobs.archive import TileWorker
from featurestore.offline.events import write_events
from featurestore.online.codec import HEADER
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.compare import values_match
from featurestore.testing.replay import replay
from featurestore.testing.streams import hostile_stream
from featurestore.timeline import MINUTE, SECOND, to_instant
from tests.conformance.cases import COMPOSITE, SKETCHES, WINDOWS
from tests.conformance.exploded import BY_CARD, BY_ITEM

SCHEMA = {
    "type": "object",
    "required": ["card_id", "event_time"],
    "properties": {
        "card_id": {"type": "string"},
        "amount": {"type": ["number", "null"]},
        "status": {"type": ["string", "null"]},
        "event_time": {"type": "string", "format": "date-time"},
    },
}
PAYMENTS = EventSource(
    "payments",
    topic="payments_topic",
    schema=Contract.from_json(json.dumps(SCHEMA), "payment"),
    event_time="event_time",
)
SPEND = FeatureView(
    "card_spend",
    Entity("card", keys={"card_id": "string"}),
    PAYMENTS,
    {
        "payments": Count().over("1h"),
        "spend": Sum("amount", where="amount >= 0").over("1h", "24h"),
        "early": Sum("amount").over(Lifetime(delay="30m"), Tumbling("1h")),
        "last": Last("status").over("lifetime"),
    },
    where="status = 'ok'",
)
OTHER = FeatureView("other", SPEND.entity, PAYMENTS, {"payments": Count().over("1h"), "n": Count().over("lifetime")})
SERVICE = FeatureService("fraud_v1", [SPEND])
APPLIED = Definitions.of([SERVICE, OTHER])
NOON = to_instant("2024-01-01T12:00:00Z")
KEY = {"card_id": "c1"}


def send(run, minute, amount, status="ok", card="c1", **options):
    run.send(
        "payments",
        {"card_id": card, "amount": amount, "status": status},
        at=NOON + int(minute * MINUTE),
        **options,
    )


@pytest.fixture
def run():
    with replay(SERVICE, start=NOON - 3600 * SECOND) as made:
        send(made, -5, 9.0)
        send(made, 0, 1.0)
        send(made, 1, None)
        send(made, 2, 100.0, "no")
        send(made, 3, -4.0)
        send(made, 4, 2.5)
        send(made, 5, 7.0, card="c2")
        made.advance("1m")
        yield made


@pytest.fixture
def written(run, tmp_path):
    return archived(run, tmp_path / "offline")


def archived(run, folder, *, source="payments"):
    write_events(str(folder), source, run.log(source).archived())
    return str(folder)


def ask(run, offline, feature="card_spend.spend_1h", at=None, keys=KEY, store=None, **options):
    named = find_feature(APPLIED, feature)
    return explain(
        named, keys, run.clock.now() if at is None else at, offline=offline, store=store or run.store, **options
    )


def test_both_sides_agree_and_every_event_says_why_it_counts_or_not(run, written):
    found = ask(run, written, at=NOON + 64 * MINUTE)
    assert (found.verdict, found.causes) == ("equal", ())
    assert found.value == found.offline.specification == found.online.value == found.expected == 3.5
    assert (found.start, found.end) == (NOON, NOON + 64 * MINUTE)
    assert [(one.event.offset, str(one.fate)) for one in found.events] == [
        (0, "before the window"),
        (1, "counted"),
        (2, "where of the feature"),
        (3, "where of the view"),
        (4, "where of the feature"),
        (5, "counted"),
    ]
    assert found.online.fences == {0: 7}
    assert found.topic == "payments_topic"
    assert [(tile.start, tile.events, tile.value) for tile in found.tiles] == [(NOON, 2, 3.5)]
    assert found.tile == 5 * MINUTE
    null = ask(run, written, "card_spend.early_1h_tumbling", at=NOON + 64 * MINUTE)
    assert Counter(one.fate for one in null.events)[Fate.NULL] == 1


def test_the_event_at_the_end_does_not_count_and_is_shown(run, written):
    at = NOON + 4 * MINUTE
    found = ask(run, written, at=at)
    assert found.offline.specification == found.value == 10.0
    (last,) = [one for one in found.events if one.event.event_time == at]
    assert last.fate == Fate.AFTER
    assert found.cause == "past"  # the store has merged it, and answers for now
    assert (found.verdict, found.compared_at, found.expected) == ("equal", at + 1, 12.5)


def test_the_limit_keeps_the_newest_and_tells_how_many_are_not_shown(run, written):
    found = ask(run, written, at=NOON + 10 * MINUTE, shown=1)
    assert [one.event.offset for one in found.events] == [5]
    assert found.left_out == 5
    assert len(found.tiles) == 1
    assert found.tiles_left_out == 1
    assert found.value == 12.5


def test_as_served_hides_what_had_not_arrived(run, tmp_path):
    late = NOON + 3 * MINUTE
    send(run, 1, 50.0)  # arrives now, five minutes late
    run.drain()
    offline = archived(run, tmp_path)
    assert ask(run, offline, at=late).value == 60.0
    found = ask(run, offline, at=late, as_served=True)
    assert found.value == found.offline.specification == 10.0
    (hidden,) = [one for one in found.events if one.fate == Fate.UNSEEN]
    assert hidden.event.offset == 7
    at = run.clock.now() + 1
    assert ask(run, offline, at=at, as_served=True).verdict == "equal"


def test_behind_names_partition_fence_and_the_first_event_that_waits(run, tmp_path):
    run.stop()
    send(run, 6, 5.0)
    send(run, 6, 6.0)
    found = ask(run, archived(run, tmp_path), at=NOON + 7 * MINUTE)
    assert (found.verdict, found.cause) == ("different", "behind")
    assert "partition 0 is applied up to offset 7, and 2 of 5 events are not applied yet" in found.causes[0].text
    assert "the first at offset 7" in found.causes[0].text
    run.start()
    run.drain()
    assert ask(run, str(tmp_path), at=NOON + 7 * MINUTE).is_equal


def test_a_log_that_is_behind_is_named(run, written):
    send(run, 6, 5.0)
    run.drain()
    found = ask(run, written, at=NOON + 7 * MINUTE)
    assert (found.verdict, found.cause) == ("different", "log_behind")
    assert "2024-01-01T12:06:00Z" in found.causes[0].text


def test_a_log_that_lacks_a_late_event_is_told_by_the_offsets(run, written):
    send(run, 2, 5.0)  # older than the newest event, so as_of does not tell
    run.drain()
    found = ask(run, written, at=NOON + 7 * MINUTE)
    assert (found.verdict, found.cause) == ("different", "log_behind")
    assert "applied records that the event log does not have" in found.causes[0].text


def blob_of(run, view=SPEND, card="c1", part=0):
    encoded = encode_key([card], [kind for _, kind in view.layout.keys])
    return run.store.space.blob(view.name, view.layout.fingerprint, encoded, part)


def values_of_store(run):
    return run.store.inner.values


def test_a_tampered_record_is_a_real_disagreement(run, written):
    name, values = blob_of(run), values_of_store(run)
    true, false = struct.pack("<d", 3.5), struct.pack("<d", 4.5)
    assert values[name].count(true) == 1  # the tile that begins at noon
    values[name] = values[name].replace(true, false)
    found = ask(run, written)
    assert (found.verdict, found.cause, found.online.value) == ("different", "disagreement", 13.5)
    assert "next offsets {0: 7}" in found.causes[0].text


def test_bytes_that_are_no_record_are_unreadable(run, written):
    values_of_store(run)[blob_of(run)] = b"FB\x09" + bytes(HEADER.size)
    found = ask(run, written)
    assert (found.verdict, found.cause, found.online.status) == ("different", "unreadable", "unreadable")


def test_a_removed_key_is_lost_and_an_emptied_store_is_empty(run, written):
    names = [blob_of(run, part=part.number) for part in SPEND.layout.parts]
    for name in names:
        del values_of_store(run)[name]
    found = ask(run, written)
    assert (found.cause, found.online.status) == ("lost", "missing")
    run.store.inner.clear()
    found = ask(run, written, "card_spend.payments_1h")
    assert (found.verdict, found.cause, found.online.value) == ("different", "empty", None)


def test_a_key_without_events_is_equal(run, written):
    found = ask(run, written, "card_spend.payments_1h", keys={"card_id": "nobody"})
    assert (found.verdict, found.value, found.online.status) == ("equal", 0, "missing")
    assert found.events == found.tiles == ()


def test_another_definition_in_the_store_is_named(tmp_path):
    older = FeatureView("card_spend", SPEND.entity, PAYMENTS, {"spend": Sum("amount").over("1h")})
    with replay(FeatureService("fraud_v1", [older]), start=NOON) as run:
        send(run, 1, 5.0)
        run.advance("1m")
        found = ask(run, archived(run, tmp_path))
    assert (found.verdict, found.cause) == ("different", "definition")
    assert older.layout.fingerprint in found.causes[0].text
    assert SPEND.layout.fingerprint in found.causes[0].text
    assert [cause.kind for cause in found.causes] == ["definition", "empty"]


def test_a_log_that_holds_a_batch_twice_is_named(run, written):
    archived(run, written)
    found = ask(run, written, "card_spend.payments_1h")
    assert (found.verdict, found.cause) == ("different", "repeated")
    assert "offset 0 of partition 0 more than once" in found.causes[0].text


def test_stored_tiles_are_compared_with_the_log(run, written):
    (log,) = run.log("payments").archived().combine_chunks().to_batches()
    (made,) = [batch for batch in TileWorker((SPEND,))([log]) if batch.column("part")[0].as_py() == 0]
    write_deltalake(f"{written}/tiles", made)
    found = ask(run, written)
    assert all(tile.is_stored and tile.stored == tile.value for tile in found.tiles)
    assert found.causes == ()
    write_deltalake(f"{written}/tiles", made, mode="append")  # a batch that is there twice
    found = ask(run, written, at=NOON + 10 * MINUTE)
    assert (found.verdict, found.cause) == ("equal", "tiles")
    assert [(tile.value, tile.stored) for tile in found.tiles] == [(9.0, 18.0), (3.5, 7.0)]


def test_a_store_that_cannot_be_reached_leaves_the_offline_side(run, written):
    store = RedisOnlineStore("redis://127.0.0.1:1", "nowhere", timeout_s=0.5)
    found = ask(run, written, store=store)
    assert (found.verdict, found.cause, found.value) == ("not compared", "unreachable", 12.5)


def test_without_an_event_log_nothing_is_explained(run, tmp_path):
    with pytest.raises(OfflineStoreUnavailableError, match="no event log"):
        ask(run, str(tmp_path))


def test_too_many_events_are_merged_by_the_kernel_alone(run, written, monkeypatch):
    monkeypatch.setattr("featurestore.checks.explain.MOST_BY_ONE", 5)
    found = ask(run, written, shown=2)
    assert (found.verdict, found.value, found.offline.is_specified, found.offline.fates) == ("equal", 12.5, False, None)
    assert [one.event.offset for one in found.events] == [4, 5]
    assert found.left_out == 4


@pytest.mark.parametrize("view", [WINDOWS, COMPOSITE, SKETCHES, BY_CARD, BY_ITEM], ids=lambda view: view.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_streams_are_explained_as_the_specification_says(view, seed, tmp_path):
    stream = hostile_stream(view, seed=seed, events=60, probes=6)
    applied = Definitions.of([view])
    with replay(view) as run:
        for event in stream.events:
            run.send(view.source.name, event.row, arrival=event.arrival, partition=event.partition)
        run.advance("1us")
        offline = archived(run, tmp_path, source=view.source.name)
        for number, (key, t) in enumerate(stream.probes):
            features = view.layout.features
            feature = features[(number * 5 + seed) % len(features)]
            named = find_feature(applied, f"{view.name}.{feature.name}")
            found = explain(named, dict(zip(view.entity.keys, key, strict=True)), t, offline=offline, store=run.store)
            (expected,) = [value for name, value in values_at(view, stream.events, key, t).items() if name == named.id]
            assert values_match(feature, expected, found.offline.specification)
            assert values_match(feature, expected, found.value)
            assert found.verdict == "equal", (found.causes, found.expected, found.online.value)
            json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["card_spend.spend_1h", "fraud_v1.card_spend.spend_1h", "fraud_v1.spend_1h"])
def test_a_feature_can_be_named_with_its_service(name):
    named = find_feature(APPLIED, name)
    assert (named.id, named.service) == ("card_spend.spend_1h", "fraud_v1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("card_spend.spend_2h", r"did you mean 'card_spend.spend_[12]4?h'"),
        ("fraud_v1.nothing", "service fraud_v1 has no feature 'nothing'"),
        ("fraud_v1.other.n_lifetime", "service fraud_v1 has no feature 'other.n_lifetime'"),
        ("spend_1h", "write card_spend.spend_1h"),
        ("payments_1h", "write card_spend.payments_1h or other.payments_1h"),
        ("", "known features"),
    ],
)
def test_a_feature_that_is_not_there_is_refused_with_a_hint(name, message):
    with pytest.raises(UnknownNameError, match=message):
        find_feature(APPLIED, name)


def test_a_name_that_two_views_of_a_service_have_is_refused():
    both = Definitions.of([FeatureService("both", [SPEND, OTHER])])
    with pytest.raises(UnknownNameError, match=r"2 views of service both.*card_spend.payments_1h or other.payments_1h"):
        find_feature(both, "both.payments_1h")
    with pytest.raises(UnknownNameError, match="nothing is applied"):
        find_feature(Definitions(), "a.b")
