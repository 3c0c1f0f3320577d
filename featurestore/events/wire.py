"""How a contract's events are written into records: JSON or Avro, as they are or behind a schema id.

    plain       the JSON document, or the Avro datum of the contract's own version
    confluent   the byte 0, the schema id as 4 bytes big-endian, then the same: what the serializers of schema registries write

``unframed`` and ``AvroReader`` refuse with ``RefusedRecordError``; whatever the bytes, nothing else leaves them.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from functools import lru_cache, partial
from io import BytesIO
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from featurestore.definitions.avro import avro_columns, without_logical_types
from featurestore.definitions.contract import MAX_ELEMENTS
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.definitions.contract import Contract, ContractField

_HEAD = struct.Struct(">bI")


class Reason(StrEnum):
    """Why a record is in quarantine."""

    EMPTY = "empty"
    """No value at all: a tombstone or zero bytes."""
    OVERSIZED = "oversized"
    """Longer than the source's limit."""
    UNKNOWN_VERSION = "unknown_version"
    """No schema id where one belongs, or one of no version that the source's contract knows."""
    NOT_JSON = "not_json"
    """Not a JSON document."""
    NOT_AVRO = "not_avro"
    """Not an Avro datum of its version, or more than one."""
    CONTRACT = "contract"
    """It can be read, but a field is missing, has another type or breaks a bound."""
    FUTURE = "future"
    """Its event time is further ahead of its arrival than the source allows."""


class RefusedRecordError(Exception):
    """A record that cannot be read; inside the decoder only."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def framed(schema_id: int, payload: bytes) -> bytes:
    r"""Return a payload behind its schema id.

    >>> framed(7, b"{}")
    b'\x00\x00\x00\x00\x07{}'
    """
    return _HEAD.pack(0, schema_id) + payload


def unframed(contract: Contract, record: bytes) -> tuple[Contract, bytes]:
    """Return the version that a record's schema id names, and its payload."""
    if record[0] != 0 or len(record) < _HEAD.size:
        raise RefusedRecordError(Reason.UNKNOWN_VERSION, f"no schema id: it begins with {record[:5].hex(' ')}")
    _, schema_id = _HEAD.unpack_from(record)
    version = contract.versions_by_id.get(schema_id)
    if version is None:
        known = ", ".join(map(str, sorted(contract.versions_by_id)[:20]))
        raise RefusedRecordError(
            Reason.UNKNOWN_VERSION, f"schema id {schema_id} is no version of {contract.name}; known ids: {known}"
        )
    return version, record[_HEAD.size :]


class AvroReader:
    """Reads data of a contract's versions as rows of its columns: what an older event lacks is None.

    Args:
        contract: The newest version.

    Raises:
        ConfigError: fastavro is not installed.
    """

    def __init__(self, contract: Contract) -> None:
        self._read = _fastavro().schemaless_reader
        self._versions = {
            each.version: (_parsed(each), _getters(each, contract.fields)) for each in (*contract.earlier, contract)
        }
        self._lists = [index for index, one in enumerate(contract.fields) if one.array is not None]

    def __call__(self, version: int, payload: bytes) -> tuple[Any, ...]:
        """Return one row; instants are integers of microseconds."""
        schema, getters = self._versions[version]
        source = BytesIO(payload)
        try:
            datum = self._read(source, schema, None)
        except Exception as error:  # noqa: BLE001 - whatever a library makes of arbitrary bytes, the record is refused
            raise RefusedRecordError(Reason.NOT_AVRO, f"{type(error).__name__}: {error}"[:200]) from None
        if source.tell() != len(payload):
            rest = len(payload) - source.tell()
            raise RefusedRecordError(Reason.NOT_AVRO, f"{rest:,} bytes follow the datum of version {version}")
        row = tuple(get(datum) for get in getters)
        for index in self._lists:
            if row[index] is not None and len(row[index]) > MAX_ELEMENTS:
                raise RefusedRecordError(
                    Reason.CONTRACT, f"an array has {len(row[index]):,} elements, allowed are {MAX_ELEMENTS:,}"
                )
        return row


def avro_bytes(contract: Contract, event: Mapping[str, Any]) -> bytes:
    """Return an event as a datum of the contract's version; instants are integers in the schema's unit, arrays are nested.

    Raises:
        ValueError: The event does not fit the schema.
    """
    target = BytesIO()
    try:
        _fastavro().schemaless_writer(target, _parsed(contract), event)
    except Exception as error:  # fastavro raises many kinds, none of them its own
        raise ValueError(f"{contract.name} version {contract.version}: {error}") from error
    return target.getvalue()


def _parsed(contract: Contract) -> Any:
    return _fastavro().parse_schema(without_logical_types(contract.avro), _write_hint=False)


@lru_cache(1)
def _fastavro() -> Any:
    try:
        import fastavro
    except ImportError as error:
        raise ConfigError(
            "events in Avro need fastavro, which is not installed.", hint="pip install 'featurestore[avro]'."
        ) from error
    return fastavro


def _getters(writer: Contract, columns: Sequence[ContractField]) -> list[Callable[[Any], Any]]:
    """Return how every column is taken out of a datum of one version."""
    written = {one.name: (one, scale) for one, scale in avro_columns(writer.avro or {})}
    return [_getter(*written[one.name]) if one.name in written else _nothing for one in columns]


def _getter(one: ContractField, scale: int) -> Callable[[Any], Any]:
    if one.array is None:
        get: Callable[[Any], Any] = itemgetter(one.name)
        return get if scale == 1 else partial(_scaled, get, scale)
    inner = None if one.property is None else itemgetter(one.property)
    return partial(_elements, itemgetter(one.array), inner, scale)


def _nothing(_: Any) -> None:
    return None


def _scaled(get: Callable[[Any], Any], scale: int, datum: Any) -> Any:
    value = get(datum)
    return None if value is None else value * scale


def _elements(get: Callable[[Any], Any], inner: Callable[[Any], Any] | None, scale: int, datum: Any) -> Any:
    array = get(datum)
    if array is None:
        return None
    values = array if inner is None else [None if each is None else inner(each) for each in array]
    return values if scale == 1 else [None if each is None else each * scale for each in values]
