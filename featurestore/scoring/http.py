"""The scorer over HTTP: Open Inference Protocol V2 and a plain ``POST /score/{model}``, as one ASGI application.

::

    POST /v2/models/{name}[/versions/{v}]/infer ─┐ raw ASGI: read, decode, check, batch, answer
    POST /score/{name}, /lookup/{service} ───────┘
    GET  /v2, /v2/health/*, /v2/models/*, /metrics, /openapi.json ── Starlette routes

Rules:
    1. A body is read up to a limit and a deadline, must be application/json, and is decoded strictly (scoring/wire.py).
    2. Whatever fails is answered by scoring/problems.py; a lookup that failed is a 503, never a score of nulls.
    3. Every answer carries the request's id, taken from ``x-request-id`` if it is a plain word, else made up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from featurestore.errors import DefinitionError, FeatureStoreError, ModelInputError
from featurestore.scoring import metrics as prometheus
from featurestore.scoring.asgi import read_body, request_id_of, require_json, send_answer
from featurestore.scoring.batching import Batcher
from featurestore.scoring.lookup import content_type, prepare
from featurestore.scoring.openapi import document
from featurestore.scoring.plain import score_rows, shown
from featurestore.scoring.problems import (
    JSON,
    PROBLEM_JSON,
    Refusal,
    internal_error,
    overloaded,
    refusal_of,
    unknown_model,
)
from featurestore.scoring.protocol import check_row_count, model_metadata, read_rows, write_response
from featurestore.scoring.wire import decode_infer, decode_score
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from featurestore.scoring.asgi import Headers
    from featurestore.scoring.auth import ApiKeys
    from featurestore.scoring.inputs import CheckedRow, ScoreRequest
    from featurestore.scoring.served import ModelSet, ServedModel
    from featurestore.timeline import Instant

    Handler = Callable[[Request], Awaitable[Response]]

_LOG = logging.getLogger("featurestore.scoring")
_HEALTH = ("/v2/health/live", "/v2/health/ready")
# A replay's clock: the years 1 to 9999.
_NOW_RANGE = range(-62_135_596_800_000_000, 253_402_300_800_000_000)


@dataclass(frozen=True, kw_only=True)
class ScorerLimits:
    """What one request may cost, and how many may be in flight."""

    body_bytes: int = 1024 * 1024
    rows: int = 1000
    body_seconds: float = 10.0
    """How long a body may take to arrive."""
    in_flight: int = 1024
    """Scoring requests beyond this are answered 429 at once."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One scoring request: what its path says, its id and when it came."""

    route: str
    name: str
    version: str | None
    request_id: str
    started: float


