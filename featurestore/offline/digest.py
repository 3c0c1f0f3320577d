"""Digests of tables: the same content gives the same digest, however it is chunked, encoded or laid out in memory."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable

CANONICAL_NAN = np.frombuffer(b"\0\0\0\0\0\0\xf8\x7f", "<f8")[0]


def digest_of(columns: Iterable[tuple[str, Any]]) -> bytes:
    """Return the SHA-256 of named Arrow columns, in order.

    Of a column counts its name, its logical type and its values: which are null, and the others bit for bit, all NaN alike.
    """
    digest = hashlib.sha256()
    for name, column in columns:
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        digest.update(f"{len(name)}:{name}".encode())
        _update(digest, _plain(array))
    return digest.digest()


def _plain(array: pa.Array) -> pa.Array:
    """Return an array in the one encoding that is hashed: no dictionaries, no large types, times as microseconds UTC."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.binary())
    if pa.types.is_large_list(kind):
        return array.cast(pa.list_(kind.value_type))
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us", None if kind.tz is None else "UTC"), safe=False)
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    return array


def _update(digest: Any, array: pa.Array) -> None:
    digest.update(f";{_name(array.type)};{len(array)};".encode())
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).data)
    kind = array.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode())
            _update(digest, _plain(child))
    elif pa.types.is_list(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind):
        if array.null_count:
            array = array.drop_null()
        offsets = np.frombuffer(array.buffers()[1] or bytes(4), "<i4")[array.offset : array.offset + len(array) + 1]
        digest.update(np.ascontiguousarray(np.diff(offsets)).data)
        if pa.types.is_list(kind):
            _update(digest, _plain(array.flatten()))
        elif len(array):
            digest.update(memoryview(array.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])])
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        values = array.cast(pa.uint8()) if pa.types.is_boolean(kind) else array
        digest.update(_bytes(values.drop_null()))
    elif pa.types.is_floating(kind):
        values = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        digest.update(np.where(np.isnan(values), CANONICAL_NAN, values).data)
    else:
        # decimals, maps and whatever Spark may carry besides: by their text
        for value in array.to_pylist():
            digest.update(f"{value!r};".encode())


def _name(kind: pa.DataType) -> str:
    return kind.__class__.__name__ if pa.types.is_nested(kind) else str(kind)


def _bytes(array: pa.Array) -> bytes:
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64())
    values = array.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values).tobytes()
