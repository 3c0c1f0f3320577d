"""Reading from Redis in asyncio: one connection, on which the commands of all tasks follow each other.

Commands that tasks issue within one turn of the event loop leave in one write, and replies come in the order of the commands
(Redis answers in order). So many lookups in flight cost little more than one: no pool, no lock, no task per command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import hiredis
import redis

from featurestore.online.breaker import CircuitBreaker
from featurestore.online.redis_connection import LEFT_ALONE
from featurestore.online.redis_errors import reply_error
from featurestore.online.redis_socket import HELLO, check_master, no_master, pack, pack_read, read_master, tls_hint

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from featurestore.online.redis_url import Address, Endpoint, Login


class PipelinedConnection:
    """Commands to one server, each with the same deadline. Belongs to the event loop that first used it.

    A connection that broke is made anew by the next command, and a command that was under way when it broke is sent once more
    within its deadline: what is called here only reads. A command whose time is up leaves its place in the queue, so that the
    next reply is not taken for its own; a connection whose server has been silent for that long is closed.

    Args:
        dial: Makes a connection that is logged in, within a time in seconds.
        timeout_s: Deadline of a call, connecting included.
    """

    def __init__(self, dial: Callable[[float], Awaitable[Replies]], *, timeout_s: float) -> None:
        self._dial = dial
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Future[Replies] | None = None
        self.breaker = CircuitBreaker()

    async def read(self, names: Sequence[bytes], deadline: float | None = None) -> list[bytes | None]:
        """Return the values of the names in one round trip, None where there is none; arguments and errors as of ``send``."""
        values: list[bytes | None] = await self.send(pack_read(names), deadline=deadline)
        return values

    def begin(self, names: Sequence[bytes], told: Callable[[Any, float], None]) -> bool:
        """Send a read at once, without a task; return False where that takes more than an open connection.

        Args:
            names: The names.
            told: Gets what ``read`` returns, or the error, and the deadline, as soon as it is there. Whoever gets an error reads
                again within the deadline, by ``read``, which tells the breaker.
        """
        loop = asyncio.get_running_loop()
        protocol = self._connected() if loop is self._loop and not self.breaker.failures else None
        if protocol is None:
            return False
        deadline = loop.time() + self._timeout_s
        protocol.ask_now(pack_read(names), deadline, _Told(told, deadline))
        return True

    async def ping(self) -> None:
        """Raise unless the server answers."""
        await self.call(b"PING")

    async def call(self, *command: bytes) -> Any:
        """Return the reply to a command that only reads; errors as of ``send``."""
        arguments: Any = command
        return await self.send(hiredis.pack_command(arguments))

    async def send(self, packed: bytes, *, before: bytes = b"", deadline: float | None = None) -> Any:
        """Return the reply to a command that only reads.

        Args:
            packed: The command.
            before: A command that has to go right before it.
            deadline: In the loop's time; a whole timeout from now when None.

        Raises:
            redis.exceptions.RedisError: It cannot be reached, did not answer in time, or refused the command.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._leave(loop)
        if not self.breaker.may_try():
            raise redis.exceptions.ConnectionError(LEFT_ALONE)
        if deadline is None:
            deadline = loop.time() + self._timeout_s
        try:
            if deadline <= loop.time():
                raise redis.exceptions.TimeoutError("no reply in time")
            reply = await self._ask_twice(packed, before, deadline)
        except redis.exceptions.ResponseError as error:
            self.breaker.succeeded()
            if isinstance(error, redis.exceptions.ReadOnlyError | redis.exceptions.MasterDownError):
                self._opening = None  # what is connected next may be the new primary
            raise
        except redis.exceptions.RedisError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return reply

    async def _ask_twice(self, packed: bytes, before: bytes, deadline: float) -> Any:
        protocol = self._connected()
        if protocol is not None:
            try:
                return await protocol.ask_after(before, packed, deadline)
            except redis.exceptions.ConnectionError:
                pass
        return await (await self._connect(deadline)).ask_after(before, packed, deadline)

    def _connected(self) -> Replies | None:
        """Return the connection if it is open."""
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        protocol = opening.result()
        return protocol if protocol.is_open else None

    async def _connect(self, deadline: float) -> Replies:
        """Return an open connection; all who need one wait for the same."""
        if self._opening is None or (self._opening.done() and self._connected() is None):
            self._opening = asyncio.ensure_future(self._dial(self._timeout_s))
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


