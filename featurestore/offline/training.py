"""Point-in-time training sets on Spark: every spine row, enriched with what was true just before its time.

One output row per spine row, in the spine's order, its columns untouched, whatever its keys and times are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.blobs import PIECES
from featurestore.offline.point_in_time import (
    BUCKET_EVENTS,
    RANGE_ROWS,
    ROW,
    Assemble,
    Digest,
    Evaluate,
    Grouping,
    ScatterEvents,
    ScatterPoints,
    ScatterSpine,
    features_schema,
)
from featurestore.offline.spine import Spine, micros, read_spine

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.service import FeatureService
    from featurestore.definitions.view import FeatureView


@dataclass(frozen=True)
class TrainingSet:
    """A spine with its features.

    Attributes:
        frame: The Spark frame: the spine's columns, then one column per feature id, in the spine's order.
        facts: What it was made from; see ``manifest``.
    """

    frame: DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
    _digests: DataFrame | None = field(default=None, repr=False)
    _kept: tuple[DataFrame, ...] = field(default=(), repr=False)

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table in the spine's order."""
        return self.frame.toArrow()

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame in the spine's order."""
        return self.to_arrow().to_pandas()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the set was made from, as data, and the digests of the spine and of the whole; computes them when first read."""
        assert self._digests is not None  # noqa: S101
        ranges = sorted(tuple(row) for row in self._digests.collect())
        whole = {
            name: hashlib.sha256(b"".join(bytes(each[place]) for each in ranges)).hexdigest()
            for place, name in ((1, "spine_digest"), (2, "digest"))
        }
        return {**self.facts, **whole}

    def digest(self) -> str:
        """Return the SHA-256 of the content, columns and rows in order."""
        return str(self.manifest["digest"])

    def release(self) -> None:
        """Free what Spark keeps in memory for this set; it can be used again, and is then computed again."""
        for frame in self._kept:
            frame.unpersist()


def training_set(
    session: SparkSession,
    service: FeatureService,
    spine: Any,
    *,
    offline: str,
    event_time: str = "event_time",
    as_served: bool | str = False,
    versions: dict[str, int] | None = None,
) -> TrainingSet:
    """Return the spine enriched with the features of a service.

    Args:
        session: The Spark session, with Delta.
        service: Whose features.
        spine: pandas or Polars frame, Arrow table, Spark frame, or the path of Parquet files, a Delta table or a .csv:
            key columns, a time, and anything else.
        offline: Root of the Delta tables.
        event_time: The spine's time column; events at or after it do not count. Aware timestamps, or integers of
            microseconds UTC.
        as_served: True hides events that arrived after the row's time; the name of a column of instants hides those that
            arrived after that.
        versions: Versions of the Delta tables; the newest when None.

    Raises:
        SpineError: A key or time column is missing, has the wrong type, or times are naive or null.
        OfflineStoreUnavailableError: A source has no event log yet.
    """
    visible_at = event_time if as_served is True else as_served or None
    found = read_spine(session, spine, service, event_time, visible_at)
    views = tuple(service.views)
    logs, read = _logs(session, views, offline, versions)
    grouping = Grouping(views, buckets_for(sum(log.count() for log in logs.values())))
    scattered = _points(found.frame, service, event_time, visible_at).mapInArrow(
        ScatterPoints(grouping, visible_at is not None), PIECES
    )
    for name, log in logs.items():
        scattered = scattered.unionByName(
            needed(log, views, name, found).mapInArrow(ScatterEvents(grouping, name, visible_at is not None), PIECES)
        )
    values = scattered.repartitionById(grouping.targets, scattered["target"]).mapInArrow(
        Evaluate(grouping, visible_at is not None), PIECES
    )
    both = values.unionByName(found.frame.mapInArrow(ScatterSpine(), PIECES))
    ranges = both.repartitionById(max(1, -(-found.rows // RANGE_ROWS)), both["target"]).persist()
    schema = [f"`{each.name}` {each.dataType.simpleString()}" for each in found.frame.schema if each.name != ROW]
    facts = {
        "service": service.name,
        "service_fingerprint": service.fingerprint,
        "views": {view.name: view.fingerprint for view in views},
        "tables": read,
        "event_time": event_time,
        "as_served": as_served,
        "rows": found.rows,
    }
    return TrainingSet(
        ranges.mapInArrow(Assemble(views), ", ".join([*schema, features_schema(views)])),
        facts,
        ranges.mapInArrow(Digest(views), "target int, spine binary, whole binary"),
        (ranges, *found.kept),
    )


def buckets_for(events: int) -> int:
    """Return how many buckets of keys a number of events takes; of the data alone, so that a set is made the same again."""
    return max(2, -(-events // BUCKET_EVENTS))


def _logs(
    session: SparkSession, views: tuple[FeatureView, ...], offline: str, versions: dict[str, int] | None
) -> tuple[dict[str, DataFrame], dict[str, int]]:
    """Return the event logs of the views' sources by name, and table to version."""
    logs, read = {}, {}
    for source in dict.fromkeys(view.source.name for view in views):
        table = f"events/{source}"
        path = f"{offline}/{table}"
        read[table] = versions[table] if versions else _table_version(session, path)
        logs[source] = session.read.format("delta").option("versionAsOf", read[table]).load(path)
    return logs, read


def needed(log: DataFrame, views: tuple[FeatureView, ...], source: str, spine: Spine) -> DataFrame:
    """Return the columns of an event log that views use, and the events that any window of the spine can reach."""
    columns: dict[str, None] = {}
    reach: int | None = 0
    for view in views:
        if view.source.name == source:
            columns |= dict.fromkeys(view.entity.keys)
            for expression in (view.condition, *(each for pair in view.expressions for each in pair)):
                columns |= dict.fromkeys(() if expression is None else expression.columns)
            longest = view.layout.reach
            reach = None if longest is None or reach is None else max(reach, longest)
    log = log.select(*(f"`{name}`" for name in columns), "_partition", "_offset", "_arrival", "_event_time")
    if spine.first is None or spine.last is None:
        return log.limit(0)
    if reach is not None:
        log = log.where(log["_event_time"] >= spine.first - reach)
    return log.where(log["_event_time"] < spine.last)


def _points(numbered: DataFrame, service: FeatureService, event_time: str, visible_at: str | None) -> DataFrame:
    """Return row number, time, visibility and key columns, times as microseconds."""
    kinds = dict(numbered.dtypes)
    keys = [
        f"unix_micros(`{name}`) `{name}`" if kind == DataType.TIMESTAMP else
        f"cast(`{name}` as {'bigint' if kind == DataType.INT64 else 'string' if kind == DataType.STRING else 'boolean'}) `{name}`"
        for name, kind in service.keys.items()
    ]  # fmt: skip
    return numbered.selectExpr(
        ROW, f"{micros(event_time, kinds)} __at", f"{micros(visible_at or event_time, kinds)} __visible", *keys
    )


def _table_version(session: SparkSession, path: str) -> int:
    from delta.tables import DeltaTable

    if not DeltaTable.isDeltaTable(session, path):
        raise OfflineStoreUnavailableError(
            f"there is no event log at {path}.", hint="start the materialize job; it writes the log."
        )
    row = DeltaTable.forPath(session, path).history(1).select("version").first()
    return int(row["version"]) if row is not None else 0
