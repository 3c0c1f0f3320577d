"""What ``POST /score/{model}`` takes and shows, apart from how it travels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.errors import ModelInputError
from featurestore.online.vector import DEGRADED, STALE
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.wire import finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.scoring.scorer import Prediction
    from featurestore.scoring.wire import ScoreBody


def score_rows(body: ScoreBody) -> list[ScoreRequest]:
    """Return the rows of a plain request: one pair of objects, or two lists of the same length."""
    if isinstance(body.keys, dict):
        request = body.request or {}
        if not isinstance(request, dict):
            raise ModelInputError("keys is one object and request a list.", hint="send one object, or two lists.")
        return [ScoreRequest(body.keys, request)]
    requests = body.request or [{}] * len(body.keys)
    if not isinstance(requests, list) or len(requests) != len(body.keys):
        raise ModelInputError(
            f"keys is a list of {len(body.keys)}, request is not.", hint="send one request object for each key."
        )
    return [ScoreRequest(keys, request) for keys, request in zip(body.keys, requests, strict=True)]


def shown(one: Prediction, *, explain: bool, of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a prediction as ``/score`` shows it, after what ``of`` says: times are microseconds since 1970, UTC.

    ``statuses`` counts; ``stale`` and ``degraded`` name the features that a policy answered for, where there are any.
    """
    tally = one.tally
    found: dict[str, Any] = {
        **(of or {}),
        "score": one.score,
        "version": one.version,
        "at": one.at,
        "complete_through": one.complete_through,
        "statuses": tally,
    }
    if one.prediction_id is not None:
        found["prediction_id"] = one.prediction_id
    for status in (STALE, DEGRADED):
        if status in tally:
            found[status] = [name for name, its in one.statuses.items() if its == status]
    if explain:
        vector = {name: finite(value) for name, value in (one.vector or {}).items()}
        found |= {"vector": vector, "status": one.statuses, "as_of": one.as_of}
    return found
