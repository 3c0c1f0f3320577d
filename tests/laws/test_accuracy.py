"""The errors that sketches state, and what they promise where they are exact; seeds are fixed, so nothing here is luck."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from featurestore.algebra import ApproxDistinct, ApproxQuantile, DistinctCount, EventOrder, TopItems
from featurestore.algebra.columns import reduce_groups
from featurestore.datatypes import DataType
from featurestore.testing.laws import LawViolationError, check_laws

pytestmark = pytest.mark.thorough


def parts_of(aggregate, values):
    kind = {DataType.FLOAT64: np.float64, DataType.STRING: object}.get(aggregate.value_type, np.int64)
    zeros = np.zeros(len(values), np.int64)
    (column,) = aggregate.prepare_columns(np.array(values, dtype=kind), np.ones(len(values), bool), zeros, zeros)
    return column


def at_once(aggregate, values):
    """One merge of everything."""
    return reduce_groups(aggregate, (parts_of(aggregate, values),), np.array([0]))[0][0]


def by_tiles(aggregate, values, sizes, dice):
    """Tiles of random sizes, merged one after the other: the way of a store."""
    column, starts, at = parts_of(aggregate, values), [], 0
    while at < len(values):
        starts.append(at)
        at += dice.randint(*sizes)
    total = aggregate.empty()
    for tile in reduce_groups(aggregate, (column,), np.array(starts))[0]:
        total = aggregate.merge(total, (tile,))
    return total[0]


def by_pairs(aggregate, values, dice):
    """A random tree of pairs of single events."""
    pile = [(data,) for data in parts_of(aggregate, values)]
    while len(pile) > 1:
        a = pile.pop(dice.randrange(len(pile)))
        pile.append(aggregate.merge(a, pile.pop(dice.randrange(len(pile)))))
    return pile[0][0]


STREAMS = {
    "ascending": lambda n, dice: [float(i) for i in range(n)],
    "descending": lambda n, dice: [float(-i) for i in range(n)],
    "lognormal": lambda n, dice: [dice.lognormvariate(0, 2) for _ in range(n)],
    "few values": lambda n, dice: [float(dice.randrange(5)) for _ in range(n)],
    "the same tile again and again": lambda n, dice: [math.sin(i % 300) for i in range(n)],
    "one giant": lambda n, dice: [1e300 if i == 17 else 1.0 + i % 2 for i in range(n)],
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("k", [50, 200])
def test_quantiles_keep_their_rank_error_however_they_are_merged(stream, k):
    dice = random.Random(k)
    ranks = [0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0]
    quantile = ApproxQuantile("x", ranks, k=k).bind(DataType.FLOAT64)
    values = STREAMS[stream](20_000, dice)
    ordered = np.sort(values)
    ways = [
        at_once(quantile, values),
        by_tiles(quantile, values, (1, 40), dice),
        by_tiles(quantile, values, (200, 400), dice),
        by_tiles(quantile, values, (300, 300), dice),
        by_pairs(quantile, values[:1500], dice),
    ]
    for way, data in enumerate(ways):
        known = ordered if way < 4 else np.sort(values[:1500])
        assert len(data) < 24 * k + 600, "bounded"
        for q, value in zip(ranks, quantile.read(data), strict=True):
            low, high = (np.searchsorted(known, value, side=side) / len(known) for side in ("left", "right"))
            assert low - quantile.rank_error <= q <= high + quantile.rank_error, (way, q, value, low, high)
        assert quantile.read(data)[0] == known[0]
        assert quantile.read(data)[-1] == known[-1]
    for other in ways[1:4]:
        assert quantile.within_error(quantile.read(ways[0]), quantile.read(other), values)


def test_a_quantile_is_exact_up_to_k_events_and_the_same_on_every_path():
    dice = random.Random(1)
    quantile = ApproxQuantile("x", [0.1, 0.5, 0.95], k=200).bind(DataType.FLOAT64)
    for n in (1, 2, 3, 10, 199, 200):
        values = [dice.choice([dice.gauss(0, 1), 0.0, -0.0, math.inf, -math.inf]) for _ in range(n)]
        whole = at_once(quantile, values)
        assert by_pairs(quantile, values, dice) == by_tiles(quantile, values, (1, 9), dice) == whole
        ordered = sorted(values)
        expected = [ordered[math.ceil(round(q * n, 9)) - 1] for q in (0.1, 0.5, 0.95)]
        assert quantile.read(whole) == expected


def test_the_same_merges_give_the_same_sketch():
    values = STREAMS["lognormal"](5000, random.Random(3))
    quantile = ApproxQuantile("x").bind(DataType.FLOAT64)
    first, again = (by_tiles(quantile, values, (1, 500), random.Random(9)) for _ in range(2))
    assert first == again
    a, b = (at_once(quantile, part) for part in (values[:2000], values[2000:]))
    assert quantile.merge((a,), (b,)) == quantile.merge((b,), (a,))


def test_nan_is_no_value_of_a_quantile():
    quantile = ApproxQuantile("x", 1.0).bind(DataType.FLOAT64)
    assert quantile.prepare(math.nan, EventOrder(0, 0)) == quantile.empty()
    assert quantile.finalize(quantile.empty()) is None
    assert quantile.finalize(quantile.merge(quantile.prepare(1.0, (0, 0)), quantile.prepare(math.nan, (0, 1)))) == 1.0


@pytest.mark.parametrize("aggregate", [ApproxQuantile("x", [0.3, 0.9], k=8), TopItems("x", 2, capacity=4)])
def test_the_law_kit_allows_a_sketch_its_stated_error_and_no_more(aggregate):
    kind = DataType.INT64 if isinstance(aggregate, TopItems) else DataType.FLOAT64
    values = [value % 11 + (value % 3) * 5 for value in range(60)] + [3] * 20
    check_laws(aggregate.bind(kind), values, [0] * 80, rounds=5)


def test_the_law_kit_catches_a_sketch_that_drops_more_than_it_states():
    class Careless(ApproxQuantile):
        def merge_parts(self, parts):
            return super().merge_parts(parts) if len(parts[0]) < 70 else parts[0]

    with pytest.raises(LawViolationError):
        check_laws(Careless("x", 0.5, k=8).bind(DataType.FLOAT64), [float(v) for v in range(80)], [0] * 80, rounds=5)


# ----------------------------------------------------------------------------------------------- distinct values


@pytest.mark.parametrize("kind", [DataType.INT64, DataType.STRING, DataType.FLOAT64])
@pytest.mark.parametrize("precision", [4, 7, 8, 12])
def test_approximate_counts_depend_on_the_set_of_values_alone(kind, precision):
    dice = random.Random(precision)
    distinct = ApproxDistinct("x", precision).bind(kind)
    cast = {DataType.INT64: int, DataType.STRING: lambda i: f"merchant-{i}", DataType.FLOAT64: float}[kind]
    for n in (1, 7, 8, 23, 24, 25, 384, 385, 3000):
        values = [cast(i) for i in range(n)]
        whole = at_once(distinct, values)
        again = [*values, *values[: n // 2]]
        dice.shuffle(again)
        assert by_tiles(distinct, again, (1, 60), dice) == whole
        if n < 500:
            assert by_pairs(distinct, again, dice) == whole


@pytest.mark.parametrize("precision", [8, 12])
def test_approximate_counts_keep_their_error(precision):
    distinct = ApproxDistinct("x", precision).bind(DataType.INT64)
    errors = []
    for n in (10, 300, 1000, 30_000):
        for seed in range(20):
            values = np.random.default_rng(seed).integers(-(2**62), 2**62, n).tolist()
            errors.append(distinct.read(at_once(distinct, values)) / n - 1)
    assert float(np.sqrt(np.mean(np.square(errors)))) < 1.04 / 2 ** (precision / 2)
    assert max(map(abs, errors)) < 4 * 1.04 / 2 ** (precision / 2)


@pytest.mark.parametrize("overflow", ["limit", "null"])
def test_an_exact_count_is_exact_up_to_its_limit_and_then_follows_its_policy(overflow):
    dice = random.Random(5)
    for kind, cast in ((DataType.INT64, int), (DataType.STRING, str)):
        distinct = DistinctCount("x", 50, overflow).bind(kind)
        for n in (1, 49, 50, 51, 400):
            values = [cast(i) for i in range(n)] * 2
            dice.shuffle(values)
            expected = n if n <= 50 else 50 if overflow == "limit" else None
            for data in (
                at_once(distinct, values),
                by_pairs(distinct, values, dice),
                by_tiles(distinct, values, (1, 90), dice),
            ):
                assert distinct.read(data) == expected
            assert at_once(distinct, values) == by_pairs(distinct, values, dice)


def test_zeros_are_one_value_and_so_are_all_nan():
    other_nan = np.array([0x7FF8000000000001], np.int64).view(np.float64)[0].item()
    values = [0.0, -0.0, math.nan, -math.nan, other_nan, 1.0]
    for aggregate in (DistinctCount("x"), ApproxDistinct("x")):
        bound = aggregate.bind(DataType.FLOAT64)
        assert bound.read(at_once(bound, values)) == 3


def test_the_empty_text_counts_exactly_but_not_approximately():
    for aggregate, expected in ((DistinctCount("x"), 2), (ApproxDistinct("x"), 1)):
        bound = aggregate.bind(DataType.STRING)
        assert bound.read(at_once(bound, ["", "a", ""])) == expected
        assert bound.finalize(bound.empty()) == 0


# ------------------------------------------------------------------------------------------------- frequent items


@pytest.mark.parametrize("capacity", [10, 64])
def test_frequent_items_keep_their_bound_however_they_are_merged(capacity):
    dice = random.Random(capacity)
    top = TopItems("x", 5, capacity).bind(DataType.INT64)
    values = [min(int(dice.paretovariate(0.8)), 10**6) for _ in range(20_000)]
    truth = Counter(values)
    for data in (
        at_once(top, values),
        by_tiles(top, values, (1, 40), dice),
        by_tiles(top, values, (300, 900), dice),
        by_pairs(top, values[:1500], dice),
    ):
        found = top.parse(data)
        true = truth if found.n == len(values) else Counter(values[:1500])
        allowed = found.n / (capacity + 1)
        assert found.offset <= allowed
        assert len(found.counts) <= capacity
        assert all(0 <= true[item] - count <= found.offset for item, count in found.counts.items())
        assert {item for item, count in true.items() if count > allowed} <= found.counts.keys()
        assert top.within_error(top.read(data), top.read(data), list(true.elements()))


def test_frequent_items_are_exact_within_the_capacity_and_ties_go_by_value():
    dice = random.Random(2)
    top = TopItems("x", 3, 8).bind(DataType.STRING)
    values = ["b"] * 3 + ["a"] * 3 + ["ü"] * 5 + ["c", "d", "e", "f"]
    for _ in range(10):
        dice.shuffle(values)
        assert by_pairs(top, values, dice) == at_once(top, values)
    assert top.read(at_once(top, values)) == ["ü", "a", "b"]
