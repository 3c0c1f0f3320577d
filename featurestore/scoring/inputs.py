"""What a caller must send for a model, checked row by row before anything is looked up. Pure: no I/O, no arrays.

A row is keys and request inputs: what the model takes as a column, what request features of its service take, or both. Every
name must be there and none besides; an explicit null is a value (a null key is a key of its own, a null request input is NaN to
the model and null to a request feature), a name left out is an error.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError, ModelInputError, did_you_mean
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from featurestore.scoring.manifest import ModelManifest

MAX_TEXT_BYTES = 4096
"""The longest key value, in UTF-8."""

_INT64 = range(-(2**63), 2**63)
_FLOAT32_MAX = 3.4028234663852886e38
_NAN = math.nan


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ScoreRequest(NamedTuple):
    """One row to score: the entity keys and the values only the caller knows."""

    keys: Mapping[str, Any]
    request: Mapping[str, Any] = _NOTHING


class CheckedRow(NamedTuple):
    """A row that fits the model: keys and request values as the client takes them, request inputs as floats, in order."""

    keys: dict[str, Any]
    values: tuple[float, ...]
    request: Mapping[str, Any] = _NOTHING
    request_id: str | None = None
    """Of the request that the row came with; for the prediction log."""


class ModelInputs:
    """The row contract of one model, taken from its manifest."""

    def __init__(self, manifest: ModelManifest) -> None:
        self.keys = dict(manifest.keys)
        self.request_inputs = manifest.request_inputs
        self._key_names = frozenset(self.keys)
        self.request_values = dict(manifest.request_values)
        self._request_names = frozenset(manifest.sent)
        self._label = manifest.label

    def check(self, row: ScoreRequest, *, at: str = "", request_id: str | None = None) -> CheckedRow:
        """Return the row, checked.

        Args:
            row: Keys and request inputs.
            at: Where the row is, for messages: ``"row 3: "``.
            request_id: Of the request that it came with.

        Raises:
            ModelInputError: A name is missing or unknown, or a value has the wrong type.
        """
        if row.keys.keys() != self._key_names:
            self._refuse_names(row.keys, self._key_names, "key", at)
        if row.request.keys() != self._request_names:
            self._refuse_names(row.request, self._request_names, "request input", at)
        keys = {name: self._typed("key", name, kind, row.keys[name], at) for name, kind in self.keys.items()}
        values = tuple([self._number(name, row.request[name], at) for name in self.request_inputs])
        if not self.request_values:
            return CheckedRow(keys, values, request_id=request_id)
        request = {
            name: self._typed("request input", name, kind, row.request[name], at)
            for name, kind in self.request_values.items()
        }
        return CheckedRow(keys, values, request, request_id)

    def _refuse_names(self, given: Iterable[str], wanted: frozenset[str], what: str, at: str) -> None:
        names = set(given)
        missing = sorted(wanted - names)
        if missing:
            raise ModelInputError(
                f"{at}model {self._label}: {what} {missing[0]!r} is missing.",
                hint=f"send every {what}: {', '.join(sorted(wanted))}; null is a value.",
            )
        unknown = str(min(names - wanted, key=str))[:80]
        raise ModelInputError(
            f"{at}model {self._label}: {what} {unknown!r} is unknown.",
            hint=did_you_mean(unknown, wanted, what=f"{what}s") if wanted else f"this model takes no {what}.",
        )

    def _typed(self, what: str, name: str, kind: DataType, value: Any, at: str) -> Any:
        """Return a key or request value in the type the client takes: a timestamp becomes an instant."""
        if value is None:
            return None
        if kind is DataType.STRING:
            if isinstance(value, str):
                if len(value) > MAX_TEXT_BYTES or len(value.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
                    raise ModelInputError(f"{at}{what} {name!r} has more than {MAX_TEXT_BYTES} bytes.")
                return value
        elif kind is DataType.INT64:
            if isinstance(value, int) and not isinstance(value, bool) and value in _INT64:
                return value
        elif kind is DataType.BOOL:
            if isinstance(value, bool):
                return value
        elif kind is DataType.TIMESTAMP:
            try:
                return to_instant(value, name=f"{at}{what} {name!r}")
            except DefinitionError as error:
                raise ModelInputError(error.message, hint=error.hint) from None
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise ModelInputError(
            f"{at}{what} {name!r} is {_shown(value)}, not of type {kind}.", hint=f"send it as {_JSON_FORM[kind]}."
        )

    def _number(self, name: str, value: Any, at: str) -> float:
        """Return a request input as the model takes it: a float within float32, NaN for null."""
        if value is None:
            return _NAN
        if isinstance(value, (int, float)):
            number = float(value) if isinstance(value, float) or value in _INT64 else math.inf
            if math.isnan(number) or -_FLOAT32_MAX <= number <= _FLOAT32_MAX:
                return number
            raise ModelInputError(f"{at}request input {name!r} is {_shown(value)}, outside the range of float32.")
        raise ModelInputError(
            f"{at}request input {name!r} is {_shown(value)}, not a number.", hint="send a number, true, false or null."
        )


_JSON_FORM = {
    DataType.STRING: "a JSON string",
    DataType.INT64: "a JSON integer of at most 64 bits",
    DataType.FLOAT64: "a JSON number",
    DataType.BOOL: "true or false",
    DataType.TIMESTAMP: "ISO 8601 with an offset, or integer microseconds",
}


def _shown(value: Any) -> str:
    """Return a value as a message may show it: short, on one line."""
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return "an integer of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
