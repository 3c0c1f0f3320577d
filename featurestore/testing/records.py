"""Records as a topic holds them: rows to bytes, and the decoder that a replay puts between topic and job.

Rows are written as their source's records are: JSON or Avro, plain or behind the schema id of the contract's own version.
JSON has no NaN and no infinity, but doubles have, and Avro carries them. A row with such a value is written with a
number in its place, and ``ReplayDecoder`` puts the value back once the bytes have been decoded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.definitions.avro import avro_columns
from featurestore.errors import DefinitionError
from featurestore.events.decode import Decoded, Decoder
from featurestore.events.wire import avro_bytes, framed
from featurestore.timeline import to_datetime, to_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from featurestore.definitions.contract import ContractField
    from featurestore.definitions.source import EventSource
    from featurestore.timeline import Instant

_MARK = "_not_json"
"""Name of the extra member that makes the bytes of a row with such values unique; contracts ignore it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic.

    Attributes:
        source: The source whose topic it is on.
        partition: Its partition.
        offset: Its offset.
        arrival: When the broker received it.
        value: Its bytes; None is a tombstone.
        row: The row it was made of, typed as the contract says; None when only bytes were given.
    """

    source: EventSource
    partition: int
    offset: int
    arrival: Instant
    value: bytes | None
    row: Mapping[str, Any] | None


def typed_row(source: EventSource, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the contract's columns of a row as the engines see them: instants as microseconds, absent as None.

    None where a time cannot be understood; such a row is the decoder's business.
    """
    try:
        typed = {one.name: _typed(_value_of(row, one), one.type) for one in source.contract.fields}
    except DefinitionError:
        return None
    return {name: _cut(typed[name], unit) for name, unit in _units(source)} if source.contract.avro else typed


def _units(source: EventSource) -> list[tuple[str, int]]:
    """Return every column of an Avro contract with the microseconds of one unit of its instants; 1 where there are none."""
    return [(one.name, unit) for one, unit in avro_columns(source.contract.avro or {})]


def _cut(value: Any, unit: int) -> Any:
    """Return instants as whole units, which is all that the schema can hold."""
    if unit == 1 or value is None:
        return value
    return [_cut(each, unit) for each in value] if isinstance(value, list) else value // unit * unit


def _value_of(row: Mapping[str, Any], one: ContractField) -> Any:
    """Return a column's value; of a property of an array's objects, those of all of them."""
    array = None if one.array is None or one.name in row else row.get(one.array)
    if array is None or not isinstance(array, list):
        return row.get(one.name)
    return [None if each is None else each.get(one.property) for each in array]


def _typed(value: Any, kind: DataType) -> Any:
    element = kind.element
    if element is not None and isinstance(value, list):
        return [_typed(each, element) for each in value]
    if kind == DataType.TIMESTAMP and value is not None:
        return to_instant(value)
    if kind == DataType.FLOAT64 and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def row_bytes(source: EventSource, row: Mapping[str, Any], unusual: dict[bytes, dict[str, float]]) -> bytes:
    """Return a row as a record of its source; doubles that JSON cannot write are noted in ``unusual``, by the bytes returned.

    A row that Avro cannot write becomes a record that is no datum.
    """
    contract = source.contract
    if contract.avro is not None:
        typed = typed_row(source, row)
        try:
            written = b"" if typed is None else avro_bytes(contract, _avro_row(source, typed))
        except ValueError:
            written = b""
    else:
        written = _json_bytes(source, row, unusual)
    if source.wire != "confluent":
        return written
    schema_id = next(name for name, each in contract.versions_by_id.items() if each.version == contract.version)
    record = framed(schema_id, written)
    if written in unusual:
        unusual[record] = unusual[written]
    return record


def _avro_row(source: EventSource, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a typed row as the schema nests it."""
    units = dict(_units(source))

    def scaled(name: str) -> Any:
        value, unit = typed[name], units[name]
        if unit == 1 or value is None:
            return value
        return [None if each is None else each // unit for each in value] if isinstance(value, list) else value // unit

    made = {one.name: scaled(one.name) for one in source.contract.fields if one.array is None}
    for array, columns in source.contract.arrays.items():
        lists = [scaled(one.name) for one in columns]
        if columns[0].property is None or None in lists:
            made[array] = lists[0]
            continue
        names = [str(one.property) for one in columns]
        made[array] = [dict(zip(names, each, strict=True)) for each in zip(*lists, strict=True)]
    return made


def _json_bytes(source: EventSource, row: Mapping[str, Any], unusual: dict[bytes, dict[str, float]]) -> bytes:
    row = _nested(source, row)
    noted = {name: value for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    written = {name: 0.0 if name in noted else _plain(source, name, value) for name, value in row.items()}
    if not noted:
        return json.dumps(written).encode()
    value = json.dumps({**written, _MARK: len(unusual)}).encode()
    unusual[value] = noted
    return value


def _nested(source: EventSource, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its arrays of objects as the event has them; they may be given as columns of properties too."""
    made = dict(row)
    for name, columns in source.contract.arrays.items():
        given = [(one, made.pop(one.name)) for one in columns if one.property and one.name in made]
        if not given:
            continue
        lists = [[_plain(source, one.name, each) for each in value] for one, value in given if value is not None]
        names = [str(one.property) for one, _ in given]
        made[name] = [dict(zip(names, each, strict=True)) for each in zip(*lists, strict=True)] if lists else None
    return made


def _plain(source: EventSource, name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(source, name, each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(source, f"{name}__{key}", each) for key, each in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    kind = source.contract.columns.get(name)
    if kind is not None and DataType.TIMESTAMP in (kind, kind.element) and isinstance(value, int):
        try:
            return to_datetime(value).isoformat()
        except OverflowError:
            return value
    return value


@dataclass(frozen=True)
class ReplayDecoder(Decoder):
    """The decoder of production, and ``unusual`` doubles put back into what it decoded."""

    unusual: dict[bytes, dict[str, float]] = field(default_factory=dict)

    def decode(self, values: pa.Array | Sequence[bytes | None], arrival_us: np.ndarray) -> Decoded:
        """Return what ``Decoder.decode`` does."""
        decoded = super().decode(values, arrival_us)
        if not self.unusual:
            return decoded
        records = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
        noted = [self.unusual.get(records[row] or b"", {}) for row in decoded.rows.tolist()]
        batch = decoded.batch
        for name in sorted({name for each in noted for name in each} & set(batch.schema.names)):
            column = [each.get(name, value) for each, value in zip(noted, batch.column(name).to_pylist(), strict=True)]
            position = batch.schema.names.index(name)
            batch = batch.set_column(position, batch.schema.field(position), pa.array(column, pa.float64()))
        return replace(decoded, batch=batch)
