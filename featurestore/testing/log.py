"""A replay's event log: what the archive query would have written, in memory, and training sets from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.algebra import sequence_of
from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key
from featurestore.engines.derive import derive_columns
from featurestore.engines.oracle import Event, without_repetitions
from featurestore.engines.points import values_at_points
from featurestore.engines.shape import encode_columns, shape
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.offline.ids import REPEATS, LogIds, without_repeats
from featurestore.offline.spine import as_arrow, check_spine
from featurestore.timeline import Instant, to_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.definitions.service import FeatureService
    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.events.decode import Decoder
    from featurestore.testing.records import Record


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that is no event: where it is, why, and its bytes."""

    source: str
    partition: int
    offset: int
    arrival: Instant
    reason: str
    detail: str
    raw: bytes | None


@dataclass
class EventLog:
    """The decoded records of one source, in the order in which they arrived.

    Attributes:
        source: The source.
        decoder: Turns its records into events.
    """

    source: EventSource
    decoder: Decoder
    _records: list[Record] = field(default_factory=list)
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _accepted: list[Record] = field(default_factory=list)
    _times: list[int] = field(default_factory=list)
    _rejected: list[Quarantined] = field(default_factory=list)
    _events: list[Event] | None = None
    _shaped: dict[str, Shaped] = field(default_factory=dict)

    def append(self, record: Record) -> None:
        """Add a record; it is decoded when somebody looks."""
        self._records.append(record)

    def _decode(self) -> None:
        if not self._records:
            return
        records, self._records = self._records, []
        self._events, self._shaped = None, {}
        arrival = np.array([record.arrival for record in records], dtype=np.int64)
        decoded = self.decoder.decode([record.value for record in records], arrival)
        self._batches.append(decoded.batch)
        self._accepted += [records[row] for row in decoded.rows.tolist()]
        self._times += decoded.event_time_us.tolist()
        for one in decoded.rejected:
            record = records[one.row]
            self._rejected.append(
                Quarantined(
                    self.source.name, record.partition, record.offset, record.arrival, str(one.reason), one.detail,
                    record.value,
                )
            )  # fmt: skip

    @property
    def quarantine(self) -> list[Quarantined]:
        """The records that are no events."""
        self._decode()
        return self._rejected

    def table(self) -> pa.Table:
        """Return the contract's columns of all events, repetitions too."""
        self._decode()
        schema = pa.schema([(one.name, ARROW_TYPES[one.type]) for one in self.source.contract.fields])
        return pa.Table.from_batches(self._batches, schema=schema).combine_chunks()

    def archived(self) -> pa.Table:
        """Return all events as the archive query writes them: the contract's columns and their place in Kafka."""
        table, count = self.table(), len(self._accepted)
        place = {
            "_topic": pa.array([self.source.topic] * count, pa.string()),
            "_partition": pa.array([record.partition for record in self._accepted], pa.int32()),
            "_offset": pa.array([record.offset for record in self._accepted], pa.int64()),
            "_arrival": pa.array([record.arrival for record in self._accepted], pa.int64()),
            "_event_time": pa.array(self._times, pa.int64()),
        }
        if self.source.event_id is not None:
            place[REPEATS] = self._repeats(place)
        for name, column in place.items():
            table = table.append_column(name, column)
        return table

    def _repeats(self, place: Mapping[str, pa.Array]) -> pa.Array:
        """Return which events are repetitions, as the archive query marks them."""
        ids = self.table().column(str(self.source.event_id)).cast(pa.string())
        rows = pa.table({**{name: place[name] for name in ("_partition", "_offset", "_arrival")}, "id": ids})
        found = {
            (number, each) for number, offsets in LogIds(self.source).judge(rows).items() for each in offsets.tolist()
        }
        places = ((record.partition, record.offset) for record in self._accepted)
        return pa.array([True if each in found else None for each in places], pa.bool_())

    def shaped(self, view: FeatureView) -> Shaped:
        """Return all events as a view sees them: without repetitions."""
        self._decode()
        shaped = self._shaped.get(view.fingerprint)
        if shaped is None:
            batches = [without_repeats(each) for each in self.archived().combine_chunks().to_batches()]
            table = pa.Table.from_batches(batches, schema=self.archived().schema).combine_chunks()
            place = {
                name: table.column(name).to_numpy() for name in ("_partition", "_offset", "_arrival", "_event_time")
            }
            sequence = place["_partition"].astype(np.int64) * sequence_of(1, 0) | place["_offset"]
            shaped = self._shaped[view.fingerprint] = shape(
                view, table, place["_event_time"], sequence, place["_arrival"]
            )
        return shaped

    def events(self) -> list[Event]:
        """Return all events as the specification takes them: the rows as they were sent, where they were sent as rows.

        Repetitions are left out.
        """
        self._decode()
        if self._events is not None:
            return self._events
        rows: list[Mapping[str, Any] | None] = [record.row for record in self._accepted]
        if None in rows:
            decoded = plain_rows(self.table())
            rows = [given if row is None else row for row, given in zip(rows, decoded, strict=True)]
        self._events = without_repetitions(
            self.source,
            [
                Event(
                    row or {},
                    row[self.source.event_time] if row else 0,
                    record.arrival,
                    record.partition,
                    record.offset,
                )
                for row, record in zip(rows, self._accepted, strict=True)
            ],
        )
        return self._events


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table with instants as microseconds, in lists too."""
    columns = [
        column.cast(pa.int64())
        if pa.types.is_timestamp(column.type)
        else column.cast(pa.list_(pa.int64()))
        if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type)
        else column
        for column in table.columns
    ]
    return list(pa.table(columns, names=table.column_names).to_pylist())


def values_of(
    view: FeatureView, shaped: Shaped, points: Sequence[tuple[Sequence[Any], Instant, Instant | None]]
) -> list[list[Any]]:
    """Return the features of a view at (key values, time, visible_at or None for all) points, by the batch kernel.

    Either all points have a ``visible_at`` or none has.
    """
    codes = {key: code for code, key in enumerate(shaped.keys)}
    types = [kind for _, kind in view.layout.keys]
    key = np.array([codes.get(encode_key(values, types), -1) for values, _, _ in points], dtype=np.int64)
    at = np.array([t for _, t, _ in points], dtype=np.int64)
    visible = None if not points or points[0][2] is None else np.array([seen for _, _, seen in points], dtype=np.int64)
    return _rows(view, shaped, key, at, visible)


def _rows(
    view: FeatureView, shaped: Shaped, key: np.ndarray, at: np.ndarray, visible: np.ndarray | None
) -> list[list[Any]]:
    columns = [
        [value if fine else None for value, fine in zip(values.tolist(), valid.tolist(), strict=True)]
        for values, valid in values_at_points(view.layout, shaped, key, at, visible)
    ]
    typed = [
        [bool(value) if kind == "bool" and value is not None else value for value in column]
        for column, kind in zip(columns, view.layout.types.values(), strict=False)
    ]
    arrays = {
        name: pa.array(column, ARROW_TYPES[kind])
        for (name, kind), column in zip(view.layout.types.items(), typed, strict=False)
    }
    derived = derive_columns(view.layout.derived, arrays, len(at)).values()
    typed += [(each.cast(pa.int64()) if pa.types.is_timestamp(each.type) else each).to_pylist() for each in derived]
    return [list(row) for row in zip(*typed, strict=True)]


def training_set(
    service: FeatureService,
    logs: Mapping[str, EventLog],
    spine: Any,
    *,
    event_time: str,
    as_served: bool | str,
) -> pa.Table:
    """Return the spine with a service's features, as ``FeatureStore.training_set`` does it without Spark."""
    visible_at = event_time if as_served is True else as_served or None
    table = _spine_table(service, spine, [name for name in (event_time, visible_at) if name])
    check_spine(table.schema, service, event_time, visible_at)
    at = _micros(table, event_time)
    seen = None if visible_at is None else _micros(table, visible_at)
    for view in service.views:
        shaped = logs[view.source.name].shaped(view)
        kinds = [kind for _, kind in view.layout.keys]
        names, code = encode_columns([table.column(name) for name, _ in view.layout.keys], kinds)
        known = {key: position for position, key in enumerate(shaped.keys)}
        key = np.array([known.get(name, -1) for name in names], dtype=np.int64)[code]
        rows = _rows(view, shaped, key, at, seen)
        for position, (name, kind) in enumerate(view.layout.types.items()):
            table = table.append_column(name, pa.array([row[position] for row in rows], ARROW_TYPES[kind]))
    columns = {name: table.column(name) for name in table.column_names}
    for name, column in derive_columns(service.request_layouts, columns, table.num_rows).items():
        table = table.append_column(name, column)
    return table


def _spine_table(service: FeatureService, spine: Any, times: Sequence[str]) -> pa.Table:
    if not isinstance(spine, list):
        return as_arrow(spine)
    given = {**service.request_values, **service.keys}
    instants = {*times, *(name for name, kind in service.request_values.items() if kind == DataType.TIMESTAMP)}
    rows = [
        {n: to_instant(value, name=n) if n in instants and value is not None else value for n, value in row.items()}
        for row in spine
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    types = {**{n: ARROW_TYPES[k] for n, k in given.items()}, **dict.fromkeys(times, pa.timestamp("us", "UTC"))}
    return pa.table({name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names})


def _micros(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return np.asarray(column.to_numpy(), dtype=np.int64)
