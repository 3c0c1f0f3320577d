"""CloudEvents 1.0 on Kafka records: events taken out of their envelope, predictions put into one. Pure.

    structured   one JSON document with attributes and data; header content-type is application/cloudevents+json
    binary       the value is the data; attributes are headers ce_id, ce_source, ..., content-type is that of the data

Which of the two an incoming record is in, its content-type says; a record without an envelope is its own data.
"""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from featurestore.errors import ContractError
from featurestore.timeline import format_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.scoring.prediction_log import PredictionRecord

Headers: TypeAlias = "Sequence[tuple[str, bytes | None]]"
"""Kafka headers, in order."""

PREDICTION_TYPE = "featurestore.prediction.v1"
_STRUCTURED = b"application/cloudevents+json"
_JSON = b"application/json"


class Envelope(StrEnum):
    """How predictions are wrapped, and whether events are unwrapped."""

    NONE = "none"
    BINARY = "cloudevents-binary"
    STRUCTURED = "cloudevents-structured"


class _Structured(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    datacontenttype: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str | None = None


_decoder = msgspec.json.Decoder(_Structured)


def unwrap(value: bytes | None, headers: Headers) -> bytes | None:
    """Return the data of a record, whichever mode it is in; None where there is none.

    >>> event = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"card_id":"c1"}}'
    >>> unwrap(event, [("content-type", b"application/cloudevents+json; charset=UTF-8")])
    b'{"card_id":"c1"}'
    >>> unwrap(b'{"card_id":"c1"}', [("ce_specversion", b"1.0"), ("content-type", b"application/json")])
    b'{"card_id":"c1"}'

    Raises:
        ContractError: It claims to be a CloudEvent and is none of version 1.0, or its data is not JSON.
    """
    kind = _content_type(headers)
    if not kind.startswith(b"application/cloudevents"):
        version = next((content for name, content in headers if name == "ce_specversion"), b"1.0")
        if version != b"1.0":
            raise ContractError(f"CloudEvents version {version!r} is not 1.0.")
        return value
    if kind != _STRUCTURED:
        raise ContractError(f"content type {kind.decode(errors='replace')[:80]} is not {_STRUCTURED.decode()}.")
    try:
        event = _decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"no structured CloudEvent: {error}") from None
    if event.specversion != "1.0":
        raise ContractError(f"CloudEvents version {event.specversion[:20]!r} is not 1.0.")
    empty = [name for name in ("id", "source", "type") if not getattr(event, name)]
    if empty:
        raise ContractError(f"CloudEvents attribute {empty[0]} is empty.")
    data = bytes(event.data)
    if event.data_base64 is not None:
        if data:
            raise ContractError("a CloudEvent has data or data_base64, not both.")
        try:
            return base64.b64decode(event.data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise ContractError("data_base64 of a CloudEvent is not Base64.") from None
    if data and not _is_json(event.datacontenttype):
        raise ContractError(f"data of a CloudEvent is {str(event.datacontenttype)[:80]}, not JSON.")
    return data or None


def wrap(
    content: bytes, record: PredictionRecord, envelope: Envelope, *, source: str
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return value and headers of a prediction's Kafka record.

    Args:
        content: The record as JSON.
        record: The same, to name the event: its id is the prediction's.
        envelope: The mode; none has a content-type and nothing more.
        source: Who scored, a URI reference.
    """
    if envelope is Envelope.NONE:
        return content, [("content-type", _JSON)]
    attributes = {
        "specversion": "1.0",
        "id": f"{record.prediction_id}/{record.model}:{record.version}/{record.role}",
        "source": source,
        "type": PREDICTION_TYPE,
        "time": format_instant(record.scored_at),
    }
    if envelope is Envelope.BINARY:
        headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
        return content, [*headers, ("content-type", _JSON)]
    event: dict[str, Any] = {**attributes, "datacontenttype": _JSON.decode(), "data": msgspec.Raw(content)}
    return msgspec.json.encode(event), [("content-type", _STRUCTURED + b"; charset=UTF-8")]


def _content_type(headers: Headers) -> bytes:
    found = next((content for name, content in headers if name.lower() == "content-type"), None) or b""
    return found.partition(b";")[0].strip().lower()


def _is_json(kind: str | None) -> bool:
    media = (kind or _JSON.decode()).partition(";")[0].strip().lower()
    return media.endswith(("/json", "+json"))
