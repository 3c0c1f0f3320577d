"""A model of a service with request features: what a caller sends is looked up with, typed, and seen by the model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from featurestore.algebra import Mean
from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract
from featurestore.definitions.derived import RequestFeature
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.errors import ModelError, ModelInputError
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.manifest import load_model, save_model
from featurestore.scoring.protocol import model_metadata
from featurestore.scoring.scorer import Scorer
from featurestore.testing.replay import replay
from tests.unit.scoring.support import onnx_bytes

CONTRACT = Contract.from_json(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "card_id": {"type": "string"},
                "amount": {"type": "number"},
                "country": {"type": "string"},
                "event_time": {"type": "string", "format": "date-time"},
            },
            "required": ["card_id", "amount", "country", "event_time"],
        }
    ),
    "payment",
)
SERVICE = FeatureService(
    "fraud",
    [
        FeatureView(
            "card",
            Entity("card", {"card_id": "string"}),
            EventSource("payments", topic="payments", schema=CONTRACT, event_time="event_time"),
            {"mean": Mean("amount").over("1h")},
        ),
        RequestFeature("ratio", "amount / nullif(card.mean_1h, 0)"),
        RequestFeature("abroad", "country <> 'de'"),
    ],
)


@pytest.fixture
def loaded(tmp_path):
    save_model(
        tmp_path,
        "fraud",
        onnx_bytes(columns=3, weights=(1.0, 10.0, 100.0)),
        service=SERVICE.name,
        service_fingerprint=SERVICE.fingerprint,
        keys=SERVICE.keys,
        inputs=["ratio", "amount", "abroad"],
        request_inputs=["amount"],
        feature_inputs=["ratio", "abroad"],
        request_values=SERVICE.request_values,
    )
    return load_model(tmp_path, "fraud")


@pytest.fixture
def job():
    with replay(SERVICE) as job:
        for amount in (1.0, 3.0):
            job.send("payments", {"card_id": "c", "amount": amount, "country": "de"}, at="2024-01-01T00:00:00Z")
        job.advance("1s")
        job.drain()
        yield job


def ask(amount, country, card="c"):
    return ScoreRequest({"card_id": card}, {"amount": amount, "country": country})


def test_request_values_reach_the_lookup_and_the_model(loaded, job):
    scorer = Scorer(loaded.model, loaded.manifest, job._client)
    rows = [ask(0.5, "de"), ask(-0.25, "fr"), ask(None, None), ask(1, "de", "nobody")]
    found = scorer.score(rows, explain=True)
    assert [one.vector for one in found] == [
        {"ratio": 0.25, "abroad": False},
        {"ratio": -0.125, "abroad": True},
        {"ratio": None, "abroad": None},
        {"ratio": None, "abroad": False},
    ]
    logits = np.array([0.25 + 5.0, -0.125 - 2.5 + 100.0, 0.0, 10.0])
    assert [one.score for one in found] == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-5)
    assert found[3].statuses == {"ratio": "missing", "abroad": "present"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"amount": 1.0}, "request input 'country' is missing"),
        ({"amount": 1.0, "country": "de", "x": 1}, "request input 'x' is unknown"),
        ({"amount": 1.0, "country": 1}, "request input 'country' is 1, not of type string"),
        ({"amount": "1", "country": "de"}, "request input 'amount' is '1', not a number"),
        ({"amount": True, "country": "de"}, "request input 'amount' is True, not of type float64"),
    ],
)
def test_a_request_value_of_another_type_is_refused(loaded, job, request_, message):
    scorer = Scorer(loaded.model, loaded.manifest, job._client)
    with pytest.raises(ModelInputError, match=f"row 0: .*{message}"):
        scorer.score([ScoreRequest({"card_id": "c"}, request_)])


def test_a_manifest_that_does_not_name_what_the_service_takes_is_refused(loaded, job):
    bare = dataclasses.replace(loaded.manifest, request_values={})
    with pytest.raises(
        ModelError, match=r"takes request values amount float64, country string, its manifest says none"
    ):
        Scorer(loaded.model, bare, job._client)
    with pytest.raises(ModelError, match="request input 'amount' is string, and no number"):
        dataclasses.replace(loaded.manifest, request_values={"amount": DataType.STRING})
    with pytest.raises(ModelError, match="'card_id' is both a key and a request input"):
        dataclasses.replace(loaded.manifest, request_values={"card_id": DataType.STRING})


def test_metadata_names_the_tensors_of_request_values(loaded):
    inputs = {one["name"]: one["datatype"] for one in model_metadata(loaded.manifest, [1])["inputs"]}
    assert inputs == {"card_id": "BYTES", "amount": "FP64", "country": "BYTES"}
