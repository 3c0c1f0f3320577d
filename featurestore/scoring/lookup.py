"""``POST /lookup/{service}``: the online lookup for clients in other languages, as JSON or as an Arrow stream.

A body has ``keys`` (an object, or a list of them), and may have ``request`` (likewise), ``features`` (the ones to return) and
``now``. The answer is JSON, or an Arrow IPC stream where the caller accepts ``application/vnd.apache.arrow.stream``:
the features' columns, then ``status:FEATURE`` and ``as_of:VIEW``, and ``complete_through`` and ``at`` as metadata of the
schema. Instants are microseconds since 1970, UTC, in both. JSON has no NaN: it is null there, with status present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from featurestore.errors import ModelInputError
from featurestore.scoring.problems import ARROW, Refusal
from featurestore.scoring.protocol import check_row_count
from featurestore.scoring.wire import decode_lookup, finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.timeline import Instant


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """A checked body: what to read, and whether one object was asked for or a list."""

    keys: list[dict[str, Any]]
    request: list[dict[str, Any]] | None
    features: list[str] | None
    now: Instant | None
    is_one: bool


def read_lookup(body: bytes, *, max_rows: int, to_now: Callable[[Any], Instant | None]) -> LookupRequest:
    """Return what a body asks for.

    Args:
        body: The request's.
        max_rows: Keys that a request may have.
        to_now: Checks the time a caller asks for.

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
    return LookupRequest(keys, request, features, now, is_one)


def unknown_service(service: str) -> Refusal:
    """Return the answer for a service that is not applied."""
    return Refusal(404, "unknown-service", f"Service {service[:80]!r} is not served here.")


def written(service: str, table: FeatureTable, *, is_one: bool, wanted: bytes) -> bytes:
    """Return the body of the answer, of the type ``wanted``."""
    if wanted == ARROW:
        return table.to_arrow_stream()
    vectors = [_shown(vector) for vector in table]
    answer = vectors[0] if is_one else {"vectors": vectors}
    return msgspec.json.encode({"service": service, **answer})


def _shown(vector: FeatureVector) -> dict[str, Any]:
    return {
        "values": {name: finite(value) for name, value in vector.values_by_name.items()},
        "status": vector.status,
        "as_of": vector.as_of,
        "complete_through": vector.complete_through,
        "at": vector.at,
    }
