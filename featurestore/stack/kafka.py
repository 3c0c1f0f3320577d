"""One Kafka broker in KRaft mode, from its Maven jars: the real thing, without a container engine."""

from __future__ import annotations

import base64
import re
import shutil
import socket
import struct
import subprocess
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from featurestore.errors import StackError
from featurestore.stack.jars import kafka_jars
from featurestore.stack.java import find_java
from featurestore.stack.ports import free_ports
from featurestore.stack.process import ServerProcess

if TYPE_CHECKING:
    from types import TracebackType

_READY_S = 120.0
_LOG_LEVEL = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
_ONE_NODE = ("replication.factor", "min.isr", "num.partitions")


class KafkaServer:
    """A one-node broker for as long as the ``with`` block runs. Topics are not created on first use.

    Args:
        directory: Where it runs, logs and keeps its data; a directory with data of an earlier run goes on with it.
        cache: Root of the cache of jars.
        heap: Largest heap, as Java writes it.
        ports: (broker, controller) ports; free ones by default.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        cache: Path | None = None,
        heap: str = "768m",
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.cache = cache
        self.heap = heap
        self.ports = ports
        self._fixed_ports = ports is not None
        self._formatted_now = False
        self.process: ServerProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect."""
        if self.ports is None:
            raise StackError("the Kafka server was not started.")
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def pid(self) -> int | None:
        """Pid of the broker, None when it does not run."""
        return None if self.process is None else self.process.pid

    def start(self) -> Self:
        """Start it and return when it answers; after ``stop`` or ``kill``: the same data and the same ports.

        Raises:
            StackError: Java or the jars cannot be had, or the broker did not start; with the end of its log.
        """
        self.begin()
        self.wait()
        return self

    def begin(self) -> None:
        """Start it without waiting, so that something else can start meanwhile."""
        java, jars = find_java().executable, kafka_jars(self.cache)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.ports is None:
            broker, controller = free_ports(2)
            self.ports = (broker, controller)
        properties = self.directory / "server.properties"
        properties.write_text(server_properties(self.directory / "data", *self.ports))
        # The optimising compiler would take more than a broker of this size gives back.
        quick = "-XX:TieredStopAtLevel=1"
        classpath = [str(java), quick, _LOG_LEVEL, "-cp", f"{jars}/*"]
        self._formatted_now = not self._meta.exists()
        if self._formatted_now:
            self._format(classpath, properties)
        memory = ["-Xms256m", f"-Xmx{self.heap}", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        self.process = ServerProcess(
            "kafka", [classpath[0], *memory, *classpath[1:], "kafka.Kafka", str(properties)], self.directory
        )
        self.process.start()

    def wait(self) -> None:
        """Return when the broker that was begun answers requests."""
        for attempts_left in (2, 1, 0):
            if self.process is None or self.ports is None:
                raise StackError("the Kafka server was not started.")
            port = self.ports[0]
            try:
                self.process.wait_until(partial(serves, port, self.cluster_id), _READY_S)
            except StackError:
                taken = re.search(
                    r"address already in use", self.process.log.read_text(errors="replace"), re.IGNORECASE
                )
                if self._fixed_ports or not attempts_left or not taken:
                    raise
                self.ports = None
                if self._formatted_now:
                    shutil.rmtree(self.directory / "data")
                self.process.log.unlink()
                self.begin()
            else:
                self._fixed_ports = True
                return

    def stop(self) -> None:
        """Stop it; its data stays in the directory."""
        if self.process is not None:
            self.process.stop(grace_s=20.0)

    def kill(self) -> None:
        """Crash it: SIGKILL. ``start()`` brings it back with its data."""
        if self.process is not None:
            self.process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cluster_id(self) -> str:
        """The id that the data directory was formatted with."""
        found = re.search(r"^cluster\.id=(.+)$", self._meta.read_text(), re.MULTILINE)
        if found is None:
            raise StackError(f"{self._meta} names no cluster.id.", hint="delete the directory to start anew.")
        return found.group(1)

    @property
    def _meta(self) -> Path:
        return self.directory / "data" / "meta.properties"

    def _format(self, java: list[str], properties: Path) -> None:
        cluster = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
        command = [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(properties)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_READY_S, check=False)
        if answer.returncode != 0:
            tail = " | ".join((answer.stdout + answer.stderr).strip().splitlines()[-5:])
            raise StackError(f"Kafka's data directory {self.directory / 'data'} cannot be formatted: {tail}.")


def server_properties(data: Path, broker: int, controller: int) -> str:
    """Return the broker's configuration: one node in both roles, loopback only, no topic made by accident."""
    listeners = f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}"
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "log.retention.ms": "-1",
        "auto.create.topics.enable": "false",
        # After a crash the broker is let in again only when its old session has expired.
        "broker.session.timeout.ms": "5000",
        "broker.heartbeat.interval.ms": "1000",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
    }
    for topic in ("transaction.state.log", "share.coordinator.state.topic"):
        settings |= {f"{topic}.{name}": "1" for name in _ONE_NODE}
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def serves(port: int, cluster_id: str) -> bool:
    """Tell whether the broker of this cluster answers on the port and knows of itself.

    The request is Metadata, version 2, about no topic. The cluster's id in the answer tells our broker from another one
    that holds the port, which answers before ours gives up.
    """
    correlation = 7
    request = struct.pack(">hhihi", 3, 2, correlation, -1, 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(4096)
    except OSError:
        return False
    if len(answer) < 12 or struct.unpack(">i", answer[4:8]) != (correlation,):
        return False
    (brokers,) = struct.unpack(">i", answer[8:12])
    return bool(brokers > 0 and cluster_id.encode() in answer)
