from __future__ import annotations

from importlib import metadata

import lightgbm
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xgboost
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.errors import ModelError
from featurestore.scoring import convert as module
from featurestore.scoring.convert import convert
from featurestore.scoring.model import OnnxModel
from featurestore.scoring.parity import compare, to_matrix
from tests.unit.scoring.support import onnx_bytes

pytestmark = pytest.mark.thorough

COLUMNS = ("a.x_1h", "a.y_1h", "a.z_1h", "hour")
LIGHT = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 15}


def made(rows: int = 600, *, nulls: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 rows, the last column of whole numbers, and labels; every tenth value is null."""
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, 4)).astype(np.float32) * 100
    x[:, 3] = random.integers(0, 24, rows)
    y = (x[:, 0] + x[:, 1] + 100 * random.normal(size=rows) > 0).astype(np.int64)
    if nulls:
        x[random.random(x.shape) < 0.1] = np.nan
    return x, y


X, Y = made()


def light(x=X, y=Y, **parameters):
    return lightgbm.train(LIGHT | parameters, lightgbm.Dataset(x, y), 20)


def imputed(estimator):
    return make_pipeline(SimpleImputer(), estimator).fit(X, Y)


def named(x=X) -> pd.DataFrame:
    return pd.DataFrame(x, columns=list(COLUMNS))


def early_stopped():
    half = len(X) // 2
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=0.9, max_depth=6, n_jobs=1)
    return model.fit(X[:half], Y[:half], eval_set=[(X[half:], Y[half:])], verbose=False)


@pytest.mark.parametrize(
    "make",
    [
        light,
        lambda: light(objective="poisson"),
        lambda: lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1).fit(X, Y),
        lambda: xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(X, Y), 20),
        lambda: xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(named(), Y),
        lambda: xgboost.XGBRegressor(n_estimators=10, n_jobs=1).fit(X, Y * 1000.0),
        early_stopped,
        lambda: imputed(LogisticRegression()),
        lambda: imputed(make_pipeline(StandardScaler(), Ridge())),
        lambda: imputed(RandomForestClassifier(20, max_depth=6, random_state=1)),
        lambda: imputed(RandomForestRegressor(10, max_depth=6, random_state=1)),
        lambda: imputed(GradientBoostingClassifier(n_estimators=10)),
        lambda: make_pipeline(SimpleImputer(), LogisticRegression()).fit(named(), Y),
    ],
    ids=lambda make: None,
)
def test_models_of_every_known_library_convert_and_agree(make):
    model = make()
    content, parity = convert(model, COLUMNS, X)
    graph = OnnxModel(content, name="m", version=1, inputs=COLUMNS)
    package = type(model).__module__.partition(".")[0]
    original = module._CONVERTERS[package].score(model, X, COLUMNS)
    np.testing.assert_allclose(graph.predict(X), original, rtol=1e-5, atol=1e-5 * max(1, np.abs(original).max()))
    assert len(np.unique(original)) > 20  # it tells rows apart
    assert (parity.rows, parity.probes) == (600, 1800)
    assert parity.max_difference <= parity.tolerance == 1e-5
    assert parity.library.startswith(f"{package} ")
    assert parity.library[-1].isdigit()


def test_early_stopping_counts():
    model = early_stopped()
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    all_trees = model.get_booster().inplace_predict(X)
    assert np.abs(all_trees - model.predict_proba(X)[:, 1]).max() > 0.01  # so converting all of them would be wrong


@pytest.mark.parametrize(
    "sample",
    [
        X,
        named(),
        pl.DataFrame(dict(zip(COLUMNS, X.T, strict=True))),
        pa.table(dict(zip(COLUMNS, X.T.copy(), strict=True))),
        pa.table(
            {name: pa.array([None if np.isnan(v) else float(v) for v in X[:, i]]) for i, name in enumerate(COLUMNS)}
        ),
    ],
    ids=["numpy", "pandas", "polars", "arrow", "arrow with nulls"],
)
def test_a_sample_of_any_kind_is_the_same_matrix(sample):
    np.testing.assert_array_equal(to_matrix(sample, COLUMNS), X)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (X[:0], "has shape"),
        (X[:, :2], r"has shape \(600, 2\)"),
        (named().drop(columns="hour"), "no column 'hour'"),
        (named().assign(hour="noon"), "column 'hour' of the sample is not of numbers"),
    ],
)
def test_a_sample_that_shows_nothing_is_refused(sample, words):
    with pytest.raises(ModelError, match=words):
        to_matrix(sample, COLUMNS)


# Where a conversion is not faithful -------------------------------------------------------------------------------------


def neighbours() -> tuple[np.ndarray, np.ndarray]:
    """Return two neighbours among the float32 numbers, whose middle float32 rounds up, with a label each."""
    lower = np.nextafter(np.float32(1), np.float32(2))
    upper = np.nextafter(lower, np.float32(2))
    x = np.zeros((400, 4), np.float32)
    x[:, 0] = np.where(np.arange(400) % 2 == 0, lower, upper)
    return x, (np.arange(400) % 2).astype(np.int64)


def test_a_threshold_that_float32_rounds_up_is_found_in_a_plain_conversion_and_not_in_ours():
    x, y = neighbours()
    booster = light(x, y, min_data_in_bin=1)
    types = [("input", FloatTensorType([None, 4]))]
    plain = convert_lightgbm(booster, initial_types=types, zipmap=False, target_opset=15).SerializeToString()
    with pytest.raises(ModelError, match=r"not faithful: on real rows, 200 of 400 differ; row 1 is"):
        compare(plain, booster.predict, x, COLUMNS)
    content, parity = convert(booster, COLUMNS, x)
    assert parity.max_difference < 1e-6
    np.testing.assert_allclose(
        OnnxModel(content, name="m", version=1, inputs=COLUMNS).predict(x), booster.predict(x), 1e-6
    )


def test_a_forest_that_sends_nulls_another_way_is_refused_though_real_rows_agree():
    x, y = made(nulls=False)
    forest = RandomForestClassifier(20, random_state=1).fit(x, y)
    with pytest.raises(ModelError, match=r"not faithful: on rows with nulls, \d+ of 600 differ"):
        convert(forest, COLUMNS, x)


def test_a_model_that_takes_no_nulls_is_refused_with_what_to_do():
    x, y = made(nulls=False)
    with pytest.raises(ModelError, match=r"the original fails on rows with nulls .*SimpleImputer"):
        convert(LogisticRegression().fit(x, y), COLUMNS, x)


def test_categories_are_faithful_as_whole_numbers_and_refused_where_rows_have_fractions():
    x, y = made(2000)
    x[:, 3] = np.random.default_rng(1).integers(0, 30, 2000)
    y = ((x[:, 3] % 3 == 0) ^ (np.arange(2000) % 10 == 0)).astype(np.int64)
    data = lightgbm.Dataset(x, y, categorical_feature=[3])
    booster = lightgbm.train(LIGHT | {"max_cat_to_onehot": 1, "min_data_per_group": 1}, data, 10)
    assert "==" in str(booster.dump_model()["tree_info"])  # it does split by sets of categories
    convert(booster, COLUMNS, x)
    x[:, 3] += 0.5  # which LightGBM cuts off and ONNX compares
    with pytest.raises(ModelError, match="not faithful: on real rows"):
        convert(booster, COLUMNS, x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: light(objective="cross_entropy"), "cannot be converted to ONNX .*cross_entropy"),
        (lambda: light(y=np.arange(600) % 3, objective="multiclass", num_class=3), "has 3 columns; one score"),
        (lambda: DummyClassifier().fit(X, Y), "cannot be converted to ONNX"),
        (object, "package 'builtins' is not known"),
        (type("M", (), {"__module__": "pyspark.ml.classification"}), "Spark MLlib models are not converted"),
        (
            lambda: lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(named().rename(columns={"hour": "day"}), Y),
            "trained with 'day' as column 3, the inputs say 'hour'",
        ),
        (lambda: xgboost.XGBClassifier(n_estimators=2).fit(named().iloc[:, :3], Y), "trained with 3 columns, .* 4"),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_what_cannot_be_converted_is_refused_and_told(make, words):
    with pytest.raises(ModelError, match=words) as caught:
        convert(make(), COLUMNS, X)
    assert caught.value.hint


class SumModel:
    """A model of a library that nobody knows."""


class SumConverter:
    """Its converter, as a plug-in would bring it."""

    def names(self, model):
        return None

    def convert(self, model, inputs):
        return onnx_bytes(columns=4, weights=(1e-3, 2e-3, 3e-3, 4e-3))

    def score(self, model, matrix, inputs):
        return 1 / (1 + np.exp(-np.nan_to_num(matrix) @ np.array([1e-3, 2e-3, 3e-3, 4e-3])))


def test_a_library_brings_its_converter_by_an_entry_point(monkeypatch):
    SumModel.__module__ = "sums.linear"
    found = metadata.EntryPoint("sums", f"{__name__}:SumConverter", "featurestore.converters")

    def entry_points(*, group, name):
        assert (group, name) == ("featurestore.converters", "sums")
        return [type("Found", (), {"load": lambda self: SumConverter()})()] if found.name == name else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    content, parity = convert(SumModel(), COLUMNS, X)
    assert parity.rows == 600
    assert OnnxModel(content, name="m", version=1, inputs=COLUMNS).predict(X).shape == (600,)
    with pytest.raises(ModelError, match="has no column"):
        convert(SumModel(), COLUMNS, named()[["hour"]])
