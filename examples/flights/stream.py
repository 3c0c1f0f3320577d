"""The flights as records for Kafka, in the order in which they were received, with late and malformed ones mixed in.

Rules:
    1. An event is received when it happens, except a chosen share of departures and arrivals that is 5 to 180 minutes
       late. Every arrival time is a whole second, as Kafka's timestamps keep no more than milliseconds.
    2. Malformed records are added: spoilt copies of events, received right after the event they are copied from, so
       that every real event is still there exactly once. They are meant for quarantine.
    3. What is late or malformed depends on the event's identity and the seed alone: not on the slice, the machine or
       the run.
    4. Records received at the same instant are ordered by topic, then event time, then identity.

Nothing is encoded before it is asked for: the whole year is a few arrays, and a slice is cut by binary search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from featurestore.timeline import DAY, MINUTE, SECOND, Instant, to_datetime, to_instant

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from examples.flights.data import Flights

TOPICS = ("flight_departures", "flight_arrivals", "weather")
"""The topics; a record's topic is its place here."""
FAULTS = ("truncated", "wrong type", "missing field", "from the future", "empty")
"""How a record is spoilt; a fault is its place here, a sound record has -1."""

LATE_SHARE = 0.01
MALFORMED_SHARE = 0.001
SEED = 2013
_SOUND = -1
_FUTURE = 30 * DAY
_SHORTEST_LATENESS, _LONGEST_LATENESS = 5 * MINUTE, 180 * MINUTE
_MEASURE = {"flight_departures": "dep_delay", "flight_arrivals": "arr_delay"}


class Record(NamedTuple):
    """One Kafka record."""

    topic: str
    key: bytes
    value: bytes
    received_us: Instant
    """Arrival time: the record's timestamp."""


class _Departure(msgspec.Struct):
    flight_id: str
    event_time: str
    origin: str
    dest: str
    carrier: str
    tailnum: str | None
    scheduled_departure: str
    dep_delay: float
    distance: int


class _Arrival(msgspec.Struct):
    flight_id: str
    event_time: str
    origin: str
    dest: str
    carrier: str
    tailnum: str | None
    scheduled_departure: str
    arr_delay: float
    air_time: float


class _Observation(msgspec.Struct):
    observation_id: str
    event_time: str
    origin: str
    temp: float | None
    wind_speed: float | None
    precip: float | None
    visib: float | None
    pressure: float | None


