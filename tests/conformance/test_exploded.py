"""An array exploded into rows gives the same on every path, in the order of its elements."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from featurestore.algebra import Count, Last, element_sequence, offset_of, sequence_of
from featurestore.checks.pytest_text import pytest_text
from featurestore.checks.verify import verify
from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract, breaking_changes
from featurestore.definitions.entity import Entity
from featurestore.definitions.registry import Definitions
from featurestore.definitions.view import FeatureView
from featurestore.engines.oracle import values_at
from featurestore.errors import DefinitionError, ExpressionError, FeatureStoreError, UnknownNameError
from featurestore.testing.replay import replay
from featurestore.testing.streams import hostile_stream, to_batch
from tests.conformance.cases import assert_same
from tests.conformance.exploded import BASKET, BY_CARD, BY_ITEM, BY_TAG, CONTRACT, ORDERS, VIEWS, WHOLE
from tests.conformance.test_planted_bugs import run_text
from tests.unit.offline.local import run

pytestmark = pytest.mark.thorough

DAY = "2024-01-01T00:00:00Z"


def order(*items, card="c", **more):
    return {"card_id": card, "items": [{"count": 1, **item} for item in items], **more}


@pytest.mark.thorough
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_verify_finds_no_difference(view):
    result = verify([view], seed=5, seconds=600, most_cases=15)
    assert result.equal, str(result)
    assert result.probes > 25


def test_elements_come_in_their_order_and_empty_arrays_have_none():
    with replay(BASKET) as job:
        job.send(
            "orders", order({"sku": "a", "price": 1.0}, {"sku": "b", "price": 2.0, "count": 2}, {"sku": "c"}), at=DAY
        )
        job.send("orders", order(), at=DAY)
        job.send("orders", order({"sku": "d", "price": 60.0}), at=DAY)
        job.advance("1s")
        vector = job.get({"card_id": "c"})
        assert vector["by_card.items_10m"] == 3
        assert (vector["by_card.first_10m"], vector["by_card.last_10m"]) == ("a", "c")
        assert vector["by_card.prices_10m"] == [2.0, 1.0]
        assert vector["by_card.kinds_1h"] == ["c", "b", "a"]
        assert vector["by_card.value_10m"] == 5.0
        assert vector["whole.n_10m"] == 3
        job.assert_equal()
        assert job.counts["consumed"] == 3
        assert job.counts["quarantined"] == 0
        assert job.counts["applied"] == 1 + 3  # of one view the order with items that enter, of the other all
        job.crash(lost_checkpoint=True)
        job.drain()
        assert job.get({"card_id": "c"})["by_card.items_10m"] == 3
        assert job.counts["fenced"] == 1 + 3
        assert job.counts["consumed"] == 6


def test_an_event_that_breaks_its_contract_inside_an_array_is_quarantined_whole():
    with replay(BASKET) as job:
        job.send("orders", order({"sku": "a"}, {"sku": "b", "count": 9}), at=DAY)
        job.send("orders", order(*[{"sku": "a"}] * 1025), at=DAY)
        job.send("orders", {"card_id": "c"}, at=DAY)
        job.advance("1s")
        assert [one.detail for one in job.quarantine] == [
            "field 'items[1].count': Expected `int` <= 5",
            "field 'items': Expected `array` of length <= 1024",
            "Object missing required field `items`",
        ]
        assert job.get({"card_id": "c"})["by_card.items_10m"] == 0
        assert job.counts["consumed"] == job.counts["quarantined"] == 3


def test_keys_can_be_of_the_element():
    with replay(BY_ITEM, BY_TAG) as job:
        job.send(
            "orders",
            order({"sku": "a", "count": 3}, {"sku": "b"}, {"sku": "a", "price": 2.0}, tags=["x", None, "x"]),
            at=DAY,
        )
        job.advance("1s")
        vector = job.get({"sku": "a", "card_id": "c"}, service="by_item")
        assert vector.to_list() == [2, 2, [3, 1], 2.0]
        assert job.get({"sku": "b", "card_id": "c"}, service="by_item")["by_item.n_10m"] == 1
        assert job.get({"tags": "x"}, service="by_tag")["by_tag.n_10m"] == 2
        assert job.get({"tags": None}, service="by_tag").to_list() == [1, ["c"], 0]
        table = job.training_set(
            [{"sku": "a", "card_id": "c", "event_time": "2024-01-01T00:00:01Z"}], service="by_item"
        )
        assert table.column("by_item.most_1h").to_pylist() == [[3, 1]]
        job.assert_equal()


@pytest.mark.parametrize("as_served", [False, True])
def test_training_rows_are_the_oracle(as_served):
    for seed in range(3):
        dice = random.Random(seed)
        stream = hostile_stream(BY_CARD, seed=seed, events=60, probes=20)
        batch = to_batch(ORDERS, stream.events)
        place = [pa.array([event.partition for event in stream.events], pa.int32())]
        place += [
            pa.array([getattr(e, n) for e in stream.events], pa.int64()) for n in ("offset", "arrival", "event_time")
        ]
        log = pa.table(
            [*batch.columns, *place], [*batch.schema.names, "_partition", "_offset", "_arrival", "_event_time"]
        )
        keys = [key for key, _ in stream.probes]
        at = np.array([t for _, t in stream.probes], dtype=np.int64)
        visible = at + np.array([dice.choice([0, -(10**8), 10**13]) for _ in at])
        spine = pa.table({"card_id": [key[0] for key in keys]})
        made, _ = run((BY_CARD, WHOLE), {"orders": log}, spine, at, visible=visible if as_served else None, batch=17)
        for view in (BY_CARD, WHOLE):
            for row, (key, t) in enumerate(stream.probes):
                seen = int(visible[row]) if as_served else None
                spec = values_at(view, stream.events, key, t, visible_at=seen)
                found = []
                for feature in view.layout.features:
                    column = made.column(f"{view.name}.{feature.name}")
                    is_time = feature.aggregate.result_type == DataType.TIMESTAMP
                    found.append((column.cast(pa.int64()) if is_time else column)[row].as_py())
                windowed = dict(list(spec.items())[: len(found)])
                assert_same(view, windowed, found, f"training at {t}, {seen}")


def test_the_printed_test_of_a_case_with_arrays_runs():
    from featurestore.checks.generate import generate

    text = pytest_text(generate(BY_CARD, 8), [], origin="here")
    assert "items__sku" in text
    run_text(text)


def test_the_place_of_an_element_orders_elements_and_knows_its_offset():
    places = [
        element_sequence(sequence_of(p, o), e) for p in (0, 4095) for o in (0, 7, 2**41 - 1) for e in (0, 1, 1023)
    ]
    assert places == sorted(places)
    assert [offset_of(place, elements=True) for place in places[:9:3]] == [0, 7, 2**41 - 1]
    assert offset_of(sequence_of(3, 9)) == 9
    for partition, offset in ((4096, 0), (0, 2**41)):
        with pytest.raises(FeatureStoreError, match="partitions below 4,096"):
            element_sequence(np.array([sequence_of(partition, offset)]), np.array([0]))


def test_a_contract_with_arrays_is_data():
    assert CONTRACT.columns["items__price"] == DataType.LIST_FLOAT64
    assert CONTRACT.columns["tags"] == DataType.LIST_STRING
    assert Contract.from_dict(json.loads(json.dumps(CONTRACT.to_dict()))) == CONTRACT
    assert breaking_changes(CONTRACT, CONTRACT) == []
    again = Definitions.from_dict(json.loads(json.dumps(Definitions.of([BASKET]).to_dict()))).service("basket")
    assert again == BASKET
    assert again.fingerprint == BASKET.fingerprint
    by_name = dataclasses.replace(BY_ITEM, features={"n": Count(where="items.sku = 'a'").over("10m")})
    by_short = dataclasses.replace(BY_ITEM, features={"n": Count(where="sku = 'a'").over("10m")})
    assert by_name.fingerprint == by_short.fingerprint
    assert dataclasses.replace(WHOLE, explode="tags").fingerprint != WHOLE.fingerprint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"explode": "item"}, UnknownNameError, "view v: explode 'item' is no array of contract order.*'items'"),
        ({"explode": "card_id"}, UnknownNameError, "is no array"),
        ({"where": "tags = 'a'"}, ExpressionError, "'tags' is list<string>.*explode"),
        ({"where": "price > 1"}, ExpressionError, "unknown column 'price'"),
        ({"explode": "tags", "where": "items.price > 1"}, ExpressionError, "'items.price' is list<float64>"),
        ({"features": {"x": Last("tags").over("1h")}}, ExpressionError, "'tags' is list<string>"),
        (
            {"entity": Entity("tag", {"tags": "string"})},
            DefinitionError,
            "'tags' is string in entity tag but list<string>",
        ),
        ({"entity": Entity("sku", {"sku": "string"})}, UnknownNameError, "key column 'sku' of entity sku is no field"),
    ],
)
def test_what_cannot_be_exploded_is_refused(options, error, message):
    given = {"name": "v", "entity": WHOLE.entity, "source": ORDERS, "features": {"n": Count().over("1h")}}
    with pytest.raises(error, match=message):
        FeatureView(**{**given, **options})
