"""Streaming through an event log at one version, without a JVM: batch after batch, in no special order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from featurestore.algebra import sequence_of
from featurestore.engines.shape import shape
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.offline.events import reading
from featurestore.offline.ids import REPEATS, without_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.timeline import Instant

_BATCH_ROWS = 32_768
_PLACE = ("_partition", "_offset", "_arrival", "_event_time")


@dataclass(frozen=True)
class LogEnds:
    """How far an event log reaches.

    Attributes:
        version: Its Delta version.
        rows: How many events it has.
        until: Partition to the offset after its newest event: everything below is here, or was no event.
        arrival: Partition to its newest arrival.
    """

    version: int
    rows: int
    until: dict[int, int]
    arrival: dict[int, Instant]


class LogScan:
    """One version of a source's event log.

    Args:
        offline: Root of the Delta tables.
        source: Name of the source.

    Raises:
        OfflineStoreUnavailableError: There is no event log.
    """

    def __init__(self, offline: str, source: str) -> None:
        self._path, self.source = f"{offline.rstrip('/')}/events/{source}", source
        with reading(self._path, "event log"):
            self._table = DeltaTable(self._path)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with reading(self._path, "event log"):
            # Spark writes times in a format whose default reading ends in the year 2262
            options = ds.ParquetReadOptions(coerce_int96_timestamp_unit="us")
            dataset = self._table.to_pyarrow_dataset(parquet_read_options=options)
            present = [name for name in columns if name in dataset.schema.names]
            yield from dataset.scanner(
                present, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1
            ).to_batches()

    def ends(self) -> LogEnds:
        """Return how far it reaches; reads two columns of it."""
        until: dict[int, int] = {}
        newest: dict[int, int] = {}
        rows = 0
        for batch in self._batches(("_partition", "_offset", "_arrival")):
            rows += batch.num_rows
            grouped = pa.Table.from_batches([batch]).group_by("_partition")
            for each in grouped.aggregate([("_offset", "max"), ("_arrival", "max")]).to_pylist():
                partition = each["_partition"]
                until[partition] = max(until.get(partition, 0), each["_offset_max"] + 1)
                newest[partition] = max(newest.get(partition, each["_arrival_max"]), each["_arrival_max"])
        return LogEnds(int(self._table.version()), rows, until, newest)

    def shaped(self, views: Sequence[FeatureView]) -> Iterator[tuple[list[Shaped], Instant]]:
        """Yield every batch as each view sees it, with its newest arrival."""
        kinds = views[0].source.contract.columns
        wanted = dict.fromkeys(name for view in views for name in (*view.reads, *(one.name for one in view.exploded)))
        for batch in map(without_repeats, self._batches((*wanted, *_PLACE, REPEATS))):
            if not batch.num_rows:
                continue
            columns = [
                batch.column(name).cast(ARROW_TYPES[kinds[name]])
                if name in batch.schema.names
                else pa.nulls(batch.num_rows, ARROW_TYPES[kinds[name]])
                for name in wanted
            ]
            table = pa.RecordBatch.from_arrays(columns, names=list(wanted)) if wanted else batch
            place = {name: batch.column(name).to_numpy() for name in _PLACE}
            sequence = place["_partition"].astype(np.int64) * sequence_of(1, 0) | place["_offset"]
            yield (
                [shape(view, table, place["_event_time"], sequence, place["_arrival"]) for view in views],
                int(pc.max(batch.column("_arrival")).as_py()),
            )
