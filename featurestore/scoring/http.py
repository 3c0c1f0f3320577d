"""The scorer over HTTP: Open Inference Protocol V2 and a plain ``POST /score/{model}``, as one ASGI application.

::

    POST /v2/models/{name}[/versions/{v}]/infer ─┐ here, in raw ASGI: credential, body, decode, check, batch, answer
    POST /score/{name}, /lookup/{service} ───────┘ plain ones without a task: scoring/direct.py
    GET  /v2, /v2/health/*, /v2/models/*, /openapi.json, /docs ── scoring/routes.py
    GET  /metrics ── scoring/admin.py, on a listener of its own

Rules:
    1. A body is read up to a limit and a deadline, must be of a type that the route takes, and is decoded strictly.
    2. Whatever fails is answered by scoring/problems.py; a lookup that failed is a 503, never a score of nulls.
    3. Every answer carries the request's id, and so does the prediction log: ``x-request-id`` if it is a plain word, else the
       ``id`` of an inference request if that is one, else one made up.
    4. With a gate, every path but health needs a credential, known path or not.
    5. What is let in is answered within its deadline; what would wait too long is not let in (scoring/admission.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import UNSET

from featurestore.errors import DefinitionError, FeatureStoreError, ModelInputError, UnknownNameError
from featurestore.scoring import arrow
from featurestore.scoring import metrics as prometheus
from featurestore.scoring.admission import Admission
from featurestore.scoring.asgi import (
    answer_type,
    body_type,
    deadline_of,
    given_id,
    head_of,
    is_plain,
    read_body,
    request_id_of,
    send_answer,
    whole_of,
)
from featurestore.scoring.batching import INLINE_ROWS, Batcher
from featurestore.scoring.direct import DirectScoring
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.lookup import read_lookup, unknown_service, written
from featurestore.scoring.plain import score_rows, shown
from featurestore.scoring.problems import (
    ARROW,
    JSON,
    PROBLEM_JSON,
    Refusal,
    deadline_passed,
    internal_error,
    overloaded,
    refusal_of,
    unknown_model,
)
from featurestore.scoring.protocol import check_row_count, read_rows, write_response
from featurestore.scoring.reads import reads_of
from featurestore.scoring.routes import HEALTH, ColdRoutes
from featurestore.scoring.wire import decode_infer, decode_score
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from featurestore.online.async_client import Outcome
    from featurestore.scoring.asgi import Headers
    from featurestore.scoring.auth import Gate
    from featurestore.scoring.inputs import CheckedRow, ScoreRequest
    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.routes import Background
    from featurestore.scoring.scorer import Prediction, Timings
    from featurestore.scoring.served import ModelSet, ServedModel
    from featurestore.scoring.wire import InferBody
    from featurestore.timeline import Instant

__all__ = ["ScorerLimits", "ScoringApp"]

_LOG = logging.getLogger("featurestore.scoring")
# A replay's clock: the years 1 to 9999.
_NOW_RANGE = range(-62_135_596_800_000_000, 253_402_300_800_000_000)


@dataclass(slots=True)
class _Call:
    """One scoring request: what its path says, its id and when it came."""

    route: str
    name: str
    version: str | None
    request_id: str
    started: float

    def take_id(self, headers: Headers, own: str | None) -> None:
        """Take the id that the body has, where the headers have none."""
        if own and is_plain(own) and given_id(headers) is None:
            self.request_id = own


class _Asked(NamedTuple):
    """A plain request whose rows wait for their predictions."""

    manifest: ModelManifest
    explain: bool
    is_one: bool
    encode: Callable[[Any], bytes]

    def answer(self, predictions: list[Prediction]) -> bytes:
        """Return the body that answers it, as JSON."""
        made: dict[str, Any] = {"model": self.manifest.name, "version": self.manifest.version}
        if self.is_one:
            return self.encode(shown(predictions[0], explain=self.explain, of=made))
        return self.encode(made | {"predictions": [shown(one, explain=self.explain) for one in predictions]})


class ScoringApp:
    """The ASGI application.

    Args:
        models: What is served.
        allow_now: Let a request set the time of its lookup: for replays, whose clock is not the wall's.
        gate: Who may call; None lets everyone, and belongs on loopback only.
        limits: Bounds of a request.
        metrics: Where it counts; new ones when None.
        on_close: Called when the application ends, after the last request.
        background: Runs beside the requests, given what runs a call on the worker thread.
    """

    def __init__(
        self,
        models: ModelSet,
        *,
        allow_now: bool = False,
        gate: Gate | None = None,
        limits: ScorerLimits | None = None,
        metrics: prometheus.ScorerMetrics | None = None,
        on_close: Callable[[], None] | None = None,
        background: Background | None = None,
    ) -> None:
        self.limits = limits or ScorerLimits()
        self.metrics = metrics or prometheus.ScorerMetrics()
        self.metrics.show_models(one.manifest for one in models)
        self._models = models
        self._allow_now = allow_now
        self._gate = gate
        self._on_close = on_close
        self._batcher = Batcher(lambda on_worker: reads_of(models.client, on_worker), observe=self._observe)
        self._admission = Admission(most=self.limits.in_flight, queue_seconds=self.limits.queue_seconds)
        self._services: set[str] = set()
        self._encode = msgspec.json.Encoder().encode
        self.direct = DirectScoring(
            models, self._ask, _refused, admission=self._admission, metrics=self.metrics, limits=self.limits, gate=gate
        )
        self._routes = ColdRoutes(
            models,
            self.metrics,
            self._batcher,
            has_gate=gate is not None,
            on_close=self._close,
            background=background,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        started = time.perf_counter()
        headers = scope["headers"]
        request_id = request_id_of(headers)
        path = scope["path"]
        call: _Call | None = None
        needed: str | None = None
        match path.split("/"):
            case ["", "score", name]:
                needed, call = f"score:{name}", _Call("score", name, None, request_id, started)
            case ["", "v2", "models", name, "infer"]:
                needed, call = f"score:{name}", _Call("infer", name, None, request_id, started)
            case ["", "v2", "models", name, "versions", version, "infer"]:
                needed, call = f"score:{name}", _Call("infer", name, version, request_id, started)
            case ["", "lookup", name]:
                needed, call = f"lookup:{name}", _Call("lookup", name, None, request_id, started)
            case ["", "v2", "models", name, *_]:
                needed = f"score:{name}"
        if self._gate is not None and path not in HEALTH:
            try:
                self._gate.require(headers, needed)
            except Refusal as refusal:
                await self._refuse(send, refusal, request_id, "refused", protocol=path.startswith("/v2"))
                return
        if call is not None and scope["method"] == "POST":
            await self._hot(call, scope, receive, send)
            return
        scope["request_id"] = request_id
        await self._routes(scope, receive, send)

    def turn_away(self, path: bytes) -> bytes | None:
        """Return the whole answer that refuses a request before it has a handler; None lets it come."""
        route = _hot_route(path)
        if route is None or not self._admission.is_full(asyncio.get_running_loop().time()):
            return None
        self.metrics.count_shed(route)
        self.metrics.count_request(route, 429)
        refusal, request_id, protocol = overloaded(self._admission.retry_after), request_id_of(()), route == "infer"
        body = refusal.body(request_id, protocol=protocol)
        return head_of(429, JSON if protocol else PROBLEM_JSON, len(body), request_id, refusal.headers) + body

    async def _hot(self, call: _Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scoring request, whatever happens."""
        is_shed = False
        try:
            answer = await self._answer_or_refusal(call, scope["headers"], receive)
            if isinstance(answer, Refusal):
                is_shed = answer.status == 429
                await self._refuse(send, answer, call.request_id, call.route, protocol=call.route == "infer")
            elif answer is not None:  # else the caller has gone
                body, kind = answer
                self.metrics.count_request(call.route, 200)
                whole = whole_of(scope)
                await send_answer(send, 200, body, content_type=kind, request_id=call.request_id, whole=whole)
        finally:
            if not is_shed:
                self.metrics.observe_request(call.route, time.perf_counter() - call.started)

    async def _answer_or_refusal(
        self, call: _Call, headers: Headers, receive: Receive
    ) -> tuple[bytes, bytes] | Refusal | None:
        """Return the body of the answer and its type, why there is none, or None if nobody waits for it."""
        try:
            return await self._answer(call, headers, receive)
        except Exception as error:  # noqa: BLE001 - the boundary: all is answered
            return _refused(error, call.request_id)

    async def _answer(self, call: _Call, headers: Headers, receive: Receive) -> tuple[bytes, bytes] | None:
        served = None if call.route == "lookup" else self._models.find(call.name, call.version)
        if served is None and call.route != "lookup":
            raise unknown_model(call.name, call.version)
        kind = body_type(headers, arrow=call.route == "score")
        wanted = JSON if call.route == "infer" else answer_type(headers)
        limits = self.limits
        body = await read_body(headers, receive, limits.body_bytes)
        if body is None:
            return None
        loop = asyncio.get_running_loop()
        now = loop.time()
        expires = now + deadline_of(headers, limits.deadline_seconds)
        ticket = self._admission.enter(now)
        if ticket is None:
            self.metrics.count_shed(call.route)
            raise overloaded(self._admission.retry_after)
        try:
            if served is None:
                return await self._look_up(call.name, body, wanted, expires), wanted
            if call.route == "infer":
                request = decode_infer(body)
                call.take_id(headers, request.id or None)
                return await self._infer(served, request, call.request_id, expires), wanted
            if kind == ARROW:
                return await self._score_arrow(served, body, call.request_id, wanted, expires), wanted
            return await self._score(served, body, call.request_id, wanted, expires), wanted
        finally:
            self._admission.leave(ticket, loop.time())

    async def _infer(self, served: ServedModel, request: InferBody, request_id: str, expires: float) -> bytes:
        parameters = request.parameters or {}
        unknown = [name for name in parameters if name != "now"]
        if unknown:
            raise ModelInputError(f"parameter {unknown[0][:80]!r} is unknown.", hint="the only one is 'now'.")
        now = self._now(parameters.get("now"))
        rows = read_rows(request, served.manifest, max_rows=self.limits.rows)
        predictions = await self._batcher.score(served, _check(served, rows, request_id), now, expires=expires)
        return self._encode(write_response(predictions, served.manifest, request.id or request_id))

    async def _score(self, served: ServedModel, body: bytes, request_id: str, wanted: bytes, expires: float) -> bytes:
        outcome: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        asked = self._ask(served, body, request_id, expires, outcome)
        predictions = await outcome
        return asked.answer(predictions) if wanted == JSON else arrow.write_predictions(predictions, served.manifest)

    def _ask(self, served: ServedModel, body: bytes, request_id: str, expires: float, outcome: Outcome) -> _Asked:
        """Ask for the predictions of a plain request, and return what makes its answer of them."""
        request = decode_score(body)
        rows = score_rows(request)
        check_row_count(len(rows), self.limits.rows)
        explain = request.explain is True
        now = None if request.now is UNSET else self._now(request.now)
        checked = _check(served, rows, request_id)
        self._batcher.ask(outcome, served, checked, now, explain=explain, expires=expires)
        return _Asked(served.manifest, explain, isinstance(request.keys, dict), self._encode)

    async def _score_arrow(
        self, served: ServedModel, body: bytes, request_id: str, wanted: bytes, expires: float
    ) -> bytes:
        rows, options = arrow.read_rows(body, served.manifest, max_rows=self.limits.rows)
        now = self._now(options.now)
        checked = _check(served, rows, request_id)
        predictions = await self._batcher.score(served, checked, now, explain=options.explain, expires=expires)
        if wanted == ARROW:
            return arrow.write_predictions(predictions, served.manifest)
        answer = {"model": served.manifest.name, "version": served.manifest.version}
        return self._encode(answer | {"predictions": [shown(one, explain=options.explain) for one in predictions]})

    async def _look_up(self, service: str, body: bytes, wanted: bytes, expires: float) -> bytes:
        request = read_lookup(body, max_rows=self.limits.rows, to_now=self._now)
        try:
            async with asyncio.timeout_at(expires):
                if service not in self._services:  # its plan may have to be read first
                    try:
                        await self._batcher.on_worker(lambda: self._models.client.service_fingerprint(service))
                    except UnknownNameError:
                        raise unknown_service(service) from None
                    self._services.add(service)
                decode = await self._batcher.reads.fetch(
                    service, request.keys, now=request.now, request=request.request, features=request.features
                )

                def write() -> bytes:
                    return written(service, decode(), is_one=request.is_one, wanted=wanted)  # type: ignore[arg-type]

                return write() if len(request.keys) <= INLINE_ROWS else await self._batcher.on_worker(write)
        except DefinitionError as error:
            raise ModelInputError(error.message, hint=error.hint) from None
        except TimeoutError as error:
            if isinstance(error, FeatureStoreError):
                raise
            raise deadline_passed() from None

    def _observe(self, predictions: list[Prediction], timings: Timings) -> None:
        self.metrics.show_queue(self._admission.in_flight, self._batcher.waiting)
        self.metrics.note_batch(predictions, timings)

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

    async def _close(self) -> None:
        await self._batcher.close()
        self.metrics.settle()
        if self._on_close is not None:
            self._on_close()


def _refused(error: Exception, request_id: str) -> Refusal:
    """Return how an error is answered; a bug of ours is logged, and answered without its insides."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, FeatureStoreError):
        refused = refusal_of(error)
        if refused.status >= 500:
            _LOG.warning("request %s: %s: %s", request_id, type(error).__name__, _one_line(str(error)))
        return refused
    _LOG.error("request %s failed", request_id, exc_info=error)
    return internal_error()


def _check(served: ServedModel, rows: list[ScoreRequest], request_id: str) -> list[CheckedRow]:
    check = served.inputs.check
    if len(rows) == 1:
        return [check(rows[0], request_id=request_id)]
    return [check(row, at=f"row {index}: ", request_id=request_id) for index, row in enumerate(rows)]


def _hot_route(path: bytes) -> str | None:
    """Return the route that scores or looks up and has this path, if it looks like one."""
    if path.startswith(b"/score/"):
        return "score"
    if path.startswith(b"/lookup/"):
        return "lookup"
    return "infer" if path.startswith(b"/v2/models/") and path.endswith(b"/infer") else None


def _one_line(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:500]
