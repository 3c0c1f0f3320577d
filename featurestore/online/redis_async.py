"""Reading from Redis in asyncio: one connection, on which the commands of all tasks follow each other.

Commands that tasks issue within one turn of the event loop leave in one write, and replies come in the order of the commands
(Redis answers in order). So many lookups in flight cost little more than one: no pool, no lock, no task per command.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
import redis

from featurestore.online.breaker import CircuitBreaker
from featurestore.online.redis_connection import handshake
from featurestore.online.redis_errors import mapped_errors, reply_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class AsyncReads:
    """The read side of an online store on Redis, for asyncio.

    Args:
        url: redis://, rediss:// or unix:// URL.
        timeout_s: Deadline of a call, in seconds.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url
        self._connection = PipelinedConnection(redis.connection.parse_url(url), timeout_s=timeout_s)

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the keys in one round trip, None where there is none."""
        with mapped_errors(self.url):
            values: list[bytes | None] = await self._connection.call(b"MGET", *keys)
        return values

    async def ping(self) -> None:
        """Raise unless the store answers."""
        with mapped_errors(self.url):
            await self._connection.call(b"PING")

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


class PipelinedConnection:
    """Commands to one server, each with the same deadline. Belongs to the event loop that first used it.

    A connection that broke is made anew by the next command, and a command that was under way when it broke is sent once more
    within its deadline: what is called here only reads. A command whose time is up leaves its place in the queue, so that the
    next reply is not taken for its own; a connection whose server has been silent for that long is closed.

    Args:
        options: What ``redis.connection.parse_url`` made of the URL.
        timeout_s: Deadline of a call, connecting included.
    """

    def __init__(self, options: Mapping[str, Any], *, timeout_s: float) -> None:
        self._options = dict(options)
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[_Replies] | None = None
        self.breaker = CircuitBreaker()

    async def call(self, *command: bytes) -> Any:
        """Return the reply to a command that only reads.

        Raises:
            redis.exceptions.RedisError: It cannot be reached, did not answer in time, or refused the command.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._leave(loop)
        if not self.breaker.may_try():
            raise redis.exceptions.ConnectionError("it failed several times in a row, and is left alone for a moment")
        arguments: Any = command
        packed = hiredis.pack_command(arguments)
        deadline = loop.time() + self._timeout_s
        try:
            reply = await self._ask_twice(packed, deadline)
        except redis.exceptions.ResponseError:
            self.breaker.succeeded()
            raise
        except redis.exceptions.RedisError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return reply

    async def _ask_twice(self, packed: bytes, deadline: float) -> Any:
        protocol = self._connected()
        if protocol is not None:
            try:
                return await protocol.ask(packed, deadline)
            except redis.exceptions.ConnectionError:
                pass
        return await (await self._connect(deadline)).ask(packed, deadline)

    def _connected(self) -> _Replies | None:
        """Return the connection if it is open."""
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result() if opening.result().is_open else None

    async def _connect(self, deadline: float) -> _Replies:
        """Return an open connection; all who need one wait for the same."""
        if self._opening is None or (self._opening.done() and self._connected() is None):
            self._opening = asyncio.ensure_future(_open(self._options, self._timeout_s))
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._opening)
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("no connection in time") from error

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what belongs to another event loop."""
        self._opening = None
        self._loop = loop

    async def close(self) -> None:
        """Close the connection; calls under way fail."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError, redis.exceptions.RedisError):
                await self._opening
        protocol = self._connected()
        if protocol is not None:
            await protocol.close()


class _Replies(asyncio.Protocol):
    """A connection's replies, given to whoever waits, in order."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(replyError=reply_error, protocolError=redis.exceptions.InvalidResponse)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = False
        self._closed = self._loop.create_future()

    def ask(self, packed: bytes, deadline: float) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply."""
        future = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(packed)
        self._waiting.append((future, deadline))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)
        return future

    def _send(self) -> None:
        if self._transport is not None and self.is_open:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _expire(self) -> None:
        """Fail whose time is up, and close a connection whose server has been silent for a whole deadline since."""
        self._timer = None
        now = self._loop.time()
        for future, deadline in self._waiting:
            if deadline <= now and not future.done():
                future.set_exception(redis.exceptions.TimeoutError("no reply in time"))
        if not self._waiting:
            return
        first, deadline = self._waiting[0]
        if first.done() and deadline + self._timeout_s <= now:
            self.abort()
            return
        open_ = [deadline for future, deadline in self._waiting if not future.done()]
        self._timer = self._loop.call_at(min([*open_, deadline + self._timeout_s]), self._expire)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                future, _ = self._waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, redis.exceptions.RedisError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (redis.exceptions.InvalidResponse, IndexError) as error:
            self._fail(redis.exceptions.ConnectionError(f"it sent what is no reply: {error}"))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self._closed.done():
            self._closed.set_result(None)
        self._fail(redis.exceptions.ConnectionError(str(exc) if exc else "it closed the connection"))

    def _fail(self, error: redis.exceptions.RedisError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(error)

    def abort(self) -> None:
        """Close the connection at once; ``connection_lost`` follows."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close the connection, and return when it is closed."""
        if self._transport is not None:
            self.abort()
            await self._closed


async def _open(options: Mapping[str, Any], timeout_s: float) -> _Replies:
    """Return a connection after its handshake.

    Raises:
        redis.exceptions.RedisError: It cannot be reached, is too slow, or refuses the credentials or the database.
    """
    loop = asyncio.get_running_loop()
    protocol = _Replies(timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            if "path" in options:
                await loop.create_unix_connection(lambda: protocol, options["path"])
            else:
                is_tls = options.get("connection_class") is redis.SSLConnection
                host, port = options.get("host", "localhost"), int(options.get("port", 6379))
                await loop.create_connection(lambda: protocol, host, port, ssl=_tls(options) if is_tls else None)
            for command in handshake(options):
                arguments: Any = command
                await protocol.ask(hiredis.pack_command(arguments), loop.time() + timeout_s)
    except BaseException as error:
        await protocol.close()
        if isinstance(error, TimeoutError):
            raise redis.exceptions.TimeoutError("no connection in time") from error
        if isinstance(error, OSError):
            raise redis.exceptions.ConnectionError(str(error)) from error
        if isinstance(error, redis.exceptions.ResponseError):
            raise redis.exceptions.AuthenticationError(str(error)) from error
        raise
    return protocol


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS settings that the URL's options name, as redis-py reads them."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    if options.get("ssl_cert_reqs") in {"none", "optional"} or options.get("ssl_check_hostname") in {
        False,
        "False",
        "false",
    }:
        context.check_hostname = False
    if options.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    return context
