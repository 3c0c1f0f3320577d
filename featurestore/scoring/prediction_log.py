"""What was predicted, from what, by which model: one record per prediction and model.

Rules:
    1. A record is told by ``prediction_id``, ``model``, ``version`` and ``role``: the same prediction by a champion and a
       shadow has one id and two records. Written twice, it is the same record; readers keep one.
    2. It holds the values *as they were served*, each with its status and ``as_of``, so that they can be computed again as
       of ``at`` and compared.
    3. Values are JSON texts in Arrow and Delta, for features have many types. What JSON cannot say is a text: "NaN",
       "Infinity", "-Infinity".
    4. Instants are microseconds since 1970, UTC.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from featurestore.errors import ContractError

if TYPE_CHECKING:
    import pyarrow as pa

Role = Literal["champion", "canary", "shadow"]
"""Why a model scored: it answers, it answers for its share of the keys, or it only looks on."""


class ServedValue(msgspec.Struct, frozen=True, kw_only=True):
    """One feature as it was served."""

    value: Any
    """As the feature's type has it; None is null or missing, as the status says."""
    status: str
    """present, null, missing, stale or degraded."""
    as_of: int | None
    """Newest event time inside the value's view; None without events, and for a request feature."""


class PredictionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction by one model."""

    prediction_id: str
    """Names the prediction, whichever models made it: of random bits, or TOPIC/PARTITION/OFFSET of the event scored."""
    request_id: str | None = None
    """The id of the request over HTTP, the caller's own or one made up: it may repeat and may cover many predictions."""
    model: str
    version: int
    role: Role
    service: str
    service_fingerprint: str
    keys: dict[str, Any]
    """The entity keys, as they were looked up."""
    request: dict[str, Any]
    """What the caller sent besides: request inputs and request values."""
    features: dict[str, ServedValue]
    """The model's features by id."""
    score: float
    at: int
    """The time the features were looked up for; events at or after it do not count."""
    scored_at: int
    """The wall clock when the score was there."""
    complete_through: int | None
    """Arrival instant up to which every event was applied; None where the store did not say."""
    latency_us: int
    """From the start of the lookup to the score, of the batch that the row was part of."""


def to_json(record: PredictionRecord) -> bytes:
    """Return a record as one line of JSON: the value of a Kafka record.

    >>> from featurestore.scoring.prediction_log import PredictionRecord, ServedValue, to_json
    >>> record = PredictionRecord(prediction_id="a-0", model="m", version=1, role="champion", service="s",
    ...     service_fingerprint="f", keys={"card_id": "c1"}, request={}, score=0.5, at=5, scored_at=6,
    ...     features={"v.x": ServedValue(value=float("nan"), status="present", as_of=4)},
    ...     complete_through=None, latency_us=900)
    >>> to_json(record).partition(b'"features":')[2].partition(b',"score"')[0]
    b'{"v.x":{"value":"NaN","status":"present","as_of":4}}'
    """
    return _ENCODER.encode(record if _is_sayable(record) else _sayable(msgspec.to_builtins(record)))


def from_json(content: bytes) -> PredictionRecord:
    """Return the record that ``to_json`` wrote; unknown fields are ignored, so that later versions may add some.

    Raises:
        ContractError: The bytes are no such record.
    """
    try:
        return _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"a record of the prediction log is unreadable ({error}).") from None


def value_text(value: Any) -> str:
    """Return a key, a request value or a feature as its JSON text, the same for the same value.

    >>> value_text(1.5), value_text(None), value_text("c1"), value_text(float("inf")), value_text([1, 2])
    ('1.5', 'null', '"c1"', '"Infinity"', '[1,2]')
    """
    return _ENCODER.encode(_sayable(value)).decode()


def arrow_schema() -> pa.Schema:
    """Return the columns of the log in Arrow and Delta; ``to_arrow`` makes such a table."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    served = pa.struct([("value", pa.string()), ("status", pa.string()), ("as_of", instant)])
    texts = pa.map_(pa.string(), pa.string())
    return pa.schema(
        [
            pa.field("prediction_id", pa.string(), nullable=False),
            pa.field("request_id", pa.string()),
            pa.field("model", pa.string(), nullable=False),
            pa.field("version", pa.int64(), nullable=False),
            pa.field("role", pa.string(), nullable=False),
            pa.field("service", pa.string(), nullable=False),
            pa.field("service_fingerprint", pa.string(), nullable=False),
            pa.field("keys", texts, nullable=False),
            pa.field("request", texts, nullable=False),
            pa.field("features", pa.map_(pa.string(), served), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("at", instant, nullable=False),
            pa.field("scored_at", instant, nullable=False),
            pa.field("complete_through", instant),
            pa.field("latency_us", pa.int64(), nullable=False),
        ]
    )


def to_arrow(records: list[PredictionRecord]) -> pa.Table:
    """Return records as a table of ``arrow_schema``, in order."""
    import pyarrow as pa

    return pa.Table.from_pylist([_row(record) for record in records], schema=arrow_schema())


def _row(record: PredictionRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in record.__struct_fields__}
    row["keys"] = [(name, value_text(value)) for name, value in record.keys.items()]
    row["request"] = [(name, value_text(value)) for name, value in record.request.items()]
    row["features"] = [
        (name, {"value": value_text(one.value), "status": one.status, "as_of": one.as_of})
        for name, one in record.features.items()
    ]
    return row


def _is_sayable(record: PredictionRecord) -> bool:
    """Whether JSON can say the record as it is, which is the rule: then nothing has to be copied."""
    values = (one.value for one in record.features.values())
    return all(
        math.isfinite(value) if type(value) is float else type(value) is not list
        for value in (record.score, *values, *record.keys.values(), *record.request.values())
    )


def _sayable(value: Any) -> Any:
    """Return what JSON can say, without loss: numbers that it has no literal for become texts."""
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {name: _sayable(each) for name, each in value.items()}
    return [_sayable(each) for each in value] if isinstance(value, (list, tuple)) else value


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(PredictionRecord)