_EVENTS: tuple[type[msgspec.Struct], ...] = (_Departure, _Arrival, _Observation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Records in received order, or a slice of them; ``len()`` counts them.

    The arrays are parallel, one entry for each record.
    """

    tables: tuple[pd.DataFrame, ...]
    """The events by topic, whole; slices share them."""
    received_us: np.ndarray
    event_us: np.ndarray
    """Event time of the record, or of the event a malformed one was copied from."""
    topic: np.ndarray
    row: np.ndarray
    """Row in the topic's table."""
    fault: np.ndarray
    position: int
    """Place of the first record in the whole stream."""

    def __len__(self) -> int:
        return len(self.received_us)

    def between(self, start: datetime | str | Instant, end: datetime | str | Instant) -> Stream:
        """Return the records received in [start, end); costs two binary searches, copies nothing."""
        bounds = [to_instant(start, name="start"), to_instant(end, name="end")]
        first, last = (int(place) for place in np.searchsorted(self.received_us, bounds))
        cut = slice(first, max(first, last))
        return Stream(
            tables=self.tables,
            received_us=self.received_us[cut],
            event_us=self.event_us[cut],
            topic=self.topic[cut],
            row=self.row[cut],
            fault=self.fault[cut],
            position=self.position + first,
        )

    def records(self) -> list[Record]:
        """Return the records, encoded, in received order."""
        keys: list[bytes] = [b""] * len(self)
        values: list[bytes] = [b""] * len(self)
        for topic, table in enumerate(self.tables):
            places = np.flatnonzero(self.topic == topic)
            if not len(places):
                continue
            rows = table.iloc[self.row[places]]
            texts = _encode(rows, _EVENTS[topic])
            names = rows["origin" if TOPICS[topic] == "weather" else "flight_id"].tolist()
            for place, name, text in zip(places.tolist(), names, texts, strict=True):
                keys[place], values[place] = name.encode(), text
        for place in np.flatnonzero(self.fault != _SOUND).tolist():
            measure = _MEASURE[TOPICS[self.topic[place]]]
            values[place] = _spoil(values[place], measure, FAULTS[self.fault[place]], int(self.received_us[place]))
        names = [TOPICS[topic] for topic in self.topic.tolist()]
        return list(map(Record, names, keys, values, self.received_us.tolist()))

    @property
    def counts(self) -> dict[str, int]:
        """Records of each topic, malformed ones included."""
        return dict(zip(TOPICS, np.bincount(self.topic, minlength=len(TOPICS)).tolist(), strict=True))

    @property
    def late(self) -> pd.DataFrame:
        """The events received late: position, topic, flight_id, event_us, received_us, in received order."""
        places = np.flatnonzero((self.received_us > self.event_us) & (self.fault == _SOUND))
        return self._list(places)

    @property
    def malformed(self) -> pd.DataFrame:
        """The malformed records, in received order, with their ``fault``; the rest tells what they were copied from."""
        places = np.flatnonzero(self.fault != _SOUND)
        listed = self._list(places)
        listed["fault"] = [FAULTS[fault] for fault in self.fault[places]]
        return listed

    def _list(self, places: np.ndarray) -> pd.DataFrame:
        flights = np.empty(len(places), dtype=object)
        for topic, table in enumerate(self.tables):
            here = self.topic[places] == topic
            flights[here] = table.iloc[self.row[places[here]], 0]
        return pd.DataFrame(
            {
                "position": places + self.position,
                "topic": [TOPICS[topic] for topic in self.topic[places]],
                "flight_id": flights,
                "event_us": self.event_us[places],
                "received_us": self.received_us[places],
            }
        )


def build_stream(
    flights: Flights, *, late_share: float = LATE_SHARE, malformed_share: float = MALFORMED_SHARE, seed: int = SEED
) -> Stream:
    """Return the year's stream, in about a second.

    Args:
        flights: The tables.
        late_share: Share of departures and arrivals received 5 to 180 minutes late; 0 to 1.
        malformed_share: Malformed records added, as a share of departures and arrivals; 0 to 1.
        seed: Chooses which.
    """
    tables = (flights.departures, flights.arrivals, flights.weather)
    parts = []
    for topic, table in enumerate(tables):
        event_us = table["event_time"].astype("int64").to_numpy()
        rows = np.arange(len(table), dtype=np.int32)
        received_us = event_us
        spoilt = rows[:0]
        if TOPICS[topic] != "weather":
            draw = _draws(table["flight_id"], TOPICS[topic], seed)
            span = (_LONGEST_LATENESS - _SHORTEST_LATENESS) // SECOND
            lateness = _SHORTEST_LATENESS + (draw("lateness") * span).astype(np.int64) * SECOND + SECOND // 2
            received_us = event_us + np.where(draw("late") < late_share, lateness, 0)
            spoilt = rows[draw("malformed") < malformed_share]
        kinds = np.full(len(rows), _SOUND, dtype=np.int8)
        faults = (np.arange(len(spoilt)) % len(FAULTS)).astype(np.int8)
        chosen = np.concatenate([rows, spoilt])
        parts.append((received_us[chosen], event_us[chosen], np.full(len(chosen), topic, dtype=np.int8), chosen,
                      np.concatenate([kinds, faults])))  # fmt: skip
    received_us, event_us, topic_of, row, fault = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((fault, row, topic_of, received_us))
    return Stream(
        tables=tables,
        received_us=received_us[order],
        event_us=event_us[order],
        topic=topic_of[order],
        row=row[order],
        fault=fault[order],
        position=0,
    )


def _draws(identity: pd.Series, topic: str, seed: int) -> Callable[[str], np.ndarray]:
    """Return a function that gives every event a number in [0, 1) for each purpose, from its identity and the seed."""
    hashed = pd.util.hash_array(identity.to_numpy(dtype=object), hash_key=f"{seed:016d}"[-16:], categorize=False)

    def draw(purpose: str) -> np.ndarray:
        salt = pd.util.hash_array(np.array([f"{topic}/{purpose}"], dtype=object))[0]
        # The finalizer of splitmix64 (Steele, Lea and Flood 2014): turns hash xor salt into independent bits.
        mixed = hashed ^ salt
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / float(2**53)

    return draw


def _encode(rows: pd.DataFrame, event: type[msgspec.Struct]) -> list[bytes]:
    """Return each row as JSON; NaN becomes null, times get a Z."""
    columns: list[list[Any]] = []
    for name in event.__struct_fields__:
        column = rows[name]
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            moments = column.astype("int64").to_numpy().astype("datetime64[us]")
            columns.append(np.datetime_as_string(moments, unit="s", timezone="UTC").tolist())
        elif column.dtype == np.float64 and column.isna().any():
            columns.append(column.astype(object).where(column.notna(), None).tolist())
        else:
            columns.append(column.tolist())
    encode = msgspec.json.Encoder().encode
    return [encode(one) for one in map(event, *columns)]


def _spoil(value: bytes, measure: str, fault: str, received_us: Instant) -> bytes:
    if fault == "empty":
        return b""
    if fault == "truncated":
        return value[: len(value) // 2]
    event = msgspec.json.decode(value)
    if fault == "wrong type":
        event[measure] = "unknown"
    elif fault == "missing field":
        del event["origin"]
    else:
        event["event_time"] = to_datetime(received_us + _FUTURE).isoformat().replace("+00:00", "Z")
    return msgspec.json.encode(event)
