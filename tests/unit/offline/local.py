"""The workers of a training set run one after the other in this process, as Spark runs them in its own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.offline.point_in_time import (
    Assemble,
    Digest,
    Evaluate,
    Grouping,
    ScatterEvents,
    ScatterPoints,
    ScatterSpine,
)
from featurestore.offline.spine import ROW


def cut(table, size):
    """Return the batches of a table, as Spark hands them over."""
    return table.combine_chunks().to_batches(max_chunksize=size)


def shuffled(batches):
    """Return the pieces, each target's in a batch of its own, in no special order within."""
    table = pa.Table.from_batches(list(batches))
    target = table.column("target").to_numpy()
    return {each: table.take(pa.array(np.flatnonzero(target == each)[::-1])).to_batches() for each in np.unique(target)}


def run(views, logs, spine, at, *, visible=None, buckets=3, batch=100):
    """Return a spine with the features of views, and the digests of its ranges.

    Args:
        views: The views.
        logs: Source name to Arrow table of the event log.
        spine: Arrow table.
        at: Time of every row, microseconds.
        visible: Per row, when it was seen; None hides nothing.
    """
    grouping = Grouping(tuple(views), buckets)
    numbered = spine.append_column(ROW, pa.array(np.arange(spine.num_rows)))
    points = numbered.append_column("__at", pa.array(at)).append_column("__visible", pa.array(at if visible is None else visible))
    made = list(ScatterPoints(grouping, visible is not None)(cut(points, batch)))
    for name, log in logs.items():
        made += ScatterEvents(grouping, name, visible is not None)(cut(log, batch))
    values = []
    for batches in shuffled(made).values():
        values += Evaluate(grouping, visible is not None)(batches)
    ranges = shuffled([*values, *ScatterSpine()(cut(numbered, batch))])
    rows, digests = [], []
    for _, batches in sorted(ranges.items()):
        rows += Assemble(tuple(views))(batches)
        digests += Digest(tuple(views))(batches)
    return pa.Table.from_batches(rows), pa.Table.from_batches(digests)
