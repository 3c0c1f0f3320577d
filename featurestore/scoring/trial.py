"""Runs a model in a process of its own before it is stored or served, so that a bad one ends that process and no other.

What a graph does when it runs cannot be read off its bytes: it may take all memory, not end, or crash the runtime. The
trial has limits of memory and time, loads the model as the scorer would, and gives back its scores on some rows.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from featurestore.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEMORY_BYTES = 4 * 1024**3
"""Address space of the trial; the interpreter and the runtime take about one of the four GiB."""
CPU_SECONDS = 60
"""CPU time of the trial, in which a model has to load and score its rows."""


class _Task(msgspec.Struct):
    name: str
    version: int
    inputs: tuple[str, ...]
    output: str | None
    content_bytes: int
    rows: int
    memory_bytes: int
    cpu_seconds: int


def try_model(
    content: bytes,
    matrix: NDArray[np.float32],
    *,
    name: str,
    version: int = 1,
    inputs: Sequence[str],
    output: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    cpu_seconds: int = CPU_SECONDS,
) -> NDArray[np.float32]:
    """Return the scores of an ONNX model on a matrix, computed in a process of its own. Takes about half a second.

    Args:
        content: The whole file.
        matrix: float32 [rows, inputs], NaN for null; no rows still loads the model and runs a row of nulls.
        name: The model's name, for messages.
        version: Its version, likewise.
        inputs: The columns.
        output: The graph's output with the score; None takes the only float one.
        memory_bytes: Address space it may take.
        cpu_seconds: CPU time it may take.

    Raises:
        ModelError: The model is refused, fails, crashes or exceeds a limit.
    """
    task = _Task(name, version, tuple(inputs), output, len(content), len(matrix), memory_bytes, cpu_seconds)
    rows = np.ascontiguousarray(matrix, dtype=np.float32).tobytes()
    label = f"model {name}:{version}"
    wait_s = 30 + 4 * cpu_seconds  # of a machine that is busy with other things, or a model that waits for nothing
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(task) + b"\n" + content + rows,
            capture_output=True,
            timeout=wait_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _ended(label, f"did not end within {wait_s} s") from None
    if done.returncode == 0:
        return np.frombuffer(done.stdout, dtype=np.float32)
    if done.returncode < 0:
        number = -done.returncode
        why = (
            f"exceeded {cpu_seconds} s of CPU"
            if number == signal.SIGXCPU
            else f"ended by {signal.Signals(number).name}"
        )
        raise _ended(label, why)
    try:
        message, hint = msgspec.json.decode(done.stdout, type=tuple[str, str | None])
    except msgspec.DecodeError:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise _ended(label, f"failed ({last or 'without a word'})") from None
    raise ModelError(message, hint=hint)


def _ended(label: str, why: str) -> ModelError:
    return ModelError(
        f"{label}: its trial {why}.",
        hint="the file crashes the runtime or needs too much memory or time; it is not used.",
    )


def main() -> int:
    """Read a task from standard input, write the scores, or the error and exit code 1."""
    header, _, rest = sys.stdin.buffer.read().partition(b"\n")
    task: Any = msgspec.json.decode(header, type=_Task)
    resource.setrlimit(resource.RLIMIT_AS, (task.memory_bytes, task.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (task.cpu_seconds, task.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from featurestore.scoring.model import OnnxModel

    rows = np.frombuffer(rest[task.content_bytes :], dtype=np.float32).reshape(task.rows, len(task.inputs))
    try:
        model = OnnxModel(
            rest[: task.content_bytes], name=task.name, version=task.version, inputs=task.inputs, output=task.output
        )
        scores = [model.predict(rows[start : start + 4096]) for start in range(0, len(rows), 4096)]
    except ModelError as error:
        sys.stdout.buffer.write(msgspec.json.encode((error.message, error.hint)))
        return 1
    sys.stdout.buffer.write(b"".join(one.tobytes() for one in scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
