r"""Point-in-time training sets on Spark: every spine row, enriched with what was true just before its time.

One pass for all views:

    event logs --shape (Arrow worker)--> (view, key, event time, sequence, arrival, words)  \
                                                                      partition by (view, key) -> values_at_points
    spine      --encode keys----------> (view, key, t, visible_at, row)                     /
                                                                      -> (row, view, packed values)
                                                      partition by row -> one column per feature -> joined to the spine

One output row per spine row, in the spine's order, its columns untouched, whatever its keys and times are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.algebra import sequence_of
from featurestore.algebra.tiles import columns_at, words_of
from featurestore.datatypes import DataType
from featurestore.engines.points import values_at_points
from featurestore.engines.shape import Shaped, encode_columns, shape
from featurestore.errors import OfflineStoreUnavailableError, SpineError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.service import FeatureService
    from featurestore.definitions.view import FeatureView

ROW = "__row"
_SHUFFLED = "view int, kind tinyint, key binary, at bigint, sequence bigint, arrival bigint, row bigint, words binary"
_PACKED = f"{ROW} bigint, view int, packed binary"
_ARROW_TYPES = {
    DataType.INT64: pa.int64(),
    DataType.FLOAT64: pa.float64(),
    DataType.BOOL: pa.bool_(),
    DataType.TIMESTAMP: pa.timestamp("us", "UTC"),
}
_SPARK_TYPES = {
    DataType.INT64: "bigint",
    DataType.FLOAT64: "double",
    DataType.BOOL: "boolean",
    DataType.TIMESTAMP: "timestamp",
}


@dataclass(frozen=True)
class TrainingSet:
    """A spine with its features.

    Attributes:
        frame: The Spark frame: the spine's columns, then one column per feature id.
        manifest: What it was made from: the service and its fingerprint, every Delta table with its version, the time
            columns, the number of rows.
    """

    frame: DataFrame
    manifest: dict[str, Any] = field(default_factory=dict)

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table in the spine's order."""
        return self.frame.toArrow()

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame in the spine's order."""
        return self.to_arrow().to_pandas()

    def digest(self) -> str:
        """Return the SHA-256 of the content, columns and rows in order."""
        table = self.to_arrow().combine_chunks()
        digest = hashlib.sha256()
        for name in table.column_names:
            digest.update(f"{name}:{table.schema.field(name).type};".encode())
            for value in table.column(name).to_pylist():
                digest.update(repr(value).encode() + b"\0")
        return digest.hexdigest()


def training_set(
    session: SparkSession,
    service: FeatureService,
    spine: Any,
    *,
    offline: str,
    event_time: str = "event_time",
    as_served: bool | str = False,
) -> TrainingSet:
    """Return the spine enriched with the features of a service.

    Args:
        session: The Spark session, with Delta.
        service: Whose features.
        spine: pandas or Polars frame, Arrow table, Spark frame, or a path of Parquet files: key columns, a time, and
            anything else.
        offline: Root of the Delta tables.
        event_time: The spine's time column; events at or after it do not count. Aware timestamps, or integers of
            microseconds UTC.
        as_served: True hides events that arrived after the row's time; the name of a column of instants hides those that
            arrived after that.

    Raises:
        SpineError: A key or time column is missing, has the wrong type, or times are naive or null.
        OfflineStoreUnavailableError: A source has no event log yet.
    """
    from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

    visible_at = event_time if as_served is True else as_served or None
    table = as_arrow(spine) if not _is_spark(spine) and not isinstance(spine, str) else None
    if table is not None:
        _check_spine(table, service, event_time, visible_at)
        numbered = session.createDataFrame(table.append_column(ROW, pa.array(np.arange(table.num_rows))))
    else:
        frame = session.read.parquet(spine) if isinstance(spine, str) else spine
        _check_columns(frame.columns, service, event_time, visible_at)
        numbered = _number(session, frame)
    numbered = numbered.persist()
    points = _points(numbered, service, event_time, visible_at)
    views = tuple(service.views)
    rows = points.mapInArrow(_EncodePoints(views), _SHUFFLED)
    versions = {}
    for source in service.sources:
        path = f"{offline}/events/{source.name}"
        versions[f"events/{source.name}"] = version = _table_version(session, path)
        log = session.read.format("delta").option("versionAsOf", version).load(path)
        rows = rows.unionByName(log.mapInArrow(_ShapeEvents(views, source.name), _SHUFFLED))
    values = (
        rows.repartition(F.col("view"), F.col("key"))
        .mapInArrow(_Evaluate(views, visible_at is not None), _PACKED)
        .repartition(F.col(ROW))
        .mapInArrow(_Assemble(views), _assembled_schema(views))
    )
    joined = numbered.join(values, ROW)
    result = joined.orderBy(ROW).drop(ROW)
    manifest = {
        "service": service.name,
        "service_fingerprint": service.fingerprint,
        "views": {view.name: view.fingerprint for view in service.views},
        "tables": versions,
        "event_time": event_time,
        "as_served": as_served,
        "rows": numbered.count(),
    }
    return TrainingSet(result, manifest)


