"""The OpenAPI 3.1 description of what the scorer's process answers now: ``/openapi.json``, and the page at ``/docs``.

It is made of the manifests, so that each model's own keys and request inputs are in it, with their types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.scoring.schemas import ref, schemas, score_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featurestore.scoring.manifest import ModelManifest

_JSON = "application/json"
_ARROW = "application/vnd.apache.arrow.stream"
_PROBLEM = "application/problem+json"

_PROBLEMS = {
    "400": "The body, or a value in it, is refused; the text names it.",
    "401": "A valid API key or token is needed.",
    "403": "The credential has other scopes.",
    "404": "There is nothing of this name.",
    "405": "The path takes another method.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "415": "The body is of no type that the route takes.",
    "429": "More is asked than can be answered in time.",
    "431": "The headers are too large.",
    "503": "The store cannot be read, the features are older than their policy allows, or the deadline has passed.",
}
_OF_GET = ("401", "403", "404", "405", "431")
_RETRY = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
}

_ARROW_BODY = {_ARROW: {"schema": {"type": "string", "format": "binary"}}}


def document(version: str, manifests: Iterable[ModelManifest], *, has_gate: bool) -> dict[str, Any]:
    """Return the description as data.

    Args:
        version: Of the package.
        manifests: Of the versions that are served; the newest of a name describes its rows.
        has_gate: Whether callers need a credential.
    """
    newest: dict[str, ModelManifest] = {}
    versions: set[str] = set()
    for one in manifests:
        versions.add(str(one.version))
        if one.name not in newest or newest[one.name].version < one.version:
            newest[one.name] = one
    models = list(newest.values())
    name = _path("name", sorted(newest), "A model.")
    at_version = [name, _path("version", sorted(versions, key=int), "One of its versions.")]
    service = _path("name", sorted({one.service for one in models}), "A feature service.", closed=False)
    deadline = {
        "name": "x-deadline-ms",
        "in": "header",
        "description": "Milliseconds after which the answer is of no use; then 503.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    }
    infer = {_JSON: {"schema": {"$ref": "#/components/schemas/InferRequest"}}}
    inferred = {_JSON: {"schema": {"$ref": "#/components/schemas/InferResponse"}}}
    score = {_JSON: {"schema": score_body(models)}, **_ARROW_BODY}
    scored = {_JSON: {"schema": {"anyOf": [ref("Score"), ref("Scores")]}}, **_ARROW_BODY}
    lookup = {_JSON: {"schema": ref("LookupRequest")}}
    found = {_JSON: {"schema": {"anyOf": [ref("Vector"), ref("Vectors")]}}, **_ARROW_BODY}
    metadata = _get("model", "What a model takes and gives.", [name], ref("ModelMetadata"))
    ready = {"type": "object", "required": ["name", "ready"], "properties": {"ready": {"type": "boolean"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "featurestore",
            "version": version,
            "description": "Features joined, model run, score answered. /v2 speaks the Open Inference Protocol.",
        },
        **({"security": [{"key": []}, {"bearer": []}]} if has_gate else {}),
        "paths": {
            "/score/{name}": {"post": _post("score", "Scores of one or many rows.", [name, deadline], score, scored)},
            "/lookup/{name}": {
                "post": _post("lookup", "Features of one or many keys.", [service, deadline], lookup, found)
            },
            "/v2": {"get": _get("server", "Name and version.", [], ref("ServerMetadata"))},
            "/v2/": {"get": _get("server_slash", "The same.", [], ref("ServerMetadata"))},
            "/v2/health/live": {"get": _health("live", "Whether the process answers.")},
            "/v2/health/ready": {"get": _health("ready", "Whether every model and the store are there.")},
            "/v2/models/{name}": {"get": metadata},
            "/v2/models/{name}/ready": {"get": _get("model_ready", "Whether it can score.", [name], ready, "503")},
            "/v2/models/{name}/infer": {
                "post": _post("infer", "Scores, by tensors.", [name, deadline], infer, inferred, protocol=True)
            },
            "/v2/models/{name}/versions/{version}": {
                "get": {**metadata, "operationId": "model_version", "parameters": at_version}
            },
            "/v2/models/{name}/versions/{version}/ready": {
                "get": _get("model_version_ready", "Whether it can score.", at_version, ready, "503")
            },
            "/v2/models/{name}/versions/{version}/infer": {
                "post": _post(
                    "infer_version", "Scores, by tensors.", [*at_version, deadline], infer, inferred, protocol=True
                )
            },
            "/openapi.json": {"get": _get("openapi", "This description.", [], {"type": "object"})},
            "/docs": {
                "get": {
                    **_get("docs", "This description as a page.", [], {}),
                    "responses": {
                        "200": {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}},
                        **_problems(("401", "403", "405", "431"), protocol=False),
                    },
                }
            },
        },
        "components": {"securitySchemes": _SCHEMES, "schemas": schemas(models)},
    }


_SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON Web Token."},
}


def _path(name: str, known: list[str], text: str, *, closed: bool = True) -> dict[str, Any]:
    listed = {"enum": known} if closed and known else {"examples": known}
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string", **listed}}


def _get(name: str, summary: str, parameters: list[Any], schema: dict[str, Any], *more: str) -> dict[str, Any]:
    is_protocol = not name.startswith(("openapi", "docs"))
    unavailable = {"503": {"description": "It is not.", "content": {_JSON: {"schema": schema}}}} if more else {}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "As asked for.", "content": {_JSON: {"schema": schema}}},
            **_problems(_OF_GET, protocol=is_protocol),
            **unavailable,
        },
    }


def _health(name: str, summary: str) -> dict[str, Any]:
    said = {_JSON: {"schema": {"type": "object", "required": [name], "properties": {name: {"type": "boolean"}}}}}
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": "It does.", "content": said},
            "503": {"description": "Not all of them.", "content": said},
            **_problems(("405", "431"), protocol=True),
        },
    }


def _post(
    name: str,
    summary: str,
    parameters: list[Any],
    body: dict[str, Any],
    answer: dict[str, Any],
    *,
    protocol: bool = False,
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            **_problems(_PROBLEMS, protocol=protocol),
        },
    }


def _problems(statuses: Iterable[str], *, protocol: bool) -> dict[str, Any]:
    content = {_JSON: {"schema": ref("Error")}} if protocol else {_PROBLEM: {"schema": ref("Problem")}}
    return {
        status: {
            "description": _PROBLEMS[status],
            "content": content,
            **({"headers": _RETRY} if status in ("429", "503") else {}),
        }
        for status in statuses
    }
