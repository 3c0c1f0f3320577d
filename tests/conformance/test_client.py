"""The client over every store."""

from __future__ import annotations

import pytest

from featurestore.errors import DefinitionError, PastLookupError, UnknownNameError
from featurestore.online.client import FeatureClient
from featurestore.online.codec import HEADER
from featurestore.online.lookup import LookupPlan
from featurestore.timeline import VirtualClock
from tests.conformance.cases import SHORT, SOURCE
from tests.conformance.support import SECOND, SERVICE, Online, one


def test_an_unknown_service_is_named_with_the_closest(online, open_store):
    with pytest.raises(UnknownNameError, match=r"no service 'card'.*did you mean 'cards'"):
        online.client.get("card", {"card_id": "c"})
    with pytest.raises(UnknownNameError, match="run featurestore apply first"):
        FeatureClient.over(open_store("empty")).get("cards", {"card_id": "c"})


def test_two_projects_do_not_see_each_other(open_store):
    left, right = Online(open_store("left")), Online(open_store("left_right"))
    left.apply([one(0, card="c", amount=1.0)])
    right.apply([one(0, card="c", amount=5.0), one(1, card="c", amount=5.0, offset=1)])
    left.assert_oracle([one(0, card="c", amount=1.0)])
    assert right.client.get("cards", {"card_id": "c"}, now=2)["many.n_1h"] == 2
    assert not set(left.store.progress(SOURCE.name)) - {0}


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


def test_now_is_the_clocks_and_moves_past_what_is_applied(online):
    online.apply([one(5 * SECOND, card="c")])
    clock = VirtualClock(3 * SECOND)
    client = FeatureClient.over(online.store, clock=clock)
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


def test_a_client_needs_no_definitions_and_refreshes(online):
    with FeatureClient.over(online.store) as client:
        assert client.service_fingerprint("cards") == SERVICE.fingerprint
        assert client.get("cards", {"card_id": "c"}).names == SERVICE.feature_ids
        online.store.publish_plan(LookupPlan("cards", (SHORT.layout,)))
        assert client.get("cards", {"card_id": "c"}).names == SERVICE.feature_ids
        client.refresh()
        assert client.get("cards", {"card_id": "c"}).names == SHORT.layout.feature_ids
