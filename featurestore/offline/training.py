"""Point-in-time training sets on Spark: every spine row, enriched with what was true just before its time.

One output row per spine row, in the spine's order, its columns untouched, whatever its keys and times are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore import __version__
from featurestore.datatypes import DataType
from featurestore.definitions.registry import Definitions
from featurestore.errors import OfflineError, SpineError
from featurestore.offline.blobs import PIECES
from featurestore.offline.leaks import LEAKS, FindLeaks, Leak, leaks_of
from featurestore.offline.log import open_logs
from featurestore.offline.point_in_time import (
    BUCKET_EVENTS,
    RANGE_ROWS,
    Assemble,
    Digest,
    Evaluate,
    Grouping,
    ScatterEvents,
    ScatterPoints,
    ScatterSpine,
    features_schema,
)
from featurestore.offline.spine import ROW, micros, read_spine

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.service import FeatureService


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
    _leaks: DataFrame | None = field(default=None, repr=False)
    _features: tuple[str, ...] = field(default=(), repr=False)
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

    @cached_property
    def leaks(self) -> tuple[Leak, ...]:
        """Per feature, how many rows differ between event time and as served, with an example; computed when first read.

        Raises:
            OfflineError: The set was made without ``leak_report=True``.
        """
        if self._leaks is None:
            raise OfflineError("this training set was made without a leak report.", hint="pass leak_report=True.")
        return leaks_of(self._leaks, self._features, self.facts["rows"])

    def write(self, path: str) -> dict[str, Any]:
        """Write Parquet files in the spine's order, and the manifest beside them as _manifest.json; return the manifest.

        Raises:
            OfflineError: Something is at the path already.
        """
        from pyspark.errors import AnalysisException

        session = self.frame.sparkSession
        # Spark's default is a format that other readers take for times without a zone.
        session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
        try:
            self.frame.write.parquet(path)
        except AnalysisException as error:
            raise OfflineError(f"{path} cannot be written: {error.getCondition()}.", hint="choose another.") from error
        text = json.dumps(self.manifest, indent=1, default=str)
        context: Any = session.sparkContext
        # by Hadoop, so that it lands wherever the files did
        target = context._jvm.org.apache.hadoop.fs.Path(f"{path}/_manifest.json")  # noqa: SLF001
        stream = target.getFileSystem(context._jsc.hadoopConfiguration()).create(target, True)  # noqa: SLF001
        try:
            stream.write(bytearray(text.encode()))
        finally:
            stream.close()
        return self.manifest

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
    leak_report: bool = False,
    versions: dict[str, int] | None = None,
) -> TrainingSet:
    """Return the spine enriched with the features of a service.

    Args:
        session: The Spark session, with Delta.
        service: Whose features.
        spine: pandas or Polars frame, Arrow table, Spark frame, or the path of Parquet files, a Delta table or a .csv:
            key columns, a time, the service's request values, and anything else.
        offline: Root of the Delta tables.
        event_time: The spine's time column; events at or after it do not count. Aware timestamps, or integers of
            microseconds UTC.
        as_served: True hides events that arrived after the row's time; the name of a column of instants hides those that
            arrived after that.
        leak_report: Whether ``leaks`` will be asked for: event times against arrivals, whatever ``as_served`` is, of the
            features of views.
        versions: Versions of the Delta tables; the newest when None.

    Raises:
        SpineError: A key or time column is missing, has the wrong type, or times are naive or null.
        OfflineStoreUnavailableError: A source has no event log yet.
    """
    visible_at = event_time if as_served is True else as_served or None
    found = read_spine(session, spine, service, event_time, visible_at)
    views, request = tuple(service.views), service.request_layouts
    logs = open_logs(views, offline, versions)
    with_arrival = leak_report or visible_at is not None
    grouping = Grouping(views, buckets_for(sum(log.rows for log in logs.values())))
    scattered = _points(found.frame, service, event_time, visible_at).mapInArrow(
        ScatterPoints(grouping, with_arrival), PIECES
    )
    for name, log in logs.items():
        own = [view for view in views if view.source.name == name]
        worker = ScatterEvents(grouping, name, with_arrival)
        scattered = scattered.unionByName(log.mapped(session, own, worker, PIECES, first=found.first, last=found.last))
    buckets = scattered.repartitionById(grouping.targets, scattered["target"])
    values = buckets.mapInArrow(Evaluate(grouping, visible_at is not None), PIECES)
    both = values.unionByName(found.frame.mapInArrow(ScatterSpine(), PIECES))
    ranges = both.repartitionById(max(1, -(-found.rows // RANGE_ROWS)), both["target"]).persist()
    schema = [f"`{each.name}` {each.dataType.simpleString()}" for each in found.frame.schema if each.name != ROW]
    facts = {
        "service": service.name,
        "service_fingerprint": service.fingerprint,
        "views": {view.name: view.fingerprint for view in views},
        "tables": {log.name: log.version for log in logs.values()},
        "event_time": event_time,
        "as_served": as_served,
        "rows": found.rows,
        "definitions": Definitions.of([service]).to_dict(),
        "library": __version__,
    }
    return TrainingSet(
        ranges.mapInArrow(Assemble(views, request), ", ".join([*schema, features_schema(views, request)])),
        facts,
        ranges.mapInArrow(Digest(views, request), "target int, spine binary, whole binary"),
        buckets.mapInArrow(FindLeaks(grouping), LEAKS) if leak_report else None,
        tuple(name for view in views for name in view.layout.feature_ids),
        (ranges, *found.kept),
    )


def buckets_for(events: int) -> int:
    """Return how many buckets of keys a number of events takes; of the data alone, so that a set is made the same again."""
    return max(2, -(-events // BUCKET_EVENTS))


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


def rebuild(session: SparkSession, manifest: Mapping[str, Any], spine: Any, *, offline: str) -> TrainingSet:
    """Return the training set a manifest describes, made again and equal bit for bit.

    Args:
        session: The Spark session, with Delta.
        manifest: ``TrainingSet.manifest``, or what was read from _manifest.json.
        spine: The same spine, of any kind.
        offline: Root of the Delta tables.

    Raises:
        SpineError: The spine is not the one it was made from.
        OfflineError: A table no longer has its version, or the result differs; the message says what changed.
    """
    from pyspark.errors import PySparkException

    missing = sorted({"service", "definitions", "tables", "spine_digest", "digest"} - set(manifest))
    if missing:
        raise OfflineError(f"the manifest has no {missing[0]!r}.", hint="pass TrainingSet.manifest, whole.")
    service = Definitions.from_dict(manifest["definitions"]).service(manifest["service"])
    if service.fingerprint != manifest["service_fingerprint"]:
        raise OfflineError(
            f"the definition of {service.name} means {service.fingerprint} now, then {manifest['service_fingerprint']}.",
            hint=f"use featurestore {manifest.get('library')}, which made it; this is {__version__}.",
        )
    made = training_set(
        session, service, spine, offline=offline, event_time=manifest["event_time"], as_served=manifest["as_served"],
        versions=dict(manifest["tables"]),
    )  # fmt: skip
    try:
        found = made.manifest
    except PySparkException as error:
        tables = ", ".join(f"{name} at version {version}" for name, version in manifest["tables"].items())
        raise OfflineError(
            f"{tables} cannot be read: {' '.join(str(error).split())[:300]}",
            hint="files of versions older than Delta's retention are gone for good.",
        ) from error
    if found["spine_digest"] != manifest["spine_digest"]:
        raise SpineError(
            f"the spine is not the one of the manifest: {found['rows']} rows of digest {found['spine_digest'][:12]}, "
            f"then {manifest['rows']} of {manifest['spine_digest'][:12]}.",
            hint="columns, their types, rows and their order all count.",
        )
    if found["digest"] != manifest["digest"]:
        raise OfflineError(
            "the same spine, definitions and table versions give another result.",
            hint=f"made with featurestore {manifest.get('library')}; this is {__version__}.",
        )
    return made
