"""Reading one request's body and sending one answer, in raw ASGI messages: bounded in bytes, in time and in type."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING

from featurestore.scoring.problems import ARROW, JSON, Refusal

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


def body_type(headers: Headers, *, arrow: bool) -> bytes:
    """Return what the body claims to be: plain JSON, or an Arrow stream where that is taken.

    Raises:
        Refusal: 415 for another content type, none, two, or an encoded body.
    """
    found = None
    for name, value in headers:
        if name == b"content-type":
            if found is not None:
                found = b"two of them"
                break
            found = value if value == JSON else value.split(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "wrong-content-encoding", "An encoded body is not taken; send it plain.")
    if found == JSON or (arrow and found == ARROW):
        return found
    taken = f"{JSON.decode()} or {ARROW.decode()}" if arrow else JSON.decode()
    raise Refusal(415, "wrong-content-type", f"The content type must be {taken}.")


def answer_type(headers: Headers) -> bytes:
    """Return the type of the answer: Arrow where ``accept`` names it, else JSON."""
    for name, value in headers:
        if name == b"accept" and any(one.split(b";")[0].strip().lower() == ARROW for one in value.split(b",")):
            return ARROW
    return JSON


def deadline_of(headers: Headers, most: float) -> float:
    """Return the seconds that a caller gives the request by ``x-deadline-ms``; at most, and by default, ``most``.

    Raises:
        Refusal: 400 when the header is no whole number of milliseconds from 1 on.
    """
    for name, value in headers:
        if name == b"x-deadline-ms":
            if not value.isdigit() or len(value) > 9 or int(value) < 1:
                raise Refusal(
                    400, "invalid-deadline", "x-deadline-ms must be a whole number of milliseconds, 1 or more."
                )
            return min(int(value) / 1000, most)
    return most


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
