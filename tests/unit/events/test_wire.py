"""Avro, schema ids and several versions at once: every record is a row of the newest version, or refused with its reason."""

from __future__ import annotations

import json
import math
import pickle
import random
from datetime import UTC, datetime

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Count, Entity, FeatureView, Last, Sum
from featurestore.definitions.contract import Contract
from featurestore.definitions.source import EventSource
from featurestore.events.decode import Decoder, Reason
from featurestore.events.wire import avro_bytes, framed
from featurestore.jobs.worker import decoder_of
from featurestore.testing.replay import replay
from featurestore.timeline import to_instant
from tests.effort import tries

ARRIVAL = to_instant("2024-01-01T00:00:00Z")


def record(*fields):
    return {"type": "record", "name": "payment", "fields": [{"name": n, "type": kind} for n, kind in fields]}


def times(unit):
    return {"type": "long", "logicalType": f"timestamp-{unit}"}


LINES = {
    "type": "array",
    "items": {
        "type": "record",
        "name": "line",
        "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": ["null", "long"]}],
    },
}
V1 = record(("card", "string"), ("at", times("millis")), ("amount", "float"), ("count", "int"))
V2 = record(
    ("amount", "double"), ("card", "string"), ("at", times("micros")), ("count", "long"), ("lines", ["null", LINES]),
    ("status", ["null", {"type": "enum", "name": "Status", "symbols": ["a", "b"]}]),
)  # fmt: skip
IDS = {"7": 1, "2000000000": 2}


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "payment"
    folder.mkdir()
    (folder / "v1.avsc").write_text(json.dumps(V1))
    (folder / "v2.avsc").write_text(json.dumps(V2))
    (folder / "ids.json").write_text(json.dumps(IDS))
    return folder


def source(place, name="v2.avsc", **options):
    return EventSource("payments", topic="payments", schema=place / name, event_time="at", **options)


def written(schema, event):
    """Return what fastavro itself writes, logical types and all: not the code under test."""
    import io

    target = io.BytesIO()
    fastavro.schemaless_writer(target, fastavro.parse_schema(json.loads(json.dumps(schema))), event)
    return target.getvalue()


AT = datetime(2023, 12, 31, 23, 59, 59, 123456, UTC)
OLD = {"card": "c1", "at": AT, "amount": 1.5, "count": -3}
NEW = {**OLD, "amount": math.nan, "status": "b", "lines": [{"sku": "x", "n": None}, {"sku": "y", "n": 2}]}


def decode(decoder, *values):
    return decoder.decode(list(values), np.full(len(values), ARRIVAL, np.int64))


