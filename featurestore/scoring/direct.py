"""Plain scoring answered without ASGI and without a task: from the listener to the batcher, and back by a callback.

::

    head ── taken? ── body ── decode, check ── batcher ──► answer, in one piece
              └── no: the long way, as ASGI (scoring/http.py)

Rules:
    1. Taken is only what most requests are: ``POST /score/{model}`` of a served model, JSON of known length and bounded size, an
       answer in JSON, a credential where one is needed. Whatever is refused for its head is refused on the long way.
    2. Bodies are read, checked and scored, and errors answered, by the functions of the long way.
    3. What a head says may be kept for another one of the same bytes. Whether its caller may come in is asked every time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from featurestore.scoring.asgi import deadline_of, given_id, head_of, new_request_id
from featurestore.scoring.problems import JSON, PROBLEM_JSON, Refusal, overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.online.async_client import Outcome
    from featurestore.scoring.admission import Admission
    from featurestore.scoring.asgi import Headers
    from featurestore.scoring.auth import Gate
    from featurestore.scoring.limits import ScorerLimits
    from featurestore.scoring.metrics import ScorerMetrics
    from featurestore.scoring.scorer import Prediction
    from featurestore.scoring.served import ModelSet, ServedModel

_PREFIX, _ROUTE = b"/score/", "score"
_CLOSE = ((b"connection", b"close"),)


class Asked(Protocol):
    """A request whose rows wait for their predictions."""

    def answer(self, predictions: list[Prediction], /) -> bytes:
        """Return the body that answers it."""


class Head(NamedTuple):
    """What the head of a plain request says."""

    name: str
    """Of the model."""
    length: int
    """Of the body, in bytes."""
    deadline_seconds: float
    request_id: str | None
    """The caller's own."""
    headers: Headers


class DirectScoring:
    """Takes plain scoring requests from a listener.

    Args:
        models: What is served.
        ask: Reads and checks a body, and asks for its predictions; they come later.
        refused: Returns how an error is answered.
        admission: Lets requests in.
        metrics: Counts the answers.
        limits: Bounds of a request.
        gate: Who may call.
    """

    def __init__(
        self,
        models: ModelSet,
        ask: Callable[[ServedModel, bytes, str, float, Outcome], Asked],
        refused: Callable[[Exception, str], Refusal],
        *,
        admission: Admission,
        metrics: ScorerMetrics,
        limits: ScorerLimits,
        gate: Gate | None,
    ) -> None:
        self.models, self.ask, self.refused = models, ask, refused
        self.admission, self.metrics, self.limits, self.gate = admission, metrics, limits, gate

    def read_head(self, path: bytes, headers: Headers) -> Head | None:
        """Return what a head says, None where the request goes the long way whoever sends it.

        Args:
            path: With the query, if there is one.
            headers: Names in lower case.
        """
        if not path.startswith(_PREFIX) or b"%" in path or b"?" in path or not path.isascii():
            return None
        length = self._plain_length(headers)
        if length is None:
            return None
        try:
            seconds = deadline_of(headers, self.limits.deadline_seconds)
        except Refusal:
            return None
        return Head(path[len(_PREFIX) :].decode("ascii"), length, seconds, given_id(headers), headers)

    def take(self, head: Head, transport: Any, ended: Callable[[], None]) -> Exchange | None:
        """Return what takes a request's body and answers it, None where the request goes the long way.

        Args:
            head: What its head says.
            transport: Gets the answer.
            ended: Called after it.
        """
        served = self.models.find(head.name)
        if served is None:
            return None
        if self.gate is not None:
            try:
                self.gate.require(head.headers, f"score:{head.name}")
            except Refusal:
                return None
        return Exchange(self, served, head, transport, ended)

    def _plain_length(self, headers: Headers) -> int | None:
        """Return the length of a body that is JSON of known length and bounded size, and is content with JSON as its answer."""
        has_type, length = False, None
        for name, value in headers:
            if name == b"content-type":
                if has_type or value != JSON:
                    return None
                has_type = True
            elif name == b"content-length":
                if length is not None or len(value) > 15 or not value.isdigit():
                    return None
                length = int(value)
                if length > self.limits.body_bytes:
                    return None
            elif (name == b"accept" and value not in (b"*/*", JSON)) or name in (
                b"content-encoding", b"transfer-encoding", b"upgrade",
            ):  # fmt: skip
                return None
        return length if has_type else None


class Exchange:
    """One request and its answer, in the place of the cycle that uvicorn's protocol has for a request."""

    __slots__ = (
        "_asked", "_body", "_ended", "_loop", "_request_id", "_scoring", "_seconds", "_served", "_started", "_ticket",
        "_transport", "disconnected", "keep_alive", "response_complete",
    )  # fmt: skip

    def __init__(
        self,
        scoring: DirectScoring,
        served: ServedModel,
        head: Head,
        transport: Any,
        ended: Callable[[], None],
    ) -> None:
        self._started = time.perf_counter()
        self._scoring, self._served, self._seconds = scoring, served, head.deadline_seconds
        self._transport, self._ended = transport, ended
        self._body = b""
        self._asked: Asked | None = None
        self._ticket: int | None = None
        self._request_id = head.request_id or new_request_id()
        self.response_complete = self.disconnected = False
        self.keep_alive = True

    @property
    def message_event(self) -> Exchange:
        """What uvicorn sets when the caller has gone."""
        return self

    def set(self) -> None:
        """Return; nobody waits for it."""

    def add(self, part: bytes) -> None:
        """Take a part of the body."""
        self._body = self._body + part if self._body else part

    def begin(self) -> None:
        """Ask for the predictions; the body is whole."""
        scoring = self._scoring
        self._loop = loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            self._ticket = scoring.admission.enter(now)
            if self._ticket is None:
                scoring.metrics.count_shed(_ROUTE)
                self._refuse(overloaded(scoring.admission.retry_after))
                return
            self._asked = scoring.ask(self._served, self._body, self._request_id, now + self._seconds, self)
        except Exception as error:  # noqa: BLE001 - a boundary: all is answered
            self._refuse(error)

    def done(self) -> bool:
        """Whether it is answered."""
        return self.response_complete

    def set_result(self, predictions: list[Prediction]) -> None:
        """Answer with the predictions."""
        asked, self._asked = self._asked, None  # a silent connection keeps no features
        assert asked is not None  # noqa: S101 - it was asked for these
        try:
            body = asked.answer(predictions)
        except Exception as error:  # noqa: BLE001 - a boundary: all is answered
            self._refuse(error)
        else:
            self._end(200, JSON, body)

    def set_exception(self, error: Exception) -> None:
        """Answer that there are none."""
        self._asked = None
        self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        refusal = self._scoring.refused(error, self._request_id)
        body = refusal.body(self._request_id, protocol=False)
        self._end(refusal.status, PROBLEM_JSON, body, refusal.headers)

    def _end(self, status: int, kind: bytes, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        if self._ticket is not None:
            self._scoring.admission.leave(self._ticket, self._loop.time())
        self.response_complete = True
        if not (self.disconnected or self._transport.is_closing()):
            if not self.keep_alive:
                headers = (*headers, *_CLOSE)
            self._transport.write(head_of(status, kind, len(body), self._request_id, headers) + body)
            if not self.keep_alive:
                self._transport.close()
        self._ended()
        self._scoring.metrics.note_answer(_ROUTE, status, time.perf_counter() - self._started)
