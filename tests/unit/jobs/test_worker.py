"""How far a source is complete, from its progress and its end offsets alone."""

from __future__ import annotations

import pytest

from featurestore.jobs.worker import complete_through


@pytest.mark.parametrize(
    ("progress", "ends", "read_at", "expected"),
    [
        pytest.param({}, {0: 0}, 50, 50, id="an empty topic is complete now"),
        pytest.param({}, {0: 0}, None, None, id="an empty topic on another clock says nothing"),
        pytest.param({}, {0: 1}, 50, None, id="nothing applied of what is there"),
        pytest.param({0: (3, 30)}, {0: 5}, 50, 30, id="a lagging partition holds it at its newest arrival"),
        pytest.param({0: (3, 30), 1: (9, 20)}, {0: 5, 1: 10}, 50, 20, id="the furthest behind decides"),
        pytest.param({0: (3, 30), 1: (9, 20)}, {0: 5, 1: 9}, 50, 30, id="one at its end holds nothing back"),
        pytest.param({0: (3, 30)}, {0: 5, 1: 1}, 50, None, id="an unknown arrival cannot be named"),
        pytest.param({0: (3, 30)}, {0: 5, 1: 0}, 50, 30, id="an idle partition counts as complete"),
        pytest.param(
            {0: (5, 30), 1: (7, 20)}, {0: 5, 1: 7}, 50, 50, id="all at their ends: complete as of the reading"
        ),
        pytest.param({0: (5, 30), 1: (7, 20)}, {0: 5, 1: 7}, None, 30, id="without a common clock: the newest arrival"),
    ],
)
def test_complete_through_is(progress, ends, read_at, expected):
    assert complete_through(progress, ends, read_at=read_at) == expected
