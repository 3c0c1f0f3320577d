"""The aggregates of variable size against plain Python, their parameters, and bytes that are not theirs."""

from __future__ import annotations

import json
import math
import random
import sys

import numpy as np
import pytest

from featurestore.algebra import (
    AGGREGATES,
    Aggregate,
    ApproxDistinct,
    ApproxQuantile,
    DistinctCount,
    EventOrder,
    First,
    FirstK,
    Last,
    LastK,
    Lifetime,
    Max,
    MaxK,
    Min,
    MinK,
    TopItems,
)
from featurestore.algebra.columns import partial_at, reduce_groups
from featurestore.algebra.packed import Packed
from featurestore.datatypes import DataType
from featurestore.definitions.layout import aggregate_from_dict, aggregate_to_dict, compile_layout
from featurestore.errors import CodecError, ConfigError, DefinitionError

POOLS = {
    DataType.INT64: [0, 1, -1, 7, 2**63 - 1, -(2**63), None],
    DataType.FLOAT64: [0.5, 1.5, -math.inf, math.inf, math.nan, 2.5, None],
    DataType.BOOL: [True, False, None],
    DataType.STRING: ["", "a", "b", "Z", "ü", "\U0001f600", "\uffff", None],
    DataType.TIMESTAMP: [0, -5, 1_700_000_000_000_000, None],
}
WIDE = [kind for kind in AGGREGATES.values() if issubclass(kind, Packed)]
BOUND = [
    pytest.param(kind("x").bind(value), id=f"{kind.__name__}-{value}")
    for kind in WIDE
    for value in sorted(kind.accepts)
]


def in_order(value):
    """Smallest first, NaN last."""
    return (value != value, value)


def expected(aggregate, events):
    """The value of (event time, sequence, value), in the plainest Python."""
    events = sorted(((time, nth, value) for time, nth, value in events if value is not None), key=lambda e: e[:2])
    values = [value for _, _, value in events]
    if isinstance(aggregate, (First, Last)):
        return (values or [None])[0 if isinstance(aggregate, First) else -1]
    if isinstance(aggregate, (Min, Max)):
        return (sorted(values, key=in_order) or [None])[0 if isinstance(aggregate, Min) else -1]
    if isinstance(aggregate, (MinK, MaxK)):
        values = sorted(values, key=in_order, reverse=isinstance(aggregate, MaxK))
    if isinstance(aggregate, LastK):
        values = values[::-1]
    if getattr(aggregate, "distinct", False):
        values = [value for i, value in enumerate(values) if repr(value) not in map(repr, values[:i])]
    return values[: aggregate.k] or None


@pytest.mark.parametrize("value_type", sorted(POOLS))
@pytest.mark.parametrize(
    "aggregate",
    [
        *(kind("x", 3) for kind in (FirstK, LastK, MinK, MaxK)),
        *(kind("x", k, True) for kind in (FirstK, LastK) for k in (1, 2, 1000)),
        *(kind("x") for kind in (First, Last, Min, Max)),
    ],
    ids=repr,
)
def test_the_value_is_that_of_plain_python_however_it_is_merged(aggregate, value_type):
    dice = random.Random(7)
    bound = aggregate.bind(value_type)
    for _ in range(40):
        events = [
            (dice.randrange(-3, 3), nth, dice.choice(POOLS[value_type])) for nth in range(dice.choice([0, 1, 3, 12]))
        ]
        dice.shuffle(events)
        wanted = expected(bound, events)
        partial = bound.empty()
        for time, nth, value in events:
            partial = bound.merge(bound.prepare(value, EventOrder(time, nth)), partial)
        assert repr(bound.finalize(partial)) == repr(wanted)
        if events:
            values = np.array(
                [0 if value is None else value for *_, value in events],
                dtype={DataType.STRING: object, DataType.FLOAT64: np.float64}.get(value_type, np.int64),
            )
            columns = bound.prepare_columns(
                values,
                np.array([value is not None for *_, value in events]),
                np.array([time for time, _, _ in events]),
                np.array([nth for _, nth, _ in events]),
            )
            merged = reduce_groups(bound, columns, np.array([0]))
            assert partial_at(merged, 0) == partial or value_type == DataType.FLOAT64
            result, valid = bound.finalize_columns(merged)
            assert repr(result.item(0) if valid[0] else None) == repr(wanted) or value_type == DataType.BOOL


