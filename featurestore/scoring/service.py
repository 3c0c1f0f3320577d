"""``serve``: load the models, listen, print one line when ready, and end only after the last request is answered."""

from __future__ import annotations

import importlib
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError
from featurestore.scoring.auth import ApiKeys, require_safe_bind
from featurestore.scoring.served import ModelSet, load_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from featurestore.scoring.http import ScorerLimits, ScoringApp
    from featurestore.scoring.scorer import FeatureReader

DRAIN_SECONDS = 30
"""How long requests in flight may take to end after SIGTERM."""


def build_app(
    models_root: str | Path,
    client_factory: Callable[[], FeatureReader],
    *,
    allow_now: bool = False,
    models: Sequence[str] | None = None,
    keys: ApiKeys | None = None,
    limits: ScorerLimits | None = None,
) -> ScoringApp:
    """Return the ASGI application; see :func:`serve` for the arguments."""
    _require_extra()
    from featurestore.scoring.http import ScoringApp

    loaded = load_models(models_root, models)
    client = client_factory()
    close = getattr(client, "close", None)
    served = ModelSet(loaded, client)
    served.bind()
    return ScoringApp(served, allow_now=allow_now, keys=keys, limits=limits, on_close=close)


def serve(
    models_root: str | Path,
    client_factory: Callable[[], FeatureReader],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_now: bool = False,
    models: Sequence[str] | None = None,
    api_key_file: str | Path | None = None,
    limits: ScorerLimits | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT, then finish the requests in flight and return.

    Prints ``listening on http://HOST:PORT`` to standard output once requests are answered. A store that is away
    does not keep it from starting: it answers 503 and is not ready until the store is back.

    Args:
        models_root: Where :func:`~featurestore.scoring.manifest.save_model` stored them.
        client_factory: Makes the lookup client; its ``close``, if it has one, is called at the end.
        host: The address to bind. Other than loopback it needs ``api_key_file``.
        port: 0 takes a free one.
        allow_now: Let a request set the time of its lookup: for replays.
        models: ``"name"`` for the newest version, ``"name:3"`` for that one; None for the newest of every name.
        api_key_file: Lines of ``id:sha256``; with it, every route but health needs a key.
        limits: Bounds of a request.

    Raises:
        ConfigError: The address cannot be bound, or would be open to other machines without a key; or the ``serve``
            extra is not installed.
        ModelError: A model is refused, or was trained on another definition than the store serves.
        UnknownNameError: A model's feature service is not applied.
    """
    keys = ApiKeys.from_file(api_key_file) if api_key_file is not None else None
    require_safe_bind(host, keys)
    app = build_app(models_root, client_factory, allow_now=allow_now, models=models, keys=keys, limits=limits)
    import uvicorn

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"listening on {url}", flush=True)  # noqa: T201 - what whoever started it waits for

    with _listening_socket(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        server = AnnouncingServer(uvicorn_config(app))
        with _returning_on_signals():
            server.run(sockets=[listener])


def uvicorn_config(app: ScoringApp, **options: Any) -> Any:
    """Return the configuration the scorer is served with; uvloop and httptools where they are installed."""
    import uvicorn

    chosen: dict[str, Any] = {
        "loop": "auto",
        "http": "auto",
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
    return uvicorn.Config(app, **(chosen | options))


def _require_extra() -> None:
    for package in ("prometheus_client", "starlette", "uvicorn"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f"the scoring service needs {package}, which is not installed.",
                hint="pip install 'featurestore[serve]'.",
            ) from None


@contextmanager
def _listening_socket(host: str, port: int) -> Iterator[socket.socket]:
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


@contextmanager
def _returning_on_signals() -> Iterator[None]:
    """Let ``serve`` return after a drain: the server raises the signal it got once more, and here that is harmless."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
