"""The local stack: a Kafka broker and an online store, each a real server on a free loopback port.

While it runs, ``stack.json`` in its directory says where:

    {"kafka": "127.0.0.1:20501", "online": "redis://127.0.0.1:20733/0", "pids": {"kafka": 311, "online": 309},
     "born": {"kafka": "8812345", "online": "8812301"}}

A pid alone may belong to anyone after a while; with the time of birth it names one process.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featurestore.errors import StackError
from featurestore.stack import guard
from featurestore.stack.kafka import KafkaServer
from featurestore.stack.valkey import OnlineServer

if TYPE_CHECKING:
    from types import TracebackType

STACK_FILE = "stack.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStack:
    """A stack that another process started, or this one and let go.

    Attributes:
        directory: Where it lives.
        kafka: Bootstrap servers of the broker.
        online: URL of the online store.
        pids: Server name to pid, of the servers that were started for it.
        born: Server name to time of birth.
    """

    directory: Path
    kafka: str
    online: str
    pids: dict[str, int] = field(default_factory=dict)
    born: dict[str, str] = field(default_factory=dict)

    def stop(self) -> None:
        """Stop its servers, and only those."""
        for name, pid in self.pids.items():
            guard.end(pid, self.born[name])
        (self.directory / STACK_FILE).unlink(missing_ok=True)

    def save(self) -> None:
        """Write stack.json; a reader sees all of it or none."""
        path = self.directory / STACK_FILE
        partial = path.with_suffix(f".{os.getpid()}.partial")
        keys: dict[str, Any] = {"kafka": self.kafka, "online": self.online, "pids": self.pids, "born": self.born}
        partial.write_text(json.dumps(keys, indent=1) + "\n")
        partial.replace(path)


class LocalStack:
    """Kafka and the online store for as long as the ``with`` block runs.

    Args:
        directory: Where the servers run, log and keep their data.
        online_url: Use this online store and start none.
        appendonly: Whether the online store keeps its data over a crash.
        cache: Root of the cache of jars.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        online_url: str | None = None,
        appendonly: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.kafka_server = KafkaServer(self.directory / "kafka", cache=cache)
        self.online_server = OnlineServer(self.directory / "online", url=online_url, appendonly=appendonly)

    @property
    def kafka(self) -> str:
        """Bootstrap servers of the broker."""
        return self.kafka_server.bootstrap_servers

    @property
    def online(self) -> str:
        """URL of the online store."""
        return self.online_server.url

    def start(self) -> Self:
        """Start both, return when both answer, and write stack.json.

        Raises:
            StackError: A stack runs in the directory already, or one of the servers did not start; then none is left.
        """
        if (running := self.attach(self.directory)) is not None:
            raise StackError(
                f"a stack runs in {self.directory} already: Kafka at {running.kafka}, online at {running.online}.",
                hint="use it (LocalStack.attach), or stop it first.",
            )
        try:
            self.kafka_server.begin()
            self.online_server.start()
            self.kafka_server.wait()
            self._running().save()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both; their data stays."""
        self.online_server.stop()
        self.kafka_server.stop()
        (self.directory / STACK_FILE).unlink(missing_ok=True)

    def release(self) -> RunningStack:
        """Let the servers outlive this process; ``attach`` finds them again."""
        running = self._running()
        for server in (self.kafka_server, self.online_server):
            if server.process is not None:
                server.process.release()
        return running

    @classmethod
    def attach(cls, directory: Path | str) -> RunningStack | None:
        """Return the stack that runs in a directory, None when none does, whatever an old stack.json says.

        Raises:
            StackError: stack.json is there but is not one of ours.
        """
        path = Path(directory).resolve() / STACK_FILE
        try:
            running = RunningStack(directory=path.parent, **json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StackError(f"{path} cannot be read: {error}.", hint="delete it if no stack runs there.") from error
        alive = all(guard.birth(pid) == running.born.get(name) for name, pid in running.pids.items())
        return running if alive and running.pids else None

    def _running(self) -> RunningStack:
        servers = {"kafka": self.kafka_server.process, "online": self.online_server.process}
        started = {name: process for name, process in servers.items() if process is not None}
        return RunningStack(
            directory=self.directory,
            kafka=self.kafka,
            online=self.online,
            pids={name: process.pid for name, process in started.items() if process.pid is not None},
            born={name: process.born or "" for name, process in started.items()},
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
