"""The JSON bodies the scorer reads, decoded strictly: typed, bounded, nothing unknown, nothing twice.

msgspec refuses NaN and Infinity literals, numbers beyond a double, broken UTF-8, lone surrogates and trailing bytes;
the types below refuse integers over 64 bit and any nesting beyond a tensor's. What it doesn't see is a name given twice
in one object, so that is checked here: without doubles, a body has as many colons outside strings as it has names.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from featurestore.errors import ModelInputError

Integer: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Scalar: TypeAlias = Integer | float | str | bool | None
Parameters: TypeAlias = dict[str, Scalar]


class RequestedOutput(Struct, forbid_unknown_fields=True):
    """An output tensor the caller asks for."""

    name: str
    parameters: Parameters | UnsetType | None = UNSET

    def names(self) -> int:
        """Return how many names its objects hold."""
        return _present(self) + _size(self.parameters)


class InputTensor(Struct, forbid_unknown_fields=True):
    """One input tensor of the Open Inference Protocol; ``data`` is flat or nested by row."""

    name: str
    shape: list[Integer]
    datatype: str
    data: list[Scalar | list[Scalar]]
    parameters: Parameters | UnsetType | None = UNSET

    def names(self) -> int:
        """Return how many names its objects hold."""
        return _present(self) + _size(self.parameters)


class InferBody(Struct, forbid_unknown_fields=True):
    """The body of an Open Inference Protocol request."""

    inputs: list[InputTensor]
    id: str | UnsetType | None = UNSET
    parameters: Parameters | UnsetType | None = UNSET
    outputs: list[RequestedOutput] | UnsetType | None = UNSET

    def names(self) -> int:
        """Return how many names its objects hold."""
        outputs = self.outputs or ()
        nested = sum(one.names() for one in self.inputs) + sum(one.names() for one in outputs)
        return _present(self) + _size(self.parameters) + nested


class ScoreBody(Struct, forbid_unknown_fields=True):
    """The body of ``POST /score/{model}``: one row, or lists of the same length."""

    keys: dict[str, Scalar] | list[dict[str, Scalar]]
    request: dict[str, Scalar] | list[dict[str, Scalar]] | UnsetType = UNSET
    explain: bool | UnsetType = UNSET
    now: Integer | str | UnsetType | None = UNSET

    def names(self) -> int:
        """Return how many names its objects hold."""
        own = 1 + (self.request is not UNSET) + (self.explain is not UNSET) + (self.now is not UNSET)
        return own + _size(self.keys) + _size(self.request)


class LookupBody(Struct, forbid_unknown_fields=True):
    """The body of ``POST /lookup/{service}``: one row, or lists of the same length."""

    keys: dict[str, Scalar] | list[dict[str, Scalar]]
    request: dict[str, Scalar] | list[dict[str, Scalar]] | UnsetType = UNSET
    features: list[str] | UnsetType = UNSET
    now: Integer | str | UnsetType | None = UNSET

    def names(self) -> int:
        """Return how many names its objects hold."""
        return _present(self) + _size(self.keys) + _size(self.request)


_infer = msgspec.json.Decoder(InferBody)
_score = msgspec.json.Decoder(ScoreBody)
_lookup = msgspec.json.Decoder(LookupBody)


def decode_infer(body: bytes) -> InferBody:
    """Return an inference request.

    Raises:
        ModelInputError: It is not strict JSON of that shape; the message says where.
    """
    decoded: InferBody = _decode(_infer, body)
    return decoded


def decode_score(body: bytes) -> ScoreBody:
    """Return a plain scoring request.

    Raises:
        ModelInputError: It is not strict JSON of that shape; the message says where.
    """
    decoded: ScoreBody = _decode(_score, body)
    return decoded


def decode_lookup(body: bytes) -> LookupBody:
    """Return a lookup.

    Raises:
        ModelInputError: It is not strict JSON of that shape; the message says where.
    """
    decoded: LookupBody = _decode(_lookup, body)
    return decoded


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        decoded = decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ModelInputError(f"the body is refused: {error}") from None
    except UnicodeDecodeError:
        raise ModelInputError("the body is refused: it is not UTF-8.") from None
    except RecursionError:
        raise ModelInputError("the body is refused: it is nested too deeply.") from None
    if body.count(b":") != decoded.names():  # a double, or merely a colon in a text
        json.loads(body, object_pairs_hook=_refuse_doubles)
    return decoded


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ModelInputError(f"the body is refused: {name[:80]!r} is there twice in one object.")
        seen.add(name)


def _present(struct: Struct) -> int:
    return sum(1 for name in struct.__struct_fields__ if getattr(struct, name) is not UNSET)


def _size(value: dict[str, Any] | list[dict[str, Any]] | UnsetType | None) -> int:
    if isinstance(value, dict):
        return len(value)
    return sum(map(len, value)) if isinstance(value, list) else 0


def finite(value: Any) -> Any:
    """Return what JSON can say of a feature's value: null for NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [finite(each) for each in value] if isinstance(value, list) else value
