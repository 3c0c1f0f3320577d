"""``serve``: load the models, listen, print one line when ready, and end only after the last request is answered."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError
from featurestore.scoring.auth import Gate, KeyFile, require_safe_bind
from featurestore.scoring.follow import Follower
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.log_queue import PredictionLog
from featurestore.scoring.routing import Challenge, ShadowRunner
from featurestore.scoring.served import Company, ModelSet, load_models
from featurestore.scoring.tokens import Tokens

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from featurestore.scoring.http import ScoringApp
    from featurestore.scoring.listener import TlsFiles
    from featurestore.scoring.log_queue import Sink
    from featurestore.scoring.scorer import FeatureReader
    from featurestore.scoring.tokens import TokenSettings

_YOUNG = 20_000
"""New objects after which the collector looks for cycles. Requests leave none: at Python's 700 it looks in vain every dozen."""


def build_app(
    models_root: str | Path,
    client_factory: Callable[[], FeatureReader],
    *,
    allow_now: bool = False,
    models: Sequence[str] | None = None,
    gate: Gate | None = None,
    limits: ScorerLimits | None = None,
    follow_s: float | None = None,
    challenger: str = "off",
    sink_factory: Callable[[], Sink] | None = None,
) -> ScoringApp:
    """Return the ASGI application; see :func:`serve` for the arguments."""
    _require_extra()
    from featurestore.scoring.http import ScoringApp
    from featurestore.scoring.metrics import ScorerMetrics

    challenge = Challenge.parse(challenger)
    loaded = load_models(models_root, models)
    client = client_factory()
    metrics = ScorerMetrics()
    log = None if sink_factory is None else PredictionLog(sink_factory(), count=metrics.count_logged)
    watchers = () if log is None else (log.watch,)
    shadows = None
    if challenge is not None and challenge.share == 0.0:
        shadows = ShadowRunner(watchers, count=metrics.count_challenged)
    company = Company(challenge, shadows, watchers, lambda _label: metrics.count_challenged("refused", 1))
    served = ModelSet(loaded, client, company=company)
    served.bind()

    def changed(name: str, outcome: str) -> None:
        metrics.count_change(name, outcome)
        metrics.show_models(one.manifest for one in served)

    def close() -> None:
        for one in (shadows, log, client):
            end = getattr(one, "close", None)
            if end is not None:
                end()

    followed = [one.manifest.name for one in loaded if not _is_pinned(one.manifest.name, models)]
    follower = Follower(models_root, served, followed, swapped=changed)
    background = None if follow_s is None else partial(follower.run, every_s=follow_s)
    return ScoringApp(
        served, allow_now=allow_now, gate=gate, limits=limits, metrics=metrics, on_close=close, background=background
    )


def _is_pinned(name: str, models: Sequence[str] | None) -> bool:
    """Return whether a model is asked for by version only."""
    return models is not None and name not in models


def build_gate(api_key_file: str | Path | None, tokens: TokenSettings | None) -> Gate | None:
    """Return who is let in; None where neither is given.

    Raises:
        ConfigError: A file cannot be read.
    """
    if api_key_file is None and tokens is None:
        return None
    keys = None if api_key_file is None else KeyFile(api_key_file)
    return Gate(keys, None if tokens is None else Tokens(tokens))


