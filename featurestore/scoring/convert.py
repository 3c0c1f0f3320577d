"""A trained model as ONNX, compared with the original on real rows before anything is stored.

Rules:
    1. What is not faithful is refused: scoring/parity.py says when it is.
    2. Where the original knows its columns' names, they are the inputs, in that order.
    3. Nothing is pickled or unpickled: a model comes as an object of its own library, or as ONNX.

Which library converts a model is told by the package of its class. Others join by an entry point of the group
``featurestore.converters``, named after the package, that loads a :class:`Converter`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.errors import ModelError
from featurestore.scoring.parity import PROBE_ROWS, TOLERANCE, compare, to_matrix
from featurestore.scoring.runtimes import ONNX
from featurestore.scoring.trial import try_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GROUP = "featurestore.converters"
_OPSET = 15


class Converter(Protocol):
    """Turns the models of one library into ONNX, and runs the originals."""

    def convert(self, model: Any, inputs: Sequence[str]) -> bytes:
        """Return the ONNX file: one float32 input [rows, inputs], one score per row.

        Raises:
            ModelError: Models of this kind cannot be converted.
        """

    def score(self, model: Any, matrix: NDArray[np.float32], inputs: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Return the original's score of each row; NaN in the matrix is null."""

    def names(self, model: Any) -> Sequence[str] | None:
        """Return the names of the model's columns in order; None where it was trained without."""


@dataclass(frozen=True)
class Parity:
    """How a graph was compared with its original."""

    library: str
    """The package and version that trained it."""
    rows: int
    """Real rows."""
    probes: int
    """Rows made of them."""
    max_difference: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a manifest keeps them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def convert(
    model: Any, inputs: Sequence[str], sample: Any, *, name: str = "model", tolerance: float = TOLERANCE
) -> tuple[bytes, Parity]:
    """Return a model as ONNX, and how it was compared with the original.

    Args:
        model: A LightGBM, XGBoost or scikit-learn model, or one of a library whose converter is installed. Classifiers have two
            classes, of which the second is scored; everything else gives one number per row.
        inputs: The columns, in the order it was trained with.
        sample: Real rows: an array [rows, inputs], or a pandas, Polars or Arrow table that has the columns.
        name: For messages.
        tolerance: Largest difference of two scores, as ``TOLERANCE`` says.

    Raises:
        ModelError: No converter takes the model, the conversion failed, or graph and original differ.
    """
    package = type(model).__module__.partition(".")[0]
    converter = _converter(package, name)
    _check_names(converter.names(model), inputs, name)
    matrix = to_matrix(sample, inputs, name=name)
    content = converter.convert(model, inputs)
    worst = compare(
        content, lambda rows: converter.score(model, rows, inputs), matrix, inputs, name=name, tolerance=tolerance
    )
    probes = 3 * min(len(matrix), PROBE_ROWS)
    return content, Parity(f"{package} {_version_of(package)}", len(matrix), probes, worst, tolerance)


