"""Snapshots: the features of every key at an instant, or at many, as a Delta table: the offline feature table.

Columns: the key columns, ``at``, and one per feature id. A key has a row at every instant after its first event; a key without
an event before an instant has none there. A snapshot holds what a training set would give for the same keys and times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.definitions.service import FeatureService
from featurestore.engines.points import values_at_points
from featurestore.errors import DefinitionError, OfflineError
from featurestore.offline.blobs import PIECES, codes_of, gathered
from featurestore.offline.log import open_logs
from featurestore.offline.point_in_time import Grouping, ScatterEvents, columns_of, features_schema, shaped_of
from featurestore.offline.training import buckets_for
from featurestore.timeline import format_instant, parse_duration, to_instant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.view import FeatureView

_POINTS = 500_000
"""Keys times instants that are computed at once in a task."""
_KEY_TYPES = {
    DataType.INT64: "bigint",
    DataType.BOOL: "boolean",
    DataType.STRING: "string",
    DataType.TIMESTAMP: "timestamp",
}


@dataclass(frozen=True)
class Snapshot:
    """The features of all keys at some instants.

    Attributes:
        frame: The Spark frame: key columns, ``at``, features.
        facts: What it was made from: definitions' fingerprints, Delta versions, instants.
    """

    frame: DataFrame
    facts: dict[str, Any]

    def write(self, path: str) -> str:
        """Write the rows to a Delta table, in place of what it has between the first and the last instant; return the path.

        The commit's metadata say what the rows were made from.
        """
        from delta.tables import DeltaTable

        session = self.frame.sparkSession
        writer = self.frame.write.format("delta").mode("overwrite").option("userMetadata", json.dumps(self.facts))
        if DeltaTable.isDeltaTable(session, path):
            first, last = self.facts["first"], self.facts["last"]
            writer = writer.option("replaceWhere", f"at >= timestamp'{first}' AND at <= timestamp'{last}'")
        writer.save(path)
        return path


@dataclass(frozen=True)
class EvaluateKeys:
    """The pieces of some buckets -> the features of all their keys at every instant after a key's first event."""

    grouping: Grouping
    instants: tuple[int, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of every bucket."""
        for _, tables in gathered(batches):
            views = self.grouping.views
            parts = [tables.get(index) for index in range(len(views))]
            names = list(views[0].entity.keys)
            keys = [
                pa.chunked_array([chunk for each in parts if each is not None for chunk in each.column(f"k{n}").chunks])
                for n in range(len(names))
            ]
            code, count = codes_of(keys)
            time = np.concatenate([each.column("at").to_numpy() for each in parts if each is not None])
            first = np.full(count, np.iinfo(np.int64).max)
            np.minimum.at(first, code, time)
            place = np.empty(count, np.int64)
            place[code] = np.arange(len(code))
            own = [key.take(pa.array(place)).combine_chunks() for key in keys]
            begins = np.cumsum([0, *(0 if each is None else each.num_rows for each in parts)])
            shaped = [
                shaped_of(view, part, code[begins[i] : begins[i + 1]])
                for i, (view, part) in enumerate(zip(views, parts, strict=True))
            ]
            step = max(1, _POINTS // count)
            for begin in range(0, len(self.instants), step):
                at = np.array(self.instants[begin : begin + step])
                key, which = np.nonzero(first[:, None] < at[None, :])
                if not len(key):
                    continue
                columns = dict(zip(names, (each.take(pa.array(key)) for each in own), strict=True))
                columns["at"] = pa.array(at[which], pa.timestamp("us", "UTC"))
                for view, events in zip(views, shaped, strict=True):
                    columns |= columns_of(view, values_at_points(view.layout, events, key, at[which]))
                yield pa.RecordBatch.from_pydict(columns)


def instants_of(at: Any = None, *, start: Any = None, end: Any = None, every: str | None = None) -> tuple[int, ...]:
    """Return the instants of a snapshot: one, or start, start + every, ... up to and including end.

    Raises:
        DefinitionError: Neither ``at`` nor all of ``start``, ``end`` and ``every`` are given, or a range has no instant.
    """
    ranged = (start, end, every)
    if (at is None) == all(each is None for each in ranged) or (at is None and None in ranged):
        raise DefinitionError("a snapshot takes at, or start, end and every.", hint='for example every="1h".')
    if at is not None:
        return (to_instant(at, name="at"),)
    assert every is not None  # noqa: S101
    found = tuple(range(to_instant(start, name="start"), to_instant(end, name="end") + 1, parse_duration(every)))
    if not found:
        raise DefinitionError(f"a snapshot's end {end} lies before its start {start}.", hint="swap them.")
    return found


def snapshot(
    session: SparkSession,
    what: FeatureService | FeatureView,
    instants: tuple[int, ...],
    *,
    offline: str,
    versions: dict[str, int] | None = None,
) -> Snapshot:
    """Return the features of all keys of a view, or of a service whose views share their key columns, at some instants.

    Args:
        session: The Spark session, with Delta.
        what: The view or service.
        instants: The times, ascending, in microseconds; events at or after one do not count for it.
        offline: Root of the Delta tables.
        versions: Versions of the Delta tables; the newest when None.

    Raises:
        OfflineError: Views of the service differ in their key columns.
        OfflineStoreUnavailableError: A source has no event log yet.
    """
    views: tuple[FeatureView, ...] = tuple(what.views) if isinstance(what, FeatureService) else (what,)
    keys = views[0].entity.keys
    for view in views:
        if dict(view.entity.keys) != dict(keys):
            raise OfflineError(
                f"views {views[0].name} and {view.name} of {what.name} have different keys: {list(keys)} and "
                f"{list(view.entity.keys)}.",
                hint="take a snapshot of each view.",
            )
    logs = open_logs(views, offline, versions)
    grouping = Grouping(views, buckets_for(sum(log.rows for log in logs.values())))
    scattered: DataFrame | None = None
    for name, log in logs.items():
        own = [view for view in views if view.source.name == name]
        worker = ScatterEvents(grouping, name, with_arrival=False)
        # every event before the last instant: a key's first event decides whether it has a row
        made = log.mapped(session, own, worker, PIECES, first=None, last=instants[-1])
        scattered = made if scattered is None else scattered.unionByName(made)
    assert scattered is not None  # noqa: S101
    schema = [f"`{name}` {_KEY_TYPES[DataType(kind)]}" for name, kind in keys.items()]
    frame = scattered.repartitionById(grouping.targets, scattered["target"]).mapInArrow(
        EvaluateKeys(grouping, instants), ", ".join([*schema, "at timestamp", features_schema(views)])
    )
    facts = {
        "of": what.name,
        "views": {view.name: view.fingerprint for view in views},
        "tables": {log.name: log.version for log in logs.values()},
        "first": format_instant(instants[0]),
        "last": format_instant(instants[-1]),
        "instants": len(instants),
    }
    return Snapshot(frame, facts)
