"""Views for conformance tests: several hops, lifetime, every aggregate and type, conditions, composite and nullable keys."""

from __future__ import annotations

import json

from featurestore.algebra import (
    ApproxDistinct,
    ApproxQuantile,
    Count,
    DistinctCount,
    Exact,
    First,
    FirstK,
    Histogram,
    Hopping,
    Kurtosis,
    Last,
    LastK,
    Lifetime,
    Max,
    MaxK,
    Mean,
    Min,
    MinK,
    Rate,
    Sawtooth,
    SecondsSinceFirst,
    SecondsSinceLast,
    Series,
    Skew,
    StdDev,
    Sum,
    TopItems,
    Tumbling,
    Variance,
    Window,
)
from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity
from featurestore.definitions.keys import encode_key
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.testing.compare import values_agree
from tests.laws.wide import Longest, Texts

CONTRACT = Contract.from_json(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "card_id": {"type": "string"},
                "shop": {"type": ["integer", "null"]},
                "online": {"type": ["boolean", "null"]},
                "amount": {"type": ["number", "null"]},
                "points": {"type": ["integer", "null"]},
                "status": {"type": ["string", "null"]},
                "shipped": {"type": ["string", "null"], "format": "date-time"},
                "event_time": {"type": "string", "format": "date-time"},
            },
            "required": ["card_id", "event_time"],
        }
    ),
    "payment",
)
SOURCE = EventSource("payments", topic="payments", schema=CONTRACT, event_time="event_time")
CARD = Entity("card", keys={"card_id": "string"})

MANY = FeatureView(
    "many",
    CARD,
    SOURCE,
    {
        "n": Count().over("10m", "1h", Sawtooth("90m", hop="15m"), "lifetime"),
        "known": Count("amount").over("1h"),
        "spend": Sum("amount").over("10m", "1h", "lifetime"),
        "mean": Mean("amount").over("1h", Sawtooth("90m", hop="45m")),
        "points": Sum("points").over("1h", "lifetime"),
        "low": Min("amount").over("10m", "lifetime"),
        "high": Max("amount").over("1h"),
        "most": Max("points").over(Sawtooth("30m", hop="30m")),
        "last": Last("amount").over("1h", "lifetime"),
        "shipped": Last("shipped").over("lifetime"),
    },
)
CONDITIONS = FeatureView(
    "conditions",
    CARD,
    SOURCE,
    {
        "n": Count(where="amount > 0").over("5m", "2h"),
        "spend": Sum("amount", where="status = 'b' OR online").over("1h", "lifetime"),
        "share": Mean("online").over("2h"),
        "last": Last("online", where="points >= 0").over("lifetime"),
        "first_shipped": Min("shipped").over("1h", "lifetime"),
    },
    where="status = 'a' OR amount < 50",
)
COMPOSITE = FeatureView(
    "composite",
    Entity("visit", keys={"shop": "int64", "card_id": "string", "online": "bool", "shipped": "timestamp"}),
    SOURCE,
    {"n": Count().over("1m", "1h"), "spend": Sum("amount + amount").over("1h"), "last": Last("points").over("1m")},
)
LIFETIME = FeatureView(
    "lifetime", CARD, SOURCE, {"n": Count().over("lifetime"), "high": Max("points").over("lifetime")}
)
SHORT = FeatureView(
    "short",
    CARD,
    SOURCE,
    {"n": Count().over(Sawtooth("10s", hop="1s"), Sawtooth("12s", hop="4s")), "low": Min("points").over("12s")},
)
MOMENTS = FeatureView(
    "moments",
    CARD,
    SOURCE,
    {
        "variance": Variance("amount").over("10m", "1h", "lifetime"),
        "spread": StdDev("amount", population=True).over("1h"),
        "near": StdDev("1000000000 + amount / 1000", where="amount BETWEEN -100 AND 100").over("1h", "lifetime"),
        "share": Variance("online", population=True).over("1h"),
        "skew": Skew("amount").over("1h", "lifetime"),
        "tails": Kurtosis("amount").over("1h", "lifetime"),
        "points_spread": StdDev("points").over("10m", "lifetime"),
        "points_skew": Skew("points", where="online").over("1h"),
    },
)
TIMED = FeatureView(
    "timed",
    CARD,
    SOURCE,
    {
        "first": First("amount").over("1h", "lifetime"),
        "first_online": First("online", where="points >= 0").over("10m"),
        "first_shipped": First("shipped").over("lifetime"),
        "age": SecondsSinceFirst().over("1h", "lifetime"),
        "pause": SecondsSinceLast().over("1h", "lifetime"),
        "known_pause": SecondsSinceLast("status", where="amount > 0").over("10m", "lifetime"),
        "n": Count().over("1h"),
        "pace": Rate(per="1m").over("10m", "1h"),
        "spending": Rate("amount", per="1h").over("1h", Sawtooth("90m", hop="45m")),
        "earning": Rate("points", where="online").over("1h"),
        "sizes": Histogram("amount", edges=[-10, 0, 0.1, 100]).over("10m", "1h", "lifetime"),
        "grades": Histogram("points", edges=[0.5], where="status = 'a'").over("1h"),
    },
)

