"""A connected socket with hiredis on it, and how one is made: TCP, TLS or Unix, login, Sentinel. One deadline for all of it.

Looking up a host name is left to the system and has no deadline; an address, or a local resolver, needs none.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
import weakref
from typing import TYPE_CHECKING, Any

import hiredis
import redis

from featurestore.online.packed import PackedNames
from featurestore.online.redis_errors import reply_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.online.redis_url import Address, Endpoint, Login

_CHUNK = 1 << 16
_TIME = struct.Struct("@ll")
"""The system's timeval."""
_SLACK_S = 0.001
"""A limit that is set is kept for a time that differs by less."""
_NONE = -1.0
_LENGTHS = [b"$%d\r\n" % length for length in range(256)]
HELLO = (b"HELLO", b"2")


def pack(command: tuple[Any, ...]) -> bytes:
    """Return a command as it is sent."""
    arguments: Any = command  # hiredis's stub says a tuple of one
    packed: bytes = hiredis.pack_command(arguments)
    return packed


def pack_read(names: Sequence[bytes]) -> bytes:
    """Return an MGET of the names as it is sent; of many names it takes two thirds of the time that ``pack`` takes."""
    if type(names) is PackedNames:  # isinstance asks the abstract class first
        return names.command
    try:
        each = [_LENGTHS[len(name)] + name for name in names]
    except IndexError:  # a long one
        return pack((b"MGET", *names))
    return b"\r\n".join([b"*%d\r\n$4\r\nMGET" % (len(names) + 1), *each, b""])


def left(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        redis.exceptions.TimeoutError: It has passed.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise redis.exceptions.TimeoutError("no whole reply")
    return seconds


class Connection:
    """A connected socket and the parser of its replies."""

    __slots__ = ("__weakref__", "_is_tls", "_limit_s", "_reader", "_socket")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._reader = hiredis.Reader(replyError=reply_error, protocolError=redis.exceptions.InvalidResponse)
        self._is_tls = isinstance(connected, ssl.SSLSocket)
        self._limit_s = _NONE
        # Who forgets to close a client leaves no warning behind. A __del__ would be too late where both are part of a cycle: the
        # collector may come to the socket first.
        weakref.finalize(self, connected.close)

    def ask(self, packed: bytes, deadline: float) -> Any:
        """Send a command and return its reply; an error reply is returned too."""
        if len(packed) > _CHUNK:  # it may leave in pieces, each of which the system would give the whole time
            self.send(packed, deadline)
            return self.reply(deadline)
        sock, reader = self._socket, self._reader  # in one piece: this is the path of every lookup
        try:
            seconds = left(deadline)
            if not -_SLACK_S < seconds - self._limit_s < _SLACK_S:
                self._limit(seconds)
            sock.sendall(packed)
            while True:
                data = sock.recv(_CHUNK)
                if not data:
                    raise redis.exceptions.ConnectionError("it closed the connection")
                reader.feed(data)
                reply = reader.gets()
                if reply is not False:
                    return reply
                seconds = left(deadline)
                if not -_SLACK_S < seconds - self._limit_s < _SLACK_S:
                    self._limit(seconds)
        except (TimeoutError, BlockingIOError) as error:
            raise redis.exceptions.TimeoutError("no whole reply") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error) or type(error).__name__) from error

    def send(self, packed: bytes, deadline: float) -> None:
        """Send commands."""
        try:
            self._limit_s = _NONE
            self._socket.settimeout(left(deadline))
            self._socket.sendall(packed)
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("no whole reply") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error) or type(error).__name__) from error

    def reply(self, deadline: float) -> Any:
        """Return the next reply; an error reply is returned too."""
        sock, reader = self._socket, self._reader
        self._limit_s = _NONE
        try:
            while True:
                reply = reader.gets()
                if reply is not False:
                    return reply
                sock.settimeout(left(deadline))
                data = sock.recv(_CHUNK)
                if not data:
                    raise redis.exceptions.ConnectionError("it closed the connection")
                reader.feed(data)
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("no whole reply") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error) or type(error).__name__) from error

    def _limit(self, seconds: float) -> None:
        """Let no send or receive of ``ask`` take longer.

        The system keeps the time of a plain socket, to a tick of its own clock: that spares a lookup half of its system calls.
        Python keeps that of a TLS socket, which cannot tell the system's timeout from one it should wait out.
        """
        if self._is_tls:
            self._socket.settimeout(seconds)
            return
        limit = _TIME.pack(*divmod(max(int(seconds * 1_000_000), 1), 1_000_000))  # no time at all would be no limit
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._limit_s = seconds

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody asked for: the end of the connection, as a rule."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def connect(endpoint: Endpoint, login: Login, tls: ssl.SSLContext | None, deadline: float) -> Connection:
    """Return a connection that is logged in.

    Raises:
        redis.exceptions.RedisError: It cannot be reached, is too slow, or refuses the credentials.
    """
    try:
        connection = Connection(_open(endpoint, tls, deadline))
    except TimeoutError as error:
        raise redis.exceptions.TimeoutError("no connection in time") from error
    except OSError as error:
        raise redis.exceptions.ConnectionError(tls_hint(error)) from error
    try:
        for command in login.commands:
            refused = connection.ask(pack(command), deadline)
            if isinstance(refused, redis.exceptions.RedisError):
                raise redis.exceptions.AuthenticationError(str(refused))  # noqa: TRY301 - it closes on any error
    except BaseException:
        connection.close()
        raise
    return connection


