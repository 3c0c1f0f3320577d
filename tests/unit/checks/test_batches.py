"""Many cases as one training set: verify's batch engine over the workers of training sets, run in this process."""

from __future__ import annotations

import pytest

from featurestore.checks.case import Probe
from featurestore.checks.generate import generate
from featurestore.checks.spark import batch_differences
from featurestore.checks.verify import BATCH, verify
from featurestore.testing.together import AT
from tests.conformance.cases import COMPOSITE, SKETCHES, WINDOWS
from tests.unit.offline.local import run


def here(view, log, spine, as_served):
    visible = spine.column(as_served).to_numpy() if as_served else None
    return run([view], {view.source.name: log}, spine, spine.column(AT).to_numpy(), visible=visible)[0]


def engine(answer):
    return lambda cases: batch_differences(cases, answer)


@pytest.mark.parametrize("view", [WINDOWS, COMPOSITE, SKETCHES], ids=lambda view: view.name)
def test_cases_of_one_view_are_equal_in_one_training_set(view):
    result = verify([view], seconds=0, seed=4, most_cases=6, stores={}, batches={"here": engine(here)})
    assert result.equal, str(result)
    assert (result.engines, result.cases) == (("here",), {view.name: 6})
    assert result.probes > 30


def test_views_take_turns_batch_by_batch():
    result = verify(
        [COMPOSITE, WINDOWS], seconds=0, seed=4, most_cases=BATCH + 2, stores={}, batches={"here": engine(here)}
    )
    assert result.cases == {"composite": BATCH, "windows": 2}


def test_the_case_that_differs_is_the_one_that_is_told_and_shrunk():
    def wrong(view, log, spine, as_served):
        made = here(view, log, spine, as_served)
        name = "composite.n_1h"
        numbers = spine.column("log_number").to_pylist()
        values = made.column(name).to_pylist()
        alone = len(set(numbers)) == 1
        more = [value + (number == 3 or alone) for value, number in zip(values, numbers, strict=True)]
        return made.set_column(made.column_names.index(name), name, [more])

    result = verify([COMPOSITE], seconds=0, seed=4, stores={}, batches={"here": engine(wrong)}, shrink_seconds=20)
    assert result.failure is not None
    assert (result.failure.seed, result.failure.engine) == (7, "here")
    assert len(result.failure.case.steps) == 1
    assert {each.feature for each in result.failure.differences} == {"composite.n_1h"}
    assert "--seed 7, on here" in result.failure.test


def test_a_run_that_raises_is_halved_until_the_case_to_blame_is_alone():
    cases = [generate(COMPOSITE, seed) for seed in range(5)]
    times = [{step.at for step in case.steps if isinstance(step, Probe)} for case in cases]
    bad = min(times[3] - times[0] - times[1] - times[2] - times[4])

    def fails(view, log, spine, as_served):
        if bad in spine.column(AT).to_pylist():
            raise ValueError("cannot be\nanswered")
        return here(view, log, spine, as_served)

    found = batch_differences(cases, fails)
    assert [len(each) for each in found] == [0, 0, 0, 1, 0]
    assert (found[3][0].feature, found[3][0].actual) == ("error", "ValueError: cannot be answered")
