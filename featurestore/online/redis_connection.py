"""Connections to one server: commands out, replies in, one deadline for all of it. Thread-safe and fork-safe.

Command and reply go straight through hiredis, which leaves out what costs more than half of a GET in redis-py: command
objects, callbacks, retries and the pool's bookkeeping.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import redis

from featurestore.online.breaker import CircuitBreaker
from featurestore.online.redis_socket import pack, pack_read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.online.redis_socket import Connection

LEFT_ALONE = "it failed several times in a row, and is left alone for a moment"
_DEMOTED = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class Connections:
    """Idle connections of one server, the last used first.

    A call that only reads and finds its idle connection closed by the server tries once more on a new one, within the same
    deadline. A call that writes is sent once; its idle connection is looked at first. After failures in a row, calls fail
    at once for a while (``CircuitBreaker``).

    Args:
        dial: Makes a connection that is logged in, given a deadline.
        timeout_s: Deadline of a call: for connecting, sending and all replies together.
        most_idle: Idle connections kept; more calls at once open more, and close them again.
    """

    def __init__(self, dial: Callable[[float], Connection], *, timeout_s: float, most_idle: int = 64) -> None:
        self._dial = dial
        self._timeout_s = timeout_s
        self._idle: deque[Connection] = deque()
        self._most_idle = most_idle
        self._pid = os.getpid()
        self.breaker = CircuitBreaker()

    def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the names in one round trip, None where there is none; errors as of ``call``."""
        values: list[bytes | None] = self._call(pack_read(names))
        return values

    def call(self, *command: bytes) -> Any:
        """Return the reply to a command that only reads.

        Raises:
            redis.exceptions.RedisError: It cannot be reached, did not answer in time, or refused the command.
        """
        return self._call(pack(command))

    def _call(self, packed: bytes) -> Any:
        if os.getpid() != self._pid:
            self._forked()
        if not self.breaker.may_try():
            raise redis.exceptions.ConnectionError(LEFT_ALONE)
        deadline = time.monotonic() + self._timeout_s
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

    def each(self, commands: Sequence[tuple[bytes, tuple[Any, ...]]], *, is_read: bool = True) -> list[Any]:
        """Return the replies to commands, sent together; an error reply is returned as one.

        Args:
            commands: Of each a key that tells its node (where there is but one server, of no interest), and what is sent.
            is_read: Whether all only read, and may be sent twice.

        Raises:
            redis.exceptions.RedisError: The server cannot be reached or did not answer all in time.
        """
        if os.getpid() != self._pid:
            self._forked()
        if not self.breaker.may_try():
            raise redis.exceptions.ConnectionError(LEFT_ALONE)
        deadline = time.monotonic() + self._timeout_s
        packed = b"".join(pack(command) for _, command in commands)
        try:
            connection, is_new = self.take(deadline, is_read=is_read)
            try:
                replies = self._replies(connection, packed, len(commands), deadline)
            except redis.exceptions.ConnectionError:
                if not is_read or is_new:
                    raise
                self.drop_idle()  # they are as old as this one
                replies = self._replies(self._dial(deadline), packed, len(commands), deadline)
        except redis.exceptions.RedisError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return replies

    def everywhere(self, *command: Any) -> list[Any]:
        """Return the reply to a command of every server there is: here, of one; an error reply is returned as one."""
        return self.each([(b"", command)])

    def primaries(self) -> list[Connections]:
        """Return the connections of every server there is."""
        return [self]

    def _replies(self, connection: Connection, packed: bytes, count: int, deadline: float) -> list[Any]:
        try:
            connection.send(packed, deadline)
            replies = [connection.reply(deadline) for _ in range(count)]
        except BaseException:
            connection.close()
            raise
        self.give(connection)
        if any(isinstance(reply, _DEMOTED) for reply in replies):
            self.drop_idle()  # what is connected next may be the new primary
        return replies

    def take(self, deadline: float, *, is_read: bool = True) -> tuple[Connection, bool]:
        """Return a connection that nobody else uses, and whether it is new. One to write on has not been closed meanwhile."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._dial(deadline), True
            if is_read or connection.is_quiet():
                return connection, False
            connection.close()

    def give(self, connection: Connection) -> None:
        """Give back a connection on which no reply is under way."""
        if len(self._idle) < self._most_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def _try_twice(self, packed: bytes, deadline: float) -> Any:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask(self._dial(deadline), packed, deadline)
        try:
            return self._ask(connection, packed, deadline)
        except redis.exceptions.ResponseError:
            raise
        except redis.exceptions.ConnectionError:
            self.drop_idle()  # they are as old as this one
            return self._ask(self._dial(deadline), packed, deadline)

    def _ask(self, connection: Connection, packed: bytes, deadline: float) -> Any:
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
            if isinstance(reply, _DEMOTED):
                self.drop_idle()
            raise reply
        return reply

    def _forked(self) -> None:
        """Leave the sockets to the parent, which goes on with them; the child makes its own."""
        self._pid, self._idle, self.breaker = os.getpid(), deque(), CircuitBreaker()

    def drop_idle(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Close the idle connections."""
        self.drop_idle()
