"""Several processes behind one address: forked before anything has a thread, watched, replaced when they die.

::

    parent ── binds, forks, waits ──┬── worker 1 ─┐
      │  SIGTERM: passed on         ├── worker 2 ─┴─ accept from the same socket
      └─ no thread, no event loop   └── admin: metrics of all of them

Rules:
    1. All accept from one listening socket, so a connection that waits for one of them is taken by another when that one ends.
    2. A process that cannot start ends the service, with its reason; one that dies later is replaced, soon or after a pause.
    3. On SIGTERM or SIGINT the parent passes SIGTERM on and returns when all have drained; what has not in time is killed.
    4. A process whose parent has vanished drains and ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import multiprocess, values

from featurestore import errors
from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.scoring.listener import DRAIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_LOG = logging.getLogger("featurestore.scoring")
_STOP = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (*_STOP, signal.SIGCHLD)
_READY = b"{}"
_PAUSE_SECONDS = 1.0
"""Before a process that died this soon is replaced."""
_GRACE_SECONDS = DRAIN_SECONDS + 5


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does.

    Attributes:
        name: For the log.
        run: Runs until SIGTERM. It calls its first argument when it answers, and ends when the second, a descriptor, is readable.
    """

    name: str
    run: Callable[[Callable[[], None], int], None]


@contextmanager
def shared_metrics(folder: Path) -> Iterator[None]:
    """Keep the metrics that this process and its children make meanwhile in files, from which all of them are summed up."""
    before = values.ValueClass
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue()
    try:
        yield
    finally:
        values.ValueClass = before
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def run_all(tasks: Sequence[Task], *, folder: Path, started: Callable[[], None]) -> None:
    """Run each task in a process of its own until SIGTERM or SIGINT.

    Args:
        tasks: One each.
        folder: Of the metrics.
        started: Called once all of them answer.

    Raises:
        FeatureStoreError: One could not start; the others have been ended.
    """
    alive, held = os.pipe()  # closes with this process, whatever ends it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    running: dict[int, tuple[Task, float]] = {}

    def start(task: Task) -> int:
        pid, said = _fork(task, alive, held)
        running[pid] = (task, time.monotonic())
        return said

    try:
        for said in [start(task) for task in tasks]:
            _wait_until_ready(said)
        started()
        while signal.sigwait(_WATCHED) not in _STOP:
            for pid, status in _ended(running):
                task, since = running.pop(pid)
                multiprocess.mark_process_dead(pid, str(folder))
                _LOG.error("process %s (%d) ended with status %d; another one takes its place", task.name, pid, status)
                if time.monotonic() - since < _PAUSE_SECONDS:
                    time.sleep(_PAUSE_SECONDS)
                os.close(start(task))
    finally:
        _end(running)
        os.close(alive)
        os.close(held)
        for one in _STOP:
            if one in signal.sigpending():
                signal.sigwait({one})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(task: Task, alive: int, held: int) -> tuple[int, int]:
    """Start a process; return its id, and where it says that it answers or why it cannot."""
    hears, says = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(says)
        return pid, hears
    status = 1
    try:
        os.close(hears)
        os.close(held)
        for one in _WATCHED:
            signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        task.run(lambda: _say(says, _READY), alive)
        status = 0
    except FeatureStoreError as error:
        text = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        _say(says, json.dumps(text).encode())
        _LOG.error("process %s: %s", task.name, error)
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happened
        _LOG.exception("process %s failed", task.name)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _say(says: int, text: bytes) -> None:
    try:
        os.write(says, text)
        os.close(says)
    except OSError:  # a replacement, whom nobody listens to
        return


def _wait_until_ready(said: int) -> None:
    """Return when a process answers; raise what it could not start for."""
    with os.fdopen(said, "rb") as hears:
        text = hears.read()
    if text == _READY:
        return
    if not text:
        raise ConfigError("a process of the scoring service ended before it answered.", hint="its log has the reason.")
    found = json.loads(text)
    kind: type[FeatureStoreError] = getattr(errors, found["kind"])
    raise kind(found["message"], hint=found["hint"])


def _ended(running: dict[int, tuple[Task, float]]) -> list[tuple[int, int]]:
    """Return who has ended, with their exit status."""
    found = []
    for each in running:
        pid, status = os.waitpid(each, os.WNOHANG)
        if pid:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _end(running: dict[int, tuple[Task, float]]) -> None:
    """Let all drain and end; kill what has not in time."""
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while running and time.monotonic() < deadline:
        for pid, _ in _ended(running):
            del running[pid]
        time.sleep(0.02)
    for pid, (task, _) in running.items():
        _LOG.error("process %s (%d) has not drained within %d seconds and is killed", task.name, pid, _GRACE_SECONDS)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
