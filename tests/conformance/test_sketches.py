"""Bytes of sketches are shared with Spark's own functions and with the datasketches package, in both directions."""

from __future__ import annotations

import datasketches
import numpy as np
import pytest

from featurestore.algebra import ApproxDistinct, ApproxQuantile, TopItems
from featurestore.algebra.columns import reduce_groups
from featurestore.datatypes import DataType

RANKS = [0.0, 0.1, 0.5, 0.95, 1.0]
SIZES = (1, 7, 8, 100, 384, 385, 20_000)


def packed(aggregate, values):
    kind = {DataType.FLOAT64: np.float64, DataType.STRING: object}.get(aggregate.value_type, np.int64)
    zeros = np.zeros(len(values), np.int64)
    columns = aggregate.prepare_columns(np.array(values, dtype=kind), np.ones(len(values), bool), zeros, zeros)
    return reduce_groups(aggregate, columns, np.array([0]))[0][0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [DataType.INT64, DataType.STRING, DataType.FLOAT64])
@pytest.mark.parametrize("precision", [4, 8, 12])
def test_datasketches_reads_approximate_counts_and_writes_the_same(kind, size, precision):
    distinct = ApproxDistinct("x", precision).bind(kind)
    cast = {DataType.INT64: int, DataType.STRING: lambda i: "m" * (i % 40) + str(i), DataType.FLOAT64: float}[kind]
    values = [cast(i) for i in range(size)]
    mine = packed(distinct, values)
    union = datasketches.hll_union(precision)
    for part in (values[: size // 2], values[size // 2 :]):
        sketch = datasketches.hll_sketch(precision, datasketches.tgt_hll_type.HLL_8)
        for value in part:
            sketch.update(value)
        union.update(sketch)
    theirs = union.get_result(datasketches.tgt_hll_type.HLL_8)
    assert distinct.merge_parts([theirs.serialize_compact(), mine]) == mine
    assert distinct.merge_parts([theirs.serialize_updatable(), mine]) == mine
    estimate = datasketches.hll_sketch.deserialize(mine).get_estimate()
    assert distinct.read(mine) == distinct.read(theirs.serialize_compact()) == round(estimate)
    if size == 20_000:
        assert theirs.serialize_compact() == mine, "registers are the same bytes"


@pytest.mark.parametrize("size", [1, 2, 200, 20_000])
def test_datasketches_reads_quantiles_and_its_own_are_read(size):
    quantile = ApproxQuantile("x", RANKS).bind(DataType.FLOAT64)
    values = np.random.default_rng(size).normal(size=size)
    mine = packed(quantile, values.tolist())
    sketch = datasketches.kll_doubles_sketch.deserialize(mine)
    assert sketch.n == size
    assert (sketch.get_min_value(), sketch.get_max_value()) == (values.min(), values.max())
    for q, value in zip(RANKS[1:-1], quantile.read(mine)[1:-1], strict=True):
        assert sketch.get_quantile(q, inclusive=True) == value
    theirs = datasketches.kll_doubles_sketch(200)
    theirs.update(values)
    merged = quantile.merge_parts([theirs.serialize(), mine])
    assert datasketches.kll_doubles_sketch.deserialize(merged).n == 2 * size
    assert quantile.within_error(quantile.read(theirs.serialize()), quantile.read(merged), values) or size <= 200
    assert quantile.rank_error == pytest.approx(datasketches.kll_doubles_sketch.get_normalized_rank_error(200, False))
    sketch.merge(theirs)
    assert sketch.n == 2 * size


@pytest.mark.parametrize(("kind", "cast"), [(DataType.INT64, int), (DataType.STRING, "m{}".format)])
def test_datasketches_reads_frequent_items_and_its_own_are_read(kind, cast):
    top = TopItems("x", 3, capacity=48).bind(kind)
    values = [cast(i % 7) for i in range(300)] + [cast(5)] * 9
    mine, longs = packed(top, values), kind == DataType.INT64
    if longs:
        serde = datasketches.PyLongsSerDe()
        sketch = datasketches.frequent_items_sketch.deserialize(mine, serde)
        theirs = datasketches.frequent_items_sketch(6)
    else:
        sketch, theirs = datasketches.frequent_strings_sketch.deserialize(mine), datasketches.frequent_strings_sketch(6)
    assert [sketch.get_estimate(cast(i)) for i in (0, 5, 6, 8)] == [43, 52, 42, 0]
    assert sketch.total_weight == len(values)
    for value in values:
        theirs.update(value)
    data = theirs.serialize(serde) if longs else theirs.serialize()
    assert top.read(data) == top.read(mine) == top.read(top.merge_parts([data, mine])) == [cast(i) for i in (5, 0, 1)]


def test_spark_reads_the_sketches_and_its_own_are_read(spark):
    ints, texts = ApproxDistinct("x").bind(DataType.INT64), ApproxDistinct("x", 10).bind(DataType.STRING)
    quantile = ApproxQuantile("x", RANKS).bind(DataType.FLOAT64)
    items, names = TopItems("x", 3, 48).bind(DataType.INT64), TopItems("x", 3, 48).bind(DataType.STRING)
    sizes = (1, 8, 384, 3000)
    for size in sizes:
        mine = [
            packed(ints, range(size)),
            packed(texts, [f"m{i}" for i in range(size)]),
            packed(quantile, [float(i) for i in range(size)]),
            packed(items, [i % 7 for i in range(size + 3)]),
            packed(names, [f"m{i % 7}" for i in range(size + 3)]),
        ]
        own = spark.range(size).selectExpr(
            "hll_sketch_agg(id, 12) AS i", "hll_sketch_agg(concat('m', id), 10) AS t",
            "kll_sketch_agg_double(cast(id AS double), 200) AS q",
        )  # fmt: skip
        top = spark.range(size + 3).selectExpr(
            "approx_top_k_accumulate(id % 7, 48) AS k", "approx_top_k_accumulate(concat('m', id % 7), 48) AS n"
        )
        given = spark.createDataFrame(
            [tuple(map(bytearray, mine))], "mi binary, mt binary, mq binary, mk binary, mn binary"
        )
        struct = "named_struct('sketch', concat({}, X'0000000000000000'), 'maxItemsTracked', 48, 'itemDataType', cast(null AS {}), 'itemDataTypeDDL', '{}')"
        row = own.crossJoin(top).crossJoin(given).selectExpr(
            "i", "t", "q", "k.sketch AS k", "n.sketch AS n",
            "hll_sketch_estimate(mi) AS ints", "hll_sketch_estimate(hll_union(mi, i)) AS ints_both",
            "hll_sketch_estimate(mt) AS texts", "hll_sketch_estimate(hll_union(t, mt)) AS texts_both",
            *(f"kll_sketch_get_quantile_double(mq, {q}d) AS q{i}" for i, q in enumerate(RANKS)),
            "kll_sketch_get_n_double(kll_sketch_merge_double(mq, q)) AS both",
            f"approx_top_k_estimate({struct.format('mk', 'bigint', 'item BIGINT NOT NULL')}, 10) AS top",
            f"approx_top_k_estimate({struct.format('mn', 'string', 'item string not null')}, 10) AS top_names",
        ).collect()[0]  # fmt: skip
        spark_ints, spark_texts, spark_quantile, spark_items, spark_names = (bytes(row[i]) for i in range(5))
        assert row.ints == row.ints_both == ints.read(mine[0]) == ints.read(spark_ints)
        assert row.texts == row.texts_both == texts.read(mine[1]) == texts.read(spark_texts)
        assert ints.merge_parts([spark_ints, mine[0]]) == mine[0]
        assert texts.merge_parts([spark_texts, mine[1]]) == mine[1]
        assert [row[f"q{i}"] for i in range(len(RANKS))] == quantile.read(mine[2])
        assert row.both == 2 * size == quantile.parse(quantile.merge_parts([spark_quantile, mine[2]])).n
        if size <= 200:
            assert quantile.read(spark_quantile) == quantile.read(mine[2])
        assert {each.item: each["count"] for each in row.top} == items.parse(mine[3]).counts
        assert {each.item.encode(): each["count"] for each in row.top_names} == names.parse(mine[4]).counts
        assert items.read(spark_items) == items.read(mine[3])
        assert names.read(spark_names) == names.read(mine[4])
