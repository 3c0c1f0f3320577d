"""The schemas of the scorer's bodies, as OpenAPI 3.1 has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.scoring.protocol import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.scoring.manifest import ModelManifest

_INT64 = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}
_INSTANT = {"type": ["integer", "null"], "description": "Microseconds since 1970, UTC."}
_STATUS = {"type": "string", "enum": ["present", "null", "missing", "stale", "degraded"]}
_ROW = {"type": "object", "additionalProperties": {"type": ["integer", "number", "string", "boolean", "null"]}}
_NOW = {"type": ["integer", "string", "null"], "description": "Time of the lookup; where the scorer allows replays."}
_NUMBER = {"type": ["number", "boolean", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
_VALUES: dict[DataType, dict[str, Any]] = {
    DataType.STRING: {"type": ["string", "null"], "maxLength": 1024},
    DataType.INT64: {**_INT64, "type": ["integer", "null"]},
    DataType.FLOAT64: {"type": ["number", "null"]},
    DataType.BOOL: {"type": ["boolean", "null"]},
    DataType.TIMESTAMP: {
        "description": "ISO 8601 with an offset, or microseconds since 1970, UTC.",
        "anyOf": [{"type": "null"}, {"type": "integer"}, {"type": "string", "format": "date-time"}],
    },
}


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def score_body(models: Sequence[ModelManifest]) -> dict[str, Any]:
    """Return the schema of a plain request's JSON body."""
    bodies = []
    for one in models:
        keys, sent = ref(f"keys.{one.name}"), ref(f"request.{one.name}")
        for many in (False, True):
            listed = _list_of if many else _itself
            bodies.append(
                {
                    "type": "object",
                    "title": f"{one.name}, {'many rows' if many else 'one row'}",
                    "required": ["keys", *(["request"] if one.sent else [])],
                    "additionalProperties": False,
                    "properties": {
                        "keys": listed(keys),
                        "request": listed(sent),
                        "explain": {"type": "boolean", "description": "Also answer the feature vector as served."},
                        "now": _NOW,
                    },
                }
            )
    return {"anyOf": bodies} if bodies else {"type": "object"}


def _itself(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _list_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": row, "minItems": 1, "description": "keys and request have the same length."}


def _exact(values: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(values),
        "additionalProperties": False,
        "properties": dict(values),
    }


def schemas(models: Sequence[ModelManifest]) -> dict[str, Any]:
    """Return all by name: two per model for its rows, and those that are the same for all."""
    rows: dict[str, Any] = {}
    for one in models:
        rows[f"keys.{one.name}"] = _exact({name: _VALUES[kind] for name, kind in one.keys.items()})
        sent = {name: _VALUES.get(one.request_values.get(name), _NUMBER) for name in one.sent}  # type: ignore[arg-type]
        rows[f"request.{one.name}"] = _exact(sent)
    names = sorted({name for one in models for name in (*one.keys, *one.sent)})
    return {**rows, **_FIXED, "InferRequest": _infer_request(names)}


def _infer_request(names: list[str]) -> dict[str, Any]:
    scalar = {"type": ["number", "string", "boolean", "null"]}
    parameters = {"type": "object", "additionalProperties": False, "properties": {"now": _NOW}}
    own = {"type": ["object", "null"], "additionalProperties": {"type": ["number", "string", "boolean", "null"]}}
    return {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": parameters,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype", "data"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string", **({"enum": names} if names else {})},
                        "shape": {"type": "array", "items": _INT64, "minItems": 1, "maxItems": 2},
                        "datatype": {"type": "string", "enum": list(DATATYPES)},
                        "data": {
                            "type": "array",
                            "items": {
                                "anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1, "maxItems": 1}]
                            },
                        },
                        "parameters": own,
                    },
                },
            },
            "outputs": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": {"const": "score"}, "parameters": own},
                },
            },
        },
    }


_TENSOR_FIELDS = {
    "name": {"type": "string"},
    "datatype": {"type": "string"},
    "shape": {"type": "array", "items": {"type": "integer"}},
}
_TENSOR = {"type": "object", "required": ["name", "datatype", "shape"], "properties": _TENSOR_FIELDS}
_FRESHNESS = {
    "score": {"type": ["number", "null"], "description": "Null is NaN."},
    "at": {"type": "integer"},
    "complete_through": _INSTANT,
    "statuses": {
        "type": "object",
        "description": "How many features have which.",
        "additionalProperties": {"type": "integer"},
    },
    "stale": {"type": "array", "items": {"type": "string"}, "description": "Served although too old, by policy."},
    "degraded": {"type": "array", "items": {"type": "string"}, "description": "Their defaults served, by policy."},
    "vector": {"type": "object", "description": "With explain: the features as served; null is null, and NaN too."},
    "status": {"type": "object", "additionalProperties": _STATUS},
    "as_of": {"type": "object", "additionalProperties": _INSTANT},
}
_VECTOR = {
    "type": "object",
    "required": ["values", "status", "as_of", "complete_through", "at"],
    "properties": {
        "service": {"type": "string"},
        "values": {"type": "object", "description": "Value by feature; null is null, and NaN too."},
        "status": {"type": "object", "additionalProperties": _STATUS},
        "as_of": {"type": "object", "additionalProperties": _INSTANT},
        "complete_through": _INSTANT,
        "at": {"type": "integer"},
    },
}
_ROWS = {"anyOf": [_ROW, {"type": "array", "items": _ROW, "minItems": 1}]}
_LABEL = {"model": {"type": "string"}, "version": {"type": "integer"}}
_PREDICTION = {"type": "object", "required": ["score", "at", "complete_through", "statuses"], "properties": _FRESHNESS}

_FIXED: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
        },
    },
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "ServerMetadata": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
    },
    "ModelMetadata": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": _TENSOR},
            "properties": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
            "outputs": {
                "type": "array",
                "items": {
                    **_TENSOR,
                    "required": ["name", "shape", "datatype", "data"],
                    "properties": {
                        **_TENSOR_FIELDS,
                        "data": {"type": "array", "items": {"type": ["number", "null"]}},
                    },
                },
            },
        },
    },
    "Score": {**_PREDICTION, "required": ["model", "version", "score"], "properties": {**_LABEL, **_FRESHNESS}},
    "Scores": {
        "type": "object",
        "required": ["model", "version", "predictions"],
        "properties": {**_LABEL, "predictions": {"type": "array", "items": _PREDICTION}},
    },
    "LookupRequest": {
        "type": "object",
        "required": ["keys"],
        "additionalProperties": False,
        "properties": {
            "keys": _ROWS,
            "request": _ROWS,
            "features": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
            "now": _NOW,
        },
    },
    "Vector": _VECTOR,
    "Vectors": {
        "type": "object",
        "required": ["service", "vectors"],
        "properties": {"service": {"type": "string"}, "vectors": {"type": "array", "items": _VECTOR}},
    },
}
