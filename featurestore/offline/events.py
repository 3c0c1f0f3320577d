"""Events and tiles of one entity key out of Delta, without a JVM: what ``explain`` reads, and what a check writes.

The key and the times are pushed down to files and row groups, and batches are filtered as they stream by, so memory grows
with the events of the key between the times, not with the log.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from featurestore.algebra import sequence_of
from featurestore.algebra.rows import row_format
from featurestore.engines.oracle import Event
from featurestore.engines.shape import Shaped, encode_columns, inputs_of, prepared
from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.events.arrow_types import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.algebra.aggregate import Partial
    from featurestore.definitions.parts import Part
    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Instant

PLACE = ("_topic", "_partition", "_offset", "_arrival", "_event_time")
"""Columns of the event log besides the contract's."""
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class KeyEvents:
    """The events of one key between two times.

    Attributes:
        table: The columns the view uses, and those of ``PLACE``; in no special order.
        version: The Delta version they were read from.
        newest_arrival: The newest arrival in the whole log, of any key; None where files do not say.
    """

    table: pa.Table
    version: int
    newest_arrival: Instant | None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def events(self) -> list[Event]:
        """The events as the specification takes them: instants as microseconds."""
        plain = pa.table(
            {name: _micros(column) for name, column in zip(self.table.column_names, self.table.columns, strict=True)}
        )
        return [
            Event(row, row["_event_time"], row["_arrival"], row["_partition"], row["_offset"])
            for row in plain.to_pylist()
        ]

    def shaped(self, view: FeatureView) -> Shaped:
        """Return the events as the kernel of training sets takes them."""
        place = {name: self.table.column(name).to_numpy() for name in PLACE[1:]}
        sequence = place["_partition"].astype(np.int64) * sequence_of(1, 0) | place["_offset"]
        found = inputs_of(view, self.table, place["_event_time"], sequence, place["_arrival"])
        keys, key = encode_columns(found.keys, [kind for _, kind in view.layout.keys])
        columns = prepared(view, found.values, found.event_time, found.sequence)
        return Shaped(keys, key, found.event_time, found.sequence, found.arrival, columns)

    def newest(self, most: int) -> KeyEvents:
        """Return the newest events by event time, at most so many."""
        order = [("_event_time", "ascending"), ("_partition", "ascending"), ("_offset", "ascending")]
        return replace(self, table=self.table.sort_by(order)[-most:])

    def repeated(self) -> list[tuple[int, int]]:
        """Return the (partition, offset) places that are there more than once; a sound log has none."""
        places = self.table.group_by(["_partition", "_offset"]).aggregate([([], "count_all")])
        twice = places.filter(pc.greater(places.column("count_all"), 1))
        pairs = zip(twice.column("_partition").to_pylist(), twice.column("_offset").to_pylist(), strict=True)
        return sorted(pairs)


