"""Features of read time are the same in a training set, a snapshot and a lookup, of one key and of many, on every path."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pyarrow as pa
import pytest

from featurestore.checks.verify import verify
from featurestore.datatypes import DataType
from featurestore.definitions.derived import Derived
from featurestore.engines.derive import FEW_ROWS
from featurestore.engines.oracle import values_at
from featurestore.engines.scalar import evaluate_row
from featurestore.errors import DefinitionError, SpineError, UnknownNameError
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.compare import values_agree
from featurestore.testing.replay import replay
from featurestore.testing.streams import hostile_stream, shape_events
from featurestore.timeline import VirtualClock
from tests.conformance.cases import SHORT, SOURCE
from tests.conformance.derived import DERIVED, SERVICE
from tests.conformance.test_training_workers import logged
from tests.unit.offline.local import keys_at, run

REQUEST = {
    "price": [1.5, 0.0, None, float("nan"), -3.25],
    "other": ["C1", "c", None, ""],
    "count": [0, 3, None, -(2**63), 2**63 - 1],
    "seen": [0, None, 1_700_000_000_000_000],
    "flag": [True, False, None],
}
NOW = 1_800_000_000_000_000


def request_of(dice):
    return {name: dice.choice(values) for name, values in REQUEST.items()}


def plain(column):
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


@pytest.mark.thorough
def test_verify_compares_derived_features_and_columns():
    result = verify([DERIVED], seed=11, seconds=600, most_cases=20)
    assert result.equal, str(result)


def test_a_training_row_is_the_oracle_and_what_request_features_make_of_it():
    for seed in range(4):
        dice = random.Random(seed)
        stream = hostile_stream(DERIVED, seed=seed, events=90, probes=40)
        asked = [request_of(dice) for _ in stream.probes]
        at = np.array([t for _, t in stream.probes], dtype=np.int64)
        kinds = {"price": pa.float32(), "count": pa.int64(), "seen": pa.timestamp("us", "UTC"), "flag": pa.bool_()}
        spine = pa.table(
            {"card_id": [key[0] for key, _ in stream.probes]}
            | {name: pa.array([each[name] for each in asked], kinds.get(name)) for name in REQUEST}
        )
        logs = {SOURCE.name: pa.Table.from_batches([logged(stream.events)])}
        made, _ = run(SERVICE.views, logs, spine, at, request=SERVICE.request_layouts, batch=30)
        assert made.column_names == [*spine.column_names, *SERVICE.feature_ids]
        answers = {name: plain(made.column(name)) for name in made.column_names}
        for row, (key, t) in enumerate(stream.probes):
            spec = values_at(DERIVED, stream.events, key, t) | values_at(SHORT, stream.events, key, t)
            found = {name: column[row] for name, column in answers.items()}
            assert all(values_agree(value, found[name], tolerance=1e-9, slack=1e-6) for name, value in spec.items()
                       if name not in {each.id for each in DERIVED.layout.derived})  # fmt: skip
            known = dict(found)
            for layout in (*DERIVED.layout.derived, *SERVICE.request_layouts):
                known[layout.id] = evaluate_row(layout, known)
                assert values_agree(known[layout.id], found[layout.id]), layout.id


def test_a_snapshot_has_derived_features():
    stream = hostile_stream(DERIVED, seed=3, events=60, probes=5)
    logs = {SOURCE.name: pa.Table.from_batches([logged(stream.events)])}
    rows = keys_at([DERIVED], logs, [NOW])
    assert rows
    for row in rows:
        spec = values_at(DERIVED, stream.events, [row["card_id"]], NOW)
        assert row["derived.label"] == spec["derived.label"]
        assert row["derived.points_left"] == spec["derived.points_left"] == 0


def test_lookup_and_training_set_agree_on_every_feature_of_a_service():
    for seed in range(4):
        dice = random.Random(seed)
        stream = hostile_stream(DERIVED, seed=seed, events=80, probes=3)
        cards = dict.fromkeys([*(event.row["card_id"] for event in stream.events), "nobody"])
        with replay(SERVICE) as job:
            for event in stream.events:
                job.send("payments", event.row, arrival=event.arrival, partition=event.partition)
            now = max(job.clock.now(), *(event.event_time + 1 for event in stream.events))
            job.advance_to(now)
            keys = [{"card_id": dice.choice(list(cards))} for _ in range(FEW_ROWS + 9)]
            asked = [request_of(dice) for _ in keys]
            many = job.get_many(keys, request=asked, now=now)
            columns = job.get_many(keys, request={name: [each[name] for each in asked] for name in REQUEST}, now=now)
            table = job.training_set([{**k, **r, "event_time": now} for k, r in zip(keys, asked, strict=True)])
            expected = {name: plain(table.column(name)) for name in SERVICE.feature_ids}
            assert many.names == SERVICE.feature_ids
            assert list(many.types) == [*DERIVED.layout.types.values(), *SHORT.layout.types.values(),
                                        *(each.type for each in SERVICE.request_layouts)]  # fmt: skip
            assert many.to_arrow().schema == table.select(SERVICE.feature_ids).schema
            for row, key in enumerate(keys):
                one = job.get(key, request=asked[row], now=now)
                assert list(map(repr, one.to_list())) == list(map(repr, many[row].to_list())), "one by one, and many"
                assert list(map(repr, one.to_list())) == list(map(repr, columns[row].to_list()))
                for name in SERVICE.feature_ids:
                    assert values_agree(expected[name][row], one[name], tolerance=1e-9, slack=1e-6), name


FIRST = {"card_id": "c1", "amount": 6.0, "status": "a", "shop": 2}
ASKED = {"price": 3, "other": "C1", "count": None, "seen": "1970-01-01T00:00:01Z", "flag": None, "more": "ignored"}


def test_another_formula_starts_nothing_anew_and_applies_nothing_twice():
    store = MemoryOnlineStore()
    stream = hostile_stream(DERIVED, seed=1, events=30, probes=2, partitions=1)
    changed = dataclasses.replace(DERIVED, features={**DERIVED.features, "rising": Derived("trend > 0.9")})
    assert changed.fingerprint != DERIVED.fingerprint
    until = stream.events[-1].offset + 1
    arrival = max(event.arrival for event in stream.events)
    counts = FencedWriter(store, SOURCE.name, [DERIVED]).apply(
        0, until, arrival, [shape_events(DERIVED, stream.events)]
    )
    before = dict(store.values)
    again = FencedWriter(store, SOURCE.name, [changed]).apply(0, until, arrival, [shape_events(changed, stream.events)])
    assert counts["applied"] == again["fenced"] > 0
    assert again["applied"] == 0
    assert store.values == before


def test_null_rules_and_statuses_of_a_lookup():
    with replay(SERVICE) as job:
        job.send("payments", FIRST, at="2024-01-01T00:00:00Z")
        job.advance("1m")
        vector = job.get({"card_id": "c1"}, request=ASKED)
        assert (vector["ratio"], vector["odd"], vector["same_card"]) == (0.5, False, True)
        assert (vector["away"], vector["both"], vector["alone"]) == (None, 1, None)
        assert (vector["derived.big_share"], vector["derived.label"]) == (1.0, "A")
        assert (vector.status["ratio"], vector.status["away"]) == ("present", "null")
        nobody = job.get({"card_id": "x"}, request=ASKED)
        assert (nobody["derived.big_share"], nobody["derived.points_left"], nobody["ratio"]) == (None, 0, None)
        assert nobody["both"] == 0
        assert (nobody.status["both"], nobody.status["derived.label"]) == ("missing", "missing")
        assert nobody.status["alone"] == "null"


def test_an_empty_store_derives_nothing_but_what_needs_no_feature():
    store = MemoryOnlineStore()
    store.publish_plan(LookupPlan.of(SERVICE))
    client = FeatureClient.over(store, clock=VirtualClock(NOW))
    vector = client.get("asked", {"card_id": "c1"}, request={**ASKED, "flag": True})
    assert {name for name, value in vector.items() if value is not None} == {"alone"}
    assert vector["alone"] == 3.0
    assert client.request_values("asked") == SERVICE.request_values


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (
            None,
            UnknownNameError,
            r"service asked: request value 'price' is missing.*request=\{'price': ...\} of type float64",
        ),
        ({**ASKED, "count": 1.0}, DefinitionError, "service asked: request value 'count' is 1.0, not of type int64"),
        ({**ASKED, "count": True}, DefinitionError, "request value 'count' is True, not of type int64"),
        ({**ASKED, "count": 2**63}, DefinitionError, "not of type int64"),
        ({**ASKED, "price": "3"}, DefinitionError, "request value 'price' is '3', not of type float64"),
        ({**ASKED, "flag": 1}, DefinitionError, "request value 'flag' is 1, not of type bool"),
        ({**ASKED, "other": b"c"}, DefinitionError, "not of type string"),
        ({**ASKED, "seen": "yesterday"}, DefinitionError, "request value 'seen'"),
        ({**ASKED, "seen": 1.5}, DefinitionError, "not of type timestamp.*microseconds"),
        ({"Price": 3.0, "other": "", "count": 1, "seen": 0, "flag": None}, UnknownNameError, "did you mean 'Price'"),
        ([1], DefinitionError, "request is list"),
    ],
)
def test_request_values_that_are_missing_or_of_another_type_are_refused(request_, error, message):
    with replay(SERVICE) as job, pytest.raises(error, match=message):
        job.get({"card_id": "c1"}, request=request_)


def test_requests_for_many_are_as_many_as_entities():
    with replay(SERVICE) as job:
        keys = [{"card_id": "a"}, {"card_id": "b"}]
        with pytest.raises(DefinitionError, match="1 requests for 2 entities"):
            job.get_many(keys, request=[ASKED])
        with pytest.raises(DefinitionError, match="entity 1: request value 'flag' is 'x'"):
            job.get_many(keys, request=[ASKED, {**ASKED, "flag": "x"}])
        with pytest.raises(DefinitionError, match="differ in length"):
            job.get_many(keys, request={"price": [1.0], "count": [1, 2]})
        with pytest.raises(UnknownNameError, match="entity 0: request value 'price' is missing"):
            job.get_many(keys)
        columns = {"price": np.array([1.0, 2.0]), "other": pa.array(["a", None]), "count": np.array([1, 2]),
                   "seen": [0, 0], "flag": np.array([True, False])}  # fmt: skip
        assert [vector["alone"] for vector in job.get_many(keys, request=columns)] == [1.0, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price": None}, "the spine has no request value 'price'; service asked needs it"),
        (
            {"price": pa.array(["1"])},
            "spine request value 'price' is string, the request value of service asked is float64",
        ),
        ({"count": pa.array([1.0])}, "spine request value 'count' is double"),
        ({"seen": pa.array([0], pa.timestamp("us"))}, "request value 'seen' is timestamp"),
        ({"ratio": pa.array([1.0])}, "already has a column 'ratio'"),
        ({"derived.trend": pa.array([1.0])}, "already has a column 'derived.trend'"),
    ],
)
def test_a_spine_has_the_request_values(changes, message):
    kinds = SERVICE.request_values
    arrow = {DataType.TIMESTAMP: pa.timestamp("us", "UTC"), DataType.INT64: pa.int64(), DataType.BOOL: pa.bool_(),
             DataType.STRING: pa.string(), DataType.FLOAT64: pa.float64()}  # fmt: skip
    columns = {"card_id": pa.array(["a"]), "event_time": pa.array([NOW], pa.timestamp("us", "UTC"))}
    columns |= {name: pa.array([None], arrow[kind]) for name, kind in kinds.items()}
    columns |= changes
    with replay(SERVICE) as job, pytest.raises(SpineError, match=message):
        job.training_set(pa.table({name: column for name, column in columns.items() if column is not None}))
