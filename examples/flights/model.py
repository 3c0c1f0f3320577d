"""The flights' model: trained on a point-in-time training set, exported to ONNX, proven equal, stored.

Rules:
    1. The model's input is float32 in training as in serving. A matrix is built in one place (``matrix``), null is NaN.
    2. Its columns are the static ones first (``STATIC_FEATURES``, sent by the caller), then the service's features
       (looked up).
    3. Training is deterministic: one seed, one order of rows, LightGBM's deterministic mode.
    4. The library converts it, and stores the graph only if it gives the booster's own probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore.errors import ModelError, StackError
from featurestore.scoring.convert import convert
from featurestore.scoring.manifest import save_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import lightgbm

    from featurestore import FeatureService
    from featurestore.scoring.manifest import ModelVersion

STATIC_FEATURES = ("scheduled_minute", "day_of_week", "distance", "carrier_code", "origin_code", "dest_code")
"""What the timetable says about a flight: the request inputs, in order.

The month is left out on purpose: a model that is asked about months it never saw is worse with it (AUC 0.623 against
0.639).
"""
LABEL = "late"
ROUNDS = 200
PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.5,
    "seed": 2013,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 2,
    "verbose": -1,
}
_CODED = ("carrier", "origin", "dest")


@dataclass(frozen=True)
class Codes:
    """Which number stands for which airline and airport; kept in the manifest, so that serving uses the same numbers.

    A value's code is its place in the list; one that the training set didn't hold is -1.
    """

    carrier: tuple[str, ...]
    origin: tuple[str, ...]
    dest: tuple[str, ...]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Codes:
        """Return the codes of the values in a frame, in alphabetical order; the labels are not looked at."""
        return cls(*(tuple(sorted(frame[column].dropna().unique())) for column in _CODED))

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[str]]) -> Codes:
        """Return the codes that ``to_dict`` wrote."""
        return cls(*(tuple(data[column]) for column in _CODED))

    def to_dict(self) -> dict[str, list[str]]:
        """Return the codes as data."""
        return {column: list(getattr(self, column)) for column in _CODED}

    def add_to(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame with carrier_code, origin_code and dest_code added: now it has all ``STATIC_FEATURES``."""
        return frame.assign(
            **{f"{column}_code": pd.Index(getattr(self, column)).get_indexer(frame[column]) for column in _CODED}
        )

    def requests(self, spine: pd.DataFrame) -> list[dict[str, float]]:
        """Return the request inputs of each row of the spine, as the scorer takes them."""
        columns = [self.add_to(spine)[name].astype("float64").tolist() for name in STATIC_FEATURES]
        return [dict(zip(STATIC_FEATURES, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class TrainedModel:
    """A booster and the order of its inputs."""

    booster: lightgbm.Booster
    inputs: tuple[str, ...]

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the probability to be late for each row (float64); the frame holds ``inputs`` and may hold more."""
        return np.asarray(self.booster.predict(matrix(frame, self.inputs), num_threads=2))


def matrix(frame: pd.DataFrame, inputs: Sequence[str]) -> np.ndarray:
    """Return float32 [rows, inputs] from a frame's columns; null, NaN and pandas' NA are NaN, true is 1."""
    missing = [name for name in inputs if name not in frame]
    if missing:
        raise ModelError(f"the frame has no column {missing[0]!r}.", hint="add the static columns with Codes.add_to.")
    columns = [pd.to_numeric(frame[name]).to_numpy(dtype="float32", na_value=np.nan) for name in inputs]
    return np.column_stack(columns)


def _lightgbm() -> Any:
    """Return the library.

    Raises:
        StackError: It is not installed, or the system lacks the OpenMP runtime it is linked with.
    """
    try:
        import lightgbm
    except ImportError:
        raise StackError("the package lightgbm is not installed.", hint="pip install 'featurestore[demo]'.") from None
    except OSError as error:
        raise StackError(
            f"lightgbm cannot be loaded: {error}.",
            hint="install the OpenMP runtime: apt-get install libgomp1, or brew install libomp.",
        ) from error
    return lightgbm


def train(frame: pd.DataFrame, inputs: Sequence[str], *, label: str = LABEL, rounds: int = ROUNDS) -> TrainedModel:
    """Return a model trained on the rows whose label is known.

    Args:
        frame: Static columns (with codes), features and label; the order of rows matters to the last bits only.
        inputs: The model's columns, in order.
        label: The column with 1 for late, 0 for in time and null for unknown.
        rounds: Number of trees.

    Raises:
        ModelError: An input is missing, or the known labels are all the same.
    """
    lightgbm = _lightgbm()

    known = frame[frame[label].notna()]
    labels = known[label].to_numpy(dtype="float32")
    if len(np.unique(labels)) < 2:
        raise ModelError(f"the {len(labels)} known labels in {label!r} are all alike; a model needs both kinds.")
    data = lightgbm.Dataset(matrix(known, inputs), labels, free_raw_data=True)
    booster = lightgbm.train(PARAMETERS, data, num_boost_round=rounds)
    return TrainedModel(booster, tuple(inputs))


def evaluate(labels: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return auc, average_precision, log_loss, base_rate and rows; rows without a label or a score don't count.

    auc is NaN where only one kind of label is present.
    """
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    truth, given = np.asarray(labels, dtype="float64"), np.asarray(scores, dtype="float64")
    known = ~(np.isnan(truth) | np.isnan(given))
    truth, given = truth[known], given[known]
    if len(np.unique(truth)) < 2:
        nothing = float("nan")
        base_rate = float(truth.mean()) if len(truth) else nothing
        return {
            "auc": nothing,
            "average_precision": nothing,
            "log_loss": nothing,
            "base_rate": base_rate,
            "rows": len(truth),
        }
    return {
        "auc": float(roc_auc_score(truth, given)),
        "average_precision": float(average_precision_score(truth, given)),
        "log_loss": float(log_loss(truth, given)),
        "base_rate": float(truth.mean()),
        "rows": len(truth),
    }


def store(
    root: str | Path,
    name: str,
    model: TrainedModel,
    *,
    service: FeatureService,
    codes: Codes,
    sample: pd.DataFrame,
    metrics: Mapping[str, Any],
    training_set: Mapping[str, Any],
) -> ModelVersion:
    """Convert, compare on ``sample`` and store the model as the next version of its name.

    ``FeatureStore.models.register`` does the same and keeps count in MLflow, which this example does without.

    Args:
        root: The directory of all models.
        name: The model's name.
        model: What ``train`` returned, with all of the service's features among its inputs.
        service: The feature service; its fingerprint binds the model.
        codes: The codes its static columns were made with; stored as ``training_set["codes"]``.
        sample: Real rows for the parity check.
        metrics: What was measured.
        training_set: What it was trained on: Delta versions, times, rows, digest.

    Raises:
        ModelError: ONNX and booster differ, or the model is refused.
    """
    content, parity = convert(model.booster, model.inputs, matrix(sample, model.inputs), name=name)
    return save_model(
        root,
        name,
        content,
        service=service.name,
        service_fingerprint=service.fingerprint,
        keys=service.keys,
        inputs=model.inputs,
        request_inputs=[column for column in model.inputs if column in STATIC_FEATURES],
        feature_inputs=[column for column in model.inputs if column not in STATIC_FEATURES],
        metrics=metrics,
        training_set={**training_set, "codes": codes.to_dict()},
        parity=parity.to_dict(),
    )
