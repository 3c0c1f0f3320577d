"""Contracts: what an event looks like. JSON Schema (here) or Avro (``avro``) files in ``schemas/``, read once, as data. Pure.

A contract is a JSON Schema (2020-12) of an object with typed properties:

    "integer" -> int64      "number" -> float64      "boolean" -> bool      "string" -> string
    "string" with "format": "date-time" -> timestamp (ISO 8601 with an offset)
    a list with "null", or a name that is not in "required" -> nullable
    "array" of such "items" -> a list, in a column of the same name
    "array" of objects with such properties -> a list for every property, in columns "array__property" of one length

Bounds (minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength, pattern, enum of texts) are checked for
every event and every element, of which an array has at most 1,024; notes (title, description, examples, $id, $schema, $comment,
default) mean nothing; any other keyword is refused, because a rule that is silently ignored is worse than none. Fields a contract
does not name are let through.
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


MAX_ELEMENTS = 1 << 10
"""The most elements of an array: the place of an element among events is 10 bits of an int64."""


@dataclass(frozen=True)
class ContractField:
    """One field, or one property of the objects in an array.

    Attributes:
        name: The column's name: the field's, or "array__property": Spark takes a dot for a struct.
        type: The column's type; a list where the field is an array.
        nullable: Whether it may be null or absent; of an array, whether the array may.
        bounds: Bounds by JSON Schema keyword; of an array, those of its elements.
        array: The array it belongs to; None where it is none.
        element_nullable: Of an array, whether an element, or this property of one, may be null.
    """

    name: str
    type: DataType
    nullable: bool
    bounds: Mapping[str, Any] = field(default_factory=dict)
    array: str | None = None
    element_nullable: bool = False

    @property
    def property(self) -> str | None:
        """The property of the array's objects that the column holds; None of a plain field or an array of scalars."""
        return None if self.array is None or self.name == self.array else self.name[len(self.array) + 2 :]


