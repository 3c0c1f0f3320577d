"""Reading the event log at one version: which files, which columns, which times.

The table's own metadata (by ``deltalake``, without a job) say which files a version has, how many events are in each and between
what times. Where workers can open the files themselves, they read them straight into Arrow; Spark's reader would turn every
row into objects of the JVM and back, which cost more than all the rest. Elsewhere (object stores, deletion vectors, renamed
columns) Spark reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.offline.ids import REPEATS, without_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.view import FeatureView

_BATCH_ROWS = 131_072
_TASK_EVENTS = 1_000_000
_PLACE = ("_partition", "_offset", "_arrival", "_event_time")


@dataclass(frozen=True)
class LogFile:
    """A file of an event log: where, how many events, and between what event times (None: not known)."""

    path: str
    rows: int
    first: int | None
    last: int | None


@dataclass(frozen=True)
class EventLog:
    """The event log of a source at one version.

    Attributes:
        name: "events/SOURCE".
        path: Its folder or URI.
        version: The Delta version.
        files: Its files.
        is_open: Whether workers read the files themselves.
    """

    name: str
    path: str
    version: int
    files: tuple[LogFile, ...]
    is_open: bool

    @property
    def rows(self) -> int:
        """How many events it has."""
        return sum(file.rows for file in self.files)

    def mapped(
        self,
        session: SparkSession,
        views: Sequence[FeatureView],
        worker: Any,
        schema: str,
        *,
        first: int | None,
        last: int | None,
    ) -> DataFrame:
        """Return a worker's results over the columns that views use and the events that windows between two times reach.

        Args:
            session: The Spark session.
            views: The views of this source.
            worker: A function over Arrow batches, as of ``mapInArrow``.
            schema: Of what it yields.
            first: The earliest time asked about; None when every earlier event is wanted.
            last: The latest; None when no event is wanted.
        """
        columns, reach = _needs(views)
        begin = None if first is None or reach is None else first - reach
        if not self.is_open:
            log = session.read.format("delta").option("versionAsOf", self.version).load(self.path)
            log = log.where(f"{REPEATS} is null") if REPEATS in log.columns else log
            log = log.select(*(f"`{name}`" for name in columns), *_PLACE)
            log = log.limit(0) if last is None else log.where(log["_event_time"] < last)
            log = log if begin is None else log.where(log["_event_time"] >= begin)
            return log.mapInArrow(worker, schema)
        files = [file for file in self.files if last is not None and _overlaps(file, begin, last)]
        tasks = _tasks(files)
        read = ReadFiles(tasks, tuple((name, columns[name]) for name in columns), begin, last, worker)
        return session.range(0, max(1, len(tasks)), 1, max(1, len(tasks))).mapInArrow(read, schema)


@dataclass(frozen=True)
class ReadFiles:
    """Numbers of tasks -> what a worker makes of the events in each task's files."""

    tasks: tuple[tuple[str, ...], ...]
    columns: tuple[tuple[str, pa.DataType], ...]
    begin: int | None
    end: int | None
    worker: Any

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what the worker yields."""
        numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
        yield from self.worker(
            batch
            for number in numbers
            if number < len(self.tasks)
            for path in self.tasks[number]
            for batch in self.events(path)
        )

    def events(self, path: str) -> Iterator[pa.RecordBatch]:
        """Yield a file's events within the times, column by column; a column that an older file lacks is null."""
        # Spark writes times in a format whose default reading ends in the year 2262
        file = pq.ParquetFile(path, coerce_int96_timestamp_unit="us")
        present = set(file.schema_arrow.names)
        wanted = [name for name, _ in self.columns if name in present]
        marks = [REPEATS] if REPEATS in present else []
        for batch in map(without_repeats, file.iter_batches(_BATCH_ROWS, columns=[*wanted, *_PLACE, *marks])):
            arrays = [
                batch.column(name) if name in present else pa.nulls(batch.num_rows, kind) for name, kind in self.columns
            ]
            names = [name for name, _ in self.columns]
            whole = pa.RecordBatch.from_arrays([*arrays, *(batch.column(name) for name in _PLACE)], [*names, *_PLACE])
            time = whole.column("_event_time").to_numpy()
            kept = np.ones(len(time), bool) if self.end is None else time < self.end
            if self.begin is not None:
                kept &= time >= self.begin
            yield whole if kept.all() else whole.filter(pa.array(kept))


def open_logs(
    views: Sequence[FeatureView], offline: str, versions: Mapping[str, int] | None = None
) -> dict[str, EventLog]:
    """Return source name to event log, of all sources of the views.

    Args:
        views: The views.
        offline: Root of the Delta tables.
        versions: "events/SOURCE" to version; the newest when None.

    Raises:
        OfflineStoreUnavailableError: A source has no event log yet.
        OfflineError: A table no longer has its version.
    """
    found = {}
    for source in dict.fromkeys(view.source.name for view in views):
        name = f"events/{source}"
        found[source] = _open(name, f"{offline.rstrip('/')}/{name}", None if versions is None else versions.get(name))
    return found


def _open(name: str, path: str, version: int | None) -> EventLog:
    try:
        table = DeltaTable(path, version=version)
        added = pa.table(table.get_add_actions(flatten=True))
    except TableNotFoundError as error:
        raise OfflineStoreUnavailableError(
            f"there is no event log at {path}.", hint="start the materialize job; it writes the log."
        ) from error
    except (DeltaError, OSError) as error:
        what = f"{path} at version {version}" if version is not None else path
        hint = "versions older than Delta's retention are gone for good." if version is not None else ""
        raise OfflineError(f"{what} cannot be read: {' '.join(str(error).split())[:300]}.", hint=hint) from error
    column = {each: added.column(each).to_pylist() for each in added.column_names}
    nothing = [None] * added.num_rows
    local = path.removeprefix("file://")
    rows = column.get("num_records", nothing)
    is_open = "://" not in local and not table.protocol().reader_features and None not in rows
    is_open = is_open and table.protocol().min_reader_version == 1
    root = Path(local).resolve() if is_open else path
    places = [f"{root}/{unquote(each)}" for each in column["path"]]
    first, last = column.get("min._event_time", nothing), column.get("max._event_time", nothing)
    counts = [count or 0 for count in rows]
    files = tuple(LogFile(*each) for each in zip(places, counts, first, last, strict=True))
    return EventLog(name, path, int(table.version()), files, is_open)


def _needs(views: Sequence[FeatureView]) -> tuple[dict[str, pa.DataType], int | None]:
    """Return the columns that views use with their types, and how far back their windows reach; None is without end."""
    columns: dict[str, pa.DataType] = {}
    reach: int | None = 0
    for view in views:
        kinds = view.source.contract.columns
        for name in view.reads:
            columns[name] = ARROW_TYPES[kinds[name]]
        for feature in view.layout.features:
            window = feature.window
            if window.length is None or window.hop is None:
                reach = None
            elif reach is not None:
                reach = max(reach, window.delay + window.length + window.hop)
    return columns, reach


def _overlaps(file: LogFile, begin: int | None, end: int) -> bool:
    if file.first is None or file.last is None:
        return True
    return file.first < end and (begin is None or file.last >= begin)


def _tasks(files: Sequence[LogFile]) -> tuple[tuple[str, ...], ...]:
    """Return the files in groups of about as many events, in the table's order."""
    groups: list[list[str]] = []
    held = _TASK_EVENTS
    for file in files:
        if held >= _TASK_EVENTS:
            groups.append([])
            held = 0
        groups[-1].append(file.path)
        held += file.rows
    return tuple(tuple(group) for group in groups)