def test_texts_are_in_the_order_of_code_points_not_of_utf_16():
    largest = MaxK("x", 2).bind(DataType.STRING)
    partial = largest.empty()
    for text in ("\uffff", "\U0001f600", "z"):
        partial = largest.merge(partial, largest.prepare(text, EventOrder(0, 0)))
    assert largest.finalize(partial) == ["\U0001f600", "\uffff"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FirstK("x", 0), "k is 0, allowed are the integers 1 to 1000"),
        (lambda: LastK("x", 1001), "k is 1001"),
        (lambda: MinK("x", True), "k is True"),
        (lambda: MaxK("x", 2.0), "k is 2.0"),
        (lambda: LastK(k=3), "LastK needs an input"),
        (lambda: FirstK("x", 3, distinct=1), "distinct is 1"),
        (lambda: DistinctCount("x", 0), "limit is 0"),
        (lambda: DistinctCount("x", overflow="error"), "overflow is 'error', allowed are 'limit' and 'null'"),
        (lambda: ApproxDistinct("x", 3), "precision is 3, allowed are the integers 4 to 16"),
        (lambda: ApproxQuantile("x", 95), "q is 95, allowed are numbers from 0 to 1"),
        (lambda: ApproxQuantile("x", []), r"q is \(\)"),
        (lambda: ApproxQuantile("x", "0.5"), "q is '0.5'"),
        (lambda: ApproxQuantile("x", 0.5, k=7), "k is 7"),
        (lambda: TopItems("x", 20, capacity=10), "k is 20, allowed is at most the capacity, 10"),
    ],
)
def test_parameters_are_checked_when_defined(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize(
    ("aggregate", "kind"),
    [(ApproxQuantile("x"), DataType.STRING), (ApproxQuantile("x"), DataType.BOOL), (TopItems("x"), DataType.FLOAT64)],
)
def test_a_type_without_a_meaning_is_refused(aggregate, kind):
    with pytest.raises(DefinitionError, match="takes"):
        aggregate.bind(kind)


@pytest.mark.parametrize("aggregate", [ApproxQuantile("x", [0.5, 0.9]), LastK("x", 3, True, where="y"), TopItems("x")])
def test_definitions_are_data(aggregate):
    bound = aggregate.bind(DataType.INT64)
    assert aggregate_from_dict(json.loads(json.dumps(aggregate_to_dict(bound)))) == bound


def test_what_only_matters_to_readers_shares_a_partial():
    features = [
        *(ApproxQuantile("x", q) for q in (0.5, 0.95, [0.1, 0.9])),
        *(TopItems("x", k) for k in (1, 5)),
        *(DistinctCount("x", overflow=policy) for policy in ("limit", "null")),
        LastK("x", 3),
        LastK("x", 4),
    ]
    layout = compile_layout(
        view="v",
        fingerprint="0" * 16,
        source="s",
        keys={"key": DataType.INT64},
        features=[(f"f{i}", each.bind(DataType.INT64), Lifetime()) for i, each in enumerate(features)],
    )
    assert [feature.measure for feature in layout.features] == [0, 0, 0, 1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("aggregate", BOUND)
def test_any_bytes_give_a_value_or_a_codec_error(aggregate: Aggregate):
    dice = random.Random(11)
    pool = [value for value in POOLS[aggregate.value_type] if value is not None]
    good = []
    for count in (1, 2, 9, 400):
        partial = aggregate.empty()
        for nth in range(count):
            value = dice.choice(pool) if count < 400 or aggregate.value_type != DataType.INT64 else nth
            partial = aggregate.merge(partial, aggregate.prepare(value, EventOrder(nth, nth)))
        good.append(partial[0])
    read = refused = 0
    for _ in range(400):
        data = bytearray(dice.choice(good))
        kind = dice.random()
        if kind < 0.4 and data:
            data[dice.randrange(min(len(data), 48))] = dice.randrange(256)
        elif kind < 0.6:
            data = data[: dice.randrange(len(data) + 1)]
        elif kind < 0.8:
            data += dice.randbytes(dice.randrange(20))
        else:
            data = bytearray(dice.randbytes(dice.randrange(80)))
        try:
            aggregate.finalize((bytes(data),))
            aggregate.finalize(aggregate.merge((bytes(data),), (dice.choice(good),)))
            read += 1
        except CodecError:
            refused += 1
    assert read
    assert refused or aggregate.value_type == DataType.STRING


def test_without_the_package_only_reading_an_approximate_count_fails_and_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketches", None)
    distinct = ApproxDistinct("x").bind(DataType.INT64)
    partial = distinct.merge(distinct.prepare(1, EventOrder(0, 0)), distinct.prepare(2, EventOrder(0, 1)))
    with pytest.raises(ConfigError, match=r"featurestore\[sketches\]"):
        distinct.finalize(partial)
