from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from featurestore.datatypes import DataType
from featurestore.engines.packed import pack_values, rows_from_arrow, rows_to_arrow, unpack_values
from featurestore.events.arrow_types import ARROW_TYPES

VALUES = {
    DataType.INT64: [1, -(2**63), None, 2**63 - 1],
    DataType.FLOAT64: [1.5, math.inf, None, -0.0],
    DataType.BOOL: [True, False, None, True],
    DataType.TIMESTAMP: [0, -1, None, 1_357_016_400_000_000],
    DataType.STRING: ["", "ü\0\n", None, "x" * 1_000],
    DataType.LIST_INT64: [[], [1, None, 2**63 - 1], None, [-1]],
    DataType.LIST_FLOAT64: [[0.1, -math.inf], [], None, [5e-324, None]],
    DataType.LIST_BOOL: [[True], [], None, [False, None]],
    DataType.LIST_STRING: [["", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")], [None], None, []],
    DataType.LIST_TIMESTAMP: [[0, -1], [], None, [1_357_016_400_000_000]],
}


def column(kind, values):
    valid = np.array([value is not None for value in values])
    if kind.is_object:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array, valid
    dtype = np.float64 if kind == DataType.FLOAT64 else np.int64
    return np.array([0 if value is None else value for value in values], dtype=dtype), valid


@pytest.mark.parametrize("kinds", [list(VALUES), [DataType.BOOL], [DataType.INT64] * 130 + [DataType.LIST_STRING]])
def test_values_of_every_type_come_back_as_arrow(kinds):
    packed = pack_values(kinds, [column(kind, VALUES[kind]) for kind in kinds])
    assert len(packed) == 4
    for found in (unpack_values(kinds, packed), unpack_values(kinds, pa.chunked_array([packed[:1], packed[1:]]))):
        for kind, array in zip(kinds, found, strict=True):
            assert array.type == ARROW_TYPES[kind]
            assert array == pa.array(VALUES[kind], ARROW_TYPES[kind])


def test_nan_stays_nan_alone_and_in_lists():
    kinds = [DataType.FLOAT64, DataType.LIST_FLOAT64]
    first, second = unpack_values(
        kinds, pack_values(kinds, [column(kinds[0], [math.nan]), column(kinds[1], [[math.nan]])])
    )
    assert math.isnan(first[0].as_py())
    assert math.isnan(second[0].as_py()[0])


@pytest.mark.parametrize("slots", [("i8", "f8"), ("i8", "b")])
def test_partials_come_back_from_arrow(slots):
    second = np.array([0.5, -1.0, 2.0]) if slots[1] == "f8" else np.array([b"", b"abc", b"x" * 9], dtype=object)
    columns = (np.array([1, 2, 3]), second)
    rows = rows_to_arrow(slots, columns)
    rows.validate(full=True)
    assert rows.type == pa.binary()
    back = rows_from_arrow(slots, rows)
    assert [one.tolist() for one in back] == [one.tolist() for one in columns]
    assert len(rows_to_arrow(slots, tuple(one[:0] for one in columns))) == 0


def test_the_types_of_arrow_and_spark_cover_every_data_type():
    assert set(ARROW_TYPES) == set(DataType) == set(VALUES)
    assert DataType.LIST_FLOAT64.spark_name == "array<double>"
    assert [str(kind.element) for kind in DataType if kind.element] == [
        "int64",
        "float64",
        "bool",
        "string",
        "timestamp",
    ]
