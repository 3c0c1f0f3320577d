"""The model: deterministic, equal in ONNX to the last tree, and null means the same on both sides."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from examples.flights import model as flights_model
from examples.flights.model import STATIC_FEATURES, Codes, TrainedModel, evaluate, matrix, train
from featurestore.errors import ModelError
from featurestore.scoring.convert import convert

pytestmark = pytest.mark.thorough

INPUTS = (*STATIC_FEATURES, "origin_departures.mean_delay_1h")


@pytest.fixture(scope="module")
def frame(flights) -> pd.DataFrame:
    """Three weeks of flights with one feature that says something about the label and is null for a third."""
    spine = flights.spine(start="2013-03-01T00:00:00Z", end="2013-03-22T00:00:00Z")
    noise = np.random.default_rng(5).normal(size=(2, len(spine)))
    mean_delay = np.where(np.abs(noise[1]) < 0.43, np.nan, 10 * spine["late"].fillna(0) + 20 * noise[0])
    return Codes.of(spine).add_to(spine).assign(**{INPUTS[-1]: mean_delay})


@pytest.fixture(scope="module")
def model(frame) -> TrainedModel:
    return train(frame, INPUTS, rounds=50)


def to_onnx(model, frame):
    return convert(model.booster, model.inputs, matrix(frame, model.inputs))


def test_training_twice_gives_the_same_file(frame, model):
    assert to_onnx(train(frame, INPUTS, rounds=50), frame)[0] == to_onnx(model, frame)[0]


def test_the_graph_gives_the_boosters_probability_also_for_nulls(frame, model):
    _, parity = to_onnx(model, frame)
    assert parity.rows == len(frame)
    assert parity.probes > 1000
    assert parity.max_difference <= 1e-6


def test_matrix_takes_every_kind_of_null_and_keeps_the_order():
    frame = pd.DataFrame(
        {
            "count": pd.array([1, None], dtype="Int64"),
            "mean": pd.Series([None, 2.5], dtype=object),
            "flag": [True, False],
            "text": ["a", "b"],
        }
    )
    made = matrix(frame, ["mean", "count", "flag"])
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, np.array([[np.nan, 1, 1], [2.5, np.nan, 0]], dtype=np.float32))


def test_a_missing_column_is_named():
    with pytest.raises(ModelError, match=r"no column 'carrier_code'\. Hint: .*Codes\.add_to"):
        matrix(pd.DataFrame({"distance": [1]}), ["distance", "carrier_code"])


def test_labels_of_one_kind_are_refused(frame):
    with pytest.raises(ModelError, match="all alike"):
        train(frame[frame["late"] == 0], INPUTS)


def test_rows_without_a_label_do_not_count(frame, model):
    known = frame[frame["late"].notna()]
    assert len(known) < len(frame)
    scores = evaluate(frame["late"], model.predict(frame))
    assert scores == evaluate(known["late"], model.predict(known))
    assert scores["rows"] == len(known)
    assert 0.6 < scores["auc"] < 0.95


def test_one_kind_of_label_has_no_auc():
    assert np.isnan(evaluate([1.0, 1.0, np.nan], [0.2, 0.3, 0.4])["auc"])
    assert evaluate([], [])["rows"] == 0


def test_codes_survive_the_manifest_and_an_unknown_value_is_minus_one(frame):
    codes = Codes.of(frame)
    assert Codes.from_dict(json.loads(json.dumps(codes.to_dict()))) == codes
    strange = codes.add_to(frame.head(1).assign(dest="XXX"))
    assert strange["dest_code"].tolist() == [-1]
    assert codes.add_to(frame)["dest_code"].min() == 0


def test_requests_are_the_static_columns_of_the_matrix(frame):
    codes = Codes.of(frame)
    requests = codes.requests(frame.head(5))
    assert [tuple(one) for one in requests] == [STATIC_FEATURES] * 5
    made = np.array([list(one.values()) for one in requests], dtype=np.float32)
    np.testing.assert_array_equal(made, matrix(frame.head(5), STATIC_FEATURES))


def test_a_stored_model_names_its_inputs_service_and_codes(frame, model, tmp_path):
    from examples.flights.features import flight_delay
    from featurestore.scoring.manifest import load_model

    codes = Codes.of(frame)
    stored = flights_model.store(
        tmp_path,
        "flight_delay",
        model,
        service=flight_delay,
        codes=codes,
        sample=frame,
        metrics={"auc": 0.7},
        training_set={"rows": len(frame)},
    )
    loaded = load_model(tmp_path, "flight_delay")
    assert loaded.manifest == stored.manifest
    assert loaded.manifest.inputs == INPUTS
    assert loaded.manifest.request_inputs == STATIC_FEATURES
    assert loaded.manifest.feature_inputs == INPUTS[-1:]
    assert loaded.manifest.service_fingerprint == flight_delay.fingerprint
    assert set(loaded.manifest.keys) == {"origin", "carrier", "dest", "tailnum"}
    assert Codes.from_dict(loaded.manifest.training_set["codes"]) == codes
    assert loaded.manifest.parity["max_difference"] <= 1e-6
    np.testing.assert_allclose(loaded.model.predict(matrix(frame, INPUTS)), model.predict(frame), atol=1e-6)
