"""verify finds every planted bug, and nothing where there is none; what it prints is a test that fails with the bug."""

from __future__ import annotations

import pytest

from featurestore.checks.verify import verify
from featurestore.online.compiled import SWITCH
from tests.conformance.cases import COMPOSITE, CONDITIONS, LIFETIME, MANY, SHORT, VIEWS, WINDOWS
from tests.conformance.derived import DERIVED
from tests.conformance.planted import BUGS

pytestmark = pytest.mark.thorough

WITHIN = 200
"""Cases after which every bug has been met."""


def plant(bug, patch):
    """Make an edit, and leave compiled code out of what it does not concern: it would read in the place of what was edited."""
    if not bug.name.startswith("compiled"):
        patch.setenv(SWITCH, "0")
    bug.plant(patch)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug, monkeypatch):
    plant(bug, monkeypatch)
    views = (SHORT,) if bug.name.startswith("reach") else (SHORT, MANY, COMPOSITE, CONDITIONS, WINDOWS)
    if bug.name.startswith("derive"):
        views = (DERIVED,)
    result = verify(views, seed=7, seconds=600, most_cases=WITHIN, shrink_seconds=0)
    assert not result.equal, f"not found in {result}"


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_where_no_bug_is_planted_none_is_found(view):
    result = verify([view], seed=7, seconds=600, most_cases=10)
    assert result.equal, str(result)
    assert result.cases == {view.name: 10}
    assert result.probes > 25


SHOWN = {
    "points: the event at t counts": (MANY, 4),
    "reader: a row one hop late": (SHORT, 4),
    "reach: an event from the future drops the present": (SHORT, 5),
    "writer: what the fence covers is applied again": (LIFETIME, 4),
    "decoder: an event as far ahead as is allowed is refused": (LIFETIME, 3),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_failure_is_told_as_the_smallest_test_that_shows_it(name, monkeypatch):
    (bug,) = [bug for bug in BUGS if bug.name == name]
    view, most = SHOWN[name]
    with monkeypatch.context() as patch:
        plant(bug, patch)
        failure = verify([view], seed=7, seconds=600, most_cases=WITHIN, shrink_seconds=30).failure
        assert failure is not None
        assert len(failure.case.steps) <= most, failure.test
        with pytest.raises(AssertionError):
            run_text(failure.test)
    run_text(failure.test)  # and passes once the bug is gone


def run_text(text):
    """Run the one test in a piece of source."""
    space = {}
    exec(compile(text, "<printed>", "exec"), space)
    (test,) = [value for name, value in space.items() if name.startswith("test_")]
    test()


def test_no_two_bugs_are_the_same():
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert len({(bug.where, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
