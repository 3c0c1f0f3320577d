"""The ids of the newest events of an event log: by which the archive query tells repetitions, and a rebuild the store's ids.

An event that is a repetition (``events.repeats``) is in the log with ``_repeats`` true; readers of events leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from featurestore.events.repeats import digests_of, repetitions, times_of
from featurestore.offline.events import reading
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.definitions.source import EventSource
    from featurestore.timeline import Instant

REPEATS = "_repeats"
"""The column of the event log that is true for repetitions, and null for all others."""
_PLACE = ("_partition", "_offset", "_arrival")


@dataclass
class PartitionIds:
    """What is known of the ids of one partition.

    Attributes:
        newest: Digest to the time of the id's last event; those out of the horizon may still be there.
        through: The newest arrival of an event with an id.
    """

    newest: dict[bytes, Instant] = field(default_factory=dict)
    through: Instant = MIN_INSTANT


class LogIds:
    """The ids of the newest events of a source's log; it judges the events that come next.

    Args:
        source: The source; it names an ``event_id``.
    """

    def __init__(self, source: EventSource) -> None:
        self.source = source
        self.partitions: dict[int, PartitionIds] = {}
        self._next: dict[int, PartitionIds] = {}

    def load(self, offline: str, before: Mapping[int, int] | None = None) -> None:
        """Read the ids of the log's newest events.

        Args:
            offline: Root of the Delta tables.
            before: Partition to the offset from which on events are left out: they are about to be written again.

        Raises:
            OfflineError: The log cannot be read.
        """
        path = f"{offline.rstrip('/')}/events/{self.source.name}"
        with reading(path, "event log"):
            if not DeltaTable.is_deltatable(path):
                return
            table = _newest(DeltaTable(path), self.source, before or {})
        if table is not None:
            self.judge(table)
            self.keep()

    def judge(self, rows: pa.Table) -> dict[int, np.ndarray]:
        """Return, per partition, the offsets of events that are repetitions; ``keep`` makes the events known.

        Args:
            rows: Columns _partition, _offset, _arrival and id, of events that follow on those known, in any order.
        """
        found, self._next = {}, {}
        rows = rows.filter(pc.is_valid(rows.column("id"))).sort_by(
            [("_partition", "ascending"), ("_offset", "ascending")]
        )
        partition, digests = rows.column("_partition").to_numpy(), digests_of(rows.column("id"))
        offset, arrival = (rows.column(name).to_numpy() for name in _PLACE[1:])
        for number in np.unique(partition).tolist():
            mine = partition == number
            known = self.partitions.get(number, PartitionIds())
            times = times_of(arrival[mine], known.through)
            repeats, newest = repetitions(digests[mine], times, self.source.id_horizon_us, known.newest)
            found[number] = offset[mine][repeats]
            self._next[number] = PartitionIds(newest, int(times[-1]))
        return found

    def keep(self) -> None:
        """Make the events of the last ``judge`` known, and forget ids that are out of the horizon."""
        for number, added in self._next.items():
            known = self.partitions.setdefault(number, PartitionIds())
            known.newest.update(added.newest)
            known.through = added.through
            oldest = known.through - self.source.id_horizon_us
            if len(known.newest) > 2 * len(added.newest):
                known.newest = {digest: time for digest, time in known.newest.items() if time >= oldest}
        self._next = {}


def _newest(table: DeltaTable, source: EventSource, before: Mapping[int, int]) -> pa.Table | None:
    """Return partition, offset, arrival and id of the events of a log that later ones can repeat; None where none has an id.

    In the order of offsets, they are those from the first on that arrived within the horizon of a partition's newest. Streams
    through the log three times, the last two through its newest files.
    """
    name = str(source.event_id)
    dataset = table.to_pyarrow_dataset()
    if name not in dataset.schema.names:
        return None
    known = ds.field(name).is_valid()
    for partition, offset in before.items():
        known &= (ds.field("_partition") != partition) | (ds.field("_offset") < offset)

    def least(of: str, how: str, kept: ds.Expression) -> dict[int, int]:
        """Return the smallest or largest of a column, per partition."""
        found: dict[int, int] = {}
        for batch in dataset.scanner(["_partition", of], filter=kept, batch_readahead=2).to_batches():
            grouped = pa.Table.from_batches([batch]).group_by("_partition").aggregate([(of, how)])
            for each in grouped.to_pylist():
                number, value = each["_partition"], each[f"{of}_{how}"]
                found[number] = (max if how == "max" else min)(value, found.get(number, value))
        return found

    through = least("_arrival", "max", known)
    if not through:
        return None
    recent = [
        (ds.field("_partition") == number) & (ds.field("_arrival") >= time - source.id_horizon_us)
        for number, time in through.items()
    ]
    first = least("_offset", "min", known & reduce(or_, recent))
    after = [(ds.field("_partition") == number) & (ds.field("_offset") >= offset) for number, offset in first.items()]
    rows = dataset.scanner([*_PLACE, name], filter=known & reduce(or_, after), batch_readahead=2).to_table()
    return rows.rename_columns([*_PLACE, "id"])


def without_repeats(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the events of an event log's batch that are no repetitions."""
    if REPEATS not in batch.schema.names or not batch.num_rows:
        return batch
    repeats = batch.column(REPEATS)
    return (
        batch
        if repeats.null_count == batch.num_rows
        else batch.filter(pc.invert(pc.fill_null(repeats, fill_value=False)))
    )
