"""What a lookup does with old or unreadable features, which features it returns and over which windows; over every store."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from featurestore import Last, Max
from featurestore.algebra.additive import Count, Sum
from featurestore.definitions.derived import Derived
from featurestore.definitions.registry import Definitions, diff
from featurestore.definitions.service import FeatureService
from featurestore.definitions.view import FeatureView
from featurestore.errors import (
    CodecError,
    DefinitionError,
    OnlineStoreUnavailableError,
    StaleFeatureError,
    UnknownNameError,
)
from featurestore.online.async_client import AsyncFeatureClient
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import HOUR, MINUTE
from tests.conformance.cases import CARD, MANY, SOURCE
from tests.conformance.support import SECOND, Online, one

FEATURES = {"n": Count().over("1h"), "spend": Sum("amount").over("1h", "24h")}
STATED = {"spend_1h": 7, "n_1h": None}


def view(**policy):
    return FeatureView("policed", CARD, SOURCE, FEATURES, **policy)


def opened(store, *views):
    online = Online(store, views)
    store.publish_plan(LookupPlan.of(FeatureService("cards", views)))
    online.apply([one(0, card="c", amount=2.0)])
    store.publish_complete(SOURCE.name, 10)
    return online


def tallies(table):
    """Return what a table counts of every row, which is what its vectors say."""
    found = [table.tally(row) for row in range(len(table))]
    assert found == [Counter(vector.status.values()) for vector in table]
    assert (table.at, table.complete_through) == (table[0].at, table[0].complete_through)
    return found


def test_within_its_bound_a_policy_changes_nothing(open_store):
    for number, action in enumerate(("fail", "default", "serve_stale")):
        policed = view(max_staleness="10m", on_stale=action)
        vector = opened(open_store(f"p{number}"), policed).client.get("cards", {"card_id": "c"}, now=10 + 10 * MINUTE)
        assert vector.to_list() == [1, 2.0, 2.0]
        assert set(vector.status.values()) == {"present"}


@pytest.mark.parametrize("cards", [["c"], ["c", "nobody"], ["c"] * 30])
def test_beyond_it_the_policy_decides(open_store, cards):
    late = 11 + 10 * MINUTE
    keys = [{"card_id": card} for card in cards]
    failing = opened(open_store("fail"), view(max_staleness="10m")).client
    with pytest.raises(StaleFeatureError, match=r"policed.*1970-01-01T00:00:00\.000010Z.*more than 10m later"):
        failing.get_many("cards", keys, now=late)
    stale = opened(open_store("stale"), view(max_staleness="10m", on_stale="serve_stale")).client
    for vector in stale.get_many("cards", keys, now=late):
        assert set(vector.status.values()) == {"stale"}
    assert stale.get("cards", keys[0], now=late).to_list() == [1, 2.0, 2.0]
    defaulting = opened(open_store("d"), view(max_staleness="10m", on_stale="default", defaults=STATED)).client
    table = defaulting.get_many("cards", keys, now=late)
    assert [vector.to_list() for vector in table] == [[None, 7.0, None]] * len(cards)
    assert {status for vector in table for status in vector.status.values()} == {"degraded"}
    assert tallies(table) == [{"degraded": 3}] * len(cards)
    assert tallies(stale.get_many("cards", keys, now=late)) == [{"stale": 3}] * len(cards)
    assert table.to_arrow().column("policed.spend_1h").to_pylist() == [7.0] * len(cards)


def test_a_store_that_does_not_say_how_fresh_it_is_counts_as_old(open_store):
    store = open_store()
    store.publish_plan(LookupPlan.of(FeatureService("cards", [view(max_staleness="10m")])))
    with pytest.raises(StaleFeatureError, match="complete through nothing"):
        FeatureClient.over(store).get("cards", {"card_id": "c"}, now=0)


def test_a_view_without_a_policy_is_served_beside_a_degraded_one(open_store):
    policed = view(max_staleness="10m", on_stale="default")
    online = opened(open_store(), policed, MANY)
    vector = online.client.get("cards", {"card_id": "c"}, now=11 + 10 * MINUTE)
    assert (vector["policed.n_1h"], vector.status["policed.n_1h"]) == (None, "degraded")
    assert (vector["many.n_1h"], vector.status["many.n_1h"]) == (1, "present")


def test_what_is_derived_from_defaults_says_so(open_store):
    features = {**FEATURES, "double": Derived("2 * spend_1h")}
    policed = FeatureView(
        "policed", CARD, SOURCE, features, max_staleness="10m", on_stale="default", defaults={"spend_1h": 7.0}
    )
    vector = opened(open_store(), policed).client.get("cards", {"card_id": "c"}, now=11 + 10 * MINUTE)
    assert (vector["policed.double"], vector.status["policed.double"]) == (14.0, "degraded")


async def asynchronously(server):
    """The same over asyncio, whose server goes away."""
    keys = {"card_id": "c"}
    async with (
        AsyncFeatureClient(server.url, project="default", timeout="5s") as defaulting,
        AsyncFeatureClient(server.url, project="stale", timeout="5s") as stale,
    ):
        for client in (defaulting, stale):
            assert (await client.get("cards", keys, now=20)).to_list() == [1, 2.0, 2.0]
            assert (await client.get("cards", keys, now=20, features=["policed.n_1h"])).to_list() == [1]
        assert set((await stale.get("cards", keys, now=20 * MINUTE)).status.values()) == {"stale"}
        server.stop()
        assert (await defaulting.get("cards", keys, now=20)).to_list() == [None, 7.0, None]
        assert len(await defaulting.get_many("cards", [keys] * 20, now=20)) == 20
        with pytest.raises(OnlineStoreUnavailableError):
            await stale.get("cards", keys, now=20)


@pytest.mark.server
def test_a_store_that_is_away_is_an_error_or_the_defaults_and_never_an_empty_window(tmp_path):
    with OnlineServer(tmp_path) as server:
        stores = [RedisOnlineStore(server.url, name) for name in ("fail", "stale", "default")]
        views = (
            view(max_staleness="10m"),
            view(max_staleness="10m", on_stale="serve_stale"),
            view(on_stale="default", defaults=STATED),
        )
        clients = [opened(store, one_view).client for store, one_view in zip(stores, views, strict=True)]
        for client in clients:
            assert client.get("cards", {"card_id": "c"}, now=20).to_list() == [1, 2.0, 2.0]
        asyncio.run(asynchronously(server))
    for client in clients[:2]:
        with pytest.raises(OnlineStoreUnavailableError):
            client.get("cards", {"card_id": "c"}, now=20)
    vector = clients[2].get("cards", {"card_id": "c"}, now=20)
    assert vector.to_list() == [None, 7.0, None]
    assert set(vector.status.values()) == {"degraded"}
    assert (vector.complete_through, vector.as_of, vector.known) == (None, {"policed": None}, {"policed": False})
    assert len(clients[2].get_many("cards", [{"card_id": "c"}] * 40, now=20)) == 40
    for store in stores:
        store.close()


def test_policies_are_data_and_no_part_of_a_fingerprint():
    policed = view(max_staleness="10m", on_stale="default", defaults=STATED)
    assert policed.fingerprint == view().fingerprint
    again = FeatureView.from_dict(policed.to_dict(), {CARD.name: CARD}, {SOURCE.name: SOURCE})
    assert again.policy == policed.policy
    plan = LookupPlan.of(FeatureService("cards", [policed]))
    assert LookupPlan.from_json(plan.to_json()) == plan
    assert b'"format":3' in plan.to_json()
    assert b"policies" not in LookupPlan.of(FeatureService("cards", [view()])).to_json()
    with pytest.raises(CodecError):
        LookupPlan.from_json(plan.to_json().replace(b'"default"', b'"guess"'))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"on_stale": "guess"}, "allowed are fail, default, serve_stale"),
        ({"max_staleness": "0s"}, "duration|longer than 0"),
        ({"on_stale": "serve_stale"}, "without max_staleness"),
        ({"defaults": {"n_1h": 1}}, "need on_stale='default'"),
        ({"on_stale": "default", "defaults": {"n_2h": 1}}, "did you mean 'n_1h'"),
        ({"on_stale": "default", "defaults": {"n_1h": 1.5}}, "not of type int64"),
        ({"on_stale": "default", "defaults": {"n_1h": True}}, "not of type int64"),
        ({"on_stale": "default", "defaults": {"spend_1h": math.inf}}, "not of type float64"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(policy, says):
    with pytest.raises(DefinitionError, match=says):
        view(**policy)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_chosen_features_are_those_of_a_whole_lookup_and_read_no_other_view(online, count):
    online.apply([one(i, card=f"c{i}", amount=float(i), offset=i) for i in range(30)])
    keys = [{"card_id": f"c{i}"} for i in range(count)]
    names = ["many.spend_1h", "many.n_1h"]
    whole = online.client.get_many("cards", keys, now=100)
    chosen = online.client.get_many("cards", keys, now=100, features=names)
    assert chosen.names == tuple(names)
    assert [vector.to_list() for vector in chosen] == [[vector[name] for name in names] for vector in whole]
    places = [whole.names.index(name) for name in names]
    np.testing.assert_array_equal(chosen.to_numpy(), np.array([[v.to_list()[p] for p in places] for v in whole], float))
    lookup = online.client.service("cards").chosen(names)
    assert not [key for key in lookup.store_keys(keys) if b":conditions@" in key]
    assert list(chosen[0].status) == names


@pytest.mark.parametrize("features", [[], ["many.n_1h", "many.n_1h"], ["many.n_2h"]])
def test_no_such_features_are_refused(online, features):
    with pytest.raises((DefinitionError, UnknownNameError), match=r"features|many\.n_1h"):
        online.client.get("cards", {"card_id": "c"}, features=features)


def test_many_as_columns_are_the_vectors(online):
    online.apply([one(i * SECOND, card=f"c{i % 20}", amount=float(i), offset=i) for i in range(60)])
    keys = [{"card_id": f"c{i}"} for i in range(25)]
    for features in (None, ["many.shipped_lifetime", "many.high_1h", "many.n_1h"]):
        table = online.client.get_many("cards", keys, now=100 * SECOND, features=features)
        arrow = table.to_arrow()
        alone = [online.client.get("cards", key, now=100 * SECOND, features=features) for key in keys]
        assert {status for row in tallies(table) for status in row} >= {"present", "missing"}
        for count in (1, 2, 20):  # known ones, whose nulls are counted without a vector
            known = tallies(online.client.get_many("cards", keys[:count], now=2 * HOUR, features=features))
            assert "missing" not in known[0]
            assert known[0]["null"] > 0
        assert [vector.to_dict() for vector in table] == [vector.to_dict() for vector in alone]
        for name, column in zip(arrow.column_names, arrow.columns, strict=True):
            values = column.to_pylist() if "shipped" not in name else column.cast("int64").to_pylist()
            assert values == [vector[name] for vector in alone], name


def test_numbers_are_those_of_a_table_and_everything_else_is_decoded_for_who_asks(open_store):
    features = {**FEATURES, "last": Last("amount").over("lifetime"), "any": Max("online").over("1h")}
    views = [FeatureView("one", CARD, SOURCE, features), FeatureView("two", CARD, SOURCE, FEATURES)]
    store = open_store("numbers")
    online = Online(store, views)
    store.publish_plan(LookupPlan.of(FeatureService("cards", views)))
    online.apply([one(i * SECOND, card=f"c{i % 20}", amount=float(i), offset=i) for i in range(60)])
    keys = [{"card_id": f"c{i}"} for i in range(21)]
    lookup = online.client.service("cards")
    for count, t, exact in (
        (1, 100, True),
        (20, 100, True),
        (3, 7_200, True),
        (20, 5, False),
        (20, 5, True),
        (21, 100, True),
    ):
        replies = store.read(lookup.store_keys(keys[:count]))
        found = lookup.numbers(replies, count, t * SECOND, exact_time=exact)
        if (count, exact) == (21, True) or (t == 5 and exact):  # an unknown key; a time that events have passed
            assert found is None
            continue
        table = lookup.table(replies, count, t * SECOND, exact_time=exact)
        np.testing.assert_array_equal(found.to_numpy(), table.to_numpy().astype(np.float32))
        assert [found.tally(row) for row in range(len(found))] == tallies(table)
        assert (found.names, found.at, found.complete_through) == (table.names, table.at, table.complete_through)
        assert [found[row].to_dict() for row in range(count)] == [vector.to_dict() for vector in table]
    chosen = lookup.chosen(["two.n_1h"])
    assert chosen.numbers(store.read(chosen.store_keys(keys[:1])), 1, 100 * SECOND, exact_time=True) is None


def test_the_window_says_which_events_it_covers(online):
    online.apply([one(5 * SECOND)])
    vector = online.client.get("cards", {"card_id": "c"}, now=7_200 * SECOND)
    low, high = vector.windows["many.n_1h"]
    assert high == 7_200 * SECOND
    window = next(each.window for each in MANY.layout.features if each.name == "n_1h")
    assert low == window.start(high)
    assert vector.windows["many.shipped_lifetime"] == (None, high)
    early = FeatureClient.over(online.store).service("cards")
    replies = online.store.read(early.store_keys([{"card_id": "c"}]))
    assert replace(early.vectors(replies, 1, high, exact_time=True)[0], at=0).windows["many.n_1h"][1] == 5 * SECOND + 1


def test_a_plan_shows_what_lookups_will_do():
    plain, policed = view(), view(max_staleness="10m", on_stale="default", defaults={"n_1h": 0})
    changes = [each for each in diff(Definitions.of([plain]), Definitions.of([policed])) if each.kind == "view"]
    wanted = "any age, else fail -> at most 10m old, else default (n_1h=0)"
    assert [str(each) for each in changes] == [f"~ view policed (lookups: {wanted})"]
    assert not changes[0].is_meaning_changed
    (added,) = [each for each in diff(Definitions(), Definitions.of([policed])) if each.kind == "view"]
    assert "lookups: at most 10m old, else default (n_1h=0)" in str(added)
    assert diff(Definitions.of([policed]), Definitions.of([policed])) == ()


def test_a_table_shows_its_beginning_and_converts(online):
    online.apply([one(i, card=f"c{i}", amount=float(i), offset=i) for i in range(30)])
    keys = [{"card_id": f"c{i}"} for i in range(30)]
    table = online.client.get_many("cards", keys, now=100)
    lines = repr(table).splitlines()
    assert lines[0] == f"FeatureTable(30 rows x {len(table.names)} features)"
    assert lines[-1] == "... 20 more rows"
    assert len(lines) == 13
    assert table._repr_html_().count("<tr>") == 11
    place = table.names.index("many.high_1h")
    assert table.to_dict()["many.high_1h"] == [float(i) for i in range(30)] == table.to_numpy()[:, place].tolist()
    assert table.to_polars()["many.high_1h"].to_list() == table.to_dict()["many.high_1h"]
    few = online.client.get_many("cards", keys[:2], now=100)
    assert few.to_dict() == {name: column[:2] for name, column in table.to_dict().items()}
    assert "more rows" not in repr(few)
