"""Connections for reading: one command out, one reply in, one deadline for all of it. Thread-safe and fork-safe.

redis-py makes the connections (URL, TLS, credentials, database); command and reply then go straight through hiredis, which
leaves out what costs more than half of a GET in redis-py: command objects, callbacks, retries and the pool's bookkeeping.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
import redis

from featurestore.online.breaker import CircuitBreaker
from featurestore.online.redis_errors import reply_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

_CHUNK = 1 << 16


class ReadConnections:
    """Idle connections of one server, the last used first.

    A call that finds its idle connection closed by the server tries once more on a new one, within the same deadline: what
    is called here only reads. After failures in a row, calls fail at once for a while (``CircuitBreaker``).

    Args:
        kind: redis-py's class of connection.
        options: What it takes, from the URL: address, TLS, credentials, database.
        timeout_s: Deadline of a call: for connecting, sending and the whole reply together.
        most_idle: Idle connections kept; more calls at once open more, and close them again.
    """

    def __init__(self, kind: type[Any], options: Mapping[str, Any], *, timeout_s: float, most_idle: int = 64) -> None:
        self._kind, self._options = kind, dict(options)
        self._timeout_s = timeout_s
        self._idle: deque[_Connection] = deque()
        self._most_idle = most_idle
        self._pid = os.getpid()
        self.breaker = CircuitBreaker()

    def call(self, *command: bytes) -> Any:
        """Return the reply to a command that only reads.

        Raises:
            redis.exceptions.RedisError: It cannot be reached, did not answer in time, or refused the command.
        """
        if os.getpid() != self._pid:  # a fork: the parent goes on with its sockets, the child makes its own
            self._pid, self._idle, self.breaker = os.getpid(), deque(), CircuitBreaker()
        if not self.breaker.may_try():
            raise redis.exceptions.ConnectionError("it failed several times in a row, and is left alone for a moment")
        deadline = time.monotonic() + self._timeout_s
        arguments: Any = command  # hiredis's stub says a tuple of one
        packed = hiredis.pack_command(arguments)
        try:
            reply = self._try_twice(packed, deadline)
        except redis.exceptions.ResponseError:
            self.breaker.succeeded()  # it answered
            raise
        except redis.exceptions.RedisError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return reply

    def _try_twice(self, packed: bytes, deadline: float) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask(self._connect(deadline), packed, deadline)
        try:
            return self._ask(connection, packed, deadline)
        except redis.exceptions.ResponseError:
            raise
        except redis.exceptions.ConnectionError:
            self._drop_idle()  # they are as old as this one
            return self._ask(self._connect(deadline), packed, deadline)

    def _ask(self, connection: _Connection, packed: bytes, deadline: float) -> Any:
        try:
            reply = connection.ask(packed, deadline)
        except BaseException:
            connection.close()  # a reply may still be under way
            raise
        if len(self._idle) < self._most_idle:
            self._idle.append(connection)
        else:
            connection.close()
        if isinstance(reply, redis.exceptions.RedisError):
            raise reply
        return reply

    def _connect(self, deadline: float) -> _Connection:
        # redis-py would make the handshake with a timeout for each of its reads; ours has one deadline for all.
        made = self._kind(**self._options, redis_connect_func=_no_handshake)
        connection = _Connection(made, deadline)
        try:
            for command in handshake(self._options):
                arguments: Any = command
                refused = connection.ask(hiredis.pack_command(arguments), deadline)
                if isinstance(refused, redis.exceptions.RedisError):
                    raise redis.exceptions.AuthenticationError(str(refused))  # noqa: TRY301 - it closes on any error
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Close the idle connections."""
        self._drop_idle()


class _Connection:
    """A connected socket and the parser of its replies."""

    __slots__ = ("_kept", "_reader", "_socket")

    def __init__(self, connection: Any, deadline: float) -> None:
        connection.socket_connect_timeout = connection.socket_timeout = _left(deadline)
        connection.connect()
        self._kept = connection
        self._socket: socket.socket = connection._get_socket()  # noqa: SLF001 - redis-py has no public way to it
        self._reader = hiredis.Reader(replyError=reply_error, protocolError=redis.exceptions.InvalidResponse)

    def ask(self, packed: bytes, deadline: float) -> Any:
        """Send a command and return its reply; an error reply is returned too."""
        sock, reader = self._socket, self._reader
        try:
            sock.settimeout(_left(deadline))
            sock.sendall(packed)
            while True:
                data = sock.recv(_CHUNK)
                if not data:
                    raise redis.exceptions.ConnectionError("it closed the connection")
                reader.feed(data)
                reply = reader.gets()
                if reply is not False:
                    return reply
                sock.settimeout(_left(deadline))
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("no whole reply") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        self._kept.disconnect()


def _no_handshake(connection: Any) -> None:
    """Leave it to whoever has the deadline."""


def handshake(options: Mapping[str, Any]) -> list[tuple[bytes, ...]]:
    """Return the commands that begin a connection, from the options of its URL: credentials, database."""
    commands = []
    if options.get("password") is not None:
        names = [str(options[name]).encode() for name in ("username", "password") if options.get(name) is not None]
        commands.append((b"AUTH", *names))
    if options.get("db"):
        commands.append((b"SELECT", str(options["db"]).encode()))
    return commands


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise redis.exceptions.TimeoutError("no whole reply")
    return left
