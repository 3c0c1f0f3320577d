"""Point-in-time training sets on Spark: every spine row, enriched with what was true just before its time.

One output row per spine row, in the spine's order, its columns untouched, whatever its keys and times are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.point_in_time import (
    PACKED,
    ROW,
    SHUFFLED,
    Assemble,
    EncodePoints,
    Evaluate,
    ShapeEvents,
    assembled_schema,
)
from featurestore.offline.spine import as_arrow, check_columns, check_spine, is_spark

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.service import FeatureService


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
    table = as_arrow(spine) if not is_spark(spine) and not isinstance(spine, str) else None
    if table is not None:
        check_spine(table, service, event_time, visible_at)
        numbered = session.createDataFrame(table.append_column(ROW, pa.array(np.arange(table.num_rows))))
    else:
        frame = session.read.parquet(spine) if isinstance(spine, str) else spine
        check_columns(frame.columns, service, event_time, visible_at)
        numbered = _number(session, frame)
    numbered = numbered.persist()
    points = _points(numbered, service, event_time, visible_at)
    views = tuple(service.views)
    rows = points.mapInArrow(EncodePoints(views), SHUFFLED)
    versions = {}
    for source in service.sources:
        path = f"{offline}/events/{source.name}"
        versions[f"events/{source.name}"] = version = _table_version(session, path)
        log = session.read.format("delta").option("versionAsOf", version).load(path)
        rows = rows.unionByName(log.mapInArrow(ShapeEvents(views, source.name), SHUFFLED))
    values = (
        rows.repartition(F.col("view"), F.col("key"))
        .mapInArrow(Evaluate(views, visible_at is not None), PACKED)
        .repartition(F.col(ROW))
        .mapInArrow(Assemble(views), assembled_schema(views))
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
