"""Blobs of every kind of part: any bytes decode to a value or raise CodecError, quickly and without allocating much."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.algebra import Count, Exact, Hopping, Lifetime, Sawtooth, Sum, Tumbling
from featurestore.algebra.rows import row_format
from featurestore.algebra.tiles import RECORD_SLOTS
from featurestore.datatypes import DataType
from featurestore.definitions.layout import compile_layout
from featurestore.errors import CodecError, PastLookupError
from featurestore.online.codec import HEADER, empty_base, parse_frame, records_in_tail
from featurestore.online.fold import fold
from featurestore.online.reader import ViewReader
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT
from tests.effort import tries
from tests.laws.wide import Texts
from tests.short_rows import whole_rows

S = 1_000_000
WINDOWS = (
    Sawtooth("10s", hop="1s"), Exact("10s"), Hopping("10s", hop="5s"), Lifetime(delay="2s"), Sawtooth("10s", hop="5s", delay="3s"),
    Tumbling("5s", delay="1s"), Lifetime(),
)  # fmt: skip
MEASURES = (Count(), Sum("a").bind(DataType.FLOAT64), Texts("s").bind(DataType.STRING))
LAYOUT = compile_layout(
    view="v",
    fingerprint="00c0ffee00c0ffee",
    source="s",
    keys={"k": DataType.STRING},
    features=[(f"f{i}_{w.label}", a, w) for i, a in enumerate(MEASURES) for w in WINDOWS],
)
READER = ViewReader(LAYOUT)
TIMES = (-4 * S, -S - 1, 0, 7 * S, 9 * S + 5, 21 * S)


def partials(part, n):
    given = {"count": (1,), "sum": (1, 0.5 * n, 0.0), "texts": (1, Texts.pack([f"text {n % 4}"]))}
    return [x for measure in part.measures for x in given[measure.partial_kind]]


def blob_of(part, times=TIMES, clock=10 * S):
    form = row_format(RECORD_SLOTS + part.slots)
    tail = b"".join(form.pack((t // part.tile * part.tile, t, t, *partials(part, n))) for n, t in enumerate(times))
    return fold(part, [empty_base(part) + tail], clock=clock)[0]


BLOBS = [blob_of(part) for part in LAYOUT.parts]
PARTS = [pytest.param(part, id=f"part{part.number}") for part in LAYOUT.parts]
GOLDEN = {
    0: (328, "faad95dbeeaa"),
    1: (424, "14006a1d222a"),
    2: (504, "febcffa4e2a7"),
    3: (632, "e67f2175c422"),
}
GOLDEN_WHOLE = {0: (384, "29974c157aa8"), 1: (504, "fda4610fe0fc")}


def test_the_view_has_every_kind_of_part():
    assert [(part.is_fixed, part.is_event_grained) for part in LAYOUT.parts] == [
        (True, False),
        (True, True),
        (False, False),
        (False, True),
    ]
    assert [
        records_in_tail(part, blob, parse_frame(blob, part).base_length)
        for part, blob in zip(LAYOUT.parts, BLOBS, strict=True)
    ] == [1] * 4


def test_what_the_blobs_say():
    values = dict(zip([f.name for f in LAYOUT.features], READER.read(BLOBS, 10 * S).values, strict=True))
    assert values["f0_10s"] == values["f0_10s_exact"] == 3
    assert (values["f0_10s_hop5s"], values["f0_5s_tumbling_delay1s"], values["f0_lifetime"]) == (3, 1, 5)
    assert (values["f0_lifetime_delay2s"], values["f0_10s_delay3s"]) == (4, 3)
    assert values["f2_lifetime"] == ["text 0", "text 1", "text 2", "text 3"]
    assert values["f2_lifetime_delay2s"] == ["text 0", "text 1", "text 2", "text 3"]
    assert values["f2_10s_delay3s"] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("part", PARTS)
def test_the_bytes_of_a_part_never_change(part):
    """A change of these bytes is a new format: raise VERSION, and say how old stores are rebuilt."""
    blob = BLOBS[part.number]
    assert (blob[2], blob[3]) == (2 if part.is_fixed else 1, part.number)
    assert (len(blob), hashlib.sha256(blob).hexdigest()[:12]) == GOLDEN[part.number]
    whole = whole_rows(part, blob)
    assert (len(whole), hashlib.sha256(whole).hexdigest()[:12]) == GOLDEN_WHOLE.get(part.number, GOLDEN[part.number])
    assert READER.read([*BLOBS[: part.number], whole, *BLOBS[part.number + 1 :]], 10 * S) == READER.read(BLOBS, 10 * S)


def read_or_refuse(part, blob, t):
    blobs = [*BLOBS[: part.number], blob, *BLOBS[part.number + 1 :]]
    for exact in (True, False):
        with contextlib.suppress(CodecError, PastLookupError):
            READER.read(blobs, t, exact_time=exact)
    try:
        folded = fold(part, [blob])
    except CodecError:
        return
    parse_frame(folded[0], part)


INSTANTS = st.sampled_from([10 * S, 30 * S, 0, -S, MAX_INSTANT, MIN_INSTANT]) | st.integers(MIN_INSTANT, MAX_INSTANT)


@pytest.mark.parametrize("part", PARTS)
def test_a_blob_of_another_part_is_refused(part):
    other = BLOBS[(part.number + 1) % 4]
    with pytest.raises(CodecError, match=r"blob of part|do not add up|version 2"):
        parse_frame(other, part)


def test_a_part_whose_rows_differ_in_size_has_no_short_ones():
    part, blob = LAYOUT.parts[2], BLOBS[2]
    for read in (lambda blob: parse_frame(blob, part), lambda blob: fold(part, [blob])):
        read(blob)
        with pytest.raises(CodecError, match="version 2 is not b'FB' version 1\\."):
            read(blob[:2] + b"\x02" + blob[3:])


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_blob_is_refused_wherever_it_is_cut(part):
    blob = BLOBS[part.number]
    base = parse_frame(blob, part).base_length
    for cut in range(len(blob)):
        if cut == base:
            fold(part, [blob[:cut]])
            continue
        blobs = [*BLOBS[: part.number], blob[:cut], *BLOBS[part.number + 1 :]]
        with pytest.raises(CodecError):
            READER.read(blobs, 10 * S)
        with pytest.raises(CodecError):
            fold(part, [blob[:cut]])


@pytest.mark.parametrize("part", PARTS)
def test_flipped_bits_are_a_value_or_refused(part):
    size = len(BLOBS[part.number])

    @settings(max_examples=tries(200), deadline=None)
    @given(st.lists(st.integers(0, 8 * size - 1), min_size=1, max_size=4), INSTANTS)
    @example([8 * 16 + 63], 10 * S)
    def check(bits, t):
        flipped = bytearray(BLOBS[part.number])
        for bit in bits:
            flipped[bit // 8] ^= 1 << bit % 8
        read_or_refuse(part, bytes(flipped), t)

    check()


@pytest.mark.parametrize("part", PARTS)
def test_spliced_and_random_bytes_are_a_value_or_refused(part):
    blob = BLOBS[part.number]

    @settings(max_examples=tries(100), deadline=None)
    @given(st.integers(0, len(blob)), st.integers(0, len(blob)), st.binary(max_size=32), INSTANTS)
    def spliced(a, b, middle, t):
        read_or_refuse(part, blob[:a] + middle + blob[b:], t)

    @settings(max_examples=tries(100), deadline=None)
    @given(st.binary(max_size=300), INSTANTS)
    def behind_an_empty_base(tail, t):
        read_or_refuse(part, empty_base(part) + tail, t)
        read_or_refuse(part, tail, t)

    spliced()
    behind_an_empty_base()


@pytest.mark.parametrize("part", PARTS)
def test_well_framed_nonsense_is_a_value_or_refused(part):
    """Counts and lengths add up as far as the header says, and every word after it is arbitrary."""
    small = st.integers(0, 4) | st.sampled_from([8, 16, 24, 32, -1, -8, 2**62, MIN_INSTANT, MAX_INSTANT])

    @settings(max_examples=tries(150), deadline=None)
    @given(
        st.lists(st.integers(0, 3), min_size=len(part.ladders), max_size=len(part.ladders)),
        st.lists(small, max_size=60),
        st.integers(0, 60),
        st.sampled_from([1, 2]),
        INSTANTS,
    )
    def check(rows, words, base_words, form, t):
        fixed = len(empty_base(part))
        counts = struct.pack(f"<{len(rows)}I", *rows).ljust(fixed - HEADER.size, b"\0")
        body = np.array(words, dtype="<i8").tobytes()
        length = fixed + 8 * min(base_words, len(words))
        if part.is_fixed:
            length = fixed + sum(
                n * (8 + size) for n, size in zip(rows, (part.row_sizes, part.short_sizes)[form - 1], strict=True)
            )
            body = (body * 40)[: max(0, length - fixed)] if body else bytes(length - fixed)
        header = HEADER.pack(b"FB", form, part.number, length, int(part.fingerprint, 16), 0, 0)
        read_or_refuse(part, header + counts + body, t)

    check()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rows", [2**32 - 1, 2**20, 7])
def test_lengths_that_claim_gigabytes_allocate_nothing(part, rows):
    for body in (b"\xff" * 160, b"\x00" * 160, b"\xff" * 7 + b"\x7f" + bytes(152)):
        for length in (len(empty_base(part)), 400, 2**32 - 1, len(empty_base(part)) + 56):
            counts = struct.pack("<I", rows) * len(part.ladders)
            header = HEADER.pack(b"FB", 1, part.number, length, int(part.fingerprint, 16), 0, 0)
            blob = header + counts.ljust(len(empty_base(part)) - HEADER.size, b"\0") + body
            tracemalloc.start()
            try:
                with pytest.raises(CodecError):
                    fold(part, [blob])
                with pytest.raises(CodecError):
                    READER.read([*BLOBS[: part.number], blob, *BLOBS[part.number + 1 :]], 10 * S)
                assert tracemalloc.get_traced_memory()[1] < 1_000_000
            finally:
                tracemalloc.stop()


def test_many_plain_rows_are_merged_as_few_are():
    """From some number of rows on the reader merges in numpy; both ways give the oracle's count and sum."""
    part = LAYOUT.parts[1]
    for count in (5, 1023, 1024, 1025):
        times = tuple(range(0, count * 10, 10))
        blobs = [blob_of(p, times, MAX_INSTANT) for p in LAYOUT.parts]
        values = dict(zip([f.name for f in LAYOUT.features], READER.read(blobs, 6 * S).values, strict=True))
        assert values["f0_10s_delay3s"] == count
        assert values["f1_10s_delay3s"] == sum(0.5 * n for n in range(count))
        assert [rows for _, rows in parse_frame(blobs[1], part).ladders] == [count, count, count]
