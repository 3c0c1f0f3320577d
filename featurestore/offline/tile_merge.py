"""Merging the rows of tiles: one row per (view, part, key, tile) of those that the archive query's batches have left."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, write_deltalake

from featurestore.algebra.columns import reduce_groups, starts_of_runs, take
from featurestore.engines.packed import rows_from_arrow, rows_to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featurestore.definitions.parts import Part
    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Instant

PASS_ROWS = 2_000_000
_BATCH_ROWS = 65_536
_IDENTITY = ("fingerprint", "part", "key", "tile")


def merge_tiles(table: DeltaTable, view: FeatureView, *, before: Instant, pass_rows: int = PASS_ROWS) -> int:
    """Merge the tiles of a view that hold only events before an instant, in one commit; return how many rows went into others.

    Rows of other definitions of the view stay as they are. Where nothing is to be merged, nothing is committed. Memory grows
    with a share of the keys, as many as make about ``pass_rows`` rows.

    Raises:
        CommitFailedError: Another writer added or changed such tiles since the table was opened; nothing was changed.
    """
    # Tiles are at most this long: a tile that begins earlier has ended, and whatever it holds was before the instant.
    longest = max((part.tile for part in view.layout.parts if not part.is_event_grained), default=0)
    cut = before - longest
    chosen = (ds.field("view") == view.name) & (ds.field("tile") < cut)
    dataset = table.to_pyarrow_dataset()
    rows = dataset.count_rows(filter=chosen)
    passes = max(1, -(-rows // pass_rows))
    doubled = sum(_doubled(dataset, chosen, view, share, passes) for share in range(passes))
    if not doubled:
        return 0
    schema = pa.schema([(each.name, each.type) for each in dataset.schema])
    merged = pa.RecordBatchReader.from_batches(schema, _merged(dataset, chosen, view, passes, schema))
    write_deltalake(
        table,
        merged,
        mode="overwrite",
        predicate=f"view = '{view.name}' AND tile < {cut}",
        commit_properties=CommitProperties(max_commit_retries=3, custom_metadata={"featurestore": "merge tiles"}),
    )
    return doubled


def _share(batch: pa.RecordBatch, share: int, passes: int) -> pa.RecordBatch:
    """Return the rows of a share of the keys."""
    if passes == 1:
        return batch
    keys = batch.column("key").dictionary_encode()
    mine = np.array([crc32(key) % passes == share for key in keys.dictionary.to_pylist()], dtype=bool)
    return batch.filter(pa.array(mine[keys.indices.to_numpy()]))


def _doubled(dataset: ds.Dataset, chosen: ds.Expression, view: FeatureView, share: int, passes: int) -> int:
    """Return how many rows of the view's definition could go into others."""
    chosen &= ds.field("fingerprint") == view.layout.fingerprint
    scanner = dataset.scanner(list(_IDENTITY), filter=chosen, batch_size=_BATCH_ROWS, fragment_readahead=1)
    batches = [_share(batch, share, passes) for batch in scanner.to_batches()]
    rows = pa.Table.from_batches(batches, schema=scanner.projected_schema)
    return int(rows.num_rows - rows.group_by(list(_IDENTITY)).aggregate([]).num_rows)


def _merged(
    dataset: ds.Dataset, chosen: ds.Expression, view: FeatureView, passes: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    parts = {part.number: part for part in view.layout.parts}
    for share in range(passes):
        scanner = dataset.scanner(schema.names, filter=chosen, batch_size=_BATCH_ROWS, fragment_readahead=1)
        batches = [_share(batch, share, passes) for batch in scanner.to_batches()]
        rows = pa.Table.from_batches(batches, schema=scanner.projected_schema)
        ours = pc.equal(rows.column("fingerprint"), view.layout.fingerprint)
        found = [rows.filter(pc.invert(ours))]
        mine = rows.filter(ours)
        for number in mine.column("part").unique().to_pylist():
            each = mine.filter(pc.equal(mine.column("part"), number))
            found.append(_merge_part(parts[number], each) if number in parts else each)
        yield from pa.concat_tables(found).cast(schema).to_batches(max_chunksize=_BATCH_ROWS)


def _merge_part(part: Part, rows: pa.Table) -> pa.Table:
    """Return the rows of one part, one for every key and tile."""
    rows = rows.combine_chunks()
    encoded = rows.column("key").combine_chunks().dictionary_encode()
    key, tile = encoded.indices.to_numpy(), rows.column("tile").to_numpy()
    oldest, newest = rows.column("oldest").to_numpy(), rows.column("newest").to_numpy()
    order = np.lexsort((oldest, tile, key))
    runs = starts_of_runs(key[order], tile[order])
    columns = rows_from_arrow(part.slots, rows.column("row"))
    merged: list[np.ndarray] = []
    for measure, aggregate in enumerate(part.measures):
        begin, end = part.slot_offsets[measure : measure + 2]
        merged += reduce_groups(aggregate, take(columns[begin:end], order), runs)
    first = order[runs]
    made = rows.take(pa.array(first))
    for name, column in (
        ("oldest", pa.array(np.minimum.reduceat(oldest[order], runs))),
        ("newest", pa.array(np.maximum.reduceat(newest[order], runs))),
        ("row", rows_to_arrow(part.slots, tuple(merged))),
    ):
        made = made.set_column(made.schema.get_field_index(name), name, column)
    return made