def as_arrow(spine: Any) -> pa.Table:
    """Return a pandas or Polars frame or an Arrow table as an Arrow table."""
    if isinstance(spine, pa.Table):
        return spine
    if hasattr(spine, "to_arrow"):
        return spine.to_arrow()
    if hasattr(spine, "iloc"):
        return pa.Table.from_pandas(spine, preserve_index=False)
    raise SpineError(
        f"a spine of type {type(spine).__name__} is not understood.",
        hint="pass a pandas, Polars or Spark frame, an Arrow table, or the path of Parquet files.",
    )


def _is_spark(spine: Any) -> bool:
    return type(spine).__module__.startswith("pyspark.")


def _check_columns(columns: Sequence[str], service: FeatureService, event_time: str, visible_at: str | None) -> None:
    needed = [(name, "key column") for name in service.keys] + [(event_time, "time column")]
    for name, what in [*needed, *([(visible_at, "visibility column")] if visible_at else [])]:
        if name not in columns:
            raise SpineError(
                f"the spine has no {what} {name!r}; service {service.name} needs it.",
                hint=did_you_mean(name, columns, what="columns"),
            )
    for name in service.feature_ids:
        if name in columns:
            raise SpineError(
                f"the spine already has a column {name!r}.", hint="rename it; the feature takes that name."
            )


def _check_spine(table: pa.Table, service: FeatureService, event_time: str, visible_at: str | None) -> None:
    _check_columns(table.column_names, service, event_time, visible_at)
    for name in {event_time, *([visible_at] if visible_at else [])}:
        column = table.column(name)
        if pa.types.is_timestamp(column.type) and column.type.tz is None:
            raise SpineError(
                f"spine column {name!r} is a naive timestamp.",
                hint="localize it: a naive time means a different instant on every machine.",
            )
        if not (pa.types.is_timestamp(column.type) or pa.types.is_int64(column.type)):
            raise SpineError(
                f"spine column {name!r} is {column.type}, not a time.",
                hint="use aware timestamps, or int64 microseconds UTC.",
            )
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise SpineError(f"spine column {name!r} has {column.null_count} nulls, the first in row {row}.")
    for name, kind in service.keys.items():
        found = table.column(name).type
        fits = {
            DataType.STRING: pa.types.is_string(found) or pa.types.is_large_string(found) or _is_dictionary(found),
            DataType.INT64: pa.types.is_integer(found),
            DataType.BOOL: pa.types.is_boolean(found),
            DataType.TIMESTAMP: pa.types.is_timestamp(found),
        }
        if not fits[kind] and not pa.types.is_null(found):
            raise SpineError(f"spine key column {name!r} is {found}, the entity's key is {kind}.")


def _is_dictionary(found: pa.DataType) -> bool:
    return pa.types.is_dictionary(found) and pa.types.is_string(found.value_type)


def _number(session: SparkSession, frame: DataFrame) -> DataFrame:
    """Return the frame with its row number, in its own order."""
    rows = frame.rdd.zipWithIndex().map(lambda pair: (*pair[0], pair[1]))
    return session.createDataFrame(rows, schema=frame.schema.add(ROW, "long"))


def _points(numbered: DataFrame, service: FeatureService, event_time: str, visible_at: str | None) -> DataFrame:
    """Return row number, time, visibility and key columns, times as microseconds."""
    kinds = dict(numbered.dtypes)

    def micros(name: str) -> str:
        return f"unix_micros(`{name}`)" if kinds[name] == "timestamp" else f"`{name}`"

    keys = [
        f"unix_micros(`{name}`) `{name}`" if kind == DataType.TIMESTAMP else
        f"cast(`{name}` as {'bigint' if kind == DataType.INT64 else 'string' if kind == DataType.STRING else 'boolean'}) `{name}`"
        for name, kind in service.keys.items()
    ]  # fmt: skip
    return numbered.selectExpr(
        ROW, f"{micros(event_time)} __at", f"{micros(visible_at or event_time)} __visible", *keys
    )


