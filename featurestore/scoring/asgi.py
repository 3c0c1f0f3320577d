"""Reading one request's body and sending one answer, in raw ASGI messages: bounded in bytes, in time and in type."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING

from featurestore.scoring.problems import JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Send

    Headers = Sequence[tuple[bytes, bytes]]

_LOG = logging.getLogger("featurestore.scoring")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def request_id_of(headers: Headers) -> str:
    """Return the caller's ``x-request-id`` if it is one plain word, else a fresh one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return os.urandom(8).hex()


def require_json(headers: Headers) -> None:
    """Return when the body claims to be plain JSON.

    Raises:
        Refusal: 415 for another content type, none, two, or an encoded body.
    """
    types = [value for name, value in headers if name == b"content-type"]
    if len(types) != 1 or types[0].split(b";")[0].strip().lower() != JSON:
        raise Refusal(415, "wrong-content-type", "The content type must be application/json.")
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        raise Refusal(415, "wrong-content-encoding", "An encoded body is not taken; send it plain.")


async def read_body(headers: Headers, receive: Receive, limit_bytes: int, limit_seconds: float) -> bytes | None:
    """Return the body, or None if the caller went away before its end.

    Raises:
        Refusal: 413 when it is, or says it is, larger than the limit; 408 when it takes too long to arrive.
    """
    for name, value in headers:
        if name == b"content-length" and (len(value) > 15 or not value.isdigit() or int(value) > limit_bytes):
            raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(limit_seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408, "slow-body", "The body took too long to arrive.", ((b"connection", b"close"),)) from None


async def send_answer(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes,
    request_id: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send a whole answer. A caller who has gone meanwhile misses it, and that is no error of ours."""
    start: Message = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            *headers,
        ],
    }
    try:
        await send(start)
        await send({"type": "http.response.body", "body": body})
    except (OSError, RuntimeError) as gone:  # a closed transport is a RuntimeError in uvloop
        _LOG.debug("request %s: the caller has gone (%s)", request_id, type(gone).__name__)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, "too-large", f"The body is larger than {limit_bytes} bytes.", ((b"connection", b"close"),))
