"""Whether a graph says what the model it was made from says.

Rules:
    1. It does when both agree, within float32's rounding, on the real rows and on probes made of them: with every second
       value null, moved to the next float32 number, or drawn anew from its column's range. One row that went another way
       through a tree is a refusal.
    2. A scorer passes null and missing as NaN, so a model has to take NaN, and as the original does.
    3. Columns of whole numbers, counts and codes, stay whole in the probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ModelError
from featurestore.scoring.trial import try_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

TOLERANCE = 1e-5
"""Largest difference of two scores, in units of the usual size of a score, or of 1 where that is smaller."""
PROBE_ROWS = 2_000
"""Of the real rows, so many are also used for each kind of probe."""


def compare(
    content: bytes,
    original: Callable[[NDArray[np.float32]], Any],
    matrix: NDArray[np.float32],
    inputs: Sequence[str],
    *,
    name: str = "model",
    tolerance: float = TOLERANCE,
) -> float:
    """Return the largest difference between a graph and its original, on real rows and on probes made of them.

    Args:
        content: The ONNX file.
        original: Scores a float32 matrix [rows, inputs].
        matrix: Real rows.
        inputs: The columns.
        name: For messages.
        tolerance: Largest difference that is let through, as ``TOLERANCE`` says.

    Raises:
        ModelError: A row differs by more, or the original fails on what a scorer would pass.
    """
    kinds = {"real rows": matrix, **_probes(matrix[:PROBE_ROWS])}
    scores = try_model(content, np.concatenate(list(kinds.values())), name=name, inputs=inputs).astype(np.float64)
    worst, start = 0.0, 0
    for kind, rows in kinds.items():
        try:
            wanted = np.asarray(original(rows), dtype=np.float64)
        except ValueError as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelError(
                f"model {name}: the original fails on {kind} ({reason}).",
                hint="missing features come as NaN: put an imputer before it (SimpleImputer in a pipeline), and train that.",
            ) from error
        got = scores[start : start + len(rows)]
        start += len(rows)
        if wanted.shape != got.shape:
            raise ModelError(
                f"model {name}: the original gives {wanted.shape} for {len(rows)} rows; one score is needed.",
                hint="a classifier needs two classes; register one model per class of several.",
            )
        difference = np.abs(wanted - got) / max(1.0, float(np.sqrt(np.mean(wanted**2))))
        difference[np.isnan(difference)] = np.inf  # a score that is no number agrees with none
        at = int(difference.argmax())
        if difference[at] > tolerance:
            row = ", ".join(
                f"{column}={value:.9g}" for column, value in list(zip(inputs, rows[at].tolist(), strict=True))[:8]
            )
            raise ModelError(
                f"model {name}: the conversion is not faithful: on {kind}, {int((difference > tolerance).sum())} of "
                f"{len(rows)} differ; row {at} is {wanted[at]:.9g} in the original and {got[at]:.9g} in ONNX ({row}).",
                hint="convert it in another way, or serve it with a runtime of its own; see the guide on models.",
            )
        worst = max(worst, float(difference[at]))
    return worst


def to_matrix(sample: Any, inputs: Sequence[str], *, name: str = "model") -> NDArray[np.float32]:
    """Return sample rows as the float32 matrix a model gets, null as NaN.

    Raises:
        ModelError: There are no rows, a column is missing, or one holds something else than numbers.
    """
    if isinstance(sample, np.ndarray):
        matrix = sample
    else:
        missing = [column for column in inputs if column not in _columns_of(sample)]
        if missing:
            raise ModelError(f"model {name}: the sample has no column {missing[0]!r}.", hint="it needs every input.")
        matrix = np.empty((len(sample), len(inputs)), dtype=np.float32)
        for index, column in enumerate(inputs):
            try:
                with np.errstate(over="ignore"):
                    matrix[:, index] = [
                        np.nan if each is None else each for each in np.asarray(sample[column]).tolist()
                    ]
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"model {name}: column {column!r} of the sample is not of numbers ({error})."
                ) from None
    if matrix.ndim != 2 or matrix.shape[1] != len(inputs) or not len(matrix):
        raise ModelError(
            f"model {name}: the sample has shape {matrix.shape}; [rows, {len(inputs)}] is needed.",
            hint="pass real rows, a few thousand of the training set.",
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(matrix, dtype=np.float32)


def _columns_of(sample: Any) -> Sequence[str]:
    found: Sequence[str] = getattr(sample, "column_names", None) or list(sample.columns)
    return found


def _probes(rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return three copies of the rows with every second value, by chance, made null, nudged or drawn anew."""
    random = np.random.default_rng(7)

    def every_second(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        return np.where(random.random(rows.shape) < 0.5, values.astype(np.float32), rows)

    up = np.where(random.random(rows.shape) < 0.5, np.float32(np.inf), np.float32(-np.inf))
    beside = np.nextafter(rows, up, dtype=np.float32)
    drawn = rows.astype(np.float64)
    for column in range(rows.shape[1]):
        known = rows[np.isfinite(rows[:, column]), column].astype(np.float64)
        if not len(known):
            continue
        low, high = float(known.min()), float(known.max())
        if np.array_equal(known, np.round(known)) and max(abs(low), abs(high)) < 2**24:  # codes and counts stay whole
            beside[:, column] = rows[:, column]
            drawn[:, column] = random.integers(int(low) - 1, int(high) + 2, len(rows))
        else:
            drawn[:, column] = random.uniform(low, high, len(rows))
    return {
        "rows with nulls": every_second(np.full(rows.shape, np.nan)),
        "rows beside real ones": every_second(beside),
        "rows drawn anew": every_second(drawn),
    }