@dataclass(frozen=True)
class Contract:
    """A versioned event schema. The name is the folder of ``NAME/vN.json`` or ``NAME/vN.avsc``, the version its N.

    Attributes:
        name: Its name.
        version: Its version.
        fields: Its columns.
        avro: The Avro schema its events are written with; None where they are JSON.
        earlier: The versions before it, oldest first, whose events are accepted too.
        ids: Schema id to version; where empty, the id of a version is its number.
    """

    name: str
    version: int
    fields: tuple[ContractField, ...]
    avro: Mapping[str, Any] | None = None
    earlier: tuple[Contract, ...] = ()
    ids: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def versions_by_id(self) -> dict[int, Contract]:
        """Schema id to the version that it names."""
        known = {each.version: each for each in (*self.earlier, self)}
        return {name: known[version] for name, version in self.ids.items()} if self.ids else known

    @cached_property
    def columns(self) -> dict[str, DataType]:
        """Column name to type, in order."""
        return {one.name: one.type for one in self.fields}

    @cached_property
    def arrays(self) -> dict[str, tuple[ContractField, ...]]:
        """Name of every array to its columns."""
        found: dict[str, tuple[ContractField, ...]] = {}
        for one in self.fields:
            if one.array is not None:
                found[one.array] = (*found.get(one.array, ()), one)
        return found

    @staticmethod
    def load(path: Path) -> Contract:
        """Return the contract of a JSON Schema or Avro file, with the versions before it in its folder.

        Raises:
            ContractError: The file cannot be read, or is not a schema this package understands.
            BreakingChangeError: It does not only add to the versions before it.
        """
        from featurestore.definitions.versions import with_versions

        return with_versions(Contract.load_one(path), path)

    @staticmethod
    def load_one(path: Path) -> Contract:
        """Return the contract of one file, whatever else is in its folder."""
        from featurestore.definitions.avro import contract_from_avro

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ContractError(f"schema {path} cannot be read: {reason}.") from None
        digits = path.stem.removeprefix("v")
        read = contract_from_avro if path.suffix == ".avsc" else Contract.from_json
        return read(text, path.parent.name or path.stem, version=int(digits) if digits.isdigit() else 1)

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
            one
            for column, node in schema["properties"].items()
            for one in _fields(column, node, column in required, f"schema {name}, property {column!r}")
        )
        names = [one.name for one in fields]
        twice = sorted({one for one in names if names.count(one) > 1})
        if twice:
            raise ContractError(f"schema {name}: two columns would be called {twice[0]!r}.", hint="rename a property.")
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
                    **({"array": one.array, "element_nullable": one.element_nullable} if one.array else {}),
                }
                for one in self.fields
            ],
            **({"avro": dict(self.avro)} if self.avro is not None else {}),
            **({"earlier": [each.to_dict() for each in self.earlier]} if self.earlier else {}),
            **({"ids": {str(name): version for name, version in self.ids.items()}} if self.ids else {}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Contract:
        """Return the contract that ``to_dict`` wrote."""
        return Contract(
            data["name"],
            data["version"],
            tuple(
                ContractField(
                    one["name"],
                    DataType(one["type"]),
                    one["nullable"],
                    one.get("bounds", {}),
                    one.get("array"),
                    one.get("element_nullable", False),
                )
                for one in data["fields"]
            ),
            data.get("avro"),
            tuple(Contract.from_dict(each) for each in data.get("earlier", ())),
            {int(name): version for name, version in data.get("ids", {}).items()},
        )


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """Return why events of ``old`` would not all be events of ``new``, in words; empty when the change is additive."""
    found = []
    fields = {one.name: one for one in new.fields}
    for before in old.fields:
        after = fields.pop(before.name, None)
        if after is None:
            found.append(f"field {before.name!r} was removed.")
        elif after.type != before.type:  # a log of integers would cut the fractions off
            found.append(f"field {before.name!r} changed from {before.type} to {after.type}.")
        elif before.array != after.array or (before.element_nullable and not after.element_nullable):
            found.append(f"field {before.name!r} has other elements.")
        elif before.nullable and not after.nullable:
            found.append(f"field {before.name!r} is no longer nullable.")
        elif not _allows(after.bounds, before.bounds):
            found.append(f"field {before.name!r} has other bounds.")
    found += [f"new field {name!r} is required." for name, one in fields.items() if not one.nullable]
    return found


def _allows(bounds: Mapping[str, Any], older: Mapping[str, Any]) -> bool:
    """Whether bounds let everything through that older ones do; an enum may get more texts."""
    if set(bounds) == set(older) == {"enum"}:
        return set(older["enum"]) <= set(bounds["enum"])
    return not bounds or dict(bounds) == dict(older)


def _fields(column: str, node: Any, required: bool, where: str) -> list[ContractField]:  # noqa: FBT001 - from the schema
    """Return the columns of a property: one, or one for every property of the objects in an array."""
    kinds = node.get("type") if isinstance(node, dict) else None
    if "array" not in (kinds if isinstance(kinds, list) else [kinds]):
        return [_field(column, node, required, where)]
    if isinstance(kinds, list) and sorted(map(str, kinds)) != ["array", "null"]:
        raise ContractError(
            f"{where}: type {kinds!r} is not supported.", hint='an array is "array" or ["array", "null"].'
        )
    _refuse_unknown(node, {"type", "items"}, where)
    nullable, items = isinstance(kinds, list) or not required, node.get("items")
    inside = f"{where}, items"
    if not isinstance(items, dict):
        raise ContractError(f"{where}: an array without items.", hint='say what it holds: "items": {"type": "number"}.')
    if items.get("type") not in ("object", ["object", "null"], ["null", "object"]):
        found = [(column, _field(column, items, True, inside))]
    else:
        _refuse_unknown(items, {"type", "properties", "required", "additionalProperties"}, inside)
        wanted, properties = items.get("required", []), items.get("properties")
        if not isinstance(properties, dict) or not properties or not isinstance(wanted, list):
            raise ContractError(f"{inside}: objects need properties.")
        needed = wanted if items["type"] == "object" else []
        found = [
            (f"{column}__{name}", _field(name, each, name in needed, f"{inside}, property {name!r}"))
            for name, each in properties.items()
        ]
    return [
        ContractField(name, DataType.list_of(one.type), nullable, one.bounds, column, one.nullable)
        for name, one in found
    ]


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
