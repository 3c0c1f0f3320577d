"""The mathematics of windowed features: aggregates with laws, windows, and merging. Pure: no I/O, no engine."""

from __future__ import annotations

from featurestore.algebra.additive import Count, Mean, Sum
from featurestore.algebra.aggregate import Aggregate, EventOrder, sequence_of
from featurestore.algebra.extremal import Max, Min
from featurestore.algebra.histogram import Histogram
from featurestore.algebra.moments import Kurtosis, Skew, StdDev, Variance
from featurestore.algebra.ordered import First, Last
from featurestore.algebra.timed import Rate, SecondsSinceFirst, SecondsSinceLast
from featurestore.algebra.windows import (
    Exact,
    Hopping,
    Lifetime,
    Sawtooth,
    Series,
    Tumbling,
    Window,
    Windowed,
    as_window,
)

AGGREGATES: dict[str, type[Aggregate]] = {
    kind.__name__: kind
    for kind in (
        Count,
        First,
        Histogram,
        Kurtosis,
        Last,
        Max,
        Mean,
        Min,
        Rate,
        SecondsSinceFirst,
        SecondsSinceLast,
        Skew,
        StdDev,
        Sum,
        Variance,
    )
}
"""Every aggregate by name: how definitions, which are data, refer to them."""

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Count",
    "EventOrder",
    "Exact",
    "First",
    "Histogram",
    "Hopping",
    "Kurtosis",
    "Last",
    "Lifetime",
    "Max",
    "Mean",
    "Min",
    "Rate",
    "Sawtooth",
    "SecondsSinceFirst",
    "SecondsSinceLast",
    "Series",
    "Skew",
    "StdDev",
    "Sum",
    "Tumbling",
    "Variance",
    "Window",
    "Windowed",
    "as_window",
    "sequence_of",
]
