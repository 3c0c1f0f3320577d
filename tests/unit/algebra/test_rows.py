from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.algebra.columns import partial_at, to_columns
from featurestore.algebra.rows import row_format
from featurestore.errors import CodecError
from tests.effort import tries

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUE = {"i8": INT64, "f8": st.floats(allow_nan=False), "b": st.binary(max_size=20)}
SLOTS = st.lists(st.sampled_from(["i8", "f8", "b"]), min_size=1, max_size=5).map(tuple)
ROWS = SLOTS.flatmap(
    lambda slots: st.tuples(st.just(slots), st.lists(st.tuples(*(VALUE[s] for s in slots)), max_size=6))
)


@given(ROWS)
def test_rows_come_back_as_they_were(given_rows):
    slots, rows = given_rows
    form = row_format(slots)
    data, offsets = form.encode(to_columns(slots, rows))
    assert len(data) % 8 == 0
    assert offsets.tolist()[0] == 0
    assert offsets.tolist()[-1] == len(data)
    assert form.scan(data, 0, len(data)) == rows
    columns = form.decode([data[: offsets[len(rows) // 2]], data[offsets[len(rows) // 2] :]])
    assert [partial_at(columns, i) for i in range(len(rows))] == rows
    assert [type(x) for i in range(len(rows)) for x in partial_at(columns, i)] == [type(x) for row in rows for x in row]


def test_the_bytes_of_a_row_are_words_then_padded_payloads():
    data, _ = row_format(("b", "i8", "f8", "b")).encode(
        to_columns(("b", "i8", "f8", "b"), [(b"abcdefgh", -2, 1.0, b"z")])
    )
    assert data == struct.pack("<qqdq", 8, -2, 1.0, 1) + b"abcdefgh" + b"z\0\0\0\0\0\0\0"
    data, offsets = row_format(("i8", "f8")).encode((np.array([1, 2]), np.array([0.5, -0.0])))
    assert data == struct.pack("<qdqd", 1, 0.5, 2, -0.0)
    assert offsets.tolist() == [0, 16, 32]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<qq", 1, 1),
        struct.pack("<qq", 1, -1),
        struct.pack("<qq", 1, 2**62),
        struct.pack("<q", 1),
        struct.pack("<qq", 1, 3) + b"abc",
        struct.pack("<qq", 1, 0) + b"x",
    ],
)
def test_lengths_that_do_not_fit_are_refused_without_allocating(data):
    form = row_format(("i8", "b"))
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            form.scan(data, 0, len(data))
        with pytest.raises(CodecError):
            form.decode([data])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("slots", [("i8",), ("i8", "f8"), ("b",), ("i8", "b", "b")])
def test_any_bytes_are_rows_or_refused(slots):
    form = row_format(slots)

    @settings(max_examples=tries(200), deadline=None)
    @given(
        st.binary(max_size=80) | st.lists(st.integers(-3, 20), max_size=9).map(lambda n: struct.pack(f"<{len(n)}q", *n))
    )
    def check(data):
        try:
            rows = form.scan(data, 0, len(data))
        except CodecError:
            with pytest.raises(CodecError):
                form.decode([data])
            return
        columns = form.decode([data])
        again, _ = form.encode(columns)
        assert len(again) == len(data)
        assert len(columns[0]) == len(rows)

    check()


def test_no_part_and_no_row_are_no_rows():
    assert [len(column) for column in row_format(("i8", "b")).decode([])] == [0, 0]
    assert [column.dtype for column in row_format(("i8", "f8")).decode([b""])] == [np.int64, np.float64]
