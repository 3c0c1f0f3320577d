from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key, key_values
from featurestore.errors import DefinitionError, UnknownNameError

S, N, B, T = DataType.STRING, DataType.INT64, DataType.BOOL, DataType.TIMESTAMP
INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {
    S: st.text(max_size=4) | st.text("sn1", max_size=3) | st.sampled_from(["", "n", "s", "1", "s\x01\0\0\0n"]),
    N: INT64,
    B: st.booleans(),
    T: INT64,
}
PART = st.sampled_from([S, N, B, T]).flatmap(lambda kind: st.tuples(st.just(kind), st.none() | VALUES[kind]))
KEY = st.lists(PART, min_size=1, max_size=3)


def encode(key):
    return encode_key([value for _, value in key], [kind for kind, _ in key])


@given(KEY, KEY)
def test_different_keys_never_have_the_same_bytes(a, b):
    same = [(None if v is None else (k, v)) for k, v in a] == [(None if v is None else (k, v)) for k, v in b]
    assert (encode(a) == encode(b)) == same


@given(st.lists(st.none() | VALUES[S], min_size=1, max_size=3), st.lists(st.none() | VALUES[S], min_size=1, max_size=3))
def test_different_text_keys_never_have_the_same_bytes(a, b):
    assert (encode([(S, v) for v in a]) == encode([(S, v) for v in b])) == (a == b)


def test_look_alikes_are_told_apart():
    keys = [
        [(N, 1)],
        [(S, "1")],
        [(T, 1)],
        [(B, True)],
        [(S, "")],
        [(S, None)],
        [(S, "n")],
        [(S, "\0")],
        [(N, 0)],
        [(B, False)],
    ]
    assert len({encode(key) for key in keys}) == len(keys)
    assert encode([(S, "1"), (S, "23")]) != encode([(S, "12"), (S, "3")])
    assert encode([(S, "as"), (S, "b")]) != encode([(S, "a"), (S, "sb")])


@pytest.mark.parametrize("text", ["ü", "日本", "\U0001f600", "e\u0301", "a\0b", "x" * 100_000])
def test_any_unicode_text_is_a_key(text):
    assert text.encode() in encode([(S, text)])


def test_composed_and_decomposed_text_are_two_keys():
    assert encode([(S, "é")]) != encode([(S, "e\u0301")])


def test_a_lone_surrogate_is_refused():
    with pytest.raises(DefinitionError, match="not valid Unicode"):
        encode([(S, "\ud800")])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (S, 1),
        (S, b"1"),
        (N, "1"),
        (N, 1.0),
        (N, True),
        (B, 1),
        (B, "true"),
        (T, 1.5),
        (T, "2013-01-01T00:00:00Z"),
        (N, 2**63),
        (N, -(2**63) - 1),
    ],
)
def test_a_value_of_another_type_is_refused(kind, value):
    with pytest.raises(DefinitionError, match=f"expected {kind}"):
        encode([(kind, value)])


def test_the_bytes_of_a_key_never_change():
    assert encode([(S, "c1"), (N, -2), (B, True), (T, 1), (S, None)]) == (
        b"s\x02\x00\x00\x00c1i\xfe\xff\xff\xff\xff\xff\xff\xffTt\x01\x00\x00\x00\x00\x00\x00\x00n"
    )


def test_key_values_come_in_the_order_of_the_columns():
    assert key_values({"b": 2, "a": "x", "more": 0}, [("a", S), ("b", N)], where="service s") == ["x", 2]


def test_a_missing_key_column_is_named():
    with pytest.raises(UnknownNameError, match=r"service s needs key 'card_id'; given: 'card_ids'.*did you mean"):
        key_values({"card_ids": 1}, [("card_id", S)], where="service s")
    with pytest.raises(UnknownNameError, match="given: none"):
        key_values({}, [("card_id", S)], where="service s")


def test_numpy_scalars_and_aware_datetimes_are_the_keys_they_stand_for():
    import numpy as np

    assert encode_key([np.int64(7)], [DataType.INT64]) == encode_key([7], [DataType.INT64])
    assert encode_key([np.str_("a")], [DataType.STRING]) == encode_key(["a"], [DataType.STRING])
    assert encode_key([np.bool_(True)], [DataType.BOOL]) == encode_key([True], [DataType.BOOL])
    moment = datetime(2013, 1, 1, tzinfo=UTC)
    assert encode_key([moment], [DataType.TIMESTAMP]) == encode_key([1356998400000000], [DataType.TIMESTAMP])
    with pytest.raises(DefinitionError, match="has no time zone"):
        encode_key([datetime(2013, 1, 1)], [DataType.TIMESTAMP])
    with pytest.raises(DefinitionError, match="expected int64"):
        encode_key([np.float64(7)], [DataType.INT64])
