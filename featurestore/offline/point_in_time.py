r"""Point-in-time evaluation inside Spark's Arrow workers, in one pass for all views.

    event logs --ScatterEvents--> pieces (bucket of keys, view)   \
                                                                   one task per bucket: Evaluate
    spine      --ScatterPoints--> pieces (bucket of keys, points) /
                     -> pieces (range of spine rows, view)  \
                                                             one task per range of rows: Assemble -> the spine with features
    spine      --ScatterSpine---> (range of rows, spine)    /

Views with the same key columns form a *group*; a bucket belongs to one group, and has some of its keys, with all their
events. Only what aggregates take is shuffled (``engines.shape.Inputs``), as Arrow blobs (``offline.blobs``). The last step
has every range of rows whole, so nothing is joined and nothing is sorted.

Every class here is a picklable function over Arrow batches, for ``mapInArrow``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.algebra import sequence_of
from featurestore.datatypes import DataType
from featurestore.engines.derive import derive_columns
from featurestore.engines.points import values_at_points
from featurestore.engines.shape import Shaped, input_ids, inputs_of, prepared
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.offline.blobs import codes_of, gathered, hashes, pieces
from featurestore.offline.digest import digest_of
from featurestore.offline.spine import ROW

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.definitions.derived import DerivedLayout
    from featurestore.definitions.view import FeatureView

RANGE_ROWS = 1 << 17
"""Rows of the spine that are put together in one task."""
BUCKET_EVENTS = 250_000
"""Events of a bucket, on average; what bounds a task's memory, besides a single key's events."""
SPINE = -1
_DIGESTS = [("target", pa.int32()), ("spine", pa.binary()), ("whole", pa.binary())]


@dataclass(frozen=True)
class Grouping:
    """Which views share buckets.

    Attributes:
        views: All views, in order.
        buckets: Buckets of one group.
    """

    views: tuple[FeatureView, ...]
    buckets: int

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The key columns of every group."""
        return tuple(dict.fromkeys(tuple(view.entity.keys) for view in self.views))

    @property
    def targets(self) -> int:
        """How many buckets there are, of all groups."""
        return self.buckets * len(self.groups)

    def of(self, view: FeatureView) -> int:
        """Return the group of a view."""
        return self.groups.index(tuple(view.entity.keys))

    def targets_of(self, group: int, keys: Sequence[Any]) -> np.ndarray:
        """Return the bucket of every row of key columns."""
        return (hashes(keys) % np.uint64(self.buckets)).astype(np.int64) + group * self.buckets


def typed_keys(view: FeatureView, keys: Sequence[Any]) -> list[Any]:
    """Return key columns in the types of the entity: Spark gives instants the zone of its session."""
    return [key.cast(ARROW_TYPES[DataType(kind)]) for key, kind in zip(keys, view.entity.keys.values(), strict=True)]


@dataclass(frozen=True)
class ScatterEvents:
    """Event log rows of one source -> pieces for its views."""

    grouping: Grouping
    source: str
    with_arrival: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pieces of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            place = batch.column("_partition").to_numpy().astype(np.int64) * sequence_of(1, 0)
            sequence = place | batch.column("_offset").to_numpy()
            event_time = batch.column("_event_time").to_numpy()
            arrival = batch.column("_arrival").to_numpy() if self.with_arrival else event_time
            for index, view in enumerate(self.grouping.views):
                if view.source.name != self.source:
                    continue
                found = inputs_of(view, batch, event_time, sequence, arrival)
                keys = typed_keys(view, found.keys)
                columns = {f"k{place}": key for place, key in enumerate(keys)}
                columns |= {"at": pa.array(found.event_time), "sequence": pa.array(found.sequence)}
                if self.with_arrival:
                    columns["arrival"] = pa.array(found.arrival)
                columns |= {f"v{place}": value for place, value in enumerate(found.values)}
                target = self.grouping.targets_of(self.grouping.of(view), keys)
                yield from pieces(pa.table(columns), target, index)


