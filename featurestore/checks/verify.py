"""verify: are all paths equal on these definitions? Hostile cases, one after the other, until the time is over.

Every case goes through the specification, the kernel of training sets, and the online path of production over each store
given; or, many at a time, through a *batch engine*: the training sets of production on Spark. The first case that differs is
shrunk and told as a pytest. Nothing outside this process is touched unless a store or a batch engine is passed in.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.checks.case import Case, Probe, Send, run_case
from featurestore.checks.generate import generate
from featurestore.checks.pytest_text import pytest_text
from featurestore.checks.shrink import Shrinker
from featurestore.checks.stores import memory_store
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from featurestore.definitions.view import FeatureView
    from featurestore.online.store import OnlineStore
    from featurestore.testing.judge import Difference

Runner: TypeAlias = "Callable[[Sequence[Case]], list[list[Difference]]]"
"""Cases of one view -> what differs in each."""
SECONDS = 20.0
SHRINK_SECONDS = 30.0
BATCH = 20
"""Cases of one view that go through a batch engine together."""


@dataclass(frozen=True)
class Failure:
    """A case on which two paths differ.

    Attributes:
        view: The view.
        seed: The seed it was drawn from.
        engine: Where it fails: the name of an online store, or "spark".
        case: The smallest case found.
        steps_before: How many steps it had when it was drawn.
        differences: What differs in it.
        test: The case as a pytest.
    """

    view: str
    seed: int
    engine: str
    case: Case
    steps_before: int
    differences: tuple[Difference, ...]
    test: str


@dataclass
class VerifyResult:
    """What verify found.

    Attributes:
        seed: The seed of the first case; that of case i is ``seed + i``.
        engines: What was compared with the specification.
        cases: Cases run, per view.
        events: Records sent, over all cases.
        probes: Lookups compared, each with all features of its view.
        seconds: How long it took.
        failure: The first case that differs; None when all are equal.
    """

    seed: int
    engines: tuple[str, ...]
    cases: dict[str, int] = field(default_factory=dict)
    events: int = 0
    probes: int = 0
    seconds: float = 0.0
    failure: Failure | None = None

    @property
    def equal(self) -> bool:
        """Whether all paths agreed."""
        return self.failure is None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        failure = self.failure
        return {
            "equal": self.equal,
            "seed": self.seed,
            "engines": list(self.engines),
            "cases": self.cases,
            "events": self.events,
            "probes": self.probes,
            "seconds": round(self.seconds, 3),
            "failure": None
            if failure is None
            else {
                "view": failure.view,
                "seed": failure.seed,
                "engine": failure.engine,
                "steps": len(failure.case.steps),
                "steps_before": failure.steps_before,
                "differences": [str(difference) for difference in failure.differences],
                "test": failure.test,
            },
        }

    def __str__(self) -> str:
        done = ", ".join(f"{view} {count}" for view, count in self.cases.items())
        head = (
            f"{sum(self.cases.values())} cases ({done}), {self.events:,} records, {self.probes:,} lookups in "
            f"{self.seconds:.1f} s; seed {self.seed}; specification against {', '.join(self.engines)}"
        )
        if self.failure is None:
            return f"equal: {head}."
        lines = "\n".join(f"  {difference}" for difference in self.failure.differences[:5])
        return (
            f"different: {head}.\nview {self.failure.view}, {self.failure.engine}, {len(self.failure.case.steps)} of "
            f"{self.failure.steps_before} steps left:\n{lines}\n\n{self.failure.test}"
        )


def verify(
    views: Sequence[FeatureView],
    *,
    seconds: float = SECONDS,
    seed: int | None = None,
    most_cases: int | None = None,
    stores: Mapping[str, Callable[[], AbstractContextManager[OnlineStore]]] | None = None,
    batches: Mapping[str, Runner] | None = None,
    imports: Mapping[str, tuple[str, str]] | None = None,
    shrink_seconds: float = SHRINK_SECONDS,
    progress: Callable[[VerifyResult], None] | None = None,
) -> VerifyResult:
    """Return whether all paths agree on the views, as far as the cases that fit into the time show.

    Args:
        views: The definitions; their cases take turns, and every view gets at least one.
        seconds: How long to look.
        seed: Chooses the cases; random when None, and always part of the result.
        most_cases: Stop after this many, too.
        stores: Name to a context manager that gives an empty store, on each of which every case is run; one in memory when
            None.
        batches: Name to a function that returns what differs in each of some cases of one view.
        imports: View name to the module and name it can be imported from, for the printed test.
        shrink_seconds: How long to look for a smaller case once one differs.
        progress: Called after every case.

    Raises:
        DefinitionError: There are no views.
    """
    if not views:
        raise DefinitionError(
            "there is no feature view to verify.", hint="define one, or name another service or view."
        )
    stores = {"memory": memory_store} if stores is None else stores
    batches = batches or {}
    engines: dict[str, Runner] = {name: _on_store(open_store) for name, open_store in stores.items()}
    engines |= batches
    first = secrets.randbelow(2**31) if seed is None else seed
    result = VerifyResult(first, (*(["training set"] if stores else []), *engines))
    began = time.monotonic()
    number = 0
    while most_cases is None or number < most_cases:
        result.seconds = time.monotonic() - began
        size = BATCH if batches else 1
        view = views[number // size % len(views)]
        if number >= len(views) * size and result.seconds >= seconds:
            break
        if most_cases is not None:
            size = min(size, most_cases - number)
        cases = [generate(view, first + number + each) for each in range(size)]
        result.cases[view.name] = result.cases.get(view.name, 0) + size
        result.events += sum(isinstance(step, Send) for case in cases for step in case.steps)
        result.probes += sum(isinstance(step, Probe) for case in cases for step in case.steps)
        for engine, run in engines.items():
            wrong = next((place for place, found in enumerate(run(cases)) if found), None)
            if wrong is not None:
                result.failure = shrunk(
                    cases[wrong], first + number + wrong, engine, run, imports or {}, shrink_seconds=shrink_seconds
                )
                result.seconds = time.monotonic() - began
                return result
        number += size
        if progress is not None:
            progress(result)
    result.seconds = time.monotonic() - began
    return result


def _on_store(open_store: Callable[[], AbstractContextManager[OnlineStore]]) -> Runner:
    """Return a function that runs cases one by one, each on an empty store."""

    def run(cases: Sequence[Case]) -> list[list[Difference]]:
        found = []
        for case in cases:
            with open_store() as store:
                found.append(run_case(case, store))
        return found

    return run


def shrunk(
    case: Case,
    seed: int,
    engine: str,
    run: Runner,
    imports: Mapping[str, tuple[str, str]],
    *,
    shrink_seconds: float,
) -> Failure:
    """Return the smallest form of a failing case."""
    shrinker = Shrinker(lambda smaller: bool(run([smaller])[0]), seconds=shrink_seconds)
    small = shrinker.shrink(case)
    found = run([small])[0] or run([case])[0]
    origin = f"featurestore verify --view {case.view.name} --seed {seed}, on {engine}"
    test = pytest_text(small, found, origin=origin, imported=imports.get(case.view.name))
    return Failure(case.view.name, seed, engine, small, len(case.steps), tuple(found), test)
