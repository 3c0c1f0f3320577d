"""The OpenAPI 3.1 description of what the scorer's process answers, served at ``/openapi.json``."""

from __future__ import annotations

from typing import Any

_INSTANT = {"type": ["integer", "null"], "description": "Microseconds since 1970, UTC."}
_ROW = {"type": "object", "additionalProperties": {"type": ["integer", "number", "string", "boolean", "null"]}}
_ROWS = {"oneOf": [_ROW, {"type": "array", "items": _ROW, "minItems": 1}]}
_STATUS = {"type": "string", "enum": ["present", "null", "missing", "stale", "degraded"]}
_PROBLEMS = {
    "400": "The body or a value in it is refused.",
    "401": "A valid API key is needed.",
    "404": "There is nothing of this name.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "415": "The body is not plain application/json.",
    "429": "Too many requests are in flight.",
    "503": "The store cannot be read, or the features are older than their policy allows.",
}


def document(version: str) -> dict[str, Any]:
    """Return the description as data.

    Args:
        version: Of the package.
    """
    vector = {
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
    vectors = {
        "type": "object",
        "required": ["service", "vectors"],
        "properties": {"service": {"type": "string"}, "vectors": {"type": "array", "items": vector}},
    }
    found = {
        "application/json": {"schema": {"oneOf": [vector, vectors]}},
        "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
    }
    now = {"type": ["integer", "string", "null"], "description": "Time of the lookup; where the scorer allows replays."}
    lookup = {
        "type": "object",
        "required": ["keys"],
        "additionalProperties": False,
        "properties": {
            "keys": _ROWS,
            "request": _ROWS,
            "features": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
            "now": now,
        },
    }
    score = {
        "type": "object",
        "required": ["keys"],
        "additionalProperties": False,
        "properties": {"keys": _ROWS, "request": _ROWS, "explain": {"type": "boolean"}, "now": now},
    }
    scored = {"application/json": {"schema": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "featurestore", "version": version},
        "security": [{"key": []}, {"bearer": []}],
        "paths": {
            "/lookup/{service}": {"post": _post("lookup", "Features of one or many keys.", "service", lookup, found)},
            "/score/{model}": {"post": _post("score", "Scores of one or many keys.", "model", score, scored)},
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {
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
                }
            },
        },
    }


def _post(name: str, summary: str, parameter: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "Found.", "content": answer},
            **{status: {"description": text, "content": problem} for status, text in _PROBLEMS.items()},
        },
    }
