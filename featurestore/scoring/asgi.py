"""Reading one request's body and sending one answer, in raw ASGI messages: bounded in bytes, in time and in type."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from featurestore.scoring.problems import ARROW, JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Message, Receive, Scope, Send

    Headers = Sequence[tuple[bytes, bytes]]
    WholeAnswer = Callable[[bytes], bool]

WHOLE = "featurestore.whole"
"""ASGI extension of our listener: a call that writes an answer in one piece, and tells whether it did."""

_LOG = logging.getLogger("featurestore.scoring")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class _Numbers:
    """Request ids of this process: a prefix of its own, and a number."""

    def __init__(self) -> None:
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        self._prefix, self._count = os.urandom(5).hex(), itertools.count()

    def next(self) -> str:
        return f"{self._prefix}{next(self._count) & 0xFFFFFF:06x}"


_numbers = _Numbers()


def request_id_of(headers: Headers) -> str:
    """Return the caller's ``x-request-id`` if it is one plain word, else a fresh one: the process's prefix and a number."""
    return given_id(headers) or new_request_id()


def new_request_id() -> str:
    """Return a fresh request id."""
    return _numbers.next()


def given_id(headers: Headers) -> str | None:
    """Return the caller's ``x-request-id``; None where there is none, or it is not one plain word of 64 letters at most."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return None


def is_plain(text: str) -> bool:
    """Whether a text may stand for a request in headers and logs.

    >>> is_plain("order-7.retry_2"), is_plain("a b"), is_plain("")
    (True, False, False)
    """
    return len(text) <= 64 and _REQUEST_ID.fullmatch(text.encode("utf-8", "replace")) is not None


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


async def read_body(headers: Headers, receive: Receive, limit_bytes: int) -> bytes | None:
    """Return the body, or None if the caller went away before its end. How long it may take is held by the listener.

    Raises:
        Refusal: 413 when it is, or says it is, larger than the limit.
    """
    for name, value in headers:
        if name == b"content-length" and (len(value) > 15 or not value.isdigit() or int(value) > limit_bytes):
            raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part: bytes = message.get("body", b"")
        more = message.get("more_body")
        if len(body) + len(part) > limit_bytes:
            raise _too_large(limit_bytes)
        if not (body or more):  # as mostly: all of it came at once
            return part
        body += part
        if not more:
            return bytes(body)


async def send_answer(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes,
    request_id: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    whole: WholeAnswer | None = None,
) -> None:
    """Send a whole answer. A caller who has gone meanwhile misses it, and that is no error of ours.

    Args:
        send: ASGI's.
        status: HTTP's.
        body: The body.
        content_type: Its type.
        request_id: For the header ``x-request-id``.
        headers: More of them.
        whole: Writes it in one piece, where the listener can (``scope["extensions"]["featurestore.whole"]``).
    """
    if whole is not None and whole(head_of(status, content_type, len(body), request_id, headers) + body):
        return
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


def whole_of(scope: Scope) -> WholeAnswer | None:
    """Return what writes an answer in one piece; None where the listener has no such thing."""
    found: WholeAnswer | None = scope.get("extensions", {}).get(WHOLE)
    return found


def head_of(
    status: int, content_type: bytes, length: int, request_id: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """Return the head of an answer, down to the empty line."""
    more = b"".join(b"%b: %b\r\n" % header for header in headers) if headers else b""
    return b"%b%d\r\nx-request-id: %b\r\n%b\r\n" % (_start(status, content_type), length, request_id.encode(), more)


@functools.cache
def _start(status: int, content_type: bytes) -> bytes:
    phrase = HTTPStatus(status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: " % (status, phrase, content_type)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, "too-large", f"The body is larger than {limit_bytes} bytes.", ((b"connection", b"close"),))
