"""What goes wrong, as HTTP says it: RFC 9457 problem JSON, or ``{"error": text}`` for the Open Inference Protocol.

A caller's mistake is described in full. What lies behind the service (hosts, paths, exceptions) is never shown: it goes
to the log, under the request's id. This is the only place that gives an error of this package an HTTP status.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from featurestore.errors import (
    FeatureStoreError,
    ModelInputError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    PastLookupError,
    StaleFeatureError,
)

PROBLEM_JSON = b"application/problem+json"
JSON = b"application/json"
ARROW = b"application/vnd.apache.arrow.stream"

RETRY_AFTER_S = 1


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An answer that is not a score: a status, a stable kind for machines, a sentence for people."""

    def __init__(self, status: int, kind: str, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers

    @property
    def phrase(self) -> str:
        """What HTTP calls the status."""
        return HTTPStatus(self.status).phrase

    def body(self, request_id: str, *, protocol: bool) -> bytes:
        """Return the body: the inference protocol's, or a problem."""
        if protocol:
            return msgspec.json.encode({"error": self.detail})
        return msgspec.json.encode(
            {
                "type": f"urn:featurestore:problem:{self.kind}",
                "title": self.phrase,
                "status": self.status,
                "detail": self.detail,
                "request_id": request_id,
            }
        )


_LATER = ((b"retry-after", str(RETRY_AFTER_S).encode()),)


def refusal_of(error: FeatureStoreError) -> Refusal:
    """Return how an error of this package is answered; what is not the caller's is not described."""
    if isinstance(error, (ModelInputError, PastLookupError)):
        kind = "past-lookup" if isinstance(error, PastLookupError) else "invalid-input"
        return Refusal(400, kind, str(error))
    if isinstance(error, OnlineStoreTimeoutError):
        return Refusal(503, "store-timeout", "The online store did not answer in time.", _LATER)
    if isinstance(error, OnlineStoreUnavailableError):
        return Refusal(503, "store-unavailable", "The online store cannot be reached.", _LATER)
    if isinstance(error, StaleFeatureError):
        return Refusal(503, "stale-features", error.message, _LATER)
    return Refusal(503, "not-ready", "The model or its feature service is not in a state to score.", _LATER)


def unknown_model(name: str, version: str | None) -> Refusal:
    """Return the answer for a model or version that is not served."""
    what = f"model {name[:80]!r}" if version is None else f"model {name[:80]!r} version {version[:20]!r}"
    return Refusal(404, "unknown-model", f"{what} is not served here.")


def internal_error() -> Refusal:
    """Return the answer for a bug of ours."""
    return Refusal(500, "internal", "The scorer failed. The log has the reason, under this request's id.")


def overloaded(retry_after: int) -> Refusal:
    """Return the answer when more is asked than can be answered in time."""
    later = ((b"retry-after", str(retry_after).encode()),)
    return Refusal(429, "overloaded", "More is asked than can be answered in time; try again later.", later)


def deadline_passed() -> Refusal:
    """Return the answer when the request's deadline has passed."""
    return Refusal(503, "deadline-passed", "The request could not be answered within its deadline.", _LATER)


def unauthorized() -> Refusal:
    """Return the answer for a caller who shows no live credential."""
    challenge = ((b"www-authenticate", b"Bearer"),)
    return Refusal(401, "unauthorized", "A valid API key or token is needed.", challenge)


def forbidden(scope: str) -> Refusal:
    """Return the answer for a known caller who may do other things than this."""
    return Refusal(403, "forbidden", f"The credential does not have the scope {scope[:100]}.")


def unknown_route() -> Refusal:
    """Return the answer for a path that is none."""
    return Refusal(404, "unknown-route", "There is nothing at this path.")


def wrong_method(headers: tuple[tuple[bytes, bytes], ...] = ()) -> Refusal:
    """Return the answer for a path that takes another method."""
    return Refusal(405, "wrong-method", "This path takes another method.", headers)
