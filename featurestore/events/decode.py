"""Decoding: bytes of a topic -> typed columns, or rejections with a reason. One decoder, in every path.

Contract of ``Decoder.decode``: total. Whatever the bytes, every record is either a row of ``batch`` or one of
``rejected``, and never raises. Versions of a contract only add, so the newest one reads JSON of them all; Avro is read as the
version that wrote it (``wire``), and what an older event lacks is null. JSON is read strictly: no NaN literals, no text where
a number belongs, integers within 64 bits; a whole number is a valid float64. Fields the contract does not name are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from math import ceil, floor
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.definitions.contract import MAX_ELEMENTS
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.events.wire import AvroReader, Reason, RefusedRecordError, unframed
from featurestore.timeline import format_duration, format_instant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.definitions.contract import Contract, ContractField

MAX_BYTES = 1 << 20
_AT_ONCE = 4096
"""Records that are Python objects at one time: the next ones take the same memory, which is still in the processor's cache."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = ARROW_TYPES[DataType.TIMESTAMP]
_YEAR_1, _YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is not an event: its row in the input, the reason, and what exactly."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of n records.

    Attributes:
        batch: The accepted events: the contract's columns; timestamps as instants in UTC.
        rows: Where each accepted event stood in the input, ascending.
        event_time_us: Event time of each accepted event.
        rejected: All others, ascending by row.
    """

    batch: pa.RecordBatch
    rows: np.ndarray
    event_time_us: np.ndarray
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Decoder:
    """Decodes the records of one source.

    Args:
        contract: The schema.
        event_time: The field with the event time; a timestamp, or an int64 of microseconds.
        allowed_skew_us: How far event time may be ahead of arrival.
        max_bytes: The longest record that is looked at.
        wire: "plain" or "confluent" (``events.wire``).
    """

    contract: Contract
    event_time: str
    allowed_skew_us: int
    max_bytes: int = MAX_BYTES
    wire: str = "plain"

    def __post_init__(self) -> None:
        _ = self._read

    def __getstate__(self) -> dict[str, Any]:
        made = ("_decoder", "_read", "_schema", "_getters")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    @cached_property
    def _read(self) -> Callable[[Any], Any]:
        """Bytes of a record -> what the getters read columns from."""
        contract, is_framed = self.contract, self.wire == "confluent"
        if contract.avro is not None:
            read = AvroReader(contract)

            def read_avro(record: Any) -> Any:
                record = record.encode() if isinstance(record, str) else record
                version, payload = unframed(contract, record) if is_framed else (contract, record)
                return read(version.version, payload)

            return read_avro
        decode: Callable[[Any], Any] = self._decoder.decode

        def read_framed(record: Any) -> Any:
            return decode(unframed(contract, record.encode() if isinstance(record, str) else record)[1])

        return read_framed if is_framed else decode

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        members = {
            one.name: (_annotation(one, one.type), one.nullable) for one in self.contract.fields if one.array is None
        }
        members |= {name: (_array(columns), columns[0].nullable) for name, columns in self.contract.arrays.items()}
        return msgspec.json.Decoder(_struct("Event", members))

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([(one.name, ARROW_TYPES[one.type]) for one in self.contract.fields])

    @cached_property
    def _getters(self) -> list[Callable[[Any], Any]]:
        """How every column is read from a decoded event; its members are plain fields in order, then arrays."""
        if self.contract.avro is not None:
            return [itemgetter(index) for index in range(len(self.contract.fields))]
        plain = [one.name for one in self.contract.fields if one.array is None]
        place = {name: f"f{index}" for index, name in enumerate([*plain, *self.contract.arrays])}
        made: list[Callable[[Any], Any]] = []
        for one in self.contract.fields:
            if one.property is None:
                made.append(attrgetter(place[one.name]))
            else:
                columns = self.contract.arrays[str(one.array)]
                made.append(partial(_elements, attrgetter(place[str(one.array)]), attrgetter(f"f{columns.index(one)}")))
        return made

    def decode(self, values: pa.Array | Sequence[bytes | None], arrival_us: np.ndarray) -> Decoded:
        """Return the accepted events as columns, and the rest as rejections.

        Args:
            values: The records' values: an Arrow binary array or a list of bytes; null is an empty record.
            arrival_us: Arrival instant of every record, int64 microseconds.
        """
        rejected: list[Rejected] = []
        starts = range(0, len(values), _AT_ONCE) or [0]
        batches, rows = zip(*[self._some(values[at : at + _AT_ONCE], at, rejected) for at in starts], strict=True)
        batch, position = batches[0], rows[0]
        if len(batches) > 1:
            (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches() or batches[:1]
            position = np.concatenate(rows)
        fine = self._refuse_times(batch, position, np.asarray(arrival_us, np.int64), rejected)
        if not fine.all():
            keep = np.flatnonzero(fine)
            batch, position = batch.take(pa.array(keep)), position[keep]
        rejected.sort(key=lambda one: one.row)
        return Decoded(batch, position, _instants(batch.column(self.event_time)), tuple(rejected))

    def _some(
        self, values: pa.Array | Sequence[bytes | None], begin: int, rejected: list[Rejected]
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        """Return the events of a few records as columns, and their rows; ``begin`` is the row of the first."""
        records: Sequence[Any] = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
        events: list[Any] = []
        rows: list[int] = []
        decode, limit = self._read, self.max_bytes
        for row, record in enumerate(records, begin):
            if not record:
                rejected.append(Rejected(row, Reason.EMPTY, "the record has no value"))
                continue
            if len(record) > limit:
                rejected.append(Rejected(row, Reason.OVERSIZED, f"{len(record):,} bytes, allowed are {limit:,}"))
                continue
            try:
                events.append(decode(record))
                rows.append(row)
            except RefusedRecordError as refused:
                rejected.append(Rejected(row, refused.reason, refused.detail))
            except msgspec.ValidationError as error:
                rejected.append(Rejected(row, Reason.CONTRACT, self._in_words(str(error))))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                rejected.append(Rejected(row, Reason.NOT_JSON, str(error)))
            except RecursionError:
                rejected.append(Rejected(row, Reason.NOT_JSON, "nested too deeply"))
        batch, kept = self._columns(events, rows, rejected)
        return batch, np.array(rows, np.int64)[kept]

    def _columns(
        self, events: list[Any], rows: list[int], rejected: list[Rejected]
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        """Return the events as columns and which were kept; an event Arrow cannot hold is rejected."""
        column_of = pa.array if self.contract.avro is not None else _column  # Avro's instants are numbers already

        def build(chosen: list[Any]) -> pa.RecordBatch:
            columns = [
                column_of(list(map(get, chosen)), one.type)
                for get, one in zip(self._getters, self._schema, strict=True)
            ]
            return pa.RecordBatch.from_arrays(columns, schema=self._schema)

        try:
            return build(events), np.arange(len(events))
        except (pa.ArrowInvalid, UnicodeEncodeError, OverflowError):
            kept = []
            for index, event in enumerate(events):
                try:
                    build([event])
                    kept.append(index)
                except (pa.ArrowInvalid, UnicodeEncodeError, OverflowError) as error:
                    rejected.append(Rejected(rows[index], Reason.CONTRACT, f"a value is not storable: {error}"))
            return build([events[index] for index in kept]), np.array(kept, np.int64)

    def _refuse_times(
        self, batch: pa.RecordBatch, rows: np.ndarray, arrival: np.ndarray, rejected: list[Rejected]
    ) -> np.ndarray:
        """Return which events have possible times, and reject the others: one reason each."""
        fine = np.ones(len(rows), bool)

        def refuse(wrong: np.ndarray, reason: Reason, detail: Callable[[int], str]) -> None:
            found = np.flatnonzero(wrong & fine).tolist()
            rejected.extend(Rejected(int(rows[index]), reason, detail(index)) for index in found)
            fine[wrong] = False

        for one in self.contract.fields:
            if DataType.TIMESTAMP in (one.type, one.type.element):
                column = batch.column(one.name)
                instants = _instants(column if one.array is None else column.flatten())
                outside = (instants < _YEAR_1) | (instants >= _YEAR_10000)  # an offset can carry a date there
                if one.array is not None:
                    parents = pc.list_parent_indices(column).to_numpy()
                    outside = np.bincount(parents[outside], minlength=len(rows)).astype(bool)
                words = f"field {one.name!r}: not in the years 1 to 9999 UTC"
                refuse(outside, Reason.CONTRACT, lambda _, words=words: words)  # type: ignore[misc]
        column = batch.column(self.event_time)
        if column.null_count:
            missing = column.is_null().to_numpy(zero_copy_only=False)
            refuse(missing, Reason.CONTRACT, lambda _: f"field {self.event_time!r}: the event time is null")
        skew = format_duration(self.allowed_skew_us)
        refuse(
            _instants(column) > arrival[rows] + self.allowed_skew_us,
            Reason.FUTURE,
            lambda index: (
                f"{self.event_time} is more than {skew} ahead of arrival at {format_instant(int(arrival[rows[index]]))}"
            ),
        )
        return fine

    def _in_words(self, message: str) -> str:
        """Return msgspec's message with the path written as a field name."""
        text, _, path = message.partition(" - at `$")
        field = path.removesuffix("`").lstrip(".")
        return f"field {field!r}: {text}" if field else text


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an Arrow array; aware datetimes by way of differences, which is four times as fast."""
    if kind != _INSTANT:
        return pa.array(values, kind)
    return pa.array([None if one is None else one - _EPOCH for one in values], pa.duration("us")).view(kind)


def _instants(column: pa.Array) -> np.ndarray:
    """Return a column of times as int64 microseconds; null as 0."""
    return np.asarray(column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _elements(get: Callable[[Any], Any], of: Callable[[Any], Any], event: Any) -> list[Any] | None:
    """Return one property of all objects in an array; null where an object is."""
    array = get(event)
    return None if array is None else [None if each is None else of(each) for each in array]


def _struct(name: str, members: Mapping[str, tuple[Any, bool]]) -> Any:
    """Return a struct of annotated members, by name, that may be absent or not; its attributes are f0, f1, ... in order."""
    names = {member: f"f{index}" for index, member in enumerate(members)}
    # Required members first, as msgspec wants; names are positional, so that any name will do.
    ordered = sorted(members.items(), key=lambda each: each[1][1])
    fields: list[Any] = [(names[m], kind, None) if absent else (names[m], kind) for m, (kind, absent) in ordered]
    rename = {python: member for member, python in names.items()}
    return msgspec.defstruct(name, fields, rename=rename, gc=False, frozen=False)


def _array(columns: Sequence[ContractField]) -> Any:
    """Return the annotation of an array: of scalars, or of objects with such properties."""
    kind: Any
    if columns[0].property is None:
        kind = _annotation(columns[0], columns[0].type.element, nullable=columns[0].element_nullable)
    else:
        members = {
            str(one.property): (_annotation(one, one.type.element, nullable=one.element_nullable), one.element_nullable)
            for one in columns
        }
        kind = _struct("Element", members)
        kind = kind | None if all(one.element_nullable for one in columns) else kind
    array = Annotated[list[kind], msgspec.Meta(max_length=MAX_ELEMENTS)]
    return array | None if columns[0].nullable else array


def _annotation(one: ContractField, of: DataType | None, *, nullable: bool | None = None) -> Any:
    bounds = one.bounds
    kind: Any
    if of == DataType.INT64:
        low, high = -(2**63), 2**63 - 1
        low = max(low, ceil(bounds.get("minimum", low)), floor(bounds.get("exclusiveMinimum", low - 1)) + 1)
        high = min(high, floor(bounds.get("maximum", high)), ceil(bounds.get("exclusiveMaximum", high + 1)) - 1)
        kind = Annotated[int, msgspec.Meta(ge=low, le=high)]
    elif of == DataType.FLOAT64:
        names = {"minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt", "exclusiveMaximum": "lt"}
        given = {names[name]: value for name, value in bounds.items()}
        kind = Annotated[float, msgspec.Meta(**given)] if given else float
    elif of == DataType.TIMESTAMP:
        kind = Annotated[datetime, msgspec.Meta(tz=True)]
    elif of == DataType.BOOL:
        kind = bool
    elif "enum" in bounds:
        kind = Literal[tuple(bounds["enum"])]
    else:
        names = {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"}
        given = {names[name]: value for name, value in bounds.items()}
        kind = Annotated[str, msgspec.Meta(**given)] if given else str
    return kind | None if (one.nullable if nullable is None else nullable) else kind
