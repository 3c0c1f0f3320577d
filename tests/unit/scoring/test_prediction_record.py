from __future__ import annotations

import math

import msgspec
import pyarrow as pa
import pytest

from featurestore.errors import ContractError
from featurestore.scoring.prediction_log import (
    PredictionRecord,
    ServedValue,
    arrow_schema,
    from_json,
    to_arrow,
    to_json,
)

FIELDS = {
    "prediction_id": "p-0",
    "request_id": "r",
    "model": "fraud",
    "version": 3,
    "role": "champion",
    "service": "fraud_v1",
    "service_fingerprint": "f" * 16,
    "keys": {"card_id": "c1", "shop": None, "at": 5},
    "request": {"amount": 1.5},
    "features": {
        "card.spend_1h": ServedValue(value=12.25, status="present", as_of=-7),
        "card.last": ServedValue(value=[1, 2], status="stale", as_of=4),
        "card.mean": ServedValue(value=None, status="missing", as_of=None),
    },
    "score": 0.25,
    "at": 1_700_000_000_000_000,
    "scored_at": 1_700_000_000_000_900,
    "complete_through": None,
    "latency_us": 700,
}


def test_a_record_comes_back_from_json_as_it_was():
    record = PredictionRecord(**FIELDS)
    assert from_json(to_json(record)) == record
    assert b"\n" not in to_json(record)
    later = msgspec.json.encode(msgspec.json.decode(to_json(record)) | {"new_field": 1})
    assert from_json(later) == record


def test_what_json_has_no_literal_for_is_a_text_and_not_null():
    features = {
        str(each): ServedValue(value=each, status="present", as_of=None) for each in (math.nan, math.inf, -math.inf)
    }
    shown = msgspec.json.decode(to_json(PredictionRecord(**FIELDS | {"features": features})))["features"]
    assert [one["value"] for one in shown.values()] == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"prediction_id": 1}', b"[" * 100_000])
def test_what_is_no_record_is_refused(content):
    with pytest.raises(ContractError, match="unreadable"):
        from_json(content)


def test_in_arrow_every_value_is_its_json_text():
    table = to_arrow([PredictionRecord(**FIELDS)])
    assert table.schema == arrow_schema()
    assert set(PredictionRecord.__struct_fields__) == set(arrow_schema().names)
    (row,) = table.to_pylist(maps_as_pydicts="strict")
    assert row["keys"] == {"card_id": '"c1"', "shop": "null", "at": "5"}
    assert row["features"]["card.spend_1h"]["value"] == "12.25"
    assert row["features"]["card.last"] == {
        "value": "[1,2]",
        "status": "stale",
        "as_of": pa.scalar(4, pa.timestamp("us", "UTC")).as_py(),
    }
    assert row["features"]["card.mean"]["as_of"] is None
    assert to_arrow([]).num_rows == 0