class ScoringApp:
    """The ASGI application.

    Args:
        models: What is served.
        allow_now: Let a request set the time of its lookup: for replays, whose clock is not the wall's.
        keys: Who may call; None lets everyone, and belongs on loopback only.
        limits: Bounds of a request.
        on_close: Called when the application ends, after the last request.
    """

    def __init__(
        self,
        models: ModelSet,
        *,
        allow_now: bool = False,
        keys: ApiKeys | None = None,
        limits: ScorerLimits | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.limits = limits or ScorerLimits()
        self.metrics = prometheus.ScorerMetrics()
        self.metrics.show_models(one.manifest for one in models)
        self._models = models
        self._allow_now = allow_now
        self._keys = keys
        self._on_close = on_close
        self._batcher = Batcher(observe=self.metrics.observe_batch)
        self._in_flight = 0
        self._probe: asyncio.Task[dict[tuple[str, int], bool]] | None = None
        self._encode = msgspec.json.Encoder().encode
        self._routes = self._build_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        path = scope["path"]
        if self._keys is not None and path not in _HEALTH and not self._keys.admits(scope["headers"]):
            refusal = Refusal(401, "unauthorized", "A valid API key is needed.", ((b"www-authenticate", b"Bearer"),))
            await self._refuse(send, refusal, request_id, "unauthorized", protocol=path.startswith("/v2"))
            return
        if scope["method"] == "POST":
            call: _Call | None = None
            match path.split("/"):
                case ["", "v2", "models", name, "infer"]:
                    call = _Call("infer", name, None, request_id, started)
                case ["", "v2", "models", name, "versions", version, "infer"]:
                    call = _Call("infer", name, version, request_id, started)
                case ["", "score", name]:
                    call = _Call("score", name, None, request_id, started)
                case ["", "lookup", name]:
                    call = _Call("lookup", name, None, request_id, started)
            if call is not None:
                await self._hot(call, scope["headers"], receive, send)
                return
        scope["request_id"] = request_id
        await self._routes(scope, receive, send)

    # The hot path ---------------------------------------------------------------------------------------------------

    async def _hot(self, call: _Call, headers: Headers, receive: Receive, send: Send) -> None:
        """Answer one scoring request, whatever happens."""
        protocol = call.route == "infer"
        if self._in_flight >= self.limits.in_flight:
            await self._refuse(send, overloaded(self.limits.in_flight), call.request_id, call.route, protocol=protocol)
            return
        self._in_flight += 1
        try:
            answer = await self._answer_or_refusal(call, headers, receive)
            if isinstance(answer, Refusal):
                await self._refuse(send, answer, call.request_id, call.route, protocol=protocol)
            elif answer is not None:  # else the caller has gone
                self.metrics.count_request(call.route, 200)
                kind = content_type(headers) if call.route == "lookup" else JSON
                await send_answer(send, 200, answer, content_type=kind, request_id=call.request_id)
        finally:
            self._in_flight -= 1
            self.metrics.observe_request(call.route, time.perf_counter() - call.started)

    async def _answer_or_refusal(self, call: _Call, headers: Headers, receive: Receive) -> bytes | Refusal | None:
        """Return the body of the answer, why there is none, or None if nobody waits for it."""
        try:
            answer = await self._answer(call, headers, receive)
            return answer if answer is None or isinstance(answer, bytes) else self._encode(answer)
        except Refusal as refusal:
            return refusal
        except FeatureStoreError as error:
            refused = refusal_of(error)
            if refused.status >= 500:
                _LOG.warning("request %s: %s: %s", call.request_id, type(error).__name__, _one_line(str(error)))
            return refused
        except Exception:  # noqa: BLE001 - the boundary: a bug of ours is logged, and answered without its insides
            _LOG.exception("request %s failed", call.request_id)
            return internal_error()

    async def _answer(self, call: _Call, headers: Headers, receive: Receive) -> dict[str, Any] | bytes | None:
        served = None if call.route == "lookup" else self._models.find(call.name, call.version)
        if served is None and call.route != "lookup":
            raise unknown_model(call.name, call.version)
        require_json(headers)
        body = await read_body(headers, receive, self.limits.body_bytes, self.limits.body_seconds)
        if body is None:
            return None
        if served is None:
            return await self._batcher.on_worker(
                prepare(
                    self._models.client,
                    call.name,
                    body,
                    max_rows=self.limits.rows,
                    to_now=self._now,
                    wanted=content_type(headers),
                )
            )
        return await (self._infer(served, body) if call.route == "infer" else self._score(served, body))

    async def _infer(self, served: ServedModel, body: bytes) -> dict[str, Any]:
        request = decode_infer(body)
        parameters = request.parameters or {}
        unknown = [name for name in parameters if name != "now"]
        if unknown:
            raise ModelInputError(f"parameter {unknown[0][:80]!r} is unknown.", hint="the only one is 'now'.")
        now = self._now(parameters.get("now"))
        rows = read_rows(request, served.manifest, max_rows=self.limits.rows)
        predictions = await self._batcher.score(served, _check(served, rows), now)
        return write_response(predictions, served.manifest, request.id or None)

    async def _score(self, served: ServedModel, body: bytes) -> dict[str, Any]:
        request = decode_score(body)
        rows = score_rows(request)
        check_row_count(len(rows), self.limits.rows)
        explain = request.explain is True
        now = self._now(None if request.now is UNSET else request.now)
        predictions = await self._batcher.score(served, _check(served, rows), now, explain=explain)
        answer: dict[str, Any] = {"model": served.manifest.name, "version": served.manifest.version}
        if isinstance(request.keys, dict):
            return answer | shown(predictions[0], explain=explain)
        return answer | {"predictions": [shown(one, explain=explain) for one in predictions]}

    def _now(self, value: Any) -> Instant | None:
        """Return the time a replay asks for."""
        if value is None:
            return None
        if not self._allow_now:
            raise ModelInputError("'now' is not allowed here.", hint="start the scorer with allow_now for replays.")
        try:
            now = to_instant(value, name="now")
        except DefinitionError as error:
            raise ModelInputError(error.message, hint=error.hint) from None
        if now not in _NOW_RANGE:
            raise ModelInputError(f"now {now} is outside the years 1 to 9999.", hint="send microseconds since 1970.")
        return now

    async def _refuse(self, send: Send, refusal: Refusal, request_id: str, route: str, *, protocol: bool) -> None:
        content_type = JSON if protocol else PROBLEM_JSON
        body = refusal.body(request_id, protocol=protocol)
        self.metrics.count_request(route, refusal.status)
        await send_answer(
            send, refusal.status, body, content_type=content_type, request_id=request_id, headers=refusal.headers
        )

    # The other routes -----------------------------------------------------------------------------------------------

    def _build_routes(self) -> Starlette:
        table: list[tuple[str, str, Handler]] = [
            ("/v2", "server", self._server),
            ("/v2/", "server", self._server),
            ("/v2/health/live", "live", self._live),
            ("/v2/health/ready", "ready", self._ready),
            ("/v2/models/{name}", "model", self._model),
            ("/v2/models/{name}/versions/{version}", "model", self._model),
            ("/v2/models/{name}/ready", "model_ready", self._model_ready),
            ("/v2/models/{name}/versions/{version}/ready", "model_ready", self._model_ready),
            ("/metrics", "metrics", self._metrics),
            ("/openapi.json", "openapi", self._openapi),
        ]
        routes = [Route(path, self._answering(label, handler), methods=["GET"]) for path, label, handler in table]
        hot = (
            "/v2/models/{name}/infer",
            "/v2/models/{name}/versions/{version}/infer",
            "/score/{name}",
            "/lookup/{name}",
        )
        routes += [Route(path, self._hot_by_routing, methods=["POST"]) for path in hot]  # for the 405 of other methods
        app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._http_error})
        app.router.redirect_slashes = False
        return app

    def _answering(self, label: str, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except Refusal as refusal:
                response = self._refusal(refusal, request)
            response.headers["x-request-id"] = request.scope["request_id"]
            self.metrics.count_request(label, response.status_code)
            return response

        return answer

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._batcher.close()
            if self._on_close is not None:
                self._on_close()

    async def _hot_by_routing(self, _request: Request) -> Response:
        raise HTTPException(404)

    async def _server(self, _request: Request) -> Response:
        return _json({"name": "featurestore", "version": _version(), "extensions": ["parameters"]})

    async def _live(self, _request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _request: Request) -> Response:
        ready = all((await self._readiness()).values())
        self.metrics.show_ready(ready)
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: Request) -> Response:
        served = self._served(request)
        return _json(model_metadata(served.manifest, self._models.versions(served.manifest.name)))

    async def _model_ready(self, request: Request) -> Response:
        manifest = self._served(request).manifest
        ready = (await self._readiness())[manifest.name, manifest.version]
        return _json({"name": manifest.name, "ready": ready}, 200 if ready else 503)

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.metrics.render(), media_type=prometheus.CONTENT_TYPE)

    async def _openapi(self, _request: Request) -> Response:
        return _json(document(_version()))

    def _served(self, request: Request) -> ServedModel:
        name, version = request.path_params["name"], request.path_params.get("version")
        served = self._models.find(name, version)
        if served is None:
            raise unknown_model(name, version)
        return served

    async def _readiness(self) -> dict[tuple[str, int], bool]:
        """Ask the store, once for all who ask at the same time."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._batcher.on_worker(self._models.readiness))
        return await asyncio.shield(self._probe)

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        kind, detail = {
            404: ("unknown-route", "There is nothing at this path."),
            405: ("wrong-method", "This path takes another method."),
        }.get(status, ("refused", "The request is refused."))
        response = self._refusal(Refusal(status, kind, detail), request)
        for name, value in (getattr(error, "headers", None) or {}).items():
            response.headers[name] = value
        response.headers["x-request-id"] = request.scope["request_id"]
        self.metrics.count_request("other", status)
        return response

    def _refusal(self, refusal: Refusal, request: Request) -> Response:
        protocol = request.scope["path"].startswith("/v2")
        body = refusal.body(request.scope["request_id"], protocol=protocol)
        return Response(body, refusal.status, media_type=(JSON if protocol else PROBLEM_JSON).decode())


def _check(served: ServedModel, rows: list[ScoreRequest]) -> list[CheckedRow]:
    check = served.inputs.check
    if len(rows) == 1:
        return [check(rows[0])]
    return [check(row, at=f"row {index}: ") for index, row in enumerate(rows)]


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _version() -> str:
    try:
        return metadata.version("featurestore")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0"


def _one_line(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:500]
