"""A model is a function from a float32 matrix to one score per row. The default one is ONNX, run by onnxruntime.

A model is loaded from bytes, never from a path, so that what was checked is what runs. One thread, sequential and
without spinning: a scorer scales by processes, and a spinning pool burns a core between requests.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.errors import ModelError
from featurestore.scoring.onnxfile import MAX_MODEL_BYTES, check_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Model(Protocol):
    """What the scorer needs of a model, whatever runs it."""

    @property
    def name(self) -> str:
        """The name it is registered under."""

    @property
    def version(self) -> int:
        """The version, counted from 1."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the columns of the matrix are, in order."""

    def predict(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one score per row.

        Args:
            matrix: float32, shape [rows, len(inputs)]; NaN stands for null or missing.

        Raises:
            ModelError: The model failed, or gave another shape than [rows].
        """


class OnnxModel:
    """An ONNX graph with one float32 input [rows, inputs] and one score per row.

    The score is read from the output named ``output``: shape [rows] or [rows, 1], or [rows, 2] for the two classes of a
    binary classifier, whose second column (the positive class) is the score.

    Args:
        content: The bytes of the file.
        name: The registered name.
        version: The registered version.
        inputs: What the columns are, in order.
        output: The graph's output to read; None takes the only one, or the one with floats if there are several.
        sha256: The hash the bytes must have, as hexadecimal text; None skips the check.
        max_bytes: The largest file that is let through.

    Raises:
        ModelError: The bytes have another hash, are no self-contained ONNX model, use operators that the runtime does
            not know, or do not have the shapes above.
    """

    def __init__(
        self,
        content: bytes,
        *,
        name: str,
        version: int,
        inputs: Sequence[str],
        output: str | None = None,
        sha256: str | None = None,
        max_bytes: int = MAX_MODEL_BYTES,
    ) -> None:
        self.name = name
        self.version = version
        self.inputs = tuple(inputs)
        self.sha256 = hashlib.sha256(content).hexdigest()
        label = f"{name}:{version}"
        if sha256 is not None and not hmac.compare_digest(self.sha256, sha256.lower()):
            raise ModelError(
                f"model {label}: the file's sha256 is {self.sha256}, its manifest says {sha256}.",
                hint="the file was changed after it was stored; store the model again.",
            )
        check_onnx(content, name=label, max_bytes=max_bytes)
        self._session = _open_session(content, label)
        self._input = _only_input(self._session, len(self.inputs), label)
        self.output = _score_output(self._session, output, label)
        self._alone: _OneRow | None = None
        # One row of nulls through the graph: what fails here would fail for the first caller.
        nulls = np.full((1, len(self.inputs)), np.nan, dtype=np.float32)
        scores = self._run(nulls)
        self._one_each(scores, 1)
        self._alone = _OneRow(self._session, self._input, nulls, self.output, scores)
        self.predict(nulls)

    def predict(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one float32 score per row of a float32 matrix [rows, inputs]."""
        alone = self._alone
        if alone is not None and alone.takes(matrix):
            try:
                return alone.score(matrix)
            except _runtime_errors() as error:
                raise self._failed(error) from error
        return self._one_each(self._run(matrix), len(matrix))

    def _one_each(self, scores: NDArray[Any], rows: int) -> NDArray[np.float32]:
        """Return the scores of an output, one per row."""
        if scores.ndim == 2 and scores.shape[1] in (1, 2):
            scores = scores[:, -1]
        if scores.shape != (rows,):
            raise ModelError(
                f"model {self.name}:{self.version}: output {self.output} has shape {scores.shape} for "
                f"{rows} rows; [rows], [rows, 1] or [rows, 2] is allowed."
            )
        return np.ascontiguousarray(scores, dtype=np.float32)

    def _run(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        try:
            (scores,) = self._session.run([self.output], {self._input: matrix})
        except _runtime_errors() as error:
            raise self._failed(error) from error
        return np.asarray(scores)

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(f"model {self.name}:{self.version}: the run failed ({type(error).__name__}).")

    def __repr__(self) -> str:
        return f"OnnxModel({self.name}:{self.version}, {len(self.inputs)} inputs)"


class _OneRow:
    """Runs one row over memory that is bound once: without that, handing a row over takes as long as a small model does.

    Args:
        session: Runs the graph.
        given: The graph's input.
        row: A row as it takes one.
        output: The graph's output.
        scores: What it gave for that row.
    """

    def __init__(
        self, session: Any, given: str, row: NDArray[np.float32], output: str, scores: NDArray[np.floating]
    ) -> None:
        self._run, self._row, self._scores = session.run_with_iobinding, row.copy(), scores.copy()
        self._flat = self._scores.reshape(-1)[-1:]
        self._binding = session.io_binding()
        self._lock = threading.Lock()
        for bind, name, array in (
            (self._binding.bind_input, given, self._row),
            (self._binding.bind_output, output, self._scores),
        ):
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def takes(self, matrix: NDArray[np.float32]) -> bool:
        """Whether it is a row as the graph takes one."""
        return matrix.shape == self._row.shape and matrix.dtype == self._row.dtype

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return its score, of shape [1]."""
        with self._lock:
            self._row[:] = matrix
            self._run(self._binding)
            return self._flat.astype(np.float32)


@functools.cache
def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return every error onnxruntime raises: its own classes share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception)]
    return (*own, RuntimeError, ValueError)


def _open_session(content: bytes, label: str) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModelError(
            f"model {label}: onnxruntime is not installed.", hint="pip install 'featurestore[serve]'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # a row or a few need no plan of their memory
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {label}: onnxruntime {onnxruntime.__version__} refuses it ({reason}).",
            hint="convert it for an opset this runtime knows (target_opset=), with standard operators only.",
        ) from error


def _only_input(session: Any, width: int, label: str) -> str:
    """Return the name of the graph's one input, checked to be float32 [any rows, width]."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        found = ", ".join(f"{one.name} {one.type}{one.shape}" for one in inputs)
        raise ModelError(
            f"model {label}: its inputs are {found}; one tensor(float) [rows, {width}] is needed.",
            hint='convert it with initial_types=[("input", FloatTensorType([None, columns]))].',
        )
    rows, columns = inputs[0].shape
    if isinstance(rows, int):
        raise ModelError(
            f"model {label}: its input takes exactly {rows} rows.", hint="convert it with None as the number of rows."
        )
    if isinstance(columns, int) and columns != width:
        raise ModelError(
            f"model {label}: the graph takes {columns} columns, the manifest names {width} inputs.",
            hint="list the inputs in the order of the training matrix.",
        )
    return str(inputs[0].name)


def _score_output(session: Any, wanted: str | None, label: str) -> str:
    """Return the name of the output that holds the score."""
    outputs = {one.name: one for one in session.get_outputs()}
    listed = ", ".join(f"{one.name} {one.type}" for one in outputs.values())
    if wanted is None:
        tensors = [one.name for one in outputs.values() if one.type in ("tensor(float)", "tensor(double)")]
        if len(tensors) != 1:
            raise ModelError(
                f"model {label}: {len(tensors)} of its outputs are float tensors ({listed}); the score is one of them.",
                hint="name it with output=, and convert classifiers with zipmap=False.",
            )
        wanted = tensors[0]
    if wanted not in outputs:
        raise ModelError(f"model {label}: it has no output {wanted!r}.", hint=f"its outputs are {listed}.")
    found = outputs[wanted]
    if found.type not in ("tensor(float)", "tensor(double)"):
        raise ModelError(
            f"model {label}: output {wanted!r} is {found.type}, not a tensor of floats.",
            hint="convert classifiers with zipmap=False, and read the probabilities rather than the label.",
        )
    if len(found.shape) == 2 and isinstance(found.shape[1], int) and found.shape[1] > 2:
        raise ModelError(
            f"model {label}: output {wanted!r} has {found.shape[1]} columns; one score is needed.",
            hint="a classifier needs two classes; store one model per class of several.",
        )
    return str(wanted)
