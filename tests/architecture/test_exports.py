"""One import line is the whole learning surface: ``featurestore.__all__``, and every module's own."""

from __future__ import annotations

import ast
import importlib

import pytest
from source_tree import modules

import featurestore
from featurestore import errors

MODULES = modules()


def stated(path):
    """Return the literal ``__all__`` of a module, or None."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return ast.literal_eval(node.value)
    return None


WITH_ALL = {name: names for name, path in MODULES.items() if (names := stated(path)) is not None}


@pytest.mark.parametrize("name", sorted(WITH_ALL))
def test_all_is_sorted_without_repeats(name):
    assert list(WITH_ALL[name]) == sorted(set(WITH_ALL[name]))


@pytest.mark.parametrize("name", sorted(WITH_ALL))
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    missing = [public for public in WITH_ALL[name] if not hasattr(module, public)]
    assert not missing


def test_the_package_states_its_public_names():
    assert "featurestore" in WITH_ALL
    assert set(WITH_ALL["featurestore"]) <= set(dir(featurestore))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = featurestore.no_such_name


@pytest.mark.parametrize(
    "name",
    [
        "Entity",
        "EventSource",
        "FeatureView",
        "FeatureService",
        "FeatureClient",
        "Count",
        "Sum",
        "Mean",
        "Min",
        "Max",
        "First",
        "Last",
        "Variance",
        "StdDev",
        "Skew",
        "Kurtosis",
        "Histogram",
        "SecondsSinceFirst",
        "SecondsSinceLast",
        "Rate",
        "FirstK",
        "LastK",
        "MinK",
        "MaxK",
        "DistinctCount",
        "ApproxDistinct",
        "ApproxQuantile",
        "TopItems",
        "Sawtooth",
        "Lifetime",
        "Exact",
        "Hopping",
        "Tumbling",
        "Series",
        "FeatureStoreError",
    ],
)
def test_what_a_user_writes_is_public(name):
    assert name in WITH_ALL["featurestore"]


def test_every_error_that_is_public_is_the_one_that_is_raised():
    for name in WITH_ALL["featurestore"]:
        if name.endswith("Error"):
            assert getattr(featurestore, name) is getattr(errors, name)
