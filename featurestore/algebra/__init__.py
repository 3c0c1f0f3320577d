"""The mathematics of windowed features: aggregates with laws, windows, and merging. Pure: no I/O, no engine."""

from __future__ import annotations

from featurestore.algebra.additive import Count, Mean, Sum
from featurestore.algebra.aggregate import Aggregate, EventOrder, element_sequence, offset_of, sequence_of
from featurestore.algebra.distinct import DistinctCount
from featurestore.algebra.extremal import Max, Min
from featurestore.algebra.histogram import Histogram
from featurestore.algebra.hll import ApproxDistinct
from featurestore.algebra.kll import ApproxQuantile
from featurestore.algebra.moments import Kurtosis, Skew, StdDev, Variance
from featurestore.algebra.ordered import First, Last
from featurestore.algebra.several import FirstK, LastK, MaxK, MinK
from featurestore.algebra.timed import Rate, SecondsSinceFirst, SecondsSinceLast
from featurestore.algebra.top_items import TopItems
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
        ApproxDistinct,
        ApproxQuantile,
        Count,
        DistinctCount,
        First,
        FirstK,
        Histogram,
        Kurtosis,
        Last,
        LastK,
        Max,
        MaxK,
        Mean,
        Min,
        MinK,
        Rate,
        SecondsSinceFirst,
        SecondsSinceLast,
        Skew,
        StdDev,
        Sum,
        TopItems,
        Variance,
    )
}
"""Every aggregate by name: how definitions, which are data, refer to them."""

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "ApproxDistinct",
    "ApproxQuantile",
    "Count",
    "DistinctCount",
    "EventOrder",
    "Exact",
    "First",
    "FirstK",
    "Histogram",
    "Hopping",
    "Kurtosis",
    "Last",
    "LastK",
    "Lifetime",
    "Max",
    "MaxK",
    "Mean",
    "Min",
    "MinK",
    "Rate",
    "Sawtooth",
    "SecondsSinceFirst",
    "SecondsSinceLast",
    "Series",
    "Skew",
    "StdDev",
    "Sum",
    "TopItems",
    "Tumbling",
    "Variance",
    "Window",
    "Windowed",
    "as_window",
    "element_sequence",
    "offset_of",
    "sequence_of",
]
