"""Spines of every kind that is in memory: understood, or refused before Spark is asked for anything."""

from __future__ import annotations

import datetime as dt
import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView
from featurestore.definitions.contract import Contract
from featurestore.errors import SpineError
from featurestore.offline.spine import as_arrow, check_spine

UTC = dt.UTC
PROPERTIES = {
    "card_id": {"type": "string"},
    "shop": {"type": "integer"},
    "at": {"type": "string", "format": "date-time"},
}
CONTRACT = json.dumps({"type": "object", "properties": PROPERTIES, "required": list(PROPERTIES)})
SERVICE = FeatureService(
    "shop",
    [
        FeatureView(
            "visit",
            Entity("visit", keys={"card_id": "string", "shop": "int64"}),
            EventSource("visits", topic="visits", schema=Contract.from_json(CONTRACT, "visit"), event_time="at"),
            {"n": Count().over("1h")},
        )
    ],
)
COLUMNS = {
    "card_id": ["a", None],
    "shop": [1, 2],
    "ts": [dt.datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)],
}
KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table}
NAIVE = [dt.datetime(2026, 1, day) for day in (1, 2)]


def checked(kind, columns):
    check_spine(as_arrow(KINDS[kind](columns)).schema, SERVICE, "ts", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spine_in_memory_is_understood(kind):
    checked(kind, COLUMNS)
    checked(kind, COLUMNS | {"ts": [1, -2], "label": ["x", None]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ts": NAIVE}, r"spine column 'ts' is a naive timestamp.*localize it"),
        ({"ts": ["2026-01-01", "2026-01-02"]}, r"spine column 'ts' is .*string.*, not a time"),
        ({"ts": [1.5, 2.5]}, r"spine column 'ts' is double, not a time"),
        ({"ts": None}, r"the spine has no time column 'ts'; service shop needs it"),
        ({"shop": None, "shops": [1, 2]}, r"no key column 'shop'.*did you mean 'shops'"),
        ({"shop": ["1", "2"]}, r"spine key column 'shop' is .*string, the entity's key is int64"),
        ({"card_id": [1, 2]}, r"spine key column 'card_id' is int64, the entity's key is string"),
        ({"visit.n_1h": [0, 0]}, r"already has a column 'visit.n_1h'.*the feature takes that name"),
        ({"__row": [0, 1]}, r"already has a column '__row'"),
    ],
)
def test_a_spine_in_memory_that_cannot_be_answered_is_refused(kind, changed, message):
    columns = {name: values for name, values in (COLUMNS | changed).items() if values is not None}
    with pytest.raises(SpineError, match=message):
        checked(kind, columns)


def test_two_columns_of_one_name_and_other_things_are_refused():
    table = pa.table([[1], ["a"], [1], [1]], ["ts", "card_id", "shop", "ts"])
    with pytest.raises(SpineError, match=r"the spine has two columns 'ts'"):
        check_spine(table.schema, SERVICE, "ts", None)
    with pytest.raises(SpineError, match=r"of type dict is not understood.*pandas, Polars or Spark frame"):
        as_arrow(COLUMNS)