KINDS = (
    "10m", Exact("10m"), Hopping("10m", hop="5m"), Tumbling("10m"), "lifetime", Sawtooth("10m", delay="7m"),
    Exact("10m", delay="150s"), Hopping("1h", hop="20m", delay="1m"), Tumbling("10m", delay="1h"), Lifetime(delay="13m"),
    Series("30m", every="10m"), Exact("3h"), Lifetime(delay="1m"), Sawtooth("30m", hop="15m", delay="15m"),
)  # fmt: skip
"""Every kind of window, with and without a delay."""
BOUNDED = tuple(
    kind for kind in KINDS if not (isinstance(kind, Window) and kind.kind == "lifetime") and kind != "lifetime"
)
WINDOWS = FeatureView(
    "windows",
    CARD,
    SOURCE,
    {
        "n": Count().over(*KINDS),
        "spend": Sum("amount").over(*KINDS),
        "points": Sum("points").over(Tumbling("10m"), Exact("10m")),
        "high": Max("amount").over(*KINDS),
        "last": Last("points").over(Exact("10m"), Lifetime(delay="13m"), Hopping("10m", hop="5m")),
    },
)
EXACT = FeatureView(
    "exact", CARD, SOURCE, {"n": Count().over(Exact("1h"), Exact("90s")), "low": Min("amount").over(Exact("1h"))}
)
CLOSED = FeatureView(
    "closed",
    CARD,
    SOURCE,
    {"n": Count().over(Tumbling("1h"), Series("2h", every="1h")), "mean": Mean("amount").over(Tumbling("1h"))},
)
WIDE = FeatureView(
    "wide",
    CARD,
    SOURCE,
    {
        "n": Count().over("10m", Exact("10m")),
        "texts": Texts("status").over(*KINDS),
        "few": Texts("status", most=2).over("10m", Tumbling("10m")),
        "shops": Texts("shop", where="online").over("10m", Exact("10m")),
        "longest": Longest("status").over("10m", "lifetime", Lifetime(delay="13m")),
    },
    where="amount IS NOT NULL OR points > 0",
)
TEXTS = FeatureView(
    "texts", CARD, SOURCE, {"all": Texts("status").over("10m", "lifetime"), "top": Longest("points").over("10m")}
)
TIMED_WINDOWS = FeatureView(
    "timed_windows",
    CARD,
    SOURCE,
    {
        "age": SecondsSinceFirst().over(*KINDS),
        "pause": SecondsSinceLast("points").over(*KINDS),
        "pace": Rate(per="1m").over(*BOUNDED),
        "earning": Rate("points").over(Tumbling("10m"), Exact("10m"), Sawtooth("10m", delay="7m")),
        "spread": StdDev("amount").over(Exact("10m"), Tumbling("10m"), Lifetime(delay="13m")),
        "sizes": Histogram("points", edges=[0, 2]).over(Exact("10m"), Tumbling("10m")),
    },
)
SEVERAL = FeatureView(
    "several",
    CARD,
    SOURCE,
    {
        "first": FirstK("amount", 3).over(*KINDS),
        "last": LastK("status", 4).over("10m", Exact("10m"), "lifetime"),
        "recent": LastK("shop", 2, distinct=True).over("1h", Tumbling("10m"), Lifetime(delay="13m")),
        "low": MinK("points", 3).over("10m", Exact("10m"), Hopping("10m", hop="5m")),
        "high": MaxK("amount", 2, where="online").over("10m", "lifetime"),
        "texts": MaxK("status", 2).over("10m", Tumbling("10m")),
        "shipped": MinK("shipped", 2).over("1h"),
        "flags": LastK("online", 3).over("10m"),
        "status": Last("status").over("10m", Exact("10m"), Lifetime(delay="13m")),
        "opened": First("status", where="points > 0").over("10m", "lifetime"),
        "least": Min("status").over("10m", Tumbling("10m")),
        "most": Max("status").over("lifetime", Exact("1h", delay="150s")),
    },
)
SKETCHES = FeatureView(
    "sketches",
    CARD,
    SOURCE,
    {
        "shops": DistinctCount("shop").over(*KINDS),
        "amounts": DistinctCount("amount", 3, overflow="null").over("10m", Tumbling("10m"), "lifetime"),
        "statuses": DistinctCount("status", 3).over("10m", Exact("10m"), "lifetime"),
        "about": ApproxDistinct("amount", precision=4).over("10m", Exact("10m"), Hopping("10m", hop="5m"), "lifetime"),
        "about_texts": ApproxDistinct("status").over("10m", Tumbling("10m")),
        "median": ApproxQuantile("amount", 0.5).over(*KINDS),
        "spread": ApproxQuantile("amount", [0.1, 0.9]).over("10m", Exact("10m"), Lifetime(delay="13m")),
        "top": TopItems("status", 2).over("10m", Exact("10m"), "lifetime"),
        "top_shops": TopItems("shop", 3, where="online").over("1h", Tumbling("10m")),
    },
    where="amount IS NULL OR amount < 50",
)
PARTS = (WINDOWS, EXACT, CLOSED, WIDE, TEXTS, SEVERAL, SKETCHES)
"""Views with parts of every kind."""
VIEWS = (MANY, CONDITIONS, COMPOSITE, LIFETIME, SHORT, MOMENTS, TIMED, TIMED_WINDOWS, *PARTS)

SLACK = 1e-6
"""Absolute, for sums of at most 200 values up to 1e16 that cancel; doubles that must be exact are compared exactly."""


def assert_same(view, expected, actual, what):
    for feature, (name, value), got in zip(view.layout.features, expected.items(), actual, strict=True):
        tolerance = feature.aggregate.tolerance
        same = values_agree(value, got, tolerance=tolerance, slack=SLACK if tolerance else 0.0)
        assert same, f"{name}: oracle {value!r}, {what} {got!r}"


def encoded(view, key):
    return encode_key(key, [DataType(kind) for kind in view.entity.keys.values()])
