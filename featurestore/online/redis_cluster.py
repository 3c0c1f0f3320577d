"""Connections to a Redis Cluster: every call is one round trip per node, to all nodes at once, with one deadline.

Where slots are is asked of any node, first, after a MOVED and after a node was lost. Every node has its own circuit breaker:
one that is away does not hold up keys of the others.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import redis

from featurestore.online.redis_connection import LEFT_ALONE, Connections
from featurestore.online.redis_slots import OPEN, Errand, Scatter, SlotMap, slot_of
from featurestore.online.redis_socket import connect, left, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.redis_socket import Connection
    from featurestore.online.redis_url import Address, Endpoint

ASKING = pack((b"ASKING",))
SLOTS_QUESTION = pack((b"CLUSTER", b"SLOTS"))


class ClusterConnections:
    """Idle connections of every node. Thread-safe and fork-safe; calls and errors are those of ``Connections``.

    Args:
        address: Where some of the nodes are; credentials and TLS for all.
        space: The names of the project.
        timeout_s: Deadline of a call.
    """

    def __init__(self, address: Address, space: KeySpace, *, timeout_s: float) -> None:
        self._address, self._space, self._timeout_s = address, space, timeout_s
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._nodes: dict[Endpoint, Connections] = {}
        self._slots: SlotMap | None = None
        self._is_stale = True
        self._lock = threading.Lock()

    def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the names, None where there is none: one MGET per slot, all nodes at once."""
        scatter = Scatter(self._space, names)
        replies = self.each([(group[0], (b"MGET", *group)) for group in scatter.reads])
        for number, reply in enumerate(replies):
            if isinstance(reply, redis.exceptions.TryAgainError):
                replies[number] = self._one_by_one(scatter.reads[number], scatter.firsts)
            elif isinstance(reply, redis.exceptions.RedisError):
                raise reply
        return scatter.gather(replies)

    def _one_by_one(self, names: list[bytes], firsts: int) -> list[bytes | None]:
        """Return the values of names whose slot is being moved key by key; ``complete_through`` before what it speaks of."""
        replies: list[Any] = []
        for part in (names[:firsts], names[firsts:]):
            if part:
                replies += self.each([(name, (b"GET", name)) for name in part])
        for reply in replies:
            if isinstance(reply, redis.exceptions.RedisError):
                raise reply
        return replies

    def each(self, commands: Sequence[tuple[bytes, tuple[Any, ...]]], *, is_read: bool = True) -> list[Any]:
        """Return the replies to commands, sent together; an error is returned as the reply of what it befell."""
        if os.getpid() != self._pid:
            self._fresh()
        deadline = time.monotonic() + self._timeout_s
        errands = [Errand(slot_of(key), is_read=is_read) for key, _ in commands]
        packed = [pack(command) for _, command in commands]
        places = list(range(len(commands)))
        while places:
            slots = self._map(deadline)
            groups: dict[Endpoint, list[int]] = {}
            for place in places:
                groups.setdefault(errands[place].target(slots), []).append(place)
            self._round(groups, errands, packed, deadline, is_read=is_read)
            places = [place for place in places if errands[place].reply is OPEN]
        return [errand.reply for errand in errands]

    def _round(
        self,
        groups: dict[Endpoint, list[int]],
        errands: Sequence[Errand],
        packed: Sequence[bytes],
        deadline: float,
        *,
        is_read: bool,
    ) -> None:
        """Send each node its commands, then take all replies."""
        asked: list[tuple[Endpoint, Connection, list[int]]] = []
        try:
            for endpoint, places in groups.items():
                sent = b"".join(ASKING + packed[place] if errands[place].asking else packed[place] for place in places)
                try:
                    connection = self._send(endpoint, sent, deadline, is_read=is_read)
                except redis.exceptions.RedisError as error:
                    self._lost(endpoint, (errands[place] for place in places), error)
                else:
                    asked.append((endpoint, connection, places))
            while asked:
                endpoint, connection, places = asked.pop()
                self._take(endpoint, connection, [errands[place] for place in places], deadline)
        finally:
            for _, connection, _ in asked:
                connection.close()

    def _send(self, endpoint: Endpoint, sent: bytes, deadline: float, *, is_read: bool) -> Connection:
        node = self._node(endpoint)
        if not node.breaker.may_try():
            raise redis.exceptions.ConnectionError(LEFT_ALONE)
        try:
            connection, _ = node.take(deadline, is_read=is_read)
            try:
                connection.send(sent, deadline)
            except BaseException:
                connection.close()
                raise
        except redis.exceptions.RedisError:
            node.breaker.failed()
            raise
        return connection

    def _take(self, endpoint: Endpoint, connection: Connection, errands: list[Errand], deadline: float) -> None:
        node = self._node(endpoint)
        try:
            for errand in errands:
                if errand.asking:
                    connection.reply(deadline)
                errand.took(connection.reply(deadline), endpoint)
        except redis.exceptions.RedisError as error:
            connection.close()
            node.breaker.failed()
            self._lost(endpoint, (each for each in errands if each.reply is OPEN), error)
            return
        except BaseException:
            connection.close()
            raise
        node.breaker.succeeded()
        node.give(connection)
        if any(each.says_moved or isinstance(each.reply, redis.exceptions.ClusterDownError) for each in errands):
            self._is_stale = True

    def _lost(self, endpoint: Endpoint, errands: Iterable[Errand], error: redis.exceptions.RedisError) -> None:
        self._node(endpoint).drop_idle()  # they are as old as this one
        self._is_stale = True
        for errand in errands:
            errand.lost(error)

    def everywhere(self, *command: Any) -> list[Any]:
        """Return the reply to a command of every primary; an error is returned as one."""
        if os.getpid() != self._pid:
            self._fresh()
        deadline = time.monotonic() + self._timeout_s
        replies: list[Any] = []
        for endpoint in self._map(deadline).primaries:
            node = self._node(endpoint)
            try:
                replies += node.each([(b"", command)])
            except redis.exceptions.RedisError as error:
                self._is_stale = True
                replies.append(error)
        return replies

    def primaries(self) -> list[Connections]:
        """Return the connections of every primary."""
        return [self._node(endpoint) for endpoint in self._map(time.monotonic() + self._timeout_s).primaries]

    def _node(self, endpoint: Endpoint) -> Connections:
        node = self._nodes.get(endpoint)
        if node is None:
            address = self._address

            def dial(deadline: float) -> Connection:
                return connect(endpoint, address.login, address.tls, deadline)

            node = self._nodes.setdefault(endpoint, Connections(dial, timeout_s=self._timeout_s))
        return node

    def _map(self, deadline: float) -> SlotMap:
        slots = self._slots
        if slots is not None and not self._is_stale:
            return slots
        if not self._lock.acquire(timeout=left(deadline)):
            raise redis.exceptions.TimeoutError("no map of the cluster in time")
        try:
            if self._slots is not None and not self._is_stale:
                return self._slots  # another thread has asked meanwhile
            self._is_stale = False
            slots = self._slots = self._ask_map(deadline)
        except BaseException:
            self._is_stale = True
            raise
        else:
            return slots
        finally:
            self._lock.release()

    def _ask_map(self, deadline: float) -> SlotMap:
        known = self._slots.primaries if self._slots is not None else ()
        # Those that answered last first: a node that is away costs time.
        nodes = sorted(
            dict.fromkeys((*known, *self._address.hosts)), key=lambda each: self._node(each).breaker.failures
        )
        failure: redis.exceptions.RedisError | None = None
        for number, endpoint in enumerate(nodes):
            until = time.monotonic() + left(deadline) / (2 if number < len(nodes) - 1 else 1)
            node = self._node(endpoint)
            try:
                connection, _ = node.take(until)
                try:
                    reply = connection.ask(SLOTS_QUESTION, until)
                except BaseException:
                    connection.close()
                    raise
                node.give(connection)
                if isinstance(reply, redis.exceptions.RedisError):
                    raise reply
                slots = SlotMap.parse(reply, endpoint)
            except redis.exceptions.RedisError as error:
                node.drop_idle()
                failure = error
                continue
            for gone in set(self._nodes) - {*slots.primaries, *self._address.hosts}:
                self._nodes.pop(gone).close()
            return slots
        raise no_map(failure, len(nodes))

    def close(self) -> None:
        """Close the idle connections."""
        for node in list(self._nodes.values()):
            node.close()


def no_map(cause: redis.exceptions.RedisError | None, nodes: int) -> redis.exceptions.RedisError:
    """Return the error that no node told where slots are."""
    if isinstance(cause, redis.exceptions.ResponseError | redis.exceptions.AuthenticationError):
        return cause
    is_late = isinstance(cause, redis.exceptions.TimeoutError)
    kind = redis.exceptions.TimeoutError if is_late else redis.exceptions.ConnectionError
    return kind(f"none of {nodes} nodes tells where slots are; the last one: {cause}")