@dataclass(frozen=True)
class ScatterPoints:
    """Spine rows -> pieces with key, time and row number, for every group of views."""

    grouping: Grouping
    with_arrival: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the points of every batch, group by group."""
        for batch in batches:
            if not batch.num_rows:
                continue
            columns = {name: batch.column(name) for name in ("__at", ROW)}
            if self.with_arrival:
                columns["__visible"] = batch.column("__visible")
            for group, names in enumerate(self.grouping.groups):
                view = next(view for view in self.grouping.views if self.grouping.of(view) == group)
                keys = typed_keys(view, [batch.column(name) for name in names])
                table = pa.table({**columns, **{f"k{place}": key for place, key in enumerate(keys)}})
                yield from pieces(table, self.grouping.targets_of(group, keys), SPINE)


@dataclass(frozen=True)
class ScatterSpine:
    """Spine rows -> pieces by range of rows, columns as they are."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pieces of every batch."""
        for batch in batches:
            yield from pieces(batch, batch.column(ROW).to_numpy() // RANGE_ROWS, SPINE)


@dataclass(frozen=True)
class Evaluate:
    """The pieces of some buckets -> for every point of a bucket its views' values, in pieces by range of rows."""

    grouping: Grouping
    as_served: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the values of this partition's points, view by view."""
        for target, tables in gathered(batches):
            points = tables.pop(SPINE, None)
            if points is None:
                continue
            for index, view in enumerate(self.grouping.views):
                if self.grouping.of(view) == target // self.grouping.buckets:
                    order, values = evaluated(view, tables.pop(index, None), points, as_served=self.as_served)
                    row = points.column(ROW).to_numpy()[order]
                    yield from pieces(table_of(view, row, values), row // RANGE_ROWS, index)


def evaluated(
    view: FeatureView, events: pa.Table | None, points: pa.Table, *, as_served: bool
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the places of all points, by key and time, and their values in that order."""
    count = 0 if events is None else events.num_rows
    names = [f"k{place}" for place in range(len(view.entity.keys))]
    both = [
        points.column(n) if events is None else pa.chunked_array(_chunks(events, n) + _chunks(points, n)) for n in names
    ]
    code, keys = codes_of(both)
    # keys with the most events come first: see algebra.ranges
    order = np.argsort(-np.bincount(code[:count], minlength=keys), kind="stable")
    rank = np.empty(keys, np.int64)
    rank[order] = np.arange(keys)
    code = rank[code]
    t = points.column("__at").to_numpy()
    order = np.lexsort((t, code[count:]))
    seen = points.column("__visible").to_numpy()[order] if as_served else None
    shaped = shaped_of(view, events, code[:count])
    return order, values_at_points(view.layout, shaped, code[count:][order], t[order], seen)


def shaped_of(view: FeatureView, events: pa.Table | None, code: np.ndarray) -> Shaped:
    """Return the events of a view's pieces, ready to be merged; None are none."""
    kinds = _input_types(view)
    if events is None:
        none = np.zeros(0, np.int64)
        return Shaped([], none, none, none, none, prepared(view, [pa.array([], kind) for kind in kinds], none, none))
    at, sequence = events.column("at").to_numpy(), events.column("sequence").to_numpy()
    arrival = events.column("arrival").to_numpy() if "arrival" in events.column_names else at
    values = [events.column(f"v{place}") for place in range(len(kinds))]
    return Shaped([], code, at, sequence, arrival, prepared(view, values, at, sequence))


def _chunks(table: pa.Table, name: str) -> list[pa.Array]:
    return list(table.column(name).chunks)


def _input_types(view: FeatureView) -> list[pa.DataType]:
    kinds = dict(zip(input_ids(view), (expression for expression, _ in view.expressions), strict=True))
    return [pa.bool_() if each is None else ARROW_TYPES[each.type] for each in kinds.values()]


def table_of(view: FeatureView, row: np.ndarray, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    """Return row numbers and feature values as Arrow columns."""
    return pa.table({ROW: pa.array(row), **columns_of(view, values)})


def columns_of(view: FeatureView, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, pa.Array]:
    """Return feature values as Arrow columns by feature id, with those of the features derived from them."""
    columns = {
        f"{view.name}.{feature.name}": _arrow_column(column, valid, feature.aggregate.result_type)
        for feature, (column, valid) in zip(view.layout.features, values, strict=True)
    }
    rows = len(next(iter(columns.values())))
    return columns | derive_columns(view.layout.derived, columns, rows)


def features_schema(views: Sequence[FeatureView], request: Sequence[DerivedLayout] = ()) -> str:
    """Return the Spark schema of the features of views, and of request features."""
    types = [each for view in views for each in view.layout.types.items()] + [(each.id, each.type) for each in request]
    return ", ".join(f"`{name}` {kind.spark_name}" for name, kind in types)


@dataclass(frozen=True)
class Assemble:
    """The pieces of some ranges of rows -> those rows in order: the spine's columns, one per feature, request features."""

    views: tuple[FeatureView, ...]
    request: tuple[DerivedLayout, ...] = ()

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of this partition's ranges."""
        for _, tables in gathered(batches):
            columns = [each for part in self.ordered(tables) for each in part]
            yield pa.RecordBatch.from_arrays([column for _, column in columns], [name for name, _ in columns])

    def ordered(self, tables: dict[int, pa.Table]) -> Iterator[list[tuple[str, pa.Array]]]:
        """Yield the named columns of the spine, those of every view, then request features, all by row number."""
        wanted = {name for each in self.request for name in each.reads}
        known: dict[str, pa.Array] = {}
        rows = 0
        for part in (SPINE, *range(len(self.views))):
            table = tables.pop(part).combine_chunks()
            table = table.take(pa.array(np.argsort(table.column(ROW).to_numpy()))).drop_columns(ROW)
            rows = table.num_rows
            columns = [(name, _flat(table.column(name))) for name in table.column_names]
            known |= {name: column for name, column in columns if name in wanted}
            yield columns
        if self.request:
            yield list(derive_columns(self.request, known, rows).items())


@dataclass(frozen=True)
class Digest:
    """The pieces of some ranges of rows -> the digests of each range's spine columns and of all its columns."""

    views: tuple[FeatureView, ...]
    request: tuple[DerivedLayout, ...] = ()

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield number and digests of this partition's ranges."""
        assemble = Assemble(self.views, self.request)
        for target, tables in gathered(batches):
            spine, *features = assemble.ordered(tables)
            whole = [*spine, *(each for part in features for each in part)]
            row = {"target": target, "spine": digest_of(spine), "whole": digest_of(whole)}
            yield pa.RecordBatch.from_pylist([row], pa.schema(_DIGESTS))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _arrow_column(values: np.ndarray, valid: np.ndarray, kind: DataType) -> pa.Array:
    if kind.is_object:
        known = zip(values.tolist(), valid.tolist(), strict=True)
        return pa.array([value if ok else None for value, ok in known], ARROW_TYPES[kind])
    return pa.array(values, mask=~valid).cast(ARROW_TYPES[kind])
