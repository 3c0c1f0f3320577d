"""``ttl``: keys that no event touches any more are forgotten by the server, and no value with them; on one server and a cluster."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from featurestore import Count, Entity, FeatureView, Last, Sum
from featurestore.algebra import Exact
from featurestore.definitions.registry import Definitions
from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import values_at
from featurestore.jobs.rebuild import rebuild_online
from featurestore.jobs.rebuild_key import rebuild_key
from featurestore.online.codec import base_length
from featurestore.online.redis_store import RedisOnlineStore
from tests.conformance.cases import MANY, SOURCE, assert_same
from tests.conformance.support import SECOND, Online, one
from tests.conformance.test_rebuild import SHOP, Stream
from tests.raw import raw

TTL_MS = 2 * 3_600_000
FOREVER = -1
FADING = FeatureView(
    "fading",
    Entity("card", keys={"card_id": "string"}),
    SOURCE,
    {
        "n": Count().over("5m", "1h", Exact("10m")),  # an aligned part and an event-grained one
        "spend": Sum("amount").over("1h"),
        "last": Last("amount").over("1h"),
    },
    ttl="2h",
)
KEY = {"card_id": "c"}


@pytest.fixture(params=["online_url", "cluster_url"])
def online(request):
    store = RedisOnlineStore(request.getfixturevalue(request.param), "default")
    yield Online(store, views=(FADING, MANY), tail_cap=2)
    store.close()


def left(online, view):
    """Return per blob of a view the milliseconds left to it, as the server says."""
    return [raw(online.store).pttl(name) for name in sorted(online.blobs()) if f":{view.name}@".encode() in name]


def names(online, view=FADING):
    """Return the names of a view's blobs, part 0 first."""
    return sorted(name for name in online.blobs() if f":{view.name}@".encode() in name)[::-1]


def until(condition, seconds=20.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up


def forget(online):
    """Let the server forget the key of the fading view, both parts at once, as it does when the time has come."""
    for name in names(online):
        assert raw(online.store).pexpire(name, 1)
    until(lambda: not names(online))


def assert_value(online, events, t):
    vector = online.client.get("cards", KEY, now=t)
    expected = values_at(FADING, events, ["c"], t)
    assert_same(FADING, expected, vector.to_list()[: len(expected)], f"at {t}")
    return vector


def test_every_write_begins_the_time_anew_and_both_parts_end_together(online):
    online.apply([one(0)])
    assert len(names(online)) == 2
    assert all(TTL_MS - 60_000 < each <= TTL_MS for each in left(online, FADING))
    assert left(online, MANY) == [FOREVER]
    for name in names(online):
        raw(online.store).pexpire(name, 100_000)
    online.apply([one(SECOND, offset=1)])
    assert all(TTL_MS - 60_000 < each <= TTL_MS for each in left(online, FADING))
    ends = {raw(online.store).execute_command("PEXPIRETIME", name) for name in names(online)}
    assert len(ends) == 1


def test_a_fold_leaves_the_time_as_it_is(online):
    online.apply([one(number * 600 * SECOND, offset=number) for number in range(2)])
    for name in names(online):
        raw(online.store).pexpire(name, 1_000_000)
    before = [base_length(blob) for name, blob in sorted(online.blobs().items()) if name in names(online)]
    online.writer.tail_cap = 0
    grown = {index: [(name, len(online.dump()[name]))] for index, name in enumerate(names(online))}
    assert online.writer.fold(grown, clock=10**15) == 2
    after = [base_length(blob) for name, blob in sorted(online.blobs().items()) if name in names(online)]
    assert all(new > old for old, new in zip(before, after, strict=True))  # they were folded
    assert all(900_000 < each <= 1_000_000 for each in left(online, FADING))


def test_what_is_forgotten_is_missing_with_the_values_of_empty_windows_and_begins_anew(online):
    events = [one(number * 60 * SECOND, offset=number) for number in range(8)]
    online.apply(events)
    online.store.publish_complete(SOURCE.name, events[-1].arrival)
    later = events[-1].event_time + 3 * 3_600 * SECOND
    assert assert_value(online, events, later).status["fading.n_1h"] == "present"
    forget(online)
    vector = assert_value(online, events, later)
    assert vector.status["fading.n_1h"] == "missing"
    assert vector.known == {"fading": False, "many": True}
    # The writer knew its base, which is gone: the tail of the new one is folded all the same.
    more = [one(later + number * 60 * SECOND, offset=8 + number) for number in range(6)]
    for event in more:
        online.apply([event])
        assert_value(online, [*events, *more[: more.index(event) + 1]], event.event_time + 1)
    first = online.blobs()[names(online)[0]]
    assert base_length(first) > 100
    assert all(each > TTL_MS - 60_000 for each in left(online, FADING))


def test_a_view_without_ttl_is_kept_for_ever(online):
    forever = Online(online.store, views=(replace(FADING, ttl=None),))
    forever.apply([one(0)])
    assert left(forever, FADING) == [FOREVER, FOREVER]


def test_a_rebuild_sets_the_time(online_url, tmp_path):
    recent = FeatureView(
        "recent", Entity("card", keys={"card_id": "string"}), SHOP.source, {"n": Count().over("1h")}, ttl="3h"
    )
    store = RedisOnlineStore(online_url, "rebuilt")
    stream = Stream(store, tmp_path, events=60)
    stream.arrive(60)
    stream.begin(views=(recent, *SHOP.views))
    stream.apply()
    stream.archive()
    definitions = Definitions.of([FeatureService("shop", [recent, *SHOP.views])])
    mine = list(store.blobs("recent", recent.layout.fingerprint))
    assert mine
    admin = raw(store)
    for name in mine:
        assert admin.persist(name)
    rebuild_online(store, definitions, stream.root)
    full = 3 * 3_600_000
    assert all(full - 60_000 < admin.pttl(name) <= full for name in mine)
    for view in SHOP.views:
        assert all(admin.pttl(name) == FOREVER for name in store.blobs(view.name, view.layout.fingerprint))
    assert admin.pexpire(mine[0], 100_000)
    card = next(e.row["card_id"] for e in stream.events if mine[0] == key_of(store, recent, e))
    rebuild_key(store, recent, [card], stream.root)
    assert full - 60_000 < admin.pttl(mine[0]) <= full
    store.close()


def key_of(store, view, event):
    from featurestore.datatypes import DataType
    from featurestore.definitions.keys import encode_key

    return store.space.blob(view.name, view.layout.fingerprint, encode_key([event.row["card_id"]], [DataType.STRING]))
