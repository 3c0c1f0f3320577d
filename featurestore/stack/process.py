"""Start one server process, wait until it serves, stop exactly it.

A server has a directory of its own (working directory, data and log) and leads its own process group. It ends with the
process that started it, unless it is released.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from featurestore.errors import StackError
from featurestore.stack import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_S = 0.03


class ServerProcess:
    """A running server process; starting it again after ``stop`` or ``kill`` uses the same directory.

    Args:
        name: What messages call it.
        command: Program and arguments.
        directory: Where it runs and logs; made when missing.
        environment: Variables on top of this process's own.
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.directory = directory
        self.log = directory / f"{name}.log"
        self._environment = {**os.environ, **(environment or {})}
        self._popen: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.born: str | None = None

    @property
    def pid(self) -> int | None:
        """The pid while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    def start(self) -> None:
        """Start it, without waiting for it to serve.

        Raises:
            StackError: It runs already, or the program cannot be executed.
        """
        if self.pid is not None:
            raise StackError(f"{self.name} runs already with pid {self.pid}.")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("ab") as log:
                self._popen = subprocess.Popen(
                    self.command,
                    cwd=self.directory,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise StackError(f"{self.name} cannot be started: {error}.") from error
        self.born = guard.birth(self._popen.pid)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(self._popen.pid), self.born or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.stop)

    def wait_until(self, ready: Callable[[], bool], deadline_s: float) -> None:
        """Return when ``ready()`` is true.

        Raises:
            StackError: It ended, or the deadline passed and it was stopped; the message shows the end of its log.
        """
        give_up = time.monotonic() + deadline_s
        while True:
            if self._popen is None or self._popen.poll() is not None:
                code = None if self._popen is None else self._popen.returncode
                self.stop()
                raise StackError(
                    f"{self.name} ended with code {code} before it served: {self.log_tail()}", log=self.log
                )
            if ready():
                return
            if time.monotonic() > give_up:
                self.stop()
                raise StackError(f"{self.name} did not serve within {deadline_s:g} s: {self.log_tail()}", log=self.log)
            time.sleep(_POLL_S)

    def stop(self, grace_s: float = guard.GRACE_S) -> None:
        """Stop it and wait for its end: SIGTERM, after ``grace_s`` SIGKILL. Does nothing when it does not run."""
        if self.pid is not None:
            self._send(signal.SIGTERM)
            try:
                self._wait(grace_s)
            except subprocess.TimeoutExpired:
                self._send(signal.SIGKILL)
                self._wait(None)
        self.release()

    def kill(self) -> None:
        """End it as a crash would: SIGKILL, no goodbye."""
        if self.pid is not None:
            self._send(signal.SIGKILL)
            self._wait(None)
        self.release()

    def release(self) -> None:
        """Let it outlive this process."""
        atexit.unregister(self.stop)
        if self._guard is not None and self._guard.stdin is not None:
            try:
                self._guard.stdin.write(b".")
                self._guard.stdin.close()
            except BrokenPipeError:
                pass
            self._guard.wait()
            self._guard = None
        if self._popen is not None and self._popen.poll() is None:
            # It goes on as somebody else's child; Popen must neither wait for it nor warn about it.
            self._popen.returncode = 0
            self._popen = None

    def log_tail(self, lines: int = 8) -> str:
        """Return the end of the log in one line, and where the whole of it is."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            text = ""
        tail = " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
        return f"{tail[-800:] or 'its log is empty'} (log: {self.log})"

    def _send(self, signal_: signal.Signals) -> None:
        if self._popen is not None:
            try:
                os.killpg(self._popen.pid, signal_)
            except ProcessLookupError:
                self._popen.poll()

    def _wait(self, timeout: float | None) -> None:
        if self._popen is not None:
            self._popen.wait(timeout)
