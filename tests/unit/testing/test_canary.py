"""Canaries: what was read is measured, what was not is counted as lost, and a reader's failure is not swallowed."""

from __future__ import annotations

import math

import pytest

from featurestore.testing.canary import measure_freshness

SHORT = {"rate": 200, "seconds": 0.2, "warm_up": 0.1, "markers_per_second": 50, "patience": 0.2}


def test_every_marker_after_the_warm_up_is_measured():
    sent = []
    found = measure_freshness(
        lambda name, number: sent.append((name, number)), lambda names: [True] * len(names), **SHORT
    )
    numbers = [number for _, number in sent]
    assert numbers == list(range(len(sent)))
    markers = [name for name, _ in sent if name.startswith("marker-")]
    assert 0 < found.markers < len(markers), "those of the warm-up do not count"
    assert found.lost == 0
    assert 0 <= found.p10_ms <= found.p50_ms <= found.p99_ms <= found.worst_ms


def test_markers_that_are_never_read_are_lost():
    found = measure_freshness(lambda _name, _number: None, lambda names: [False] * len(names), **SHORT)
    assert found.markers == 0 < found.lost
    assert math.isnan(found.p50_ms)


def test_what_the_reader_raises_is_raised():
    def readable(_names):
        raise LookupError("no such service")

    with pytest.raises(LookupError, match="no such service"):
        measure_freshness(lambda _name, _number: None, readable, **SHORT)