class _Told:
    """Takes a reply as a future does, and passes it on at once: a future's callbacks wait for a turn of the event loop."""

    __slots__ = ("_deadline", "_is_done", "_told")

    def __init__(self, told: Callable[[Any, float], None], deadline: float) -> None:
        self._told, self._deadline, self._is_done = told, deadline, False

    def done(self) -> bool:
        """Whether it has been told."""
        return self._is_done

    def set_result(self, reply: Any) -> None:
        """Tell the reply, or the error."""
        self._is_done = True
        self._told(reply, self._deadline)

    set_exception = set_result


class Replies(asyncio.Protocol):
    """A connection's replies, given to whoever waits, in order."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(replyError=reply_error, protocolError=redis.exceptions.InvalidResponse)
        self._waiting: deque[tuple[asyncio.Future[Any] | _Told, float]] = deque()
        self._unsent: list[bytes] = []
        self._transport: Any = None  # uvloop's is no subclass of asyncio.Transport, but does what one does
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = False
        self._closed = self._loop.create_future()

    def ask(self, packed: bytes, deadline: float) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._put(packed, deadline, future)
        return future

    def ask_now(self, packed: bytes, deadline: float, told: _Told) -> None:
        """Send a command in this turn of the event loop, with those that wait to be sent."""
        self._put(packed, deadline, told)
        self._send()

    def _put(self, packed: bytes, deadline: float, waiter: asyncio.Future[Any] | _Told) -> None:
        self._unsent.append(packed)
        self._waiting.append((waiter, deadline))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def ask_after(self, before: bytes, packed: bytes, deadline: float) -> asyncio.Future[Any]:
        """Send a command right behind another one, if there is one, whose reply is of no interest."""
        if before:
            self.ask(before, deadline).add_done_callback(_forget)
        return self.ask(packed, deadline)

    def _send(self) -> None:
        if self._unsent and self._transport is not None and self.is_open:
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
        """Begin."""
        self._transport, self.is_open = cast("asyncio.Transport", transport), True  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        """Give replies to whoever waits."""
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
        """Fail who waits."""
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


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def connect(endpoint: Endpoint, login: Login, tls: ssl.SSLContext | None, timeout_s: float) -> Replies:
    """Return a connection that is logged in.

    Raises:
        redis.exceptions.RedisError: It cannot be reached, is too slow, or refuses the credentials or the database.
    """
    loop = asyncio.get_running_loop()
    protocol = Replies(timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            if endpoint.path:
                await loop.create_unix_connection(lambda: protocol, endpoint.path)
            else:
                await loop.create_connection(lambda: protocol, endpoint.host, endpoint.port, ssl=tls)
            for command in login.commands:
                await protocol.ask(pack(command), loop.time() + timeout_s)
    except BaseException as error:
        await protocol.close()
        if isinstance(error, TimeoutError):
            raise redis.exceptions.TimeoutError("no connection in time") from error
        if isinstance(error, OSError):
            raise redis.exceptions.ConnectionError(tls_hint(error)) from error
        if isinstance(error, redis.exceptions.ResponseError):
            raise redis.exceptions.AuthenticationError(str(error)) from error
        raise
    return protocol


def dialer(address: Address) -> Callable[[float], Awaitable[Replies]]:
    """Return what makes a connection to the server of an address: one server's, or the master's that Sentinels name."""

    async def to_server(timeout_s: float) -> Replies:
        return await connect(address.hosts[0], address.login, address.tls, timeout_s)

    async def to_master(timeout_s: float) -> Replies:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        endpoint = await _master(address, deadline)
        protocol = await connect(endpoint, address.login, address.tls, max(deadline - loop.time(), 0.0))
        try:
            check_master(await protocol.ask(pack(HELLO), deadline))
        except BaseException:
            await protocol.close()
            raise
        return protocol

    return to_master if address.kind == "sentinel" else to_server


async def _master(address: Address, deadline: float) -> Endpoint:
    """Return where the first Sentinel that knows says that the master is; one that hangs leaves time for the others."""
    loop = asyncio.get_running_loop()
    question = pack((b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", address.master.encode()))
    failure: redis.exceptions.RedisError | None = None
    for number, sentinel in enumerate(address.hosts):
        share = max(deadline - loop.time(), 0.0) / (len(address.hosts) - number + 1)
        try:
            protocol = await connect(sentinel, address.sentinel_login, address.tls, share)
            try:
                return read_master(await protocol.ask(question, loop.time() + share), sentinel)
            finally:
                await protocol.close()
        except redis.exceptions.RedisError as error:
            failure = error
    raise no_master(address, failure)
