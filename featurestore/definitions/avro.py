"""Avro schemas as contracts: ``.avsc`` files of a record, read as data. Pure; no Avro library is needed to define.

    "int", "long" -> int64      "float", "double" -> float64      "boolean" -> bool      "string" -> string
    "long" with "logicalType" timestamp-millis or timestamp-micros -> timestamp      "enum" -> string, one of its symbols
    a union of "null" and one of these -> nullable
    "array" of these, or of records of these -> columns as in ``contract``

A type that is not in this list is refused, and so is a logical type that would be ignored. ``default`` and ``doc`` are notes: a
field that an older event lacks is null, whatever its default. Aliases are refused: a renamed field is a new field.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract, ContractField
from featurestore.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SCALARS = {
    "int": DataType.INT64,
    "long": DataType.INT64,
    "float": DataType.FLOAT64,
    "double": DataType.FLOAT64,
    "boolean": DataType.BOOL,
    "string": DataType.STRING,
}
_TIMES = {"timestamp-millis": 1_000, "timestamp-micros": 1}
_UNTOUCHED = {("string", "uuid")}
"""Logical types whose values are those of the type below."""


def contract_from_avro(text: str, name: str, *, version: int = 1) -> Contract:
    """Return the contract of an Avro schema.

    Raises:
        ContractError: It is not a record this package understands; the message names the field.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"schema {name}: not JSON: {error}.") from None
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ContractError(
            f'schema {name}: must be an Avro record: {{"type": "record", "name": ..., "fields": [...]}}.'
        )
    fields = tuple(one for one, _ in avro_columns(schema, f"schema {name}"))
    names = [one.name for one in fields]
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise ContractError(f"schema {name}: two columns would be called {twice[0]!r}.", hint="rename a field.")
    return Contract(name, version, fields, avro=schema)


def avro_columns(schema: Mapping[str, Any], where: str = "schema") -> list[tuple[ContractField, int]]:
    """Return the columns of a record, each with what its integers are multiplied by to be microseconds (1: as they are).

    Raises:
        ContractError: A field is not understood.
    """
    enums: dict[str, list[str]] = {}
    return [
        column
        for node in _fields_of(schema, where)
        for column in _columns(node, enums, f"{where}, field {node['name']!r}")
    ]


def without_logical_types(schema: Any) -> Any:
    """Return a schema whose times are plain integers, so that reading them cannot fail."""
    if isinstance(schema, list):
        return [without_logical_types(each) for each in schema]
    if isinstance(schema, dict):
        return {name: without_logical_types(value) for name, value in schema.items() if name != "logicalType"}
    return schema


def _fields_of(record: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    fields = record.get("fields")
    if not isinstance(fields, list) or not fields:
        raise ContractError(f"{where}: a record needs fields.")
    for node in fields:
        if not isinstance(node, dict) or not isinstance(node.get("name"), str) or "type" not in node:
            raise ContractError(f"{where}: a field needs a name and a type, not {node!r}.")
        if node.get("aliases"):
            raise ContractError(
                f"{where}, field {node['name']!r}: aliases are not supported.", hint="a renamed field is a new field."
            )
        yield node


def _columns(node: Mapping[str, Any], enums: dict[str, list[str]], where: str) -> Iterator[tuple[ContractField, int]]:
    kind, nullable = _optional(node["type"], where)
    name = node["name"]
    if not (isinstance(kind, dict) and kind.get("type") == "array"):
        of, bounds, scale = _scalar(kind, enums, where)
        yield ContractField(name, of, nullable, bounds), scale
        return
    items, absent = _optional(kind.get("items"), f"{where}, items")
    if isinstance(items, dict) and items.get("type") == "record":
        for inner in _fields_of(items, f"{where}, items"):
            each, missing = _optional(inner["type"], f"{where}, items, field {inner['name']!r}")
            of, bounds, scale = _scalar(each, enums, f"{where}, items, field {inner['name']!r}")
            column = f"{name}__{inner['name']}"
            yield ContractField(column, DataType.list_of(of), nullable, bounds, name, missing or absent), scale
        return
    of, bounds, scale = _scalar(items, enums, f"{where}, items")
    yield ContractField(name, DataType.list_of(of), nullable, bounds, name, absent), scale


def _optional(kind: Any, where: str) -> tuple[Any, bool]:
    """Return the type inside a union with null, and whether it was one."""
    if not isinstance(kind, list):
        return kind, False
    named = [each for each in kind if each != "null"]
    if len(named) != 1:
        raise ContractError(f"{where}: union {kind!r} is not supported.", hint='only ["null", TYPE] is.')
    return named[0], len(named) < len(kind)


def _scalar(kind: Any, enums: dict[str, list[str]], where: str) -> tuple[DataType, dict[str, Any], int]:
    node = kind if isinstance(kind, dict) else {"type": kind}
    name, logical = node.get("type"), node.get("logicalType")
    if name == "enum":
        symbols = node.get("symbols")
        if not isinstance(symbols, list) or not symbols or not all(isinstance(one, str) for one in symbols):
            raise ContractError(f"{where}: an enum needs symbols.")
        enums[str(node.get("name"))] = symbols
        return DataType.STRING, {"enum": symbols}, 1
    if isinstance(name, str) and name.rpartition(".")[2] in enums:
        return DataType.STRING, {"enum": enums[name.rpartition(".")[2]]}, 1
    if not isinstance(name, str) or name not in _SCALARS:
        raise ContractError(
            f"{where}: type {name!r} is not supported.", hint=f"use one of {', '.join(_SCALARS)}, enum."
        )
    if logical in _TIMES and name == "long":
        return DataType.TIMESTAMP, {}, _TIMES[logical]
    if logical is not None and (name, logical) not in _UNTOUCHED:
        raise ContractError(
            f"{where}: logicalType {logical!r} on {name} is not supported.", hint=f"use {' or '.join(_TIMES)} on long."
        )
    return _SCALARS[name], {}, 1
