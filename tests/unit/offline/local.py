"""The workers of a training set run one after the other in this process, as Spark runs them in its own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.offline.leaks import FindLeaks
from featurestore.offline.point_in_time import (
    Assemble,
    Digest,
    Evaluate,
    Grouping,
    ScatterEvents,
    ScatterPoints,
    ScatterSpine,
)
from featurestore.offline.snapshot import EvaluateKeys
from featurestore.offline.spine import ROW


def cut(table, size):
    """Return the batches of a table, as Spark hands them over."""
    return table.combine_chunks().to_batches(max_chunksize=size)


def shuffled(batches):
    """Return the pieces, each target's in a batch of its own, in no special order within."""
    table = pa.Table.from_batches(list(batches))
    target = table.column("target").to_numpy()
    return {each: table.take(pa.array(np.flatnonzero(target == each)[::-1])).to_batches() for each in np.unique(target)}


def scattered(grouping, logs, *, with_arrival, batch):
    """Return the pieces of the event logs."""
    return [
        piece for name, log in logs.items() for piece in ScatterEvents(grouping, name, with_arrival)(cut(log, batch))
    ]


def points_of(grouping, spine, at, visible, *, with_arrival, batch):
    """Return the spine with its row numbers, and the pieces of its points."""
    numbered = spine.append_column(ROW, pa.array(np.arange(spine.num_rows)))
    points = numbered.append_column("__at", pa.array(at)).append_column("__visible", pa.array(visible))
    return numbered, list(ScatterPoints(grouping, with_arrival)(cut(points, batch)))


def run(views, logs, spine, at, *, visible=None, request=(), buckets=3, batch=100):
    """Return a spine with the features of views, and the digests of its ranges.

    Args:
        views: The views.
        logs: Source name to Arrow table of the event log.
        spine: Arrow table.
        at: Time of every row, microseconds.
        visible: Per row, when it was seen; None hides nothing.
        request: Compiled request features.
    """
    grouping, served = Grouping(tuple(views), buckets), visible is not None
    numbered, points = points_of(grouping, spine, at, visible if served else at, with_arrival=served, batch=batch)
    made = [*points, *scattered(grouping, logs, with_arrival=served, batch=batch)]
    values = [value for batches in shuffled(made).values() for value in Evaluate(grouping, served)(batches)]
    ranges = shuffled([*values, *ScatterSpine()(cut(numbered, batch))])
    rows, digests = [], []
    for _, batches in sorted(ranges.items()):
        rows += Assemble(tuple(views), tuple(request))(batches)
        digests += Digest(tuple(views), tuple(request))(batches)
    return pa.Table.from_batches(rows), pa.Table.from_batches(digests)


def leaks(views, logs, spine, at, visible, *, buckets=3, batch=100):
    """Return what the leak report's workers find, bucket by bucket."""
    grouping = Grouping(tuple(views), buckets)
    _, points = points_of(grouping, spine, at, visible, with_arrival=True, batch=batch)
    made = [*points, *scattered(grouping, logs, with_arrival=True, batch=batch)]
    found = [each for batches in shuffled(made).values() for each in FindLeaks(grouping)(batches)]
    return [row for batch in found for row in batch.to_pylist()]


def keys_at(views, logs, instants, *, buckets=3, batch=100):
    """Return the rows of a snapshot."""
    grouping = Grouping(tuple(views), buckets)
    made = scattered(grouping, logs, with_arrival=False, batch=batch)
    found = [each for batches in shuffled(made).values() for each in EvaluateKeys(grouping, tuple(instants))(batches)]
    return [row for batch in found for row in batch.to_pylist()]
