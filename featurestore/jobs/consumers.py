"""The real-time consumers of a job: processes beside its driver, watched, counted, and started again when one dies.

A consumer ends when its standard input does, so none outlives the driver, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from featurestore.errors import JobError
from featurestore.jobs.online_epoch import farthest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PERMANENT = 3
"""Exit code of a consumer for what starting it again does not mend."""
_LIVES, _WITHIN_S = 5, 60.0
_GRACE_S = 10.0


@dataclass
class _Consumer:
    process: subprocess.Popen[str]
    counts: Counter[str] = field(default_factory=Counter)
    lag: int | None = None
    error: str | None = None
    client: str | None = None
    ready: bool = False
    reached: dict[str, dict[int, int]] = field(default_factory=dict)
    listeners: list[threading.Thread] = field(default_factory=list)
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=20))


def consumer_command(config: Path, service: str, *, accept_loss: bool = False, client: str | None = None) -> list[str]:
    """Return the command of one consumer of a job (``jobs.realtime``)."""
    return [
        sys.executable, "-m", "featurestore.jobs.realtime", "--config-json", str(config.resolve()), "--service", service,
        *(["--accept-loss"] if accept_loss else []), *(["--client", client] if client else []),
    ]  # fmt: skip


class Consumers:
    """A number of equal consumer processes.

    Args:
        command: What starts one; it gets ``--instance``, a name that stays when it is started again.
        number: How many.
    """

    def __init__(self, command: Sequence[str], number: int) -> None:
        self._command = list(command)
        self._name = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()  # counts of those that are gone
        self.acknowledged: dict[str, dict[int, int]] = {}
        """Topic to partition to the offset after the last record that the store has told one of them it has."""
        self._deaths: deque[float] = deque(maxlen=_LIVES)
        self._running = [self._start(index) for index in range(number)]

    def _start(self, index: int) -> _Consumer:
        process = subprocess.Popen(
            [*self._command, "--instance", f"{socket.gethostname()}-{self._name}-{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # what Spark put there for the driver
        )
        made = _Consumer(process)
        assert process.stdout is not None  # noqa: S101 - pipes were asked for
        assert process.stderr is not None  # noqa: S101
        made.listeners = [
            threading.Thread(target=self._listen, args=(made, process.stdout), daemon=True),
            threading.Thread(target=_overhear, args=(made, process.stderr), daemon=True),
        ]
        for each in made.listeners:
            each.start()
        return made

    def _listen(self, consumer: _Consumer, lines: IO[str]) -> None:
        for line in lines:
            told = json.loads(line)
            with self._lock:
                consumer.counts.update(told["counts"])
                consumer.lag, consumer.error, consumer.ready = told["lag"], told["error"], True
                consumer.client = told["client"]
                consumer.reached = _offsets(told["reached"])
                self.acknowledged = farthest(self.acknowledged, _offsets(told["acknowledged"]))

    @property
    def ready(self) -> bool:
        """Whether all of them have reported."""
        return all(each.ready for each in self._running)

    @property
    def counts(self) -> dict[str, int]:
        """How many records met which fate, over all consumers that have run."""
        with self._lock:
            total = self._ended.copy()
            for each in self._running:
                total.update(each.counts)
            return dict(total)

    @property
    def reached(self) -> dict[str, dict[int, int]]:
        """Topic to partition to the offset that comes next, as far as the present consumers have said."""
        found: dict[str, dict[int, int]] = {}
        with self._lock:
            for each in self._running:
                found = farthest(found, each.reached)
        return found

    def status(self) -> dict[str, object]:
        """Return pids, records still to come (None while not known), what keeps consumers from going on, and their client."""
        with self._lock:
            lags = [each.lag for each in self._running]
            errors = sorted({each.error for each in self._running if each.error})
            return {
                "pids": [each.process.pid for each in self._running],
                "lag": None if None in lags else sum(lag for lag in lags if lag is not None),
                "error": "; ".join(errors) or None,
                "client": next((each.client for each in self._running if each.client), None),
            }

    def check(self) -> None:
        """Start those again that have died.

        Raises:
            JobError: One gave up for a reason that stays, or they die too often.
        """
        for index, consumer in enumerate(self._running):
            code = consumer.process.poll()
            if code is None:
                continue
            words = " ".join(consumer.last_words)[-500:] or f"exit code {code}"
            if code == PERMANENT:
                raise JobError(consumer.last_words[-1] if consumer.last_words else words)
            now = time.monotonic()
            self._deaths.append(now)
            if len(self._deaths) == _LIVES and now - self._deaths[0] < _WITHIN_S:
                raise JobError(
                    f"real-time consumers ended {_LIVES} times within {_WITHIN_S:g} s; the last said: {words}"
                )
            _wait(consumer)
            with self._lock:
                self._ended.update(consumer.counts)
            self._running[index] = self._start(index)

    def stop(self) -> None:
        """Let each finish what it applies, within ten seconds, and wait for its end."""
        for consumer in self._running:
            with contextlib.suppress(BrokenPipeError, OSError):
                if consumer.process.stdin is not None:
                    consumer.process.stdin.close()
        give_up = time.monotonic() + _GRACE_S
        for consumer in self._running:
            try:
                consumer.process.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                consumer.process.kill()
            _wait(consumer)


def _offsets(told: Mapping[str, Mapping[str, int]]) -> dict[str, dict[int, int]]:
    return {topic: {int(partition): offset for partition, offset in offsets.items()} for topic, offsets in told.items()}


def _wait(consumer: _Consumer) -> None:
    """Wait for the end of a consumer, and for all that it has said."""
    consumer.process.wait()
    for listener in consumer.listeners:
        listener.join(_GRACE_S)
    for pipe in (consumer.process.stdin, consumer.process.stdout, consumer.process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _overhear(consumer: _Consumer, lines: IO[str]) -> None:
    for line in lines:
        if line.strip():
            consumer.last_words.append(line.strip())
        sys.stderr.write(line)
