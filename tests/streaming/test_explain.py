"""explain on real parts: Kafka -> submitted job -> Valkey and Delta. It agrees, and planted faults are named by their cause."""

from __future__ import annotations

import pytest

from featurestore.definitions.keys import encode_key
from featurestore.online.keys import bucket_of
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.compare import values_agree
from featurestore.timeline import HOUR
from tests.raw import raw
from tests.streaming.support import InProcess, Shop, ends_of, oracle, produce_events, wait_applied, wait_archived

pytestmark = pytest.mark.jvm
SHOP = Shop("explained")


@pytest.fixture(scope="module")
def applied(spark, kafka_server, online_server, tmp_path_factory):
    """A store whose job has applied and archived a hostile stream and has been stopped; and the stream."""
    url = online_server.url
    folder = tmp_path_factory.mktemp("explained")
    store = SHOP.open(folder, kafka_server.bootstrap_servers, url)
    stream = SHOP.stream(seed=7, events=160)
    job = InProcess(spark, store, SHOP, folder / "job")
    try:
        produce_events(kafka_server.bootstrap_servers, SHOP.source.topic, stream.events)
        wait_applied(url, SHOP.name, ends_of(stream.events), job)
        wait_archived(store.settings.offline, len(stream.events), job)
    finally:
        job.stop()
    return store, stream.events


def busiest(events):
    """Return the key values of the first event of the card with the most events."""
    cards = [event.row["card_id"] for event in events]
    most = max(cards, key=cards.count)
    return next(
        {name: event.row[name] for name in ("card_id", "shop")} for event in events if event.row["card_id"] == most
    )


def test_every_feature_is_explained_with_equal_sides_and_stored_tiles(applied):
    store, events = applied
    key, newest = busiest(events), max(event.event_time for event in events)
    stored = 0
    for name in SHOP.service.feature_ids:
        for at in (newest + 1, newest + HOUR):
            found = store.explain(name, key, at=at, shown=200)
            assert found.verdict == "equal", (name, found.causes)
            assert values_agree(found.value, oracle(SHOP.views, events, key, at)[name], tolerance=1e-9, slack=1e-6)
            assert not [cause for cause in found.causes if cause.kind != "past"]
            stored += sum(tile.is_stored for tile in found.tiles if tile.is_whole)
            assert all(tile.is_stored for tile in found.tiles if tile.events)
    assert stored > 10
    early = sorted(event.event_time for event in events)[len(events) // 2]
    found = store.explain("card.n_lifetime", key, at=early)
    assert found.value == oracle(SHOP.views, events, key, early)["card.n_lifetime"]
    assert (found.verdict, found.cause) == ("equal", "past")


def test_planted_faults_are_named_by_their_cause(applied):
    store, events = applied
    key, at = busiest(events), max(event.event_time for event in events) + 1
    online = RedisOnlineStore(store.settings.online.url, SHOP.name)
    layout = SHOP.views[1].layout
    encoded = encode_key([key["card_id"]], [kind for _, kind in layout.keys])
    name = online.space.blob("card", layout.fingerprint, encoded)
    (good,) = online.read([name])
    fence = online.space.fence(bucket_of(encoded))
    ask = lambda: store.explain("card.n_lifetime", key, at=at)  # noqa: E731
    count = ask().value
    assert count > 3

    raw(online).set(name, good.replace(count.to_bytes(8, "little"), (count + 1).to_bytes(8, "little")))
    found = ask()
    assert (found.verdict, found.cause, found.online.value) == ("different", "disagreement", count + 1)

    raw(online).set(name, good[:-3])
    assert (ask().verdict, ask().cause) == ("different", "unreadable")

    raw(online).delete(name)
    assert (ask().verdict, ask().cause) == ("different", "lost")

    # As if the job had applied nothing of partition 1: neither its events nor its fence are there.
    for partition in (0, 1):
        raw(online).hset(fence, online.space.fence_field("card", layout.fingerprint, "payments", partition), 0)
    found = ask()
    assert (found.verdict, found.cause) == ("different", "behind")
    assert "applied up to offset 0" in found.causes[0].text
    for partition, end in ends_of(events).items():
        raw(online).hset(fence, online.space.fence_field("card", layout.fingerprint, "payments", partition), end)

    raw(online).set(name, good)
    assert ask().is_equal
    online.close()
