r"""Point-in-time evaluation inside Spark's Arrow workers, in one pass for all views.

    event logs --shape (Arrow worker)--> (view, key, event time, sequence, arrival, partials)  \
                                                                      partition by (view, key) -> values_at_points
    spine      --encode keys----------> (view, key, t, visible_at, row)                     /
                                                                      -> (row, view, packed values)
                                                      partition by row -> one column per feature -> joined to the spine

Every class here is a picklable function over Arrow batches, for ``mapInArrow``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore.algebra import sequence_of
from featurestore.datatypes import DataType
from featurestore.engines.packed import pack_values, rows_from_arrow, rows_to_arrow, unpack_values
from featurestore.engines.points import values_at_points
from featurestore.engines.shape import Shaped, encode_columns, shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.definitions.view import FeatureView

ROW = "__row"
SHUFFLED = "view int, kind tinyint, key binary, at bigint, sequence bigint, arrival bigint, row bigint, partials binary"
PACKED = f"{ROW} bigint, view int, packed binary"


@dataclass(frozen=True)
class ShapeEvents:
    """Event log rows of one source -> shuffled rows of its views: kind 0, all measures' slots as bytes."""

    views: tuple[FeatureView, ...]
    source: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the shaped events of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            place = batch.column("_partition").to_numpy().astype(np.int64) * sequence_of(1, 0)
            sequence = place | batch.column("_offset").to_numpy()
            event_time, arrival = batch.column("_event_time").to_numpy(), batch.column("_arrival").to_numpy()
            for index, view in enumerate(self.views):
                if view.source.name != self.source:
                    continue
                shaped = shape(view, batch, event_time, sequence, arrival)
                if len(shaped):
                    yield _shuffled(
                        index, 0, shaped.keys, shaped.key, shaped.event_time, shaped.arrival, sequence=shaped.sequence,
                        partials=rows_to_arrow(view.layout.slots, tuple(x for columns in shaped.columns for x in columns)),
                    )  # fmt: skip


@dataclass(frozen=True)
class EncodePoints:
    """Spine rows -> shuffled rows of every view: kind 1."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the points of every batch, view by view."""
        for batch in batches:
            if not batch.num_rows:
                continue
            at, visible = batch.column("__at").to_numpy(), batch.column("__visible").to_numpy()
            row = batch.column(ROW).to_numpy()
            for index, view in enumerate(self.views):
                types = [DataType(kind) for kind in view.entity.keys.values()]
                keys, code = encode_columns([batch.column(name) for name in view.entity.keys], types)
                yield _shuffled(index, 1, keys, code, at, visible, row=row)


def _shuffled(
    view: int,
    kind: int,
    keys: list[bytes],
    code: np.ndarray,
    at: np.ndarray,
    arrival: np.ndarray,
    *,
    sequence: np.ndarray | None = None,
    row: np.ndarray | None = None,
    partials: pa.Array | None = None,
) -> pa.RecordBatch:
    count = len(code)
    nothing = np.zeros(count, np.int64)
    return pa.RecordBatch.from_pydict(
        {
            "view": pa.array(np.full(count, view, np.int32)),
            "kind": pa.array(np.full(count, kind, np.int8)),
            "key": pa.array(keys, pa.binary()).take(pa.array(code)),
            "at": at,
            "sequence": nothing if sequence is None else sequence,
            "arrival": arrival,
            "row": nothing if row is None else row,
            "partials": pa.nulls(count, pa.binary()) if partials is None else partials,
        }
    )


@dataclass(frozen=True)
class Evaluate:
    """All rows of some keys -> for every point its view's values, packed (``engines.packed``)."""

    views: tuple[FeatureView, ...]
    as_served: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the values of this partition's points, view by view."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        table = pa.Table.from_batches(held)
        view_of = table.column("view").to_numpy()
        for index in np.unique(view_of).tolist():
            one = table.take(pa.array(np.flatnonzero(view_of == index))).combine_chunks()
            evaluated = self._evaluate(self.views[index], one)
            if evaluated is not None:
                row, packed = evaluated
                yield pa.RecordBatch.from_arrays(
                    [row, pa.array(np.full(len(row), index, np.int32)), packed], [ROW, "view", "packed"]
                )

    def _evaluate(self, view: FeatureView, table: pa.Table) -> tuple[pa.Array, pa.Array] | None:
        layout = view.layout
        is_point = table.column("kind").to_numpy() == 1
        points, rows = np.flatnonzero(is_point), np.flatnonzero(~is_point)
        if not len(points):
            return None
        keys = table.column("key").combine_chunks().dictionary_encode()
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        code = keys.indices.to_numpy().astype(np.int64)
        at, sequence = table.column("at").to_numpy(), table.column("sequence").to_numpy()
        arrival = table.column("arrival").to_numpy()
        partials = rows_from_arrow(layout.slots, table.column("partials").take(pa.array(rows)))
        events = Shaped(
            keys=keys.dictionary.to_pylist(),
            key=code[rows],
            event_time=at[rows],
            sequence=sequence[rows],
            arrival=arrival[rows],
            columns=tuple(partials[begin:end] for begin, end in pairwise(layout.slot_offsets)),
        )
        values = values_at_points(layout, events, code[points], at[points], arrival[points] if self.as_served else None)
        return table.column("row").take(pa.array(points)).combine_chunks(), pack_values(_types(view), values)


def _types(view: FeatureView) -> list[DataType]:
    return [feature.aggregate.result_type for feature in view.layout.features]


def assembled_schema(views: Sequence[FeatureView]) -> str:
    """Return the Spark schema of what ``Assemble`` yields."""
    columns = [
        f"`{view.name}.{feature.name}` {feature.aggregate.result_type.spark_name}"
        for view in views
        for feature in view.layout.features
    ]
    return ", ".join([f"{ROW} bigint", *columns])


@dataclass(frozen=True)
class Assemble:
    """The packed values of all views of some rows -> one row each, one column per feature."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of this partition, whole."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        table = pa.Table.from_batches(held)
        row, view_of = table.column(ROW).to_numpy(), table.column("view").to_numpy()
        order = np.lexsort((row, view_of))
        table, row, view_of = table.take(pa.array(order)), row[order], view_of[order]
        bounds = np.searchsorted(view_of, np.arange(len(self.views) + 1))
        columns = [pa.array(row[bounds[0] : bounds[1]])]
        names = [ROW]
        for index, view in enumerate(self.views):
            packed = table.column("packed").slice(bounds[index], bounds[index + 1] - bounds[index])
            columns += unpack_values(_types(view), packed)
            names += view.layout.feature_ids
        yield pa.RecordBatch.from_arrays(columns, names)
