"""Rows in Arrow: partials and feature values as binary columns, for Delta and for shuffles.

Partials are rows of ``algebra.rows``. Feature values are such rows too: one slot per feature, in order ("i8" for integers,
booleans and instants, "f8" for doubles, "b" for strings as UTF-8 and lists as JSON), then "i8" slots of 63 validity bits
each. A null element of a list is a JSON null; JSON's NaN and Infinity are Python's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from featurestore.algebra.rows import row_format
from featurestore.datatypes import DataType
from featurestore.events.arrow_types import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns

_BITS = 63


def rows_to_arrow(slots: Sequence[str], columns: Columns) -> pa.Array:
    """Return partials as one binary value per row."""
    data, offsets = row_format(tuple(slots)).encode(columns)
    kind = pa.binary() if len(data) < 2**31 else pa.large_binary()
    ends = pa.array(offsets, pa.int32() if kind == pa.binary() else pa.int64())
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, ends.buffers()[1], pa.py_buffer(data)])


def rows_from_arrow(slots: Sequence[str], values: pa.Array | pa.ChunkedArray) -> Columns:
    """Return the partials that ``rows_to_arrow`` wrote."""
    return row_format(tuple(slots)).decode(values.to_pylist())


def pack_values(types: Sequence[DataType], values: Sequence[tuple[np.ndarray, np.ndarray]]) -> pa.Array:
    """Return feature values, per feature an array and its validity, as one binary value per row."""
    columns = [_packed(kind, column, valid) for kind, (column, valid) in zip(types, values, strict=True)]
    for begin in range(0, len(types), _BITS):
        bits = [valid.astype(np.int64) << i for i, (_, valid) in enumerate(values[begin : begin + _BITS])]
        columns.append(np.bitwise_or.reduce(bits))
    return rows_to_arrow(_slots(types), tuple(columns))


def unpack_values(types: Sequence[DataType], packed: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    """Return one Arrow column per feature, of what ``pack_values`` wrote."""
    columns = rows_from_arrow(_slots(types), packed)
    result = []
    for position, (kind, column) in enumerate(zip(types, columns[: len(types)], strict=True)):
        bits = columns[len(types) + position // _BITS]
        result.append(_arrow(kind, column, bits >> (position % _BITS) & 1 == 1))
    return result


def _slots(types: Sequence[DataType]) -> tuple[str, ...]:
    slots = tuple("b" if kind.is_object else "f8" if kind == DataType.FLOAT64 else "i8" for kind in types)
    return slots + ("i8",) * (-(-len(types) // _BITS))


def _packed(kind: DataType, column: np.ndarray, valid: np.ndarray) -> np.ndarray:
    if not kind.is_object:
        return column.astype(np.float64 if kind == DataType.FLOAT64 else np.int64, copy=False)
    texts = np.empty(len(column), dtype=object)
    for row, (value, known) in enumerate(zip(column.tolist(), valid.tolist(), strict=True)):
        text = value if kind == DataType.STRING else json.dumps(value)
        texts[row] = text.encode() if known else b""
    return texts


def _arrow(kind: DataType, column: np.ndarray, valid: np.ndarray) -> pa.Array:
    if not kind.is_object:
        return pa.array(column, mask=~valid).cast(ARROW_TYPES[kind])
    known = zip(column.tolist(), valid.tolist(), strict=True)
    if kind == DataType.STRING:
        return pa.array([value.decode() if ok else None for value, ok in known], ARROW_TYPES[kind])
    return pa.array([json.loads(value) if ok else None for value, ok in known], ARROW_TYPES[kind])
