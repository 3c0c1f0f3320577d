"""Decides from the bytes alone whether they are an ONNX model that may be loaded. No model runtime is involved.

Rules:
    1. ONNX has no magic number, so the whole protocol-buffer message is walked: a file is a model when every field
       parses, an ir_version and a graph are there, and nothing is left over. There is no fallback to another format.
    2. A tensor may keep its data in another file. A model is loaded from bytes whose hash is known, so such a tensor is
       refused wherever it hides: initializers, sparse ones, attributes, subgraphs, functions and training graphs.
    3. An operator belongs to the ONNX standard or its machine-learning part. ``Loop`` is refused: a graph without it ends
       after a number of steps that its size bounds, and no model of rows needs it. Whether the runtime knows an operator
       by its name and version is the runtime's to say, when it loads the graph.
    4. The walk is iterative in siblings and bounded in depth, and no length is trusted beyond its message's end.
"""

from __future__ import annotations

import re

from featurestore.errors import ModelError

MAX_MODEL_BYTES = 256 * 1024 * 1024
"""Larger files are refused; protocol buffers themselves end at 2 GiB."""

_MAX_DEPTH = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> {field number: message of the field}, from onnx.proto; every way that leads to a TensorProto.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MODEL_IR_VERSION, _MODEL_GRAPH = 1, 7
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_ENDLESS = ("Loop",)

# The numbers and short texts of trees: hundreds of thousands of repeated fields of one attribute, passed over some thousands
# at once; no other thread runs meanwhile, and a scorer loads a model while it answers.
# Fields 7 (floats, fixed32), 8 (ints, varint) and 9 (strings, up to 31 bytes) of AttributeProto.
_AT_ONCE = 2_000
_SHORT_TEXTS = b"|".join(b"%b.{%d}" % (re.escape(bytes([length])), length) for length in range(32))
_NUMBERS = re.compile(
    rb"(?:\x3d.{4}|\x40[\x80-\xff]{0,9}[\x00-\x7f]|\x4a(?:%b)){1,%d}" % (_SHORT_TEXTS, _AT_ONCE), re.DOTALL
)

# What people store by mistake, by its first bytes.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80", "a pickle or joblib file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"tree\n", "a LightGBM text model"),
    (b"{", "a JSON file"),
)


class _MalformedError(Exception):
    """The bytes are not a protocol-buffer message of the expected type."""


def check_onnx(content: bytes, *, name: str, max_bytes: int = MAX_MODEL_BYTES) -> None:
    """Return when the bytes are one self-contained ONNX model.

    Args:
        content: The whole file.
        name: What messages call the model.
        max_bytes: The largest size that is let through.

    Raises:
        ModelError: The bytes are empty, too many, another format, cut off, refer to data in other files, or use an operator
            outside the standard or without end.
    """
    if len(content) > max_bytes:
        raise ModelError(
            f"model {name}: {len(content)} bytes are more than the {max_bytes} allowed.",
            hint="store a smaller model: fewer or shallower trees, or float16 weights.",
        )
    for magic, what in _OTHER_FORMATS:
        if content.startswith(magic):
            raise ModelError(
                f"model {name}: the file is {what}, not ONNX.",
                hint="convert it with skl2onnx or onnxmltools; no other format is loaded.",
            )
    seen: set[int] = set()
    try:
        _walk(content, 0, len(content), "model", seen=seen, depth=0, name=name)
    except _MalformedError as reason:
        raise ModelError(
            f"model {name}: the file is not an ONNX model ({reason}).",
            hint="write it with model.SerializeToString(), and check that it was copied whole.",
        ) from None
    if not {_MODEL_IR_VERSION, _MODEL_GRAPH} <= seen:
        raise ModelError(
            f"model {name}: the file is not an ONNX model (it has no ir_version or no graph).",
            hint="write it with model.SerializeToString().",
        )


def _walk(content: bytes, start: int, end: int, message: str, *, seen: set[int], depth: int, name: str) -> None:
    """Visit the fields of one message in ``content[start:end]``; collect the field numbers of the model in ``seen``."""
    if depth > _MAX_DEPTH:
        raise _MalformedError(f"it is nested deeper than {_MAX_DEPTH} messages")
    children = _CHILDREN[message]
    operator = domain = ""
    position = start
    while position < end:
        if message == "attribute" and (numbers := _NUMBERS.match(content, position, end)):
            position = numbers.end()
            continue
        tag, position = _varint(content, position, end)
        field, wire = tag >> 3, tag & 7
        if message == "model":
            seen.add(field)
        if wire == _VARINT:
            value, position = _varint(content, position, end)
            if message == "tensor" and field == _TENSOR_DATA_LOCATION and value != 0:
                raise _external(name)
        elif wire == _BYTES:
            length, position = _varint(content, position, end)
            if length > end - position:
                raise _MalformedError(f"a field at byte {position} is cut off")
            if message == "tensor" and field == _TENSOR_EXTERNAL_DATA:
                raise _external(name)
            if message == "node" and field in (_NODE_OPERATOR, _NODE_DOMAIN):
                text = content[position : position + min(length, 80)].decode("utf-8", "replace")
                operator, domain = (text, domain) if field == _NODE_OPERATOR else (operator, text)
            child = children.get(field)
            if child is not None:
                _walk(content, position, position + length, child, seen=seen, depth=depth + 1, name=name)
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
            if position > end:
                raise _MalformedError(f"a field at byte {position} is cut off")
        else:
            raise _MalformedError(f"byte {position - 1} is no field of a protocol-buffer message")
        if field == 0:
            raise _MalformedError(f"field number 0 at byte {position}")
    if message == "node" and (domain not in _DOMAINS or operator in _ENDLESS):
        raise _operator(f"{domain}.{operator}" if domain else operator, name)


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the unsigned varint at ``position`` and where the next field starts."""
    value = shift = 0
    while position < end:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise _MalformedError(f"a number at byte {position} has more than 64 bits")
    raise _MalformedError("it ends within a number")


def _operator(operator: str, name: str) -> ModelError:
    return ModelError(
        f"model {name}: operator {operator!r} is not allowed.",
        hint="operators of the ONNX standard and of ai.onnx.ml are, all but Loop; convert the model with those only.",
    )


def _external(name: str) -> ModelError:
    return ModelError(
        f"model {name}: it keeps tensor data in another file (ONNX external data).",
        hint="save it as one file: onnx.save(model, path, save_as_external_data=False).",
    )