def _table_version(session: SparkSession, path: str) -> int:
    from delta.tables import DeltaTable

    if not DeltaTable.isDeltaTable(session, path):
        raise OfflineStoreUnavailableError(
            f"there is no event log at {path}.", hint="start the materialize job; it writes the log."
        )
    row = DeltaTable.forPath(session, path).history(1).select("version").first()
    return int(row["version"]) if row is not None else 0


@dataclass(frozen=True)
class _ShapeEvents:
    """Event log rows of one source -> shuffled rows of its views: kind 0, all measures' slots as bytes."""

    views: tuple[FeatureView, ...]
    source: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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
                        words=np.column_stack([word for columns in shaped.columns for word in words_of(columns)]),
                    )  # fmt: skip


@dataclass(frozen=True)
class _EncodePoints:
    """Spine rows -> shuffled rows of every view: kind 1."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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
    words: np.ndarray | None = None,
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
            "words": pa.nulls(count, pa.binary()) if words is None else _binary(words.astype("<i8", copy=False)),
        }
    )


def _binary(rows: np.ndarray) -> pa.Array:
    """Return the rows of a matrix as binary values of one length."""
    data = np.ascontiguousarray(rows)
    size = data.shape[1] * data.itemsize
    offsets = np.arange(len(data) + 1, dtype=np.int32) * np.int32(size)
    return pa.Array.from_buffers(pa.binary(), len(data), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _matrix(values: pa.Array, dtype: str, width: int) -> np.ndarray:
    """Return binary values of one length as a matrix; the inverse of ``_binary``."""
    return np.frombuffer(b"".join(values.to_pylist()), dtype).reshape(len(values), width)


@dataclass(frozen=True)
class _Evaluate:
    """All rows of some keys -> for every point its view's values, 9 bytes a feature: the value's word, and validity."""

    views: tuple[FeatureView, ...]
    as_served: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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
        words = _matrix(table.column("words").take(pa.array(rows)), "<i8", len(layout.slots))
        events = Shaped(
            keys=keys.dictionary.to_pylist(),
            key=code[rows],
            event_time=at[rows],
            sequence=sequence[rows],
            arrival=arrival[rows],
            columns=tuple(
                columns_at(words, measure, begin)
                for measure, begin in zip(layout.measures, layout.slot_offsets, strict=False)
            ),
        )
        values = values_at_points(layout, events, code[points], at[points], arrival[points] if self.as_served else None)
        words_and_valid = np.zeros((len(points), 9 * len(values)), np.uint8)
        for position, (column, valid) in enumerate(values):
            begin = 9 * position
            word = np.ascontiguousarray(column).view(np.uint8).reshape(len(points), 8)
            words_and_valid[:, begin : begin + 8] = word
            words_and_valid[:, begin + 8] = valid
        return table.column("row").take(pa.array(points)).combine_chunks(), _binary(words_and_valid)


def _assembled_schema(views: Sequence[FeatureView]) -> str:
    columns = [
        f"`{view.name}.{feature.name}` {_SPARK_TYPES[feature.aggregate.result_type]}"
        for view in views
        for feature in view.layout.features
    ]
    return ", ".join([f"{ROW} bigint", *columns])


@dataclass(frozen=True)
class _Assemble:
    """The packed values of all views of some rows -> one row each, one column per feature."""

    views: tuple[FeatureView, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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
            features = view.layout.features
            part = table.column("packed").slice(bounds[index], bounds[index + 1] - bounds[index])
            packed = _matrix(part, "u1", 9 * len(features))
            for position, feature in enumerate(features):
                begin = 9 * position
                word = np.ascontiguousarray(packed[:, begin : begin + 8]).view("<i8")[:, 0]
                columns.append(_arrow_column(word, packed[:, begin + 8] == 1, feature.aggregate.result_type))
            names += view.layout.feature_ids
        yield pa.RecordBatch.from_arrays(columns, names)


def _arrow_column(words: np.ndarray, valid: np.ndarray, kind: DataType) -> pa.Array:
    if kind == DataType.FLOAT64:
        return pa.array(words.view(np.float64), mask=~valid)
    array = pa.array(words, mask=~valid)
    return array.cast(_ARROW_TYPES[kind])
