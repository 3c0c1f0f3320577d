"""``ttl`` of a view: refused where it would lose a value, and no part of any meaning."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from featurestore import Count, Entity, Exact, FeatureView, Hopping, Sawtooth, Tumbling
from featurestore.definitions.registry import Definitions, diff
from featurestore.errors import DefinitionError
from featurestore.timeline import HOUR, parse_duration
from tests.conformance.cases import SOURCE


def view(*windows, ttl):
    return FeatureView("v", Entity("card", keys={"card_id": "string"}), SOURCE, {"n": Count().over(*windows)}, ttl=ttl)


@pytest.mark.parametrize(
    ("window", "shortest"),
    [
        ("1h", "1h10m"),  # hop 5m, and a skew of 5m
        (Sawtooth("1h", hop="30m"), "1h35m"),
        (Hopping("1h", hop="30m", delay="2h"), "3h35m"),
        (Tumbling("1d"), "2d5m"),
        (Exact("1h"), "1h5m1us"),
    ],
    ids=str,
)
def test_the_shortest_is_the_longest_window_with_hop_delay_and_skew(window, shortest):
    assert SOURCE.allowed_skew == "5m"
    assert view("1m", window, ttl=shortest).ttl_us is not None
    short = f"{view('1m', window, ttl=shortest).ttl_us - 1}us"
    with pytest.raises(DefinitionError, match=r"is shorter than .* which v.n_") as refused:
        view("1m", window, ttl=short)
    suggested = re.search("'(.*)'", refused.value.hint)[1]
    assert parse_duration(suggested) == parse_duration(shortest)


@pytest.mark.parametrize("bad", ["0s", "soon"])
def test_a_ttl_that_is_no_duration_is_refused(bad):
    with pytest.raises(DefinitionError):
        view("1h", ttl=bad)


def test_a_lifetime_is_never_forgotten():
    with pytest.raises(DefinitionError, match=r"v\.n_lifetime counts, whose window has no beginning"):
        view("1h", "lifetime", ttl="365d")


def test_it_is_data_and_no_part_of_the_meaning():
    forever, fading = view("1h", ttl=None), view("1h", ttl="14d")
    assert fading.fingerprint == forever.fingerprint
    assert fading.ttl_us == 14 * 24 * HOUR
    definitions = Definitions.of([fading])
    assert Definitions.from_dict(definitions.to_dict()).views["v"] == fading
    (change,) = diff(Definitions.of([forever]), definitions)
    assert str(change) == (
        "~ view v (lookups: any age, else fail -> any age, else fail; a key is forgotten 14d after its last event)"
    )
    assert not diff(definitions, Definitions.of([replace(forever, ttl="14d")]))
