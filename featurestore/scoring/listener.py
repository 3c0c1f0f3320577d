"""Listening: sockets, TLS, and an HTTP protocol that bounds what comes before a request has a handler.

A handler is only called once the request's head is whole, so its size and its time are bounded here, and so is the number of
connections.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from featurestore.errors import ConfigError
from featurestore.scoring.asgi import WHOLE
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.problems import PROBLEM_JSON, Refusal
from featurestore.scoring.read_again import ReadAgain

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from featurestore.scoring.direct import DirectScoring, Exchange, Head

DRAIN_SECONDS = 30
"""How long requests in flight may take to end after SIGTERM."""
_KEPT_HEADS = 16
"""Heads that a connection remembers; callers send the same again and again, but for the length of the body."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of a listener that speaks TLS.

    Attributes:
        certificate: Its chain.
        key: Its private key.
        client_ca: With it, callers need a certificate that one of these authorities signed.
    """

    certificate: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def check(self) -> None:
        """Raise ConfigError unless the files can be used."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"TLS files {self.certificate}, {self.key}: they cannot be used ({type(error).__name__}).",
                hint="give a PEM chain and its unencrypted PEM key, both readable.",
            ) from None

    def options(self) -> dict[str, Any]:
        """Return them as uvicorn takes them. A handshake gets the files of a second ago at the latest."""
        asked = (
            {} if self.client_ca is None else {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        )
        return {
            "ssl_certfile": str(self.certificate),
            "ssl_keyfile": str(self.key),
            "ssl_context_factory": self._following,
            **asked,
        }

    def _following(self, _config: uvicorn.Config, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """Return a context whose handshakes go on with one of the files as they are by then."""

        def read() -> ssl.SSLContext:
            self.check()
            return make()

        files = ReadAgain([each for each in (self.certificate, self.key, self.client_ca) if each is not None], read)

        def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = files.now()

        first = files.now()
        first.sni_callback = choose
        return first


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a head of bounded size, and head and body that have to arrive in bounded time."""

    limits = ScorerLimits()
    turn_away: Callable[[bytes], bytes | None] = staticmethod(lambda _path: None)
    """Given a request's path, the whole answer that refuses it, or None: so that refusing costs next to nothing."""
    direct: DirectScoring | None = None
    """Answers plain requests without ASGI."""
    _turned_away: bytes | None = None
    _exchange: Exchange | None = None
    _taken: Head | None = None
    """What the head says of the request that was taken last."""
    _head_bytes = 0
    _in_head = True
    _is_arriving = False
    _timer: asyncio.TimerHandle | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    """Looks whether the caller has been silent for too long; one that is stopped and started for each request costs more."""
    _heard = 0.0
    """When a part of a request, or the end of an answer, was last."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the first request is due."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._heads: dict[bytes, Head] = {}
        if len(self.connections) > self.limits.connections:
            self._refuse(
                Refusal(503, "too-many-connections", "Too many connections are open.", ((b"retry-after", b"1"),))
            )
            return
        self._timer = self.loop.call_later(self.limits.body_seconds, self._is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse on, unless the head has become too large."""
        begins = self._in_head and not self._head_bytes
        if begins and self._heads and self._goes_like_another(data):
            return
        self._is_arriving = True
        self._heard = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        if self.transport.is_closing():
            return
        self._taken = None
        super().data_received(data)
        if not self._is_arriving:  # as mostly: the request came whole
            if begins and self._taken is not None:
                self._keep_head(data, self._taken)
            return
        if self._in_head and self._head_bytes > self.limits.header_bytes:
            self._refuse(self._too_large())
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.limits.body_seconds, self._is_late)

    def _goes_like_another(self, data: bytes) -> bool:
        """Take a whole request whose head has the very bytes of an earlier one of this connection: it says the same."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._heads.get(data[:end])
        if (
            head is None
            or len(data) - end != head.length
            or not self._is_free()
            or self.flow.write_paused
            or self.transport.is_closing()
        ):
            return False
        exchange = self._take(head)
        if exchange is None:
            return False
        self._unset_keepalive_if_required()
        self._stop_timer()
        self._heard = self.loop.time()
        exchange.add(data[end:])
        exchange.begin()
        return True

    def _keep_head(self, data: bytes, head: Head) -> None:
        """Remember what the head of a request said, where that request is all of ``data``."""
        end = data.find(b"\r\n\r\n") + 4
        if len(data) - end != head.length or head.request_id is not None:
            return
        if len(self._heads) == _KEPT_HEADS:
            self._heads.clear()
        self._heads[data[:end]] = head

    def on_message_begin(self) -> None:
        """Expect a head; what ASGI is told of a request is only made for one that goes that way."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """Start the request, if its head is within bounds."""
        most, seen = self.limits.header_bytes, self._head_bytes
        self._in_head, self._head_bytes = False, 0
        # What came in one piece may hold a body too, or follow another one: then the head is measured by itself.
        if (
            not 0 < seen <= most
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > most
        ):
            self._refuse(self._too_large())
            return
        if self._may_be_turned_away():
            self._turned_away = self.turn_away(self.url)
            if self._turned_away is not None or self._is_taken():
                return
        read = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = read
        self.scope["headers"] = self.headers
        super().on_headers_complete()
        answers: dict[str, Any] = {WHOLE: partial(_write_whole, self.cycle)}
        self.scope["extensions"] = answers  # read when the task begins, which is later

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless its request was refused."""
        if self._exchange is not None:
            self._exchange.add(body)
        elif self._turned_away is None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_head, self._is_arriving = True, False
        self._stop_timer()
        if self._turned_away is not None:
            self.transport.write(self._turned_away)
            self._turned_away = None
            self.on_response_complete()
        elif self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            if not self.transport.is_closing():
                exchange.begin()
        elif not self.transport.is_closing():
            super().on_message_complete()

    def _may_be_turned_away(self) -> bool:
        """Whether an answer may be written at once: none is due before it, and the caller neither waits nor leaves."""
        return self._is_free() and not self.expect_100_continue and bool(self.parser.should_keep_alive())

    def _is_free(self) -> bool:
        """Whether no answer is due."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _is_taken(self) -> bool:
        """Take a plain request out of ASGI's hands; one whose caller does not read its answers is left to it, for it can wait."""
        parser = self.parser
        if (
            self.direct is None
            or self.flow.write_paused
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
        ):
            return False
        head = self.direct.read_head(self.url, self.headers)
        if head is None:
            return False
        self._exchange = self._take(head)
        if self._exchange is None:
            return False
        self._taken = head
        return True

    def _take(self, head: Head) -> Exchange | None:
        """Return what answers a plain request, in the place of uvicorn's cycle; None where ASGI does."""
        assert self.direct is not None  # noqa: S101 - it has read the head
        exchange = self.direct.take(head, self.transport, self._on_exchanged)
        if exchange is not None:
            self.cycle = exchange  # type: ignore[assignment] # it answers what uvicorn asks of one
        return exchange

    def _on_exchanged(self) -> None:
        """Go on after an answer that went without ASGI: as uvicorn does, but for the timer."""
        self._heard = self.loop.time()
        if self.pipeline or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    def _look_idle(self) -> None:
        """Close a connection without a request for too long; look again when that may be."""
        self._idle_timer = None
        is_busy = self._is_arriving or not self.cycle.response_complete
        left = self.timeout_keep_alive - (0.0 if is_busy else self.loop.time() - self._heard)
        if left <= 0:
            self.transport.close()
        elif not self.transport.is_closing():
            self._idle_timer = self.loop.call_later(left, self._look_idle)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as everything is refused."""
        self._refuse(Refusal(400, "invalid-http", "This is no valid HTTP/1.1 request."))

    def _too_large(self) -> Refusal:
        return Refusal(431, "headers-too-large", f"The headers are larger than {self.limits.header_bytes} bytes.")

    def _is_late(self) -> None:
        self._timer = None
        if self._is_arriving:
            self._refuse(Refusal(408, "slow-request", "The request took too long to arrive."))
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer on the connection itself, and close it."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = refusal.body("-", protocol=False)
        head = f"HTTP/1.1 {refusal.status} {refusal.phrase}\r\ncontent-type: {PROBLEM_JSON.decode()}\r\n"
        head += "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in refusal.headers)
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()


def _write_whole(cycle: RequestResponseCycle, answer: bytes) -> bool:
    """Write an answer, head and body, in one piece; return False where it has to go the long way.

    That saves a request two calls through ASGI, the check of headers that are ours, and a system call.
    """
    if not cycle.keep_alive or cycle.flow.write_paused or cycle.response_started or cycle.disconnected:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(answer)
    cycle.message_event.set()
    cycle.on_response()
    return True


def uvicorn_config(
    app: Any, *, limits: ScorerLimits | None = None, tls: TlsFiles | None = None, **options: Any
) -> uvicorn.Config:
    """Return the configuration an application is served with; uvloop where it is installed.

    Args:
        app: The ASGI application; its ``turn_away`` and ``direct``, if it has them, are ``BoundedProtocol``'s.
        limits: Bounds of a request's head.
        tls: For a listener that speaks TLS.
        options: More of uvicorn's, or others.
    """
    own: dict[str, Any] = {"limits": limits or ScorerLimits()}
    if hasattr(app, "turn_away"):
        own["turn_away"] = staticmethod(app.turn_away)
    if hasattr(app, "direct"):
        own["direct"] = app.direct
    protocol = type("Protocol", (BoundedProtocol,), own)
    chosen: dict[str, Any] = {
        "loop": "auto",
        "http": protocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
        "backlog": 2048,
    }
    return uvicorn.Config(app, **(chosen | ({} if tls is None else tls.options()) | options))


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Bind an address and close it at the end; port 0 takes a free one.

    Raises:
        ConfigError: It is none of this machine, or taken.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port {port} is not one of 0 to 65535.", hint="0 takes a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host {host!r} is not an address of this machine ({error.strerror}).") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be bound ({error.strerror}).", hint="choose another port, or 0 for a free one."
            ) from error
        yield listener


def url_of(listener: socket.socket, host: str, *, tls: bool) -> str:
    """Return the URL of a bound socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{shown}:{listener.getsockname()[1]}"
