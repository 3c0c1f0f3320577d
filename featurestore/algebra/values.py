"""One value as one slot: int64, bool and timestamp as "i8", float64 as "f8", a string as "b", its UTF-8.

The order of UTF-8 bytes is the order of code points, so texts are compared as they are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.datatypes import DataType
from featurestore.errors import CodecError


def slot_of(kind: DataType | None) -> str:
    """Return the slot of a value."""
    return {DataType.FLOAT64: "f8", DataType.STRING: "b"}.get(kind, "i8") if kind else "i8"


def no_value(kind: DataType | None) -> Any:
    """Return what stands in the slot when there is no value."""
    return {"i8": 0, "f8": 0.0, "b": b""}[slot_of(kind)]


def to_slot(value: Any, kind: DataType | None) -> Any:
    """Return a value that is not null as it is kept."""
    if kind == DataType.STRING:
        return value.encode()
    return float(value) if kind == DataType.FLOAT64 else int(value)


def from_slot(kept: Any, kind: DataType | None) -> Any:
    """Return the value that is kept.

    Raises:
        CodecError: It should be a text and is not UTF-8.
    """
    if kind == DataType.STRING:
        return decode_text(kept)
    return bool(kept) if kind == DataType.BOOL else kept


def decode_text(text: bytes) -> str:
    """Return the text of UTF-8 bytes.

    Raises:
        CodecError: They are not UTF-8.
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise CodecError(f"a text in a partial is not UTF-8 at byte {error.start}.") from error


def to_slots(values: np.ndarray, valid: np.ndarray, kind: DataType | None) -> np.ndarray:
    """Return the column of many values; ``no_value`` where not valid."""
    if kind == DataType.STRING:
        column = np.full(len(valid), b"", dtype=object)
        column[valid] = objects([value.encode() for value in values[valid]])
        return column
    return np.where(valid, values, 0).astype(np.float64 if kind == DataType.FLOAT64 else np.int64)


def from_slots(column: np.ndarray, valid: np.ndarray, kind: DataType | None) -> np.ndarray:
    """Return the values of a column; texts as objects, "" where not valid."""
    if kind != DataType.STRING:
        return column
    return objects([decode_text(kept) if ok else "" for kept, ok in zip(column, valid, strict=True)])


def objects(values: list[Any]) -> np.ndarray:
    """Return a one-dimensional array of Python objects, whatever they are."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
