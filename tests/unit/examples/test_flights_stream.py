"""The stream: received order, slices, and what was mixed in on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from examples.flights.features import flight_delay
from examples.flights.stream import FAULTS, SEED, TOPICS, build_stream
from featurestore.events.decode import Decoder, Reason
from featurestore.timeline import DAY, MINUTE, to_instant

pytestmark = pytest.mark.thorough

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
EVENTS = {"flight_departures": "flight_departure", "flight_arrivals": "flight_arrival", "weather": "weather"}
WEEK = ("2013-03-08T00:00:00Z", "2013-03-15T00:00:00Z")


@pytest.fixture(scope="module")
def week(stream):
    return stream.between(*WEEK)


@pytest.fixture(scope="module")
def records(week):
    return week.records()


@pytest.fixture(scope="module")
def validators():
    schemas = {topic: json.loads((SCHEMAS / event / "v1.json").read_text()) for topic, event in EVENTS.items()}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {topic: jsonschema.Draft202012Validator(schema) for topic, schema in schemas.items()}


def test_every_real_event_is_there_once_and_malformed_ones_are_added(stream):
    sound = stream.fault == -1
    assert np.bincount(stream.topic[sound]).tolist() == [328_521, 327_346, 26_115]
    assert sum(stream.counts.values()) == len(stream) == 681_982 + len(stream.malformed)
    assert len(stream.malformed) == pytest.approx(656, rel=0.15)


def test_records_come_in_received_order_on_whole_milliseconds(stream):
    assert (np.diff(stream.received_us) >= 0).all()
    assert (stream.received_us % 1_000 == 0).all()


def test_one_flight_event_in_a_hundred_is_5_to_180_minutes_late(stream):
    late = stream.late
    assert len(late) == pytest.approx(6_559, rel=0.05)
    by = late["received_us"] - late["event_us"]
    assert by.min() >= 5 * MINUTE
    assert by.max() < 180 * MINUTE
    assert by.max() > 170 * MINUTE
    assert (late["received_us"] % MINUTE != 0).all()  # a tick of the clock never falls on it
    assert set(late["topic"]) == {"flight_departures", "flight_arrivals"}
    assert not late.duplicated(["topic", "flight_id"]).any()


def test_slices_are_half_open_and_put_together_give_the_whole(week, records):
    start, end = (to_instant(edge) for edge in WEEK)
    days = [week.between(day, day + DAY) for day in range(start, end, DAY)]
    assert sum(len(day) for day in days) == len(week) == len(records)
    assert [record for day in days for record in day.records()] == records
    first = records[0].received_us
    assert len(week.between(first, first)) == 0
    assert week.between(first, first + 1).records()[0] == records[0]
    assert len(week.between(end, start)) == 0


def test_sound_records_keep_their_contract(week, records, validators):
    for record, fault in zip(records, week.fault.tolist(), strict=True):
        if fault == -1:
            event = json.loads(record.value)
            validators[record.topic].validate(event)
            assert to_instant(event["event_time"]) <= record.received_us
            assert record.key.decode() == event.get("flight_id", event["origin"])


def test_nulls_are_null_and_times_end_with_z(records):
    weather = [json.loads(record.value) for record in records if record.topic == "weather"]
    assert any(one["pressure"] is None for one in weather)
    assert not any(b"NaN" in record.value for record in records)
    assert all(one["event_time"].endswith("Z") for one in weather)


def test_each_malformed_record_breaks_its_contract_in_its_own_way(stream, validators):
    seen = set()
    for listed in stream.malformed.head(40).itertuples():
        around = stream.between(listed.received_us, listed.received_us + 1)
        record = around.records()[listed.position - around.position]
        assert record.topic == listed.topic
        assert record.key == listed.flight_id.encode()
        seen.add(listed.fault)
        if listed.fault == "empty":
            assert record.value == b""
        elif listed.fault == "truncated":
            with pytest.raises(json.JSONDecodeError):
                json.loads(record.value)
        elif listed.fault == "from the future":
            event = json.loads(record.value)
            validators[record.topic].validate(event)
            assert to_instant(event["event_time"]) == record.received_us + 30 * DAY
        else:
            with pytest.raises(jsonschema.ValidationError):
                validators[record.topic].validate(json.loads(record.value))
    assert seen == set(FAULTS)


def test_the_decoder_quarantines_the_malformed_records_and_no_other(stream):
    """Two weeks through the contracts that the sources load, with the skew that they allow."""
    reasons = {
        "truncated": Reason.NOT_JSON,
        "wrong type": Reason.CONTRACT,
        "missing field": Reason.CONTRACT,
        "from the future": Reason.FUTURE,
        "empty": Reason.EMPTY,
    }
    weeks = stream.between(WEEK[0], to_instant(WEEK[0]) + 14 * DAY)
    records = weeks.records()
    found = {}
    for source in flight_delay.sources:
        places = [place for place, record in enumerate(records) if record.topic == source.topic]
        decoder = Decoder(source.contract, source.event_time, source.allowed_skew_us)
        decoded = decoder.decode([records[place].value for place in places], weeks.received_us[places])
        found |= {places[rejected.row] + weeks.position: rejected.reason for rejected in decoded.rejected}
        assert decoded.event_time_us.tolist() == weeks.event_us[places][decoded.rows].tolist()
    listed = weeks.malformed
    assert found == {
        position: reasons[fault] for position, fault in zip(listed["position"], listed["fault"], strict=True)
    }
    assert set(listed["fault"]) == set(FAULTS)


def test_what_is_late_or_malformed_depends_on_the_seed_alone(flights, stream):
    again, other = build_stream(flights), build_stream(flights, seed=SEED + 1)
    for name in ("received_us", "topic", "row", "fault"):
        assert np.array_equal(getattr(stream, name), getattr(again, name))
    assert set(stream.late["flight_id"]) != set(other.late["flight_id"])


def test_nothing_is_mixed_in_when_nothing_is_asked_for(flights):
    plain = build_stream(flights, late_share=0, malformed_share=0)
    assert (plain.received_us == plain.event_us).all()
    assert plain.counts == dict(zip(TOPICS, (328_521, 327_346, 26_115), strict=True))
    assert plain.late.empty
    assert plain.malformed.empty
