"""A streaming feature store: declare features once; train on and serve the same values.

Everything a user writes is importable from here. Importing this package loads no engine, broker or store client:
each name is loaded from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    BreakingChangeError,
    BrokerUnavailableError,
    CheckpointMismatchError,
    CodecError,
    ConfigError,
    ContractError,
    DefinitionError,
    DuplicateNameError,
    ExpressionError,
    FeatureStoreError,
    FenceError,
    JobError,
    LeaseError,
    ModelError,
    ModelInputError,
    OfflineError,
    OfflineStoreUnavailableError,
    OffsetsGoneError,
    OnlineError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    PastLookupError,
    ScoringError,
    SpineError,
    StackError,
    StaleFeatureError,
    SubmitError,
    UnknownNameError,
    WindowError,
)

if TYPE_CHECKING:
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
    )
    from featurestore.config import Settings
    from featurestore.definitions.derived import Derived, Ratio, RequestFeature
    from featurestore.definitions.entity import Entity
    from featurestore.definitions.service import FeatureService
    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.online.async_client import AsyncFeatureClient
    from featurestore.online.client import FeatureClient
    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "ApproxDistinct",
    "ApproxQuantile",
    "AsyncFeatureClient",
    "BreakingChangeError",
    "BrokerUnavailableError",
    "CheckpointMismatchError",
    "CodecError",
    "ConfigError",
    "ContractError",
    "Count",
    "DefinitionError",
    "Derived",
    "DistinctCount",
    "DuplicateNameError",
    "Entity",
    "EventSource",
    "Exact",
    "ExpressionError",
    "FeatureClient",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureTable",
    "FeatureVector",
    "FeatureView",
    "FenceError",
    "First",
    "FirstK",
    "Histogram",
    "Hopping",
    "JobError",
    "Kurtosis",
    "Last",
    "LastK",
    "LeaseError",
    "Lifetime",
    "Max",
    "MaxK",
    "Mean",
    "Min",
    "MinK",
    "ModelError",
    "ModelInputError",
    "OfflineError",
    "OfflineStoreUnavailableError",
    "OffsetsGoneError",
    "OnlineError",
    "OnlineStoreTimeoutError",
    "OnlineStoreUnavailableError",
    "PastLookupError",
    "Rate",
    "Ratio",
    "RequestFeature",
    "Sawtooth",
    "ScoringError",
    "SecondsSinceFirst",
    "SecondsSinceLast",
    "Series",
    "Settings",
    "Skew",
    "SpineError",
    "StackError",
    "StaleFeatureError",
    "StdDev",
    "SubmitError",
    "Sum",
    "TopItems",
    "Tumbling",
    "UnknownNameError",
    "Variance",
    "WindowError",
]

_MODULES = {
    "ApproxDistinct": "algebra",
    "ApproxQuantile": "algebra",
    "Count": "algebra",
    "Derived": "definitions.derived",
    "DistinctCount": "algebra",
    "Entity": "definitions.entity",
    "EventSource": "definitions.source",
    "Exact": "algebra",
    "AsyncFeatureClient": "online.async_client",
    "FeatureClient": "online.client",
    "FeatureService": "definitions.service",
    "FeatureStore": "store",
    "FeatureTable": "online.table",
    "FeatureVector": "online.vector",
    "FeatureView": "definitions.view",
    "First": "algebra",
    "FirstK": "algebra",
    "Histogram": "algebra",
    "Hopping": "algebra",
    "Kurtosis": "algebra",
    "Last": "algebra",
    "LastK": "algebra",
    "Lifetime": "algebra",
    "Max": "algebra",
    "MaxK": "algebra",
    "Mean": "algebra",
    "Min": "algebra",
    "MinK": "algebra",
    "Rate": "algebra",
    "Ratio": "definitions.derived",
    "RequestFeature": "definitions.derived",
    "Sawtooth": "algebra",
    "SecondsSinceFirst": "algebra",
    "SecondsSinceLast": "algebra",
    "Series": "algebra",
    "Settings": "config",
    "Skew": "algebra",
    "StdDev": "algebra",
    "Sum": "algebra",
    "TopItems": "algebra",
    "Tumbling": "algebra",
    "Variance": "algebra",
}
"""Public name -> the module it lives in."""


def __getattr__(name: str) -> Any:
    """Return a public name from its module, loaded now."""
    if name not in _MODULES:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"featurestore.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