def serve(
    models_root: str | Path,
    client_factory: Callable[[], FeatureReader],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    admin_host: str = "127.0.0.1",
    admin_port: int | None = None,
    workers: int = 1,
    allow_now: bool = False,
    models: Sequence[str] | None = None,
    api_key_file: str | Path | None = None,
    tokens: TokenSettings | None = None,
    tls: TlsFiles | None = None,
    limits: ScorerLimits | None = None,
    follow_s: float | None = 2.0,
    challenger: str = "off",
    sink_factory: Callable[[], Sink] | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT, then finish the requests in flight and return.

    Prints ``listening on http://HOST:PORT`` to standard output once requests are answered, and ``metrics at URL`` where there
    is an admin listener. A store that is away does not keep it from starting: it answers 503 and is not ready until the store
    is back.

    Args:
        models_root: Where :func:`~featurestore.scoring.manifest.save_model` stored them.
        client_factory: Makes the lookup client, in each process; its ``close``, if it has one, is called at the end.
        host: The address to bind. Other than loopback it needs ``api_key_file`` or ``tokens``.
        port: 0 takes a free one.
        admin_host: Likewise, for the routes of operators.
        admin_port: None has no such listener, and no metrics to read.
        workers: Processes that serve; more than 1 on Linux only, and ``serve`` has to be called before there are other threads.
        allow_now: Let a request set the time of its lookup: for replays.
        models: ``"name"`` for its champion, or the newest version where no registry named one; ``"name:3"`` for that version
            for good; None for every name.
        api_key_file: Lines of ``id:sha256 [scope ...]``; with it, every route but health needs a key or a token.
        tokens: JSON Web Tokens that are let in.
        tls: Files of the listener; it speaks plain HTTP without. The admin listener has the same.
        limits: Bounds of a request.
        follow_s: Seconds between two looks at the aliases in ``models_root``; None serves the same versions for good.
        challenger: What the version called challenger does: ``off``, ``shadow``, or a share of the keys like ``5%``.
        sink_factory: Makes the sink of the prediction log, in each process; None logs nothing.

    Raises:
        ConfigError: An address cannot be bound, or would be open to other machines without a credential; a file cannot be
            used; or the ``serve`` extra is not installed.
        ModelError: A model is refused, or was trained on another definition than the store serves.
        UnknownNameError: A model's feature service is not applied.
    """
    _require_extra()
    from featurestore.scoring.listener import listening, url_of

    gate = build_gate(api_key_file, tokens)
    require_safe_bind(host, gate)
    if admin_port is not None:
        require_safe_bind(admin_host, gate)
    if tls is not None:
        tls.check()
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least 1 is needed.")
    with ExitStack() as stack:
        listener = stack.enter_context(listening(host, port))
        said = [f"listening on {url_of(listener, host, tls=tls is not None)}"]
        admin = None
        if admin_port is not None:
            admin = stack.enter_context(listening(admin_host, admin_port))
            said.append(f"metrics at {url_of(admin, admin_host, tls=tls is not None)}/metrics")
        build = partial(
            build_app, models_root, client_factory, allow_now=allow_now, models=models, gate=gate, limits=limits,
            follow_s=follow_s, challenger=challenger, sink_factory=sink_factory,
        )  # fmt: skip
        process = _Process(build, listener, admin, gate, tls, limits or ScorerLimits())

        def announce() -> None:
            print("\n".join(said), flush=True)  # noqa: T201 - what whoever started it waits for

        if workers == 1:
            with _returning_on_signals():
                process.run_alone(announce)
        else:
            process.run_many(workers, announce)


class _Process:
    """What the processes of one ``serve`` do, with sockets that are bound already."""

    def __init__(
        self,
        build: Callable[[], ScoringApp],
        listener: socket.socket,
        admin: socket.socket | None,
        gate: Gate | None,
        tls: TlsFiles | None,
        limits: ScorerLimits,
    ) -> None:
        self._build = build
        self._listener = listener
        self._admin = admin
        self._gate = gate
        self._tls = tls
        self._limits = limits

    def run_alone(self, started: Callable[[], None]) -> None:
        """Serve both listeners from this process."""
        app = self._build_for_good()
        server = _server(self._config(app), self._limits, started)
        if self._admin is not None:
            server.beside(self._admin_server(app.metrics.render), self._admin)
        server.run(sockets=[self._listener])

    def run_many(self, workers: int, started: Callable[[], None]) -> None:
        """Serve from several processes; the metrics of all from one more."""
        from featurestore.scoring.workers import Task, run_all, shared_metrics

        tasks = [Task(f"worker {number}", self._run_worker) for number in range(1, workers + 1)]
        with tempfile.TemporaryDirectory(prefix="featurestore-metrics-") as made:
            folder = Path(made)
            if self._admin is not None:
                tasks.append(Task("admin", partial(self._run_admin, folder)))
            with shared_metrics(folder):
                run_all(tasks, folder=folder, started=started)

    def _run_worker(self, started: Callable[[], None], alive: int) -> None:
        _server(self._config(self._build_for_good()), self._limits, started, alive).run(sockets=[self._listener])

    def _build_for_good(self) -> ScoringApp:
        app = self._build()
        gc.freeze()  # models and modules live as long as the process: a collection need not walk them again and again
        gc.set_threshold(_YOUNG)
        return app

    def _run_admin(self, folder: Path, started: Callable[[], None], alive: int) -> None:
        from featurestore.scoring.metrics import render_all

        assert self._admin is not None  # noqa: S101 - or there is no such task
        config = self._admin_config(partial(render_all, folder))
        _server(config, self._limits, started, alive).run(sockets=[self._admin])

    def _config(self, app: Any, **options: Any) -> Any:
        from featurestore.scoring.listener import uvicorn_config

        return uvicorn_config(app, limits=self._limits, tls=self._tls, **options)

    def _admin_config(self, render: Callable[[], bytes]) -> Any:
        from featurestore.scoring.admin import AdminApp

        return self._config(AdminApp(render, gate=self._gate), lifespan="off")

    def _admin_server(self, render: Callable[[], bytes]) -> Any:
        return _server(self._admin_config(render), self._limits, lambda: None)


def _server(config: Any, limits: ScorerLimits, started: Callable[[], None], alive: int | None = None) -> Any:
    """Return a server that calls ``started`` once it answers, and ends when ``alive`` is readable.

    With ``beside`` it runs another one on the same event loop, which is up before ``started`` and ends after the last request.
    """
    import uvicorn

    class Server(uvicorn.Server):
        other: Server | None = None
        _other_socket: socket.socket
        _other_task: asyncio.Task[None]

        def beside(self, other: Server, its_socket: socket.socket) -> None:
            self.other, self._other_socket = other, its_socket

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await self._listen(sockets or ())
            if alive is not None:
                asyncio.get_running_loop().add_reader(alive, self._parent_vanished)
            if self.other is not None:
                await self.other.lifespan_free_start([self._other_socket])
                self._other_task = asyncio.create_task(self.other.main_loop())
            started()

        async def _listen(self, sockets: Sequence[socket.socket]) -> None:
            """Start the application, then accept; uvicorn's own way gives a handshake a minute."""
            await self.lifespan.startup()
            if self.lifespan.should_exit:
                raise SystemExit(3)  # uvicorn's code for it; the log has the reason

            def protocol() -> asyncio.Protocol:
                made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state
                )
                return made

            loop, tls = asyncio.get_running_loop(), self.config.ssl
            seconds = None if tls is None else limits.handshake_seconds
            self.servers = [
                await loop.create_server(
                    protocol, sock=each, ssl=tls, ssl_handshake_timeout=seconds, backlog=self.config.backlog
                )
                for each in sockets
            ]
            self.started = True

        async def lifespan_free_start(self, sockets: list[socket.socket]) -> None:
            self.config.load()
            self.lifespan = self.config.lifespan_class(self.config)
            await self.startup(sockets)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            if self.other is not None:
                self.other.should_exit = True
                await self._other_task
                await self.other.shutdown([self._other_socket])

        def _parent_vanished(self) -> None:
            asyncio.get_running_loop().remove_reader(alive)  # type: ignore[arg-type]
            self.should_exit = True

    return Server(config)


def _require_extra() -> None:
    for package in ("prometheus_client", "starlette", "httptools", "uvicorn"):
        if importlib.util.find_spec(package) is None:  # not imported yet: that is left to each process
            raise ConfigError(
                f"the scoring service needs {package}, which is not installed.",
                hint="pip install 'featurestore[serve]'.",
            )


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
