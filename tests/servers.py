"""A Redis Cluster and Sentinels of real processes on loopback; each ends with the block that started it."""

from __future__ import annotations

import contextlib
import time

import redis

from featurestore.online.redis_socket import connect, pack
from featurestore.online.redis_url import Endpoint, Login
from featurestore.stack.ports import free_ports
from featurestore.stack.process import ServerProcess
from featurestore.stack.valkey import find_server

SHARE = 16384
NOBODY = Login()


def ask(port, *command, login=NOBODY, seconds=10.0):
    """Return the reply of one server to one command; an error is returned as one."""
    deadline = time.monotonic() + seconds
    with contextlib.closing(connect(Endpoint("127.0.0.1", port), login, None, deadline)) as connection:
        return connection.ask(pack(command), deadline)


def answers(port):
    """Whether something replies on the port."""
    try:
        return ask(port, b"PING", seconds=1.0) == b"PONG"
    except (OSError, redis.exceptions.RedisError):  # whatever kept it from replying
        return False


class Node:
    """One server process, with options as on its command line."""

    def __init__(self, folder, port, *options, program=None):
        self.port, self.folder = port, folder
        command = [str(find_server()) if program is None else program]
        self.process = ServerProcess(f"node{port}", [*command, *map(str, options)], folder)

    @classmethod
    def server(cls, folder, port, *options):
        """Return a server without persistence."""
        plain = ("--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder))
        return cls(folder, port, *plain, *options)

    def start(self):
        self.process.start()
        return self

    def wait(self):
        self.process.wait_until(lambda: answers(self.port), 20.0)
        return self

    def ask(self, *command, **options):
        return ask(self.port, *command, **options)


class Cluster:
    """Primaries with equal shares of the slots, and replicas: number i follows primary i modulo their number.

    ``announced`` gives, for the port of a node, the port that clients are told.
    """

    def __init__(self, folder, *, primaries=3, replicas=0, timeout_ms=2000, announced=None):
        ports = free_ports(2 * (primaries + replicas))
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", timeout_ms, "--repl-diskless-sync-delay", "0")
        # The bus port is stated: the usual one, port + 10000, may be taken.
        self.nodes = [
            Node.server(
                folder / str(number), port, *options, "--cluster-port", bus,
                *(() if announced is None else ("--cluster-announce-port", announced(port))),
            )
            for number, (port, bus) in enumerate(zip(ports[::2], ports[1::2], strict=True))
        ]  # fmt: skip
        self.buses = ports[1::2]
        self.primaries, self.replicas = self.nodes[:primaries], self.nodes[primaries:]

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.primaries)

    def __enter__(self):
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.wait()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _join(self):
        count = len(self.primaries)
        edges = [SHARE * number // count for number in range(count + 1)]
        for number, (node, begin, end) in enumerate(zip(self.primaries, edges, edges[1:], strict=False)):
            assert node.ask(b"CLUSTER", b"ADDSLOTSRANGE", begin, end - 1) == b"OK"
            assert node.ask(b"CLUSTER", b"SET-CONFIG-EPOCH", number + 1) == b"OK"
        first = self.nodes[0]
        for node, bus in zip(self.nodes[1:], self.buses[1:], strict=True):
            assert first.ask(b"CLUSTER", b"MEET", b"127.0.0.1", node.port, bus) == b"OK"
        for node in self.nodes:
            node.process.wait_until(lambda node=node: self._sees_all(node), 20.0)
        for number, node in enumerate(self.replicas):
            name = self.primaries[number % count].ask(b"CLUSTER", b"MYID")
            node.process.wait_until(
                lambda node=node, name=name: node.ask(b"CLUSTER", b"REPLICATE", name) == b"OK", 20.0
            )
        for node in self.replicas:
            node.process.wait_until(
                lambda node=node: b"master_link_status:up" in node.ask(b"INFO", b"replication"), 20.0
            )
        for node in self.nodes:
            node.process.wait_until(lambda node=node: self._has_replicas(node), 20.0)

    def _sees_all(self, node):
        info = node.ask(b"CLUSTER", b"INFO")
        return b"cluster_state:ok" in info and f"cluster_known_nodes:{len(self.nodes)}".encode() in info

    def _has_replicas(self, node):
        return sum(len(each) - 3 for each in node.ask(b"CLUSTER", b"SLOTS")) == len(self.replicas)

    def flush(self):
        for node in self.primaries:
            assert node.ask(b"FLUSHALL") == b"OK"

    def __exit__(self, *_):
        stop(*(node.process for node in self.nodes))


def stop(*processes):
    """End processes; those that are stopped by a signal too."""
    for process in processes:
        process.kill()


class Watched:
    """A master with a replica, and three Sentinels that watch it by the name ``shop``.

    ``announced`` gives, for the port of one of the two, the port by which others know it.
    """

    def __init__(self, folder, *, down_after_ms=600, announced=lambda port: port):
        self.folder = folder
        ports = free_ports(5)
        diskless = ("--repl-diskless-sync-delay", "0")
        known = announced(ports[0])
        self.master = Node.server(folder / "master", ports[0], "--replica-announce-port", known, *diskless)
        follows = ("--replicaof", "127.0.0.1", known, "--replica-announce-port", announced(ports[1]))
        self.replica = Node.server(folder / "replica", ports[1], *follows, *diskless)
        self.sentinels = []
        for port in ports[2:]:
            home = folder / f"sentinel{port}"
            home.mkdir(parents=True)
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {home}",
                f"sentinel monitor shop 127.0.0.1 {known} 2",
                f"sentinel down-after-milliseconds shop {down_after_ms}",
                "sentinel failover-timeout shop 5000",
            ]
            (home / "sentinel.conf").write_text("\n".join(lines) + "\n")
            self.sentinels.append(Node(home, port, home / "sentinel.conf", "--sentinel"))

    @property
    def url(self):
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels) + "/shop"

    @property
    def nodes(self):
        return [self.master, self.replica, *self.sentinels]

    def __enter__(self):
        try:
            for node in (self.master, self.replica):
                node.start()
            for node in (self.master, self.replica):
                node.wait()
            self.replica.process.wait_until(
                lambda: b"master_link_status:up" in self.replica.ask(b"INFO", b"replication"), 20.0
            )
            for node in self.sentinels:
                node.start()
            for node in self.sentinels:
                node.wait()
                node.process.wait_until(lambda node=node: self._knows_all(node), 20.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _knows_all(self, node):
        reply = node.ask(b"SENTINEL", b"MASTER", b"shop")
        said = dict(zip(reply[::2], reply[1::2], strict=True))
        return (said[b"num-slaves"], said[b"num-other-sentinels"]) == (b"1", b"2")

    def __exit__(self, *_):
        stop(*(node.process for node in self.nodes))