def _micros(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return instants as microseconds, in lists too; everything else as it is."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        return column.cast(pa.list_(pa.int64()))
    return column


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Raise what Delta and Arrow raise as ours."""
    try:
        yield
    except TableNotFoundError as error:
        raise OfflineStoreUnavailableError(
            f"there is no {what} at {path}.", hint="start the materialize job; it writes the log."
        ) from error
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise OfflineError(f"{what} {path} cannot be read: {' '.join(str(error).split())[:300]}.") from error


def events_of_key(
    view: FeatureView, offline: str, key: Sequence[Any], *, begin: Instant | None, end: Instant
) -> KeyEvents:
    """Return the events of one entity key with begin <= event time < end.

    Args:
        view: The definition; the columns it uses are read.
        offline: Root of the Delta tables.
        key: The entity key's values; None is a null.
        begin: The earliest event time, microseconds; None reaches back without end.
        end: The first event time that is left out.

    Raises:
        OfflineStoreUnavailableError: The source has no event log yet.
        OfflineError: It cannot be read.
    """
    path = f"{offline.rstrip('/')}/events/{view.source.name}"
    kinds = view.source.contract.columns
    lists = {one.name for one in view.exploded}
    wanted = dict.fromkeys((*view.reads, *lists))
    schema = pa.schema([(name, ARROW_TYPES[kinds[name]]) for name in wanted])
    schema = pa.unify_schemas([schema, pa.schema([(name, _PLACE_TYPES[name]) for name in PLACE])])
    with reading(path, "event log"):
        table = DeltaTable(path)
        added = pa.table(table.get_add_actions(flatten=True))
        arrivals = added.column("max._arrival").to_pylist() if "max._arrival" in added.column_names else [None]
        # Spark writes times in a format whose default reading ends in the year 2262
        dataset = table.to_pyarrow_dataset(parquet_read_options=ds.ParquetReadOptions(coerce_int96_timestamp_unit="us"))
        present = set(dataset.schema.names)
        kept = ds.field("_event_time") < end
        if begin is not None:
            kept &= ds.field("_event_time") >= begin
        if "_repeats" in present:  # what is there twice counts once: see ``offline.ids``
            kept &= ds.field("_repeats").is_null()
        for name, (_, kind), value in zip(view.key_columns, view.layout.keys, key, strict=True):
            if name in lists:
                continue  # an element of an array: told apart once the array is exploded
            column = ds.field(name)
            kept &= column.is_null() if value is None else column == pa.scalar(value, ARROW_TYPES[kind])
        scanner = dataset.scanner(
            [name for name in schema.names if name in present],
            filter=kept, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1,
        )  # fmt: skip
        batches = [batch for batch in scanner.to_batches() if batch.num_rows]
    rows = pa.Table.from_batches(batches, schema=scanner.projected_schema)
    columns = [
        rows.column(one.name).cast(one.type) if one.name in present else pa.nulls(rows.num_rows, one.type)
        for one in schema
    ]
    newest = None if not arrivals or None in arrivals else max(arrivals)
    return KeyEvents(pa.table(columns, schema=schema).combine_chunks(), int(table.version()), newest)


def has_reached(offline: str, source: str, fences: Mapping[int, int | None]) -> bool:
    """Return whether event log and quarantine hold, per partition, the record before the given offset.

    Args:
        offline: Root of the Delta tables.
        source: Name of the source.
        fences: Partition to the next offset that the online store will apply; None or 0 asks nothing.

    Raises:
        OfflineError: A table cannot be read.
    """
    missing = {partition: offset for partition, offset in fences.items() if offset}
    for name in (f"events/{source}", "quarantine"):
        path = f"{offline.rstrip('/')}/{name}"
        with reading(path, name):
            if not DeltaTable.is_deltatable(path):
                continue
            dataset = DeltaTable(path).to_pyarrow_dataset()
            for partition, offset in list(missing.items()):
                kept = (ds.field("_partition") == partition) & (ds.field("_offset") >= offset - 1)
                if name == "quarantine":
                    kept &= ds.field("source") == source
                if dataset.scanner(["_offset"], filter=kept, fragment_readahead=1).head(1).num_rows:
                    del missing[partition]
    return not missing


_PLACE_TYPES = {
    "_topic": pa.string(),
    "_partition": pa.int32(),
    "_offset": pa.int64(),
    "_arrival": pa.int64(),
    "_event_time": pa.int64(),
}


@dataclass(frozen=True, slots=True)
class StoredTile:
    """One row of the tiles table: a partial of one measure, of one batch."""

    tile: Instant
    oldest: Instant
    newest: Instant
    partial: Partial


def tiles_of_key(
    offline: str, part: Part, measure: int, key: bytes, *, begin: Instant | None, end: Instant
) -> list[StoredTile] | None:
    """Return the stored tiles of one key with begin <= tile < end, row by row, oldest first; None where there is no table.

    Args:
        offline: Root of the Delta tables.
        part: The part of the view.
        measure: Index of one of the part's measures.
        key: The encoded entity key.
        begin: The earliest tile; None reaches back without end.
        end: The first tile that is left out.

    Raises:
        OfflineError: The table cannot be read.
        CodecError: A row is not one of this part.
    """
    path = f"{offline.rstrip('/')}/tiles"
    with reading(path, "tiles"):
        if not DeltaTable.is_deltatable(path):
            return None
        kept = (ds.field("view") == part.view) & (ds.field("fingerprint") == part.fingerprint)
        kept &= (ds.field("part") == part.number) & (ds.field("key") == pa.scalar(key, pa.binary()))
        kept &= ds.field("tile") < end
        if begin is not None:
            kept &= ds.field("tile") >= begin
        dataset = DeltaTable(path).to_pyarrow_dataset()
        rows = dataset.scanner(["tile", "oldest", "newest", "row"], filter=kept, fragment_readahead=1).to_table()
    form = row_format(part.slots)
    slots = slice(part.slot_offsets[measure], part.slot_offsets[measure + 1])
    found = []
    for row in rows.sort_by([("tile", "ascending"), ("oldest", "ascending")]).to_pylist():
        partial, _ = form.unpack(row["row"], 0, len(row["row"]))
        found.append(StoredTile(row["tile"], row["oldest"], row["newest"], partial[slots]))
    return found


def write_events(offline: str, source: str, table: pa.Table) -> None:
    """Append events to the log of a source in a local folder, without a job: for checks, which have logs of their own.

    Args:
        offline: Root of the Delta tables; a folder.
        source: Name of the source.
        table: The contract's columns and those of ``PLACE``.
    """
    write_deltalake(f"{offline.rstrip('/')}/events/{source}", table, mode="append")
