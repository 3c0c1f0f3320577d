"""Shuffling tables in pieces: rows go through Spark's shuffle as a few Arrow blobs, not one by one.

A worker cuts each batch by the number of the partition a row belongs to, and yields one Spark row per piece: the number, what
kind of piece it is, and the piece as an Arrow stream. Spark's own cost per row and column, paid four times on the way
through a shuffle, is then paid per piece of some thousand rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PIECES = "target int, part int, blob binary"
"""Spark schema of pieces: the partition they go to, the kind, an Arrow stream."""


def pieces(table: pa.Table | pa.RecordBatch, target: np.ndarray, part: int) -> Iterator[pa.RecordBatch]:
    """Yield a table cut by target, rows in order within each piece.

    Args:
        table: The rows.
        target: Number of the partition of every row, from 0.
        part: The kind of the pieces.
    """
    if not len(target):
        return
    small = target.astype(np.uint16 if int(target.max()) < 1 << 16 else np.int64)
    order = np.argsort(small, kind="stable")
    ordered = small[order]
    table = table.take(pa.array(order))
    begins = np.append(np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])), len(ordered))
    blobs = [_blob(table.slice(begin, end - begin)) for begin, end in pairwise(begins)]
    yield pa.RecordBatch.from_arrays(
        [
            pa.array(ordered[begins[:-1]].astype(np.int32)),
            pa.array(np.full(len(blobs), part, np.int32)),
            pa.array(blobs, pa.binary()),
        ],
        ["target", "part", "blob"],
    )


def _blob(piece: pa.Table | pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, piece.schema) as stream:
        stream.write(piece)
    return bytes(sink.getvalue().to_pybytes())


def gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, dict[int, pa.Table]]]:
    """Yield, target by target, the pieces of a partition put together: kind to table. Buffers are not copied."""
    found: dict[int, dict[int, list[pa.Table]]] = {}
    for batch in batches:
        targets, parts = batch.column("target").to_pylist(), batch.column("part").to_pylist()
        for row, (target, part) in enumerate(zip(targets, parts, strict=True)):
            blob = batch.column("blob")[row].as_buffer()
            found.setdefault(target, {}).setdefault(part, []).append(pa.ipc.open_stream(blob).read_all())
    for target in sorted(found):
        tables = found.pop(target)
        yield target, {part: pa.concat_tables(each) for part, each in tables.items()}


def hashes(columns: Sequence[Any]) -> np.ndarray:
    """Return a 64-bit hash of every row of key columns; equal keys of equal types hash alike, null is a key.

    Rounds of SplitMix64 (Steele, Lea and Flood, 2014) over the 8-byte words of every value.
    """
    found: np.ndarray = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            found = _mixed(found ^ _hashes(array))
    return found


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _hashes(array: pa.Array) -> np.ndarray:
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        return np.where(valid, _text_hashes(array), np.uint64(0))
    numbers = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    return np.where(valid, _mixed(numbers + np.uint64(1)), np.uint64(0))


def _text_hashes(array: pa.Array) -> np.ndarray:
    """Return hashes of the bytes of each text, eight at a time; of nulls, anything."""
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    begin, length = offsets[:-1], np.diff(offsets)
    data = bytes(array.buffers()[2] or b"")[: offsets[-1]] + bytes(8)
    # every byte position read as the little-endian word that begins there
    words = np.ndarray((len(data) - 7,), "<u8", buffer=data, strides=(1,))
    found = _mixed(length.astype(np.uint64) + np.uint64(1))
    rows, step = np.flatnonzero(length > 0), 0
    while len(rows):
        left = np.minimum(length[rows] - step, 8).astype(np.uint64)
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> ((np.uint64(8) - left) * np.uint64(8))
        found[rows] = _mixed(found[rows] ^ (words[begin[rows] + step] & mask))
        step += 8
        rows = rows[length[rows] > step]
    return found


def codes_of(columns: Sequence[Any]) -> tuple[np.ndarray, int]:
    """Return a code for every row of key columns, ascending by key, and the number of codes; null is a key of its own.

    Codes depend on the set of keys alone, not on the order of rows: what is computed in their order is the same every time.
    """
    code, count = _column_codes(columns[0])
    for column in columns[1:]:
        other, others = _column_codes(column)
        # of the pairs that exist, so that codes stay small
        pairs, code = np.unique(code * others + other, return_inverse=True)
        count = len(pairs)
    return code.astype(np.int64), count


def _column_codes(column: Any) -> tuple[np.ndarray, int]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not (pa.types.is_string(array.type) or pa.types.is_binary(array.type)):
        array = array.cast(pa.int64())
    encoded = array.dictionary_encode(null_encoding="encode")
    dictionary = encoded.dictionary
    order = pc.sort_indices(dictionary).to_numpy()
    rank = np.empty(len(dictionary), np.int64)
    rank[order] = np.arange(len(dictionary))
    return rank[encoded.indices.to_numpy()], len(dictionary)
