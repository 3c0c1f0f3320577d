"""Contracts: what an event looks like. JSON Schema files in ``schemas/``, read once, as data. Pure.

A contract is a JSON Schema (2020-12) of an object with typed properties:

    "integer" -> int64      "number" -> float64      "boolean" -> bool      "string" -> string
    "string" with "format": "date-time" -> timestamp (ISO 8601 with an offset)
    a list with "null", or a name that is not in "required" -> nullable

Bounds (minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength, pattern, enum of texts) are checked for
every event; notes (title, description, examples, $id, $schema, $comment, default) mean nothing; any other keyword is
refused, because a rule that is silently ignored is worse than none. Fields a contract does not name are let through.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_TYPES = {
    "integer": DataType.INT64,
    "number": DataType.FLOAT64,
    "boolean": DataType.BOOL,
    "string": DataType.STRING,
}
_NOTES = frozenset({"title", "description", "examples", "$id", "$schema", "$comment", "default"})
_BOUNDS: dict[DataType, frozenset[str]] = {
    DataType.INT64: frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    DataType.FLOAT64: frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    DataType.STRING: frozenset({"minLength", "maxLength", "pattern", "enum"}),
    DataType.BOOL: frozenset(),
    DataType.TIMESTAMP: frozenset(),
}


@dataclass(frozen=True)
class ContractField:
    """One field: its name, type, whether it may be null or absent, and its bounds by JSON Schema keyword."""

    name: str
    type: DataType
    nullable: bool
    bounds: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """A versioned event schema. The name is the folder of ``NAME/vN.json``, the version its N."""

    name: str
    version: int
    fields: tuple[ContractField, ...]

    @cached_property
    def columns(self) -> dict[str, DataType]:
        """Field name to type, in order."""
        return {one.name: one.type for one in self.fields}

    @staticmethod
    def load(path: Path) -> Contract:
        """Return the contract of a JSON Schema file.

        Raises:
            ContractError: The file cannot be read, or is not a schema this package understands.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ContractError(f"schema {path} cannot be read: {reason}.") from None
        digits = path.stem.removeprefix("v")
        return Contract.from_json(text, path.parent.name or path.stem, version=int(digits) if digits.isdigit() else 1)

    @staticmethod
    def from_json(text: str, name: str, *, version: int = 1) -> Contract:
        """Return the contract of a JSON Schema text.

        Raises:
            ContractError: It is not a schema this package understands; the message names the place in it.
        """
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ContractError(f"schema {name}: not JSON: {error}.") from None
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if not isinstance(properties, dict) or not properties or schema.get("type") != "object":
            raise ContractError(f'schema {name}: must be {{"type": "object", "properties": {{...}}}}.')
        _refuse_unknown(schema, {"type", "properties", "required", "additionalProperties"}, f"schema {name}")
        if schema.get("additionalProperties") is False:
            raise ContractError(
                f"schema {name}: additionalProperties: false would refuse every later version of the event.",
                hint="leave it out.",
            )
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
            raise ContractError(f"schema {name}: required must be a list of names, not {required!r}.")
        unknown = sorted(set(required) - set(schema["properties"]))
        if unknown:
            raise ContractError(f"schema {name}: required names {unknown[0]!r}, which is no property.")
        fields = tuple(
            _field(column, node, column in required, f"schema {name}, property {column!r}")
            for column, node in schema["properties"].items()
        )
        return Contract(name, version, fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as data."""
        return {
            "name": self.name,
            "version": self.version,
            "fields": [
                {
                    "name": one.name,
                    "type": str(one.type),
                    "nullable": one.nullable,
                    **({"bounds": dict(one.bounds)} if one.bounds else {}),
                }
                for one in self.fields
            ],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Contract:
        """Return the contract that ``to_dict`` wrote."""
        return Contract(
            data["name"],
            data["version"],
            tuple(
                ContractField(one["name"], DataType(one["type"]), one["nullable"], one.get("bounds", {}))
                for one in data["fields"]
            ),
        )


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """Return why events of ``old`` would not all be events of ``new``, in words; empty when the change is additive."""
    found = []
    fields = {one.name: one for one in new.fields}
    for before in old.fields:
        after = fields.pop(before.name, None)
        if after is None:
            found.append(f"field {before.name!r} was removed.")
        elif after.type != before.type and (before.type, after.type) != (DataType.INT64, DataType.FLOAT64):
            found.append(f"field {before.name!r} changed from {before.type} to {after.type}.")
        elif before.nullable and not after.nullable:
            found.append(f"field {before.name!r} is no longer nullable.")
        elif dict(before.bounds) != dict(after.bounds) and after.bounds:
            found.append(f"field {before.name!r} has other bounds.")
    found += [f"new field {name!r} is required." for name, one in fields.items() if not one.nullable]
    return found


def _field(column: str, node: Any, required: bool, where: str) -> ContractField:  # noqa: FBT001 - from the schema
    if not isinstance(node, dict) or "type" not in node:
        raise ContractError(f"{where}: has no type.", hint=f"allowed are {', '.join(_TYPES)}.")
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    named = [kind for kind in kinds if kind != "null"]
    if len(named) != 1 or not isinstance(named[0], str) or named[0] not in _TYPES:
        raise ContractError(
            f"{where}: type {node['type']!r} is not supported.",
            hint=f'use one of {", ".join(_TYPES)}, alone or in a list with "null".',
        )
    kind = _TYPES[named[0]]
    if "format" in node:
        if kind != DataType.STRING or node["format"] != "date-time":
            raise ContractError(f"{where}: format {node['format']!r} is not supported.", hint='only "date-time" is.')
        kind = DataType.TIMESTAMP
    _refuse_unknown(node, {"type", "format"} | _BOUNDS[kind], where)
    bounds = {name: node[name] for name in sorted(_BOUNDS[kind]) if name in node}
    for name, value in bounds.items():
        _check_bound(name, value, where)
    if "enum" in bounds and len(bounds) > 1:
        raise ContractError(f"{where}: enum and {' and '.join(sorted(set(bounds) - {'enum'}))} say the same twice.")
    return ContractField(column, kind, "null" in kinds or not required, bounds)


def _check_bound(name: str, value: Any, where: str) -> None:
    """Refuse a bound that no value could be held to."""
    if name == "enum":
        fine = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
        wanted = "a list of texts; a null is allowed by the type"
    elif name == "pattern":
        wanted = "a regular expression"
        try:
            fine = isinstance(value, str) and bool(re.compile(value))
        except (re.error, RecursionError):
            fine = False
    elif name in ("minLength", "maxLength"):
        fine, wanted = type(value) is int and 0 <= value < 2**31, "a count of characters"
    else:
        fine, wanted = type(value) in (int, float) and -(2.0**63) <= value <= 2.0**63, "a number within 64 bits"
    if not fine:
        raise ContractError(f"{where}: {name} is {value!r}.", hint=f"write {wanted}.")


def _refuse_unknown(node: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    for keyword in node:
        if keyword not in known and keyword not in _NOTES:
            raise ContractError(
                f"{where}: keyword {keyword!r} is not supported.",
                hint=f"supported here: {', '.join(sorted(known))}.",
            )
