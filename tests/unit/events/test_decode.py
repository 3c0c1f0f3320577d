"""Decoding: whatever the bytes, a row or a rejection with a reason; and the values are the ones that were sent."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.contract import Contract
from featurestore.events.decode import ARROW_TYPES, Decoder, Reason
from featurestore.timeline import MINUTE, to_instant
from tests.effort import tries

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "at": {"type": "string", "format": "date-time"},
        "amount": {"type": ["number", "null"]},
        "count": {"type": "integer", "minimum": -0.5, "exclusiveMaximum": 1e18},
        "ok": {"type": "boolean"},
        "country": {"type": "string", "minLength": 2, "maxLength": 2},
        "status": {"type": "string", "enum": ["open", "closed"]},
        "code": {"type": "string", "pattern": "^[A-Z]+$"},
        "rate": {"type": "number", "exclusiveMinimum": 0},
        "seen_at": {"type": ["string", "null"], "format": "date-time"},
    },
    "required": ["id", "at", "amount"],
}
ARRIVAL = to_instant("2013-01-01T00:10:00Z")
DECODER = Decoder(Contract.from_json(json.dumps(SCHEMA), "payment"), event_time="at", allowed_skew_us=5 * MINUTE)
GOOD = {"id": "a", "at": "2013-01-01T00:00:00Z", "amount": 1.5}


def decode(*values, decoder=DECODER):
    return decoder.decode(list(values), np.full(len(values), ARRIVAL, np.int64))


def event(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def test_values_arrive_typed_and_absent_fields_are_null():
    full = event(
        count=3,
        ok=True,
        country="US",
        status="open",
        code="AB",
        rate=1,
        seen_at="2013-01-01T01:00:00+02:00",
        extra=[{}],
    )
    decoded = decode(full, event())
    assert decoded.rejected == ()
    assert decoded.batch.schema == pa.schema(
        [(name, ARROW_TYPES[kind]) for name, kind in DECODER.contract.columns.items()]
    )
    first, second = decoded.batch.to_pylist()
    assert first == {
        "id": "a",
        "at": datetime(2013, 1, 1, tzinfo=UTC),
        "amount": 1.5,
        "count": 3,
        "ok": True,
        "country": "US",
        "status": "open",
        "code": "AB",
        "rate": 1.0,
        "seen_at": datetime(2012, 12, 31, 23, tzinfo=UTC),
    }
    assert {name for name, value in second.items() if value is None} == set(first) - set(GOOD)
    assert decoded.rows.tolist() == [0, 1]
    assert decoded.event_time_us.tolist() == [to_instant(GOOD["at"])] * 2
    assert decoded.rows.dtype == decoded.event_time_us.dtype == np.int64


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (None, Reason.EMPTY, "no value"),
        (b"", Reason.EMPTY, "no value"),
        (b"{", Reason.NOT_JSON, ""),
        (b"not json", Reason.NOT_JSON, ""),
        (b"\xff\xfe", Reason.NOT_JSON, ""),
        (b"\xef\xbb\xbf" + event(), Reason.NOT_JSON, ""),
        (event() + b" x", Reason.NOT_JSON, "trailing"),
        (event().replace(b"1.5", b"NaN"), Reason.NOT_JSON, ""),
        (event().replace(b"1.5", b"Infinity"), Reason.NOT_JSON, ""),
        (event(id="x").replace(b"x", rb"\ud800"), Reason.NOT_JSON, ""),
        (event(id="x").replace(b"x", b"\xff"), Reason.NOT_JSON, ""),
        (b'{"a":' * 100_000, Reason.NOT_JSON, "nested too deeply"),
        (b"[" * 1_000_000, Reason.CONTRACT, "got `array`"),
        (b"[]", Reason.CONTRACT, "got `array`"),
        (b"null", Reason.CONTRACT, "got `null`"),
        (b"{}", Reason.CONTRACT, "`id`"),
        (event(id=5), Reason.CONTRACT, "'id'"),
        (event(amount="1.5"), Reason.CONTRACT, "'amount'"),
        (event().replace(b"1.5", b"1e400"), Reason.CONTRACT, "'amount'"),
        (event().replace(b"1.5", b"1" * 400), Reason.CONTRACT, "'amount'"),
        (event(count=1.0), Reason.CONTRACT, "'count'"),
        (event(count=True), Reason.CONTRACT, "'count'"),
        (event(count=2**63), Reason.CONTRACT, "'count'"),
        (event(count=-1), Reason.CONTRACT, "'count'"),
        (event(count=10**18), Reason.CONTRACT, "'count'"),
        (event(ok=1), Reason.CONTRACT, "'ok'"),
        (event(country="USA"), Reason.CONTRACT, "'country'"),
        (event(status="lost"), Reason.CONTRACT, "'status'"),
        (event(code="ab"), Reason.CONTRACT, "'code'"),
        (event(rate=0), Reason.CONTRACT, "'rate'"),
        (event(at=None), Reason.CONTRACT, "'at'"),
        (event(at="2013-01-01T00:00:00"), Reason.CONTRACT, "'at'.*timezone"),
        (event(at="yesterday"), Reason.CONTRACT, "'at'"),
        (event(at="10000-01-01T00:00:00Z"), Reason.CONTRACT, "'at'"),
        (event(at="0001-01-01T00:00:00+14:00"), Reason.CONTRACT, "'at': not in the years 1 to 9999"),
        (event(at="9999-12-31T23:00:00-14:00"), Reason.CONTRACT, "'at': not in the years 1 to 9999"),
        (event(seen_at="9999-12-31T23:00:00-14:00"), Reason.CONTRACT, "'seen_at': not in the years"),
        (event(at="2013-01-01T00:15:00.000001Z"), Reason.FUTURE, "at is more than 5m ahead of arrival at 2013-01-01T00:10:00Z"),
        (b" " * (1 << 20) + event(), Reason.OVERSIZED, "allowed are 1,048,576"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else None,
)  # fmt: skip
def test_a_record_that_is_no_event_is_rejected_with_its_reason(value, reason, said):
    decoded = decode(event(), value, event())
    assert decoded.rows.tolist() == [0, 2]
    (rejected,) = decoded.rejected
    assert (rejected.row, rejected.reason) == (1, reason)
    assert re.search(said, rejected.detail), rejected.detail


def test_an_event_exactly_at_the_allowed_skew_is_accepted():
    assert decode(event(at="2013-01-01T00:15:00Z")).rejected == ()


def test_a_null_event_time_is_rejected_even_where_the_contract_allows_null():
    decoder = Decoder(DECODER.contract, event_time="seen_at", allowed_skew_us=0)
    decoded = decode(event(seen_at="2013-01-01T00:00:00Z"), event(), decoder=decoder)
    assert decoded.rows.tolist() == [0]
    assert "event time is null" in decoded.rejected[0].detail


def test_an_integer_event_time_counts_microseconds():
    text = json.dumps({"type": "object", "properties": {"us": {"type": "integer"}}, "required": ["us"]})
    decoder = Decoder(Contract.from_json(text, "tick"), event_time="us", allowed_skew_us=0)
    decoded = decode(
        b'{"us": %d}' % ARRIVAL, b'{"us": %d}' % (ARRIVAL + 1), b'{"us": %d}' % (2**63 - 1), decoder=decoder
    )
    assert decoded.event_time_us.tolist() == [ARRIVAL]
    assert [one.reason for one in decoded.rejected] == [Reason.FUTURE] * 2


def test_no_records_give_an_empty_batch():
    decoded = DECODER.decode([], np.array([], np.int64))
    assert (decoded.batch.num_rows, len(decoded.rows), decoded.rejected) == (0, 0, ())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string()])
def test_arrow_arrays_and_lists_decode_alike_also_after_pickling(kind):
    values = [event(), None, event(id="b"), b"{"]
    array = pa.array(values if kind != pa.string() else [v and v.decode() for v in values], kind)
    copy = pickle.loads(pickle.dumps(DECODER))
    arrival = np.full(4, ARRIVAL, np.int64)
    for decoded in (copy.decode(array, arrival), copy.decode(pa.chunked_array([array[:1], array[1:]]), arrival)):
        assert decoded.batch.equals(decode(*values).batch)
        assert [one.row for one in decoded.rejected] == [1, 3]


def check_total(values):
    """Every record is one row or one rejection, in order."""
    decoded = decode(*values)
    decoded.batch.validate(full=True)
    assert sorted([*decoded.rows.tolist(), *(one.row for one in decoded.rejected)]) == list(range(len(values)))
    assert decoded.rows.tolist() == sorted(decoded.rows.tolist())
    assert [one.row for one in decoded.rejected] == sorted(one.row for one in decoded.rejected)
    assert decoded.batch.num_rows == len(decoded.rows) == len(decoded.event_time_us)
    decoded.batch.to_pylist()
    return decoded


@settings(max_examples=tries(200), deadline=None)
@given(st.lists(st.none() | st.binary(max_size=60), max_size=8))
def test_any_bytes_are_a_row_or_a_rejection(values):
    check_total(values)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes().map(lambda t: t.isoformat() + "Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=tries(100), deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(sorted(SCHEMA["properties"])), JSON), max_size=4), st.data())
def test_any_json_and_any_damage_to_it_is_a_row_or_a_rejection(changes, data):
    values = [json.dumps({**GOOD, **change}).encode() for change in changes]
    for index, value in enumerate(values):
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(value) - 1))
            values[index] = value[:place] + data.draw(st.binary(max_size=2)) + value[place + 1 :]
    check_total(values)


@settings(max_examples=tries(150), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.text(),
                "at": st.datetimes(datetime(1, 1, 2), datetime(2012, 12, 31)),
                "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
                "count": st.integers(0, 10**18 - 1),
                "offset": st.integers(-14 * 60, 14 * 60),
            }
        ),
        max_size=5,
    )
)
def test_what_is_sent_is_what_is_read(sent):
    values = []
    for one in sent:
        hours, minutes = divmod(abs(one["offset"]), 60)
        offset = f"{'-' if one['offset'] < 0 else '+'}{hours:02}:{minutes:02}"
        values.append(json.dumps({**one, "at": one["at"].isoformat() + offset}).encode())
    for one, row in zip(sent, check_total(values).batch.to_pylist(), strict=True):
        assert row["id"] == one["id"]
        assert row["amount"] == one["amount"]
        assert row["count"] == one["count"]
        assert row["at"] == one["at"].replace(tzinfo=UTC) - timedelta(minutes=one["offset"])


@pytest.mark.parametrize("as_arrow", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 8192, 10_000])
def test_many_records_are_what_each_is_alone(count, as_arrow):
    wrong = {0: b"", 4095: b"{", 4096: event(at="2013-01-01T00:20:00Z"), 8191: event(country="USA"), 8192: None}
    values = [wrong[row] if row in wrong else event(id=f"e{row}", amount=row or None) for row in range(count)]
    arrival = ARRIVAL + np.arange(count)
    decoded = DECODER.decode(pa.array(values, pa.binary()) if as_arrow else values, arrival)
    reasons = dict(zip(wrong, ("empty", "not_json", "future", "contract", "empty"), strict=True))
    assert {one.row: one.reason.value for one in decoded.rejected} == {
        row: reason for row, reason in reasons.items() if row < count
    }
    assert [one.row for one in decoded.rejected] == sorted(row for row in wrong if row < count)
    rows = [row for row in range(count) if row not in wrong]
    assert decoded.rows.tolist() == rows
    assert decoded.batch.column("id").to_pylist() == [f"e{row}" for row in rows]
    assert decoded.batch.column("amount").to_pylist() == [float(row) if row else None for row in rows]
    assert decoded.event_time_us.tolist() == [to_instant(GOOD["at"])] * len(rows)
