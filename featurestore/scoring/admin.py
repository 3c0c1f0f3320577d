"""The routes for operators, on a listener of their own: ``GET /metrics``. Whoever may score need not reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.scoring.asgi import request_id_of, send_answer
from featurestore.scoring.auth import ADMIN
from featurestore.scoring.metrics import CONTENT_TYPE
from featurestore.scoring.problems import PROBLEM_JSON, Refusal, unknown_route, wrong_method

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from featurestore.scoring.auth import Gate


class AdminApp:
    """The ASGI application.

    Args:
        render: Returns the exposition text.
        gate: Who may ask: those with the scope ``admin``; None lets everyone, and belongs on loopback only.
    """

    def __init__(self, render: Callable[[], bytes], *, gate: Gate | None = None) -> None:
        self._render = render
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            return
        request_id = request_id_of(scope["headers"])
        try:
            self._check(scope)
        except Refusal as refusal:
            body, kind = refusal.body(request_id, protocol=False), PROBLEM_JSON
            await send_answer(
                send, refusal.status, body, content_type=kind, request_id=request_id, headers=refusal.headers
            )
            return
        await send_answer(send, 200, self._render(), content_type=CONTENT_TYPE.encode(), request_id=request_id)

    def _check(self, scope: Scope) -> None:
        """Return when the metrics may be answered; raise the refusal otherwise."""
        if self._gate is not None:
            self._gate.require(scope["headers"], ADMIN)
        if scope["path"] != "/metrics":
            raise unknown_route()
        if scope["method"] not in ("GET", "HEAD"):
            raise wrong_method(((b"allow", b"GET, HEAD"),))