def test_events_of_two_versions_are_rows_of_the_newest(place):
    decoder = pickle.loads(pickle.dumps(decoder_of(source(place))))
    decoded = decode(decoder, framed(2_000_000_000, written(V2, NEW)), framed(7, written(V1, OLD)))
    assert decoded.rejected == ()
    new, old = decoded.batch.to_pylist()
    assert math.isnan(new.pop("amount"))
    assert new == {"card": "c1", "at": AT, "count": -3, "status": "b", "lines__sku": ["x", "y"], "lines__n": [None, 2]}
    assert old == {
        "card": "c1", "at": AT.replace(microsecond=123000), "amount": 1.5, "count": -3, "status": None,
        "lines__sku": None, "lines__n": None,
    }  # fmt: skip
    assert decoded.event_time_us.tolist() == [to_instant(AT), to_instant(AT) // 1000 * 1000]


GOOD = framed(7, written(V1, OLD))


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (None, Reason.EMPTY, "no value"),
        (b"\0", Reason.UNKNOWN_VERSION, "no schema id"),
        (b'{"card": "c1"}', Reason.UNKNOWN_VERSION, "begins with 7b 22"),
        (framed(8, GOOD[5:]), Reason.UNKNOWN_VERSION, "schema id 8 is no version of payment; known ids: 7, 2000000000"),
        (framed(2**32 - 1, GOOD[5:]), Reason.UNKNOWN_VERSION, "4294967295"),
        (GOOD[:-1], Reason.NOT_AVRO, ""),
        (GOOD + b"\0", Reason.NOT_AVRO, "1 bytes follow"),
        (framed(7, b""), Reason.NOT_AVRO, ""),
        (framed(7, b"\x02\xff" + GOOD[8:]), Reason.NOT_AVRO, ""),
        (framed(7, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"), Reason.NOT_AVRO, ""),
        (framed(7, written(V1, {**OLD, "at": 2**62})), Reason.CONTRACT, ""),
        (framed(7, written(V1, {**OLD, "at": AT.replace(year=2024, day=2, month=1)})), Reason.FUTURE, "ahead"),
        (framed(2_000_000_000, written(V2, {**NEW, "lines": [{"sku": "", "n": 1}] * 1025})), Reason.CONTRACT, "1,025 elements"),
        (framed(7, b"\0" * 300), Reason.OVERSIZED, "305 bytes, allowed are 300"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
)  # fmt: skip
def test_a_record_that_is_no_event_is_refused_with_its_reason(place, value, reason, said):
    limit = 1 << 20 if reason != Reason.OVERSIZED else 300
    decoded = decode(decoder_of(source(place, max_bytes=limit)), GOOD, value, GOOD)
    assert decoded.rows.tolist() == [0, 2]
    (rejected,) = decoded.rejected
    assert (rejected.row, rejected.reason) == (1, reason), rejected.detail
    assert said in rejected.detail


def test_a_reader_of_the_first_version_refuses_the_second(place):
    decoded = decode(decoder_of(source(place, "v1.avsc")), framed(2_000_000_000, written(V2, NEW)), GOOD)
    assert [one.reason for one in decoded.rejected] == [Reason.UNKNOWN_VERSION]
    assert decoded.rows.tolist() == [1]


def test_plain_avro_is_read_as_the_newest_version(place):
    decoder = decoder_of(source(place, wire="plain"))
    assert decode(decoder, written(V2, {**NEW, "amount": 2.0})).batch.to_pylist()[0]["amount"] == 2.0
    assert [one.reason for one in decode(decoder, b"\x02").rejected] == [Reason.NOT_AVRO]


def test_json_stands_behind_a_schema_id_too(tmp_path):
    properties = {"card": {"type": "string"}, "at": {"type": "integer"}}
    for version in (1, 2):
        extra = {"shop": {"type": "string"}} if version == 2 else {}
        text = json.dumps({"type": "object", "properties": properties | extra, "required": ["card", "at"]})
        (tmp_path / f"v{version}.json").write_text(text)
    decoder = decoder_of(source(tmp_path, "v2.json", wire="confluent"))
    decoded = decode(
        decoder,
        framed(1, b'{"card": "a", "at": 1}'),
        framed(2, b'{"card": "b", "at": 2, "shop": "x"}'),
        framed(3, b'{"card": "b", "at": 2}'),
        b'{"card": "b", "at": 2}',
        framed(1, b"{"),
        framed(1, b"{}"),
    )
    assert decoded.batch.to_pylist() == [{"card": "a", "at": 1, "shop": None}, {"card": "b", "at": 2, "shop": "x"}]
    assert [str(one.reason) for one in decoded.rejected] == [
        "unknown_version",
        "unknown_version",
        "not_json",
        "contract",
    ]


@settings(max_examples=tries(300), deadline=None)
@given(st.binary(max_size=80), st.sampled_from([7, 2_000_000_000]), st.booleans())
def test_any_bytes_behind_an_id_are_a_row_or_a_rejection(payload, schema_id, is_damage):
    if is_damage:
        good = written(V2, NEW) if schema_id != 7 else written(V1, OLD)
        seed = random.Random(payload)
        place = seed.randrange(len(good))
        payload = good[:place] + payload[:3] + good[place + seed.randrange(3) :]
    decoded = decode(DECODER, framed(schema_id, payload))
    assert len(decoded.rows) + len(decoded.rejected) == 1
    decoded.batch.validate(full=True)
    decoded.batch.to_pylist()


def _both() -> Contract:
    from featurestore.definitions.avro import contract_from_avro

    first, second = (contract_from_avro(json.dumps(each), "payment", version=n) for n, each in ((1, V1), (2, V2)))
    return Contract("payment", 2, second.fields, second.avro, (first,), {int(name): n for name, n in IDS.items()})


DECODER = Decoder(_both(), event_time="at", allowed_skew_us=0, wire="confluent")


def test_what_the_library_writes_is_what_it_reads():
    contract = _both()
    value = avro_bytes(contract, {**NEW, "at": to_instant(AT), "amount": 0.1})
    assert value == written(V2, {**NEW, "amount": 0.1})
    with pytest.raises(ValueError, match="payment version 2"):
        avro_bytes(contract, {"card": "c"})


def test_a_replay_over_two_avro_versions_equals_the_specification(place):
    view = FeatureView(
        "card", Entity("card", keys={"card": "string"}), source(place),
        {"n": Count().over("1h", "lifetime"), "amount": Sum("amount").over("1h"), "status": Last("status").over("lifetime")},
    )  # fmt: skip
    with replay(view, start="2023-12-31T00:00:00Z") as run:
        for minute in range(90):
            at = f"2023-12-31T{minute // 60:02}:{minute % 60:02}:00.000001Z"
            run.send(
                "payments",
                {"card": f"c{minute % 3}", "amount": minute / 7, "count": 1, "status": "ab"[minute % 2]},
                at=at,
            )
        run.send("payments", b"\0\0\0\0\x08", arrival="2023-12-31T02:00:00Z")
        run.advance("10s")
        run.assert_equal()
        assert run.get({"card": "c1"})["card.n_lifetime"] == 30
        assert run.counts["quarantined"] == 1
