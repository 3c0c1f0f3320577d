"""Any bytes decode to a value or raise CodecError (PastLookupError for a time that they say is past); and never change."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.algebra import Count, Last, Mean, Min, Sawtooth, Sum
from featurestore.datatypes import DataType
from featurestore.definitions.layout import compile_layout
from featurestore.errors import CodecError, PastLookupError
from featurestore.online.codec import HEADER, empty_base, parse_frame, record_size
from featurestore.online.fold import fold
from featurestore.online.lookup import LookupPlan
from featurestore.online.reader import ViewReader
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT
from tests.effort import tries
from tests.short_rows import whole_rows

F, N, B = DataType.FLOAT64, DataType.INT64, DataType.BOOL
LIFETIME = "lifetime"


def layout_of(*features):
    return compile_layout(
        view="v",
        fingerprint="00c0ffee00c0ffee",
        source="s",
        keys={"k": DataType.STRING},
        features=[(f"f{i}_{w.label}", a, w) for i, (a, *ws) in enumerate(features) for w in a.over(*ws).windows],
    )


LAYOUT = layout_of(
    (Count(), Sawtooth("10s", hop="1s"), LIFETIME),
    (Sum("a").bind(F), Sawtooth("10s", hop="1s"), Sawtooth("20s", hop="5s")),
    (Mean("i").bind(N), LIFETIME),
    (Min("b").bind(B), Sawtooth("20s", hop="5s")),
    (Last("a").bind(F), LIFETIME),
)
READER = ViewReader(LAYOUT)
(PART,) = LAYOUT.parts
GOLDEN = (408, "a24e81a96275b0cd2452f7ff2eab3f0702f25b02200c8d13f2da3f7ae4a46daf")
GOLDEN_WHOLE = (456, "f8964a0e3243c0164ab085e7844db3932b9958534ff2ba4c4e1d4e8a5b1bfb57")
COUNTS_BUT_ONE = (1, 1, 1)
S = 1_000_000


def record(time, *slots):
    kinds = "".join("q" if slot == "i8" else "d" for slot in LAYOUT.slots)
    return struct.pack("<qqq" + kinds, time // S * S, time, time, *slots)


def tail():
    return b"".join(
        record(t, 1, 1, 0.1 * n, 0.0, 1, n >> 32, n & 0xFFFFFFFF, 1, n % 2, t, n, 0.5 * n)
        for n, t in [(3, -4 * S), (-5, -S - 1), (7, 0), (11, 9 * S + 5), (2, 21 * S)]
    )


BLOB = fold(PART, [empty_base(PART) + tail()], clock=10 * S)[0]
"""A base with four events folded in, two ladders and a lifetime row, and one record in the tail; its rows are short."""
WHOLE = whole_rows(PART, BLOB)


def read_or_refuse(blob, t):
    """Read in every way there is; return what a lookup gives."""
    result = None
    for exact in (True, False):
        try:
            result = READER.read([blob], t, exact_time=exact)
        except (CodecError, PastLookupError):
            assert exact or result is None
    try:
        folded = fold(PART, [blob])
    except CodecError:
        return result
    parse_frame(folded[0], PART)
    return result


# ------------------------------------------------------------------------------------------------------ golden


def test_the_bytes_of_an_empty_base_never_change():
    expected = bytes.fromhex("4642010030000000eeffc000eeffc00000000000000000800000000000000000") + bytes(16)
    assert empty_base(PART) == expected


def test_the_bytes_of_a_folded_blob_never_change():
    """A change of these bytes is a new format: raise VERSION, and say how old stores are rebuilt."""
    assert (len(BLOB), hashlib.sha256(BLOB).hexdigest()) == GOLDEN
    assert (len(WHOLE), hashlib.sha256(WHOLE).hexdigest()) == GOLDEN_WHOLE
    assert HEADER.unpack_from(BLOB) == (b"FB", 2, 0, len(BLOB) - record_size(PART), 0x00C0FFEE00C0FFEE, 9 * S + 5, 1)
    assert struct.unpack_from("<3I", BLOB, 32) == (2, 3, 1)
    assert struct.unpack_from("<2q", BLOB, 48) == (0, 9)


def test_what_the_golden_blob_says():
    assert READER.read([WHOLE], 10 * S) == READER.read([BLOB], 10 * S)
    values = READER.read([BLOB], 10 * S)
    assert values.values == (2, 4, pytest.approx(1.8), pytest.approx(1.6), 4.0, True, 5.5)
    assert values.as_of == 9 * S + 5
    assert READER.read([BLOB], 30 * S).values[:2] == (1, 5)
    assert READER.read([BLOB], 32 * S).values[:2] == (0, 5)


def test_the_plan_of_a_service_never_changes_its_form():
    plan = LookupPlan("fraud_v1", (LAYOUT,))
    assert LookupPlan.from_json(plan.to_json()) == plan
    assert set(json.loads(plan.to_json())) == {"format", "service", "views"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "service": "s", "views": [1]}',
        b'{"format": 1, "service": "s", "views": [{"view": "v", "measures": [{"kind": "Nope"}]}]}',
    ],
)
def test_a_plan_that_cannot_be_read_is_a_codec_error(data):
    with pytest.raises(CodecError):
        LookupPlan.from_json(data)


# ------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(("blob", "cut"), [(blob, cut) for blob in (BLOB, WHOLE) for cut in range(len(blob))])
def test_a_truncated_blob_is_refused(blob, cut):
    truncated = blob[:cut]
    if cut == len(blob) - record_size(PART):
        assert READER.read([truncated], 10 * S).values[1] == 4  # a whole base without a tail
    else:
        with pytest.raises(CodecError):
            READER.read([truncated], 10 * S)
        with pytest.raises(CodecError):
            fold(PART, [truncated])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"XX", "format"),
        (2, b"\x03", "version 3"),
        (2, b"\x01", "do not add up"),
        (8, b"\0", "definition"),
        (4, b"\xff\xff\xff\xff", "do not add up"),
        (32, b"\xff\xff\xff\xff", "do not add up"),
    ],
)
def test_a_blob_of_another_format_or_view_is_refused(offset, value, message):
    with pytest.raises(CodecError, match=message):
        READER.read([BLOB[:offset] + value + BLOB[offset + len(value) :]], 10 * S)


def test_lengths_that_claim_gigabytes_allocate_nothing():
    many = [HEADER.pack(b"FB", form, 0, 2**32 - 1, 0x00C0FFEE00C0FFEE, 0, 0) + b"\xff" * 160 for form in (1, 2)]
    tracemalloc.start()
    try:
        for huge in many:
            with pytest.raises(CodecError):
                READER.read([huge], 1)
            with pytest.raises(CodecError):
                fold(PART, [huge])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# -------------------------------------------------------------------------------------------------------- fuzz

TIMES = st.sampled_from([10 * S, 30 * S, 0, -S, MAX_INSTANT, MIN_INSTANT]) | st.integers(MIN_INSTANT, MAX_INSTANT)


@settings(max_examples=tries(150), deadline=None)
@given(st.binary(max_size=400), TIMES)
def test_random_bytes_are_refused(blob, t):
    read_or_refuse(blob, t)


@settings(max_examples=tries(150), deadline=None)
@given(st.binary(max_size=3 * record_size(PART)), st.sampled_from([0, 1, 2, 3]), TIMES)
def test_random_tails_are_values_or_refused(data, records, t):
    data = data.ljust(record_size(PART) * records, b"\x7f")[: record_size(PART) * records]
    read_or_refuse(empty_base(PART) + data, t)


@settings(max_examples=tries(250), deadline=None)
@given(st.sampled_from([BLOB, WHOLE]), st.lists(st.integers(0, 8 * len(BLOB) - 1), min_size=1, max_size=4), TIMES)
@example(BLOB, [8 * 16 + 63], 10 * S)
@example(BLOB, [16, 17], 10 * S)
@example(WHOLE, [16, 17], 10 * S)
def test_flipped_bits_are_a_value_or_refused(blob, bits, t):
    flipped = bytearray(blob)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
    read_or_refuse(bytes(flipped), t)


@settings(max_examples=tries(100), deadline=None)
@given(st.integers(0, len(BLOB)), st.integers(0, len(BLOB)), st.binary(max_size=24), TIMES)
def test_spliced_blobs_are_a_value_or_refused(a, b, middle, t):
    read_or_refuse(BLOB[:a] + middle + BLOB[b:], t)


@settings(max_examples=tries(100), deadline=None)
@given(st.data(), TIMES)
def test_well_framed_nonsense_is_a_value_or_refused(data, t):
    """Every length adds up and every number is arbitrary: unsorted hops, NaN, counts below zero."""
    form = data.draw(st.sampled_from([1, 2]))
    rows = [data.draw(st.integers(0, 4)) for _ in PART.ladders]
    # Of the counts of a row, all but the first are not there where rows are short.
    widths = [
        1 + sum(len(PART.measures[m].slots) for m in ladder.measures) - (form == 2) * gone
        for ladder, gone in zip(PART.ladders, COUNTS_BUT_ONE, strict=True)
    ]
    words = (
        sum(n * width for n, width in zip(rows, widths, strict=True))
        + data.draw(st.integers(0, 2)) * record_size(PART) // 8
    )
    extremes = [0, 1, -1, MAX_INSTANT, MIN_INSTANT, 0x7FF8000000000000, 0x7FF0000000000000, 10 * S]
    body = np.array(
        data.draw(
            st.lists(st.sampled_from(extremes) | st.integers(MIN_INSTANT, MAX_INSTANT), min_size=words, max_size=words)
        ),
        dtype="<i8",
    ).tobytes()
    length = 48 + 8 * sum(n * width for n, width in zip(rows, widths, strict=True))
    newest = data.draw(st.sampled_from(extremes))
    header = HEADER.pack(b"FB", form, 0, length, 0x00C0FFEE00C0FFEE, newest, 0) + struct.pack("<4I", *rows, 0)
    read_or_refuse(header + body, t)
