"""The scorer's routes that need no speed: health and metadata of the Open Inference Protocol, OpenAPI, the page of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from featurestore.scoring.openapi import document
from featurestore.scoring.page import page
from featurestore.scoring.problems import JSON, PROBLEM_JSON, Refusal, unknown_model, unknown_route, wrong_method
from featurestore.scoring.protocol import model_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from featurestore.scoring.batching import Batcher
    from featurestore.scoring.metrics import ScorerMetrics
    from featurestore.scoring.served import ModelSet, ServedModel

    Handler = Callable[[Request], Awaitable[Response]]
    Background = Callable[[Callable[[Callable[[], Any]], Awaitable[Any]]], Coroutine[Any, Any, None]]

HEALTH = frozenset({"/v2/health/live", "/v2/health/ready"})
"""What answers without a credential."""

_LOOK_SECONDS = 5.0
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ColdRoutes:
    """The ASGI application of these routes, and of the lifespan.

    Args:
        models: What is served.
        metrics: Counts the answers.
        batcher: Has the worker thread, on which the store is asked whether it is there.
        has_gate: Whether callers need a credential, for the description.
        on_close: Called at the end, after the last request.
        background: Runs beside the requests; it is cancelled before ``on_close``.
    """

    def __init__(
        self,
        models: ModelSet,
        metrics: ScorerMetrics,
        batcher: Batcher,
        *,
        has_gate: bool,
        on_close: Callable[[], Awaitable[None]],
        background: Background | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._batcher = batcher
        self._has_gate = has_gate
        self._on_close = on_close
        self._background = background
        self._probe: asyncio.Task[dict[tuple[str, int], bool]] | None = None
        self._app = self._build()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection; an HTTP scope has its ``request_id``."""
        await self._app(scope, receive, send)

    def _build(self) -> Starlette:
        table: list[tuple[str, str, Handler]] = [
            ("/v2", "server", self._server),
            ("/v2/", "server", self._server),
            ("/v2/health/live", "live", self._live),
            ("/v2/health/ready", "ready", self._ready),
            ("/v2/models/{name}", "model", self._model),
            ("/v2/models/{name}/versions/{version}", "model", self._model),
            ("/v2/models/{name}/ready", "model_ready", self._model_ready),
            ("/v2/models/{name}/versions/{version}/ready", "model_ready", self._model_ready),
            ("/openapi.json", "openapi", self._openapi),
            ("/docs", "docs", self._docs),
        ]
        routes = [Route(path, self._answering(label, handler), methods=["GET"]) for path, label, handler in table]
        hot = (
            "/v2/models/{name}/infer",
            "/v2/models/{name}/versions/{version}/infer",
            "/score/{name}",
            "/lookup/{name}",
        )
        routes += [Route(path, _unreachable, methods=["POST"]) for path in hot]  # for the 405 of other methods
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._http_error})
        app.router.redirect_slashes = False
        return app

    def _answering(self, label: str, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except Refusal as refusal:
                response = _refused(refusal, request)
            response.headers["x-request-id"] = request.scope["request_id"]
            self._metrics.count_request(label, response.status_code)
            return response

        return answer

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._show_readiness())]
        if self._background:
            tasks.append(asyncio.create_task(self._background(self._batcher.on_worker)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._on_close()

    async def _show_readiness(self) -> None:
        """Keep the metric of readiness true, whether anybody asks for it or not."""
        while True:
            await self._is_ready()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _is_ready(self) -> bool:
        found = await self._readiness()
        ready = bool(found) and all(found.values())
        self._metrics.show_ready(ready)
        return ready

    async def _server(self, _request: Request) -> Response:
        return _json({"name": "featurestore", "version": version(), "extensions": []})

    async def _live(self, _request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _request: Request) -> Response:
        ready = await self._is_ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: Request) -> Response:
        served = self._served(request)
        return _json(model_metadata(served.manifest, self._models.versions(served.manifest.name)))

    async def _model_ready(self, request: Request) -> Response:
        manifest = self._served(request).manifest
        ready = (await self._readiness()).get((manifest.name, manifest.version), False)
        return _json({"name": manifest.name, "ready": ready}, 200 if ready else 503)

    async def _openapi(self, _request: Request) -> Response:
        return _json(self._document())

    async def _docs(self, _request: Request) -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "x-content-type-options": "nosniff"}
        return Response(page(self._document()), media_type="text/html", headers=headers)

    def _document(self) -> dict[str, Any]:
        return document(version(), [one.manifest for one in self._models], has_gate=self._has_gate)

    def _served(self, request: Request) -> ServedModel:
        name, wanted = request.path_params["name"], request.path_params.get("version")
        served = self._models.find(name, wanted)
        if served is None:
            raise unknown_model(name, wanted)
        return served

    async def _readiness(self) -> dict[tuple[str, int], bool]:
        """Ask the store, once for all who ask at the same time."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
        return await asyncio.shield(self._probe)

    async def _ask(self) -> dict[tuple[str, int], bool]:
        return await self._batcher.on_worker(self._models.readiness)

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        refusal = wrong_method() if status == 405 else unknown_route()
        response = _refused(refusal, request)
        for name, value in (getattr(error, "headers", None) or {}).items():
            response.headers[name] = value
        response.headers["x-request-id"] = request.scope["request_id"]
        self._metrics.count_request("other", refusal.status)
        return response


async def _unreachable(_request: Request) -> Response:
    raise HTTPException(404)


def _refused(refusal: Refusal, request: Request) -> Response:
    protocol = request.scope["path"].startswith("/v2")
    body = refusal.body(request.scope["request_id"], protocol=protocol)
    return Response(body, refusal.status, media_type=(JSON if protocol else PROBLEM_JSON).decode())


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def version() -> str:
    """Return the package's version."""
    try:
        return metadata.version("featurestore")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0"