def content_of(
    model: Any, inputs: Sequence[str], sample: Any, *, name: str, output: str | None, runtime: str
) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes to store, and how they were compared with the original; arguments as of ``ModelRegistry.register``.

    What comes as bytes already has no original: it is run on the sample, and gives finite scores.
    """
    if not isinstance(model, (bytes, bytearray)):
        content, parity = convert(model, inputs, sample, name=name)
        return content, parity.to_dict()
    content = bytes(model)
    if runtime != ONNX:
        return content, {"library": runtime, "rows": 0}
    matrix = to_matrix(sample, inputs, name=name)
    scores = try_model(content, matrix, name=name, inputs=inputs, output=output)
    if not np.isfinite(scores).all():
        raise ModelError(
            f"model {name}: {int((~np.isfinite(scores)).sum())} of {len(scores)} real rows get no finite score.",
            hint="a null reaches the graph as NaN; put an imputer before it and convert it again.",
        )
    return content, {"library": ONNX, "rows": len(matrix)}


def _converter(package: str, name: str) -> Converter:
    if package in _CONVERTERS:
        return _CONVERTERS[package]
    for entry in metadata.entry_points(group=GROUP, name=package):
        converter: Converter = entry.load()
        return converter
    if package == "pyspark":
        raise ModelError(
            f"model {name}: Spark MLlib models are not converted.",
            hint="train the same trees with LightGBM or XGBoost (xgboost.spark), or export ONNX yourself and register that.",
        )
    raise ModelError(
        f"model {name}: a model of package {package!r} is not known.",
        hint=f"known: {', '.join(sorted(_CONVERTERS))}; others by an entry point of group {GROUP}, or as ONNX.",
    )


def _check_names(known: Sequence[str] | None, inputs: Sequence[str], name: str) -> None:
    if known is not None and list(known) != list(inputs):
        at = next((i for i, pair in enumerate(zip(known, inputs, strict=False)) if pair[0] != pair[1]), None)
        found = f"{len(known)} columns" if at is None else f"{known[at]!r} as column {at}"
        wanted = f"{len(inputs)}" if at is None else f"{inputs[at]!r}"
        raise ModelError(
            f"model {name}: it was trained with {found}, the inputs say {wanted}.",
            hint="list the inputs in the order of the training matrix.",
        )


def _version_of(package: str) -> str:
    distribution = {"sklearn": "scikit-learn"}.get(package, package)
    for candidate in (distribution, f"{distribution}-cpu"):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _initial_types(module: Any, inputs: Sequence[str]) -> list[tuple[str, Any]]:
    return [("input", module.FloatTensorType([None, len(inputs)]))]


def _needing_extra(library: str) -> ModelError:
    return ModelError(
        f"converting a {library} model needs the converters.", hint="pip install 'featurestore[convert]'."
    )


def _failed(library: str, model: Any, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:160]
    return ModelError(
        f"the {library} model {type(model).__name__} cannot be converted to ONNX ({type(error).__name__}: {reason}).",
        hint="train it in another way (LightGBM and XGBoost convert), or export ONNX yourself and register that.",
    )


class _LightGbm:
    """Boosters and scikit-learn wrappers of LightGBM."""

    def names(self, model: Any) -> Sequence[str] | None:
        names = self._booster(model).feature_name()
        return None if names == [f"Column_{index}" for index in range(len(names))] else names

    def score(self, model: Any, matrix: NDArray[np.float32], inputs: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.asarray(self._booster(model).predict(matrix))

    def convert(self, model: Any, inputs: Sequence[str]) -> bytes:
        try:
            from onnxmltools import convert_lightgbm
            from onnxmltools.convert.common import data_types
        except ImportError:
            raise _needing_extra("LightGBM") from None
        rounded = _with_float32_thresholds(self._booster(model))
        try:
            # The default name is random, and the file should depend on the trees alone.
            graph = convert_lightgbm(
                rounded,
                name="model",
                initial_types=_initial_types(data_types, inputs),
                zipmap=False,
                target_opset=_OPSET,
            )
        except Exception as error:
            raise _failed("LightGBM", model, error) from error
        return bytes(graph.SerializeToString())

    @staticmethod
    def _booster(model: Any) -> Any:
        return getattr(model, "booster_", model)


def _with_float32_thresholds(booster: Any) -> Any:
    """Return the same trees with thresholds that are float32 numbers: equal scores on every float32 input.

    LightGBM puts a threshold, a double, between two values that it saw. ONNX keeps it as float32, and where the two
    values are neighbours among the float32 numbers, rounding to the nearest may reach the upper one and send it the
    other way. Rounded down, it stays at or above the lower value and below the upper one. The thresholds of categorical
    splits are numbers of sets, which float32 has exactly.
    """
    import lightgbm

    def rounded_down(line: re.Match[str]) -> str:
        exact = np.array(line[1].split(), dtype="float64")
        with np.errstate(over="ignore"):
            nearest = exact.astype("float32")
            down = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        return "threshold=" + " ".join(f"{value:.17g}" for value in down.tolist())

    iterations = booster.best_iteration if booster.best_iteration > 0 else None
    text = re.sub(
        r"^threshold=(.+)$", rounded_down, booster.model_to_string(num_iteration=iterations), flags=re.MULTILINE
    )
    # The header's sizes of the trees in bytes are optional, and no longer right.
    return lightgbm.Booster(model_str=re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE))


class _XgBoost:
    """Boosters and scikit-learn wrappers of XGBoost."""

    def names(self, model: Any) -> Sequence[str] | None:
        names: Sequence[str] | None = self._booster(model).feature_names
        return names

    def score(self, model: Any, matrix: NDArray[np.float32], inputs: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.asarray(self._booster(model).inplace_predict(matrix, iteration_range=(0, self._rounds(model))))

    def convert(self, model: Any, inputs: Sequence[str]) -> bytes:
        try:
            from onnxmltools import convert_xgboost
            from onnxmltools.convert.common import data_types
        except ImportError:
            raise _needing_extra("XGBoost") from None
        rounds = self._rounds(model)
        booster = self._booster(model)[:rounds] if rounds else self._booster(model).copy()
        booster.feature_names = None  # the converter knows columns by their places only
        booster.feature_types = None
        try:
            graph = convert_xgboost(
                booster, name="model", initial_types=_initial_types(data_types, inputs), target_opset=_OPSET
            )
        except Exception as error:
            raise _failed("XGBoost", model, error) from error
        return bytes(graph.SerializeToString())

    @staticmethod
    def _booster(model: Any) -> Any:
        return model.get_booster() if hasattr(model, "get_booster") else model

    @staticmethod
    def _rounds(model: Any) -> int:
        """Return how many rounds a wrapper that stopped early predicts with; 0 for all of them."""
        stopped = hasattr(model, "get_booster") and hasattr(model, "best_iteration")
        return int(model.best_iteration) + 1 if stopped else 0


class _ScikitLearn:
    """Estimators and pipelines of scikit-learn: the second of two classes, or the predicted number."""

    def names(self, model: Any) -> Sequence[str] | None:
        names = getattr(model, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    def score(self, model: Any, matrix: NDArray[np.float32], inputs: Sequence[str]) -> NDArray[np.floating[Any]]:
        with warnings.catch_warnings():  # about names it was trained with, which have been compared with the inputs
            warnings.simplefilter("ignore", UserWarning)
            if not hasattr(model, "predict_proba"):
                return np.asarray(model.predict(matrix)).reshape(len(matrix), -1)[:, -1]
            scores = np.asarray(model.predict_proba(matrix))
        return scores[:, 1] if scores.shape[1] == 2 else scores

    def convert(self, model: Any, inputs: Sequence[str]) -> bytes:
        try:
            from skl2onnx import to_onnx
            from skl2onnx.common import data_types
        except ImportError:
            raise _needing_extra("scikit-learn") from None
        options = {"zipmap": False} if hasattr(model, "predict_proba") else None
        try:
            graph = to_onnx(
                model,
                name="model",
                initial_types=_initial_types(data_types, inputs),
                options=options,
                target_opset=_OPSET,
            )
        except Exception as error:
            raise _failed("scikit-learn", model, error) from error
        return bytes(graph.SerializeToString())


_CONVERTERS: dict[str, Converter] = {"lightgbm": _LightGbm(), "sklearn": _ScikitLearn(), "xgboost": _XgBoost()}