def tls_hint(error: OSError) -> str:
    """Return what an error of a connection says, in one line."""
    return str(getattr(error, "verify_message", "") or error) or type(error).__name__


def _open(endpoint: Endpoint, tls: ssl.SSLContext | None, deadline: float) -> socket.socket:
    if endpoint.path:
        places: list[Any] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", endpoint.path)]
    else:
        places = list(socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
    failure: OSError | None = None
    for family, kind, protocol, _, place in places:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left(deadline))
            made.connect(place)
            if not endpoint.path:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if tls is None:
                return made
            made.settimeout(left(deadline))
            return tls.wrap_socket(made, server_hostname=endpoint.host)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
    raise failure or OSError("the host has no address")


def dialer(address: Address) -> Callable[[float], Connection]:
    """Return what makes a connection to the server of an address, given a deadline: one server's, or the Sentinels' master's."""
    if address.kind == "sentinel":
        return Sentinels(address).dial
    (endpoint,) = address.hosts
    return lambda deadline: connect(endpoint, address.login, address.tls, deadline)


class Sentinels:
    """Finds the master that Sentinels name, whenever a connection is made. Thread-safe."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sentinels = list(address.hosts)

    def dial(self, deadline: float) -> Connection:
        """Return a connection to the master.

        Raises:
            redis.exceptions.RedisError: No Sentinel knows one, or it cannot be reached or is none any more.
        """
        endpoint = self._master(deadline)
        connection = connect(endpoint, self._address.login, self._address.tls, deadline)
        try:
            check_master(connection.ask(pack(HELLO), deadline))
        except BaseException:
            connection.close()
            raise
        return connection

    def _master(self, deadline: float) -> Endpoint:
        failure: redis.exceptions.RedisError | None = None
        question = pack((b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._address.master.encode()))
        sentinels = list(self._sentinels)
        for number, sentinel in enumerate(sentinels):
            # One that hangs leaves time for the others, and for the master.
            until = time.monotonic() + left(deadline) / (len(sentinels) - number + 1)
            try:
                connection = connect(sentinel, self._address.sentinel_login, self._address.tls, until)
                try:
                    reply = connection.ask(question, until)
                finally:
                    connection.close()
                found = read_master(reply, sentinel)
            except redis.exceptions.RedisError as error:
                failure = error
                continue
            if number:
                self._sentinels = [sentinel, *(each for each in sentinels if each != sentinel)]
            return found
        raise no_master(self._address, failure)


def read_master(reply: Any, sentinel: Endpoint) -> Endpoint:
    """Return where a Sentinel says that the master is.

    Raises:
        redis.exceptions.RedisError: It does not know.
    """
    if isinstance(reply, redis.exceptions.RedisError):
        raise reply
    try:
        host, port = reply
        return sentinel._replace(host=host.decode(), port=int(port))
    except (TypeError, ValueError, AttributeError) as error:
        raise redis.exceptions.ConnectionError("it knows no master of that name") from error


def no_master(address: Address, cause: redis.exceptions.RedisError | None) -> redis.exceptions.RedisError:
    """Return the error that no Sentinel told the master."""
    shown = f"no Sentinel names the master {address.master!r}; the last one: {cause}"
    if isinstance(cause, redis.exceptions.AuthenticationError):
        return redis.exceptions.AuthenticationError(shown)
    return redis.exceptions.ConnectionError(shown)


def check_master(hello: Any) -> None:
    """Raise unless a reply to HELLO 2 is a master's: Sentinels take a moment to learn of a failover."""
    if isinstance(hello, redis.exceptions.RedisError):
        raise hello
    said = dict(zip(hello[::2], hello[1::2], strict=False)) if isinstance(hello, list) else {}
    if said.get(b"role") != b"master":
        raise redis.exceptions.ConnectionError("it is a replica; the Sentinels have not told the new master yet")
