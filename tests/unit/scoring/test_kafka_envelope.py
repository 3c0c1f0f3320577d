"""Predictions as CloudEvents 1.0: attributes as the specification has them, and back."""

from __future__ import annotations

import json
import re

import pytest

from featurestore.scoring.kafka_envelope import Envelope, unwrap, wrap
from featurestore.scoring.prediction_log import PredictionRecord, from_json, to_json

RECORD = PredictionRecord(
    prediction_id="checkouts/0/7", model="fraud", version=3, role="champion", service="fraud_v1", service_fingerprint="f",
    keys={"card_id": "c1"}, request={}, features={}, score=0.5, at=1, scored_at=1_700_000_000_000_000,
    complete_through=None, latency_us=9,
)  # fmt: skip
REQUIRED = {
    "specversion": "1.0", "id": "checkouts/0/7/fraud:3/champion", "source": "/featurestore/shop/fraud",
    "type": "featurestore.prediction.v1",
}  # fmt: skip
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def wrapped(envelope):
    return wrap(to_json(RECORD), RECORD, envelope, source="/featurestore/shop/fraud")


@pytest.mark.parametrize("envelope", list(Envelope))
def test_what_was_wrapped_is_unwrapped(envelope):
    value, headers = wrapped(envelope)
    assert from_json(unwrap(value, headers)) == RECORD


def test_binary_mode_has_attributes_as_headers_and_the_data_as_value():
    value, headers = wrapped(Envelope.BINARY)
    found = {name: content.decode() for name, content in headers}
    assert value == to_json(RECORD)
    assert found.pop("content-type") == "application/json"
    assert RFC3339.fullmatch(found.pop("ce_time"))
    assert found == {f"ce_{name}": text for name, text in REQUIRED.items()}


def test_structured_mode_is_one_document():
    value, headers = wrapped(Envelope.STRUCTURED)
    event = json.loads(value)
    assert dict(headers) == {"content-type": b"application/cloudevents+json; charset=UTF-8"}
    assert RFC3339.fullmatch(event.pop("time"))
    assert event.pop("data") == json.loads(to_json(RECORD))
    assert event == {**REQUIRED, "datacontenttype": "application/json"}
