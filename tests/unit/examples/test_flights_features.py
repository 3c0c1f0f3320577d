"""The definitions fit the data: topics, fields, keys and the order of the vector."""

from __future__ import annotations

import pytest

from examples.flights.data import LATE_AFTER_MINUTES
from examples.flights.features import flight_delay
from examples.flights.model import STATIC_FEATURES
from examples.flights.stream import TOPICS


def test_the_vector_has_29_features_of_four_entities():
    assert len(flight_delay.feature_ids) == 29
    assert flight_delay.feature_ids[0] == "origin_departures.departures_1h"
    assert flight_delay.feature_ids[-1] == "aircraft_arrivals.mean_delay_24h"
    assert set(flight_delay.keys) == {"origin", "carrier", "dest", "tailnum"}
    assert not set(STATIC_FEATURES) & set(flight_delay.feature_ids)


@pytest.mark.thorough
def test_every_topic_of_the_stream_has_a_source_and_its_fields_are_the_events(flights):
    assert {source.topic for source in flight_delay.sources} == set(TOPICS)
    tables = {"departures": flights.departures, "arrivals": flights.arrivals, "weather": flights.weather}
    for source in flight_delay.sources:
        assert list(source.contract.columns) == list(tables[source.name])


def test_late_means_the_same_in_the_features_and_in_the_label():
    views = {view.name: view for view in flight_delay.views}
    assert views["origin_departures"].features["late_share"].aggregate.input == f"dep_delay > {LATE_AFTER_MINUTES}"
    assert views["destination_arrivals"].features["late_share"].aggregate.input == f"arr_delay > {LATE_AFTER_MINUTES}"
