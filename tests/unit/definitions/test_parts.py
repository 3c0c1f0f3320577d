from __future__ import annotations

import json

import pytest

from featurestore.algebra import Count, Exact, Hopping, Last, Lifetime, Max, Sawtooth, Series, Sum, Tumbling
from featurestore.datatypes import DataType
from featurestore.definitions.layout import ViewLayout, compile_layout
from featurestore.timeline import DAY, HOUR, MINUTE
from tests.conformance.cases import PARTS, VIEWS
from tests.laws.wide import Texts

N = DataType.INT64


def layout_of(*features):
    return compile_layout(
        view="v",
        fingerprint="00c0ffee00c0ffee",
        source="s",
        keys={"k": DataType.STRING},
        features=[(f"f{i}_{w.label}", a, w) for i, (a, *given) in enumerate(features) for w in a.over(*given).windows],
    )


def shape_of(layout):
    return [
        (part.tile, [(ladder.hop, ladder.reach, ladder.is_suffix, ladder.settled) for ladder in part.ladders])
        for part in layout.parts
    ]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (("1h", "lifetime"), [(5 * MINUTE, [(5 * MINUTE, HOUR, True, None), (None, None, True, None)])]),
        ((Exact("1h"),), [(1, [(1, HOUR, True, None)])]),
        ((Exact("1h"), Exact("2h")), [(1, [(1, 2 * HOUR, True, None)])]),
        ((Hopping("1h", hop="5m"),), [(5 * MINUTE, [(5 * MINUTE, HOUR, False, None)])]),
        (
            ("1h", Hopping("1h", hop="5m")),
            [(5 * MINUTE, [(5 * MINUTE, HOUR, True, None), (5 * MINUTE, HOUR, False, None)])],
        ),
        ((Series("7d", every="1d"),), [(DAY, [(DAY, 7 * DAY, False, None)])]),
        ((Tumbling("1h", delay="1d"),), [(HOUR, [(HOUR, DAY + HOUR, False, None)])]),
        ((Lifetime(delay="1d"), Lifetime(delay="2d")), [(1, [(1, None, False, 2 * DAY)])]),
        (
            ("1h", Sawtooth("1h", delay="1d"), Exact("1h", delay="2d"), Exact("1h")),
            [
                (5 * MINUTE, [(5 * MINUTE, HOUR, True, None)]),
                (1, [(1, HOUR, True, None), (1, 2 * DAY + HOUR, False, None)]),
            ],
        ),
        ((Sawtooth("1h", hop="30m", delay="1d"),), [(1, [(1, DAY + HOUR + 30 * MINUTE - 1, False, None)])]),
    ],
)
def test_windows_are_placed_where_their_edges_lie(windows, expected):
    assert shape_of(layout_of((Count(), *windows))) == expected


def test_wide_measures_have_parts_of_their_own():
    layout = layout_of(
        (Count(), "1h"), (Texts("s").bind(DataType.STRING), "1h", Exact("1h")), (Max("x").bind(N), Exact("1h"))
    )
    assert [(part.is_fixed, part.is_event_grained, part.measure_ids) for part in layout.parts] == [
        (True, False, (0,)),
        (True, True, (2,)),
        (False, False, (1,)),
        (False, True, (1,)),
    ]
    assert [part.number for part in layout.parts] == [0, 1, 2, 3]


def test_what_matters_only_when_a_value_is_finalized_does_not_split_a_partial():
    texts = [Texts("s", most=most).bind(DataType.STRING) for most in (1, 2)]
    assert len(layout_of(*((one, "1h") for one in texts)).measures) == 1
    assert len(layout_of((texts[0], "1h"), (Texts("s", where="x > 1").bind(DataType.STRING), "1h")).measures) == 2


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_feature_is_read_once_from_a_ladder_that_holds_it(view):
    layout = view.layout
    reads = [(part, read) for part in layout.parts for read in part.reads]
    assert sorted(read.feature for _, read in reads) == list(range(len(layout.features)))
    for part, read in reads:
        feature, ladder = layout.features[read.feature], part.ladders[read.ladder]
        assert part.measure_ids[read.measure] == feature.measure
        assert part.measures[read.measure] is layout.measures[feature.measure]
        assert read.measure in ladder.measures
        assert ladder.is_suffix == feature.window.ends_at_t
        if ladder.hop is not None:
            assert ladder.hop % part.tile == 0
            assert (feature.window.hop or ladder.hop) % ladder.hop == 0
        for t in (0, -1, 12_345_678_901):
            start, end = feature.window.start(t), feature.window.end(t)
            if ladder.hop is not None:
                assert start is None or start % ladder.hop == 0
                assert ladder.is_suffix or end % ladder.hop == 0
            if ladder.reach is not None:
                # what a lookup just after the newest event can reach is kept by a fold
                assert start // ladder.hop >= (t - ladder.reach) // ladder.hop
            if ladder.settled is not None:
                assert end >= t - ladder.settled


@pytest.mark.parametrize("view", PARTS, ids=lambda view: view.name)
def test_parts_survive_being_data(view, monkeypatch):
    from featurestore.algebra import AGGREGATES
    from tests.laws.wide import Longest

    monkeypatch.setitem(AGGREGATES, "Texts", Texts)
    monkeypatch.setitem(AGGREGATES, "Longest", Longest)
    twin = ViewLayout.from_dict(json.loads(json.dumps(view.layout.to_dict())))
    assert twin == view.layout
    assert twin.parts == view.layout.parts


def test_most_views_have_one_part():
    features = ((Count(), "5m", "24h", "lifetime"), (Sum("x").bind(N), "1h"), (Last("x").bind(N), Tumbling("1d")))
    assert len(layout_of(*features).parts) == 1
