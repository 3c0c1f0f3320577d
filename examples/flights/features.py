"""Will this flight arrive more than 15 minutes late? What is known half an hour before it is scheduled to leave.

Three streams, five things they describe, one vector for the model. This is the whole definition: the streaming job, the
training set and the lookup are all derived from it.
"""

from __future__ import annotations

from pathlib import Path

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Last, Max, Mean, Sum

_SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"

origin = Entity("origin", keys={"origin": "string"}, description="One of the three airports of New York")
destination = Entity("destination", keys={"dest": "string"}, description="An airport that is flown to")
carrier = Entity("carrier", keys={"carrier": "string"}, description="An airline")
aircraft = Entity("aircraft", keys={"tailnum": "string"}, description="One airplane, by its tail number")

departures = EventSource(
    "departures",
    topic="flight_departures",
    schema=_SCHEMAS / "flight_departure/v1.json",
    event_time="event_time",
    event_id="flight_id",
    description="A flight has left New York",
)
arrivals = EventSource(
    "arrivals",
    topic="flight_arrivals",
    schema=_SCHEMAS / "flight_arrival/v1.json",
    event_time="event_time",
    event_id="flight_id",
    description="A flight from New York has landed where it was meant to",
)
weather = EventSource(
    "weather",
    topic="weather",
    schema=_SCHEMAS / "weather/v1.json",
    event_time="event_time",
    event_id="observation_id",
    description="Hourly weather at the airports of New York",
)

origin_departures = FeatureView(
    "origin_departures",
    entity=origin,
    source=departures,
    features={
        "departures": Count().over("1h"),
        "mean_delay": Mean("dep_delay").over("1h", "3h", "24h"),
        "late_share": Mean("dep_delay > 15").over("1h", "3h", "24h"),
        "worst_delay": Max("dep_delay").over("1h"),
    },
    owner="flights-team",
    description="How well an airport gets its flights away",
)

origin_weather = FeatureView(
    "origin_weather",
    entity=origin,
    source=weather,
    features={
        "wind_speed": Last("wind_speed").over("3h"),
        "visibility": Last("visib").over("3h"),
        "rain": Sum("precip").over("3h"),
    },
    owner="flights-team",
    description="The weather at an airport",
)

carrier_departures = FeatureView(
    "carrier_departures",
    entity=carrier,
    source=departures,
    features={
        "mean_delay": Mean("dep_delay").over("1h", "3h", "24h"),
        "late_share": Mean("dep_delay > 15").over("1h", "3h", "24h"),
    },
    owner="flights-team",
    description="How well an airline gets its flights away",
)

carrier_arrivals = FeatureView(
    "carrier_arrivals",
    entity=carrier,
    source=arrivals,
    features={"mean_delay": Mean("arr_delay").over("1h", "3h")},
    owner="flights-team",
    description="How late an airline's flights land",
)

destination_arrivals = FeatureView(
    "destination_arrivals",
    entity=destination,
    source=arrivals,
    features={
        "arrivals": Count().over("3h"),
        "mean_delay": Mean("arr_delay").over("3h", "24h"),
        "late_share": Mean("arr_delay > 15").over("3h", "24h"),
    },
    owner="flights-team",
    description="How late flights land at the other end",
)

aircraft_departures = FeatureView(
    "aircraft_departures",
    entity=aircraft,
    source=departures,
    features={
        "departures": Count().over("24h"),
        "last_delay": Last("dep_delay").over("24h"),
    },
    owner="flights-team",
    description="What this airplane did today",
)

aircraft_arrivals = FeatureView(
    "aircraft_arrivals",
    entity=aircraft,
    source=arrivals,
    features={
        "last_delay": Last("arr_delay").over("24h", "lifetime"),
        "mean_delay": Mean("arr_delay").over("24h"),
    },
    owner="flights-team",
    description="How late this airplane landed",
)

flight_delay = FeatureService(
    "flight_delay",
    [
        origin_departures,
        origin_weather,
        carrier_departures,
        carrier_arrivals,
        destination_arrivals,
        aircraft_departures,
        aircraft_arrivals,
    ],
    description="Everything that moves when a flight is about to be late",
)
