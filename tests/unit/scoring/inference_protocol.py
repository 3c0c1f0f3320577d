"""The facts of the Open Inference Protocol V2's REST document, as JSON Schemas: which routes answer what, and what a body has.

Written from the published description (github.com/kserve/open-inference-protocol, specification/protocol/open_inference_rest.yaml
and inference_rest.md): names, types and what is required; nothing is forbidden that it does not forbid.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
SHAPE = {"type": "array", "items": {"type": "integer"}}
DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
)
DATA: dict[str, Any] = {
    "$defs": {
        "data": {
            "type": "array",
            "items": {"anyOf": [{"$ref": "#/$defs/data"}, {"type": ["number", "string", "boolean"]}]},
        }
    },
    "$ref": "#/$defs/data",
}
PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def record(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


TENSOR_METADATA = record(("name", "datatype", "shape"), name=TEXT, datatype={"enum": list(DATATYPES)}, shape=SHAPE)
TENSOR = record(
    ("name", "shape", "datatype", "data"),
    name=TEXT,
    shape=SHAPE,
    datatype={"enum": list(DATATYPES)},
    parameters=PARAMETERS,
    data={"type": "array"},
)
SERVER = record(("name", "version", "extensions"), name=TEXT, version=TEXT, extensions={"type": "array", "items": TEXT})
MODEL = record(
    ("name", "platform"),
    name=TEXT,
    versions={"type": "array", "items": TEXT},
    platform=TEXT,
    inputs={"type": "array", "items": TENSOR_METADATA},
    outputs={"type": "array", "items": TENSOR_METADATA},
)
RESPONSE = record(
    ("model_name", "outputs"),
    model_name=TEXT,
    model_version=TEXT,
    id=TEXT,
    parameters=PARAMETERS,
    outputs={"type": "array", "items": TENSOR},
)
ERROR = {**record(("error",), error=TEXT), "additionalProperties": False}
LIVE, READY = record(("live",), live={"type": "boolean"}), record(("ready",), ready={"type": "boolean"})
MODEL_READY = record(("ready",), name=TEXT, ready={"type": "boolean"})

GETS = {
    "/v2": SERVER,
    "/v2/": SERVER,
    "/v2/health/live": LIVE,
    "/v2/health/ready": READY,
    "/v2/models/{name}": MODEL,
    "/v2/models/{name}/versions/{version}": MODEL,
    "/v2/models/{name}/ready": MODEL_READY,
    "/v2/models/{name}/versions/{version}/ready": MODEL_READY,
}
POSTS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
