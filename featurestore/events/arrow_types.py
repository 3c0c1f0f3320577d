"""The Arrow type of every DataType: the one place that says it."""

from __future__ import annotations

import pyarrow as pa

from featurestore.datatypes import SCALARS, DataType

_SCALAR_TYPES: dict[DataType, pa.DataType] = {
    DataType.INT64: pa.int64(),
    DataType.FLOAT64: pa.float64(),
    DataType.BOOL: pa.bool_(),
    DataType.STRING: pa.string(),
    DataType.TIMESTAMP: pa.timestamp("us", "UTC"),
}
ARROW_TYPES: dict[DataType, pa.DataType] = {
    **_SCALAR_TYPES,
    **{DataType.list_of(kind): pa.list_(_SCALAR_TYPES[kind]) for kind in sorted(SCALARS)},
}
"""Scalars as themselves, lists as Arrow lists of them."""
