"""``POST /lookup/{service}``: the online lookup for clients in other languages, as JSON or as an Arrow stream.

A body has ``keys`` (an object, or a list of them), and may have ``request`` (likewise), ``features`` (the ones to return) and
``now``. The answer is JSON, or an Arrow IPC stream where the caller accepts ``application/vnd.apache.arrow.stream``:
the features' columns, then ``status:FEATURE`` and ``as_of:VIEW``, and ``complete_through`` and ``at`` as metadata of the
schema. Instants are microseconds since 1970, UTC, in both. JSON has no NaN: it is null there, with status present.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import UNSET

from featurestore.errors import DefinitionError, ModelInputError, StaleFeatureError, UnknownNameError
from featurestore.scoring.problems import JSON, RETRY_AFTER_S, Refusal
from featurestore.scoring.protocol import check_row_count
from featurestore.scoring.wire import decode_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.scoring.asgi import Headers
    from featurestore.timeline import Instant

ARROW = b"application/vnd.apache.arrow.stream"


class LookupReader(Protocol):
    """What the route needs of a client; ``featurestore.FeatureClient`` is one."""

    def service_fingerprint(self, service: str) -> str:
        """Return the fingerprint of a service; UnknownNameError if there is none."""

    def get_many(
        self,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | None = None,
        request: Sequence[Mapping[str, Any]] | None = None,
        features: Sequence[str] | None = None,
    ) -> FeatureTable:
        """Return one row per key, in one round trip."""


def content_type(headers: Headers) -> bytes:
    """Return the type of the answer: Arrow where ``accept`` names it, else JSON."""
    accepted = b",".join(value for name, value in headers if name == b"accept")
    return ARROW if any(one.split(b";")[0].strip().lower() == ARROW for one in accepted.split(b",")) else JSON


def prepare(
    client: Any, service: str, body: bytes, *, max_rows: int, to_now: Callable[[Any], Instant | None], wanted: bytes
) -> Callable[[], bytes]:
    """Return the call that looks up and encodes, for the thread that may block.

    Args:
        client: A ``LookupReader``.
        service: The feature service.
        body: The request's.
        max_rows: Keys that a request may have.
        to_now: Checks the time a caller asks for.
        wanted: ``content_type`` of the answer.

    Raises:
        ModelInputError: The body is not strict JSON of the shape that the module tells, or has no or too many keys.
    """
    decoded = decode_lookup(body)
    is_one = isinstance(decoded.keys, dict)
    keys: Any = [decoded.keys] if is_one else decoded.keys
    check_row_count(len(keys), max_rows)
    given = None if decoded.request is UNSET else decoded.request
    if given is not None and isinstance(given, dict) != is_one:
        raise ModelInputError("request and keys are not both an object or both a list.")
    if given is not None and not is_one and len(given) != len(keys):
        raise ModelInputError(f"keys is a list of {len(keys)}, request one of {len(given)}.")
    request: Any = [given] if is_one and given is not None else given
    now = to_now(None if decoded.now is UNSET else decoded.now)
    features: Any = None if decoded.features is UNSET else decoded.features
    reader: LookupReader = client

    def look_up() -> bytes:
        try:
            reader.service_fingerprint(service)
        except UnknownNameError:
            raise Refusal(404, "unknown-service", f"Service {service[:80]!r} is not served here.") from None
        try:
            table = reader.get_many(service, keys, now=now, request=request, features=features)
        except DefinitionError as error:
            raise ModelInputError(error.message, hint=error.hint) from None
        except StaleFeatureError as error:
            later = ((b"retry-after", str(RETRY_AFTER_S).encode()),)
            raise Refusal(503, "stale-features", error.message, later) from None
        if wanted == ARROW:
            return table.to_arrow_stream()
        vectors = [_shown(vector) for vector in table]
        answer = vectors[0] if is_one else {"vectors": vectors}
        return msgspec.json.encode({"service": service, **answer})

    return look_up


def _shown(vector: FeatureVector) -> dict[str, Any]:
    return {
        "values": {name: _finite(value) for name, value in vector.values_by_name.items()},
        "status": vector.status,
        "as_of": vector.as_of,
        "complete_through": vector.complete_through,
        "at": vector.at,
    }


def _finite(value: Any) -> Any:
    """Return what JSON can say: no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_finite(each) for each in value] if isinstance(value, list) else value
