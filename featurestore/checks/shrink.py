"""Shrinking: the smallest case that still fails. First fewer steps (Zeller and Hildebrandt's ddmin, 2002), then plainer ones.

Every candidate is run; one that still fails, in whatever way, replaces the case. The result depends on the case alone, up to
the time allowed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.checks.case import Case, Crash, Drain, Probe, Send, Step
from featurestore.datatypes import DataType
from featurestore.timeline import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN: dict[DataType, tuple[Any, ...]] = {
    DataType.INT64: (0, 1),
    DataType.FLOAT64: (0.0, 1.0, 2.0),
    DataType.BOOL: (True, False),
    DataType.STRING: ("", "a"),
    DataType.TIMESTAMP: (0,),
}


class Shrinker:
    """Makes a failing case smaller, until nothing helps or the time is over.

    Args:
        fails: Whether a case fails.
        seconds: How long to try.
    """

    def __init__(self, fails: Callable[[Case], bool], *, seconds: float = 20.0) -> None:
        self._fails = fails
        self._until = time.monotonic() + seconds
        self.runs = 0

    def shrink(self, case: Case) -> Case:
        """Return the smallest case found that fails as well."""
        before: Case | None = None
        while case != before and not self._over:
            before = case
            case = self._fewer(case)
            for simpler in (self._plain_steps, self._plain_times, self._plain_values):
                case = simpler(case)
        return case

    @property
    def _over(self) -> bool:
        return time.monotonic() > self._until

    def _still_fails(self, case: Case) -> bool:
        arrivals = [step.arrival for step in case.steps if isinstance(step, Send)]
        if self._over or arrivals != sorted(arrivals):  # records are sent in order of arrival
            return False
        self.runs += 1
        return self._fails(case)

    def _fewer(self, case: Case) -> Case:
        """Return the case without every step it can do without: chunks of steps are left out, ever smaller ones."""
        steps = case.steps
        size = max(1, len(steps) // 2)
        while True:
            position = 0
            while position < len(steps):
                candidate = steps[:position] + steps[position + size :]
                if self._still_fails(case.with_steps(candidate)):
                    steps = candidate
                else:
                    position += size
            if size == 1 or self._over:
                return case.with_steps(steps)
            size = max(1, size // 2)

    def _plain_steps(self, case: Case) -> Case:
        """Return the case with crashes made plain, one partition, and no early folds, where that still fails."""
        for changed in (replace(case, tail_cap=8), replace(case, tail_cap=0)):
            if changed.tail_cap != case.tail_cap and case.tail_cap not in (0, 8) and self._still_fails(changed):
                case = changed
        together = case.with_steps(tuple(replace(s, partition=0) if isinstance(s, Send) else s for s in case.steps))
        if together != case and self._still_fails(together):
            case = together
        return self._each(case, _plainer_steps)

    def _plain_times(self, case: Case) -> Case:
        return self._each(case, _rounder_times)

    def _plain_values(self, case: Case) -> Case:
        return self._each(case, _plainer_values)

    def _each(self, case: Case, candidates: Callable[[Case, Step], Iterator[Step]]) -> Case:
        """Return the case with each step replaced by the first candidate that still fails."""
        for position in range(len(case.steps)):
            for step in candidates(case, case.steps[position]):
                steps = (*case.steps[:position], step, *case.steps[position + 1 :])
                if step != case.steps[position] and self._still_fails(case.with_steps(steps)):
                    case = case.with_steps(steps)
        return case


def _plainer_steps(case: Case, step: Step) -> Iterator[Step]:
    """Yield a plainer step of the same kind; ``case`` is not needed."""
    del case
    if isinstance(step, Crash):
        yield Drain()
        yield Crash(step.after, lost_checkpoint=False)
    if isinstance(step, Probe) and step.visible_at is not None:
        yield Probe(step.keys, step.at)


def _rounder_times(case: Case, step: Step) -> Iterator[Step]:
    if isinstance(step, Send) and not isinstance(step.event, bytes):
        name = case.view.source.event_time
        happened = step.event[name]
        yield replace(step, arrival=happened)
        for unit in (3600 * SECOND, 60 * SECOND, SECOND):
            rounded = happened - happened % unit
            yield Send({**step.event, name: rounded}, max(rounded, step.arrival), step.partition)
            yield Send({**step.event, name: rounded}, rounded, step.partition)
    if isinstance(step, Probe):
        for unit in (3600 * SECOND, 60 * SECOND, SECOND):
            yield replace(step, at=step.at - step.at % unit)


def _plainer_values(case: Case, step: Step) -> Iterator[Step]:
    """Yield the step with one value of its row made null, or else plain; the key and the event time stay."""
    if not isinstance(step, Send) or isinstance(step.event, bytes):
        return
    for columns in case.view.source.contract.arrays.values():
        size = len(step.event.get(columns[0].name) or ())
        for kept in (slice(0, 0), slice(0, 1), slice(1, None)):
            if len(range(size)[kept]) < size:
                yield replace(step, event={**step.event, **{one.name: step.event[one.name][kept] for one in columns}})
    fixed = {*case.view.entity.keys, case.view.source.event_time}
    row = dict(step.event)
    for field in case.view.source.contract.fields:
        value = row.get(field.name)
        plain = _PLAIN.get(field.type, ())
        if (
            field.name in fixed
            or field.array is not None
            or value is None
            or (not field.nullable and value in plain[:1])
        ):
            continue
        choices = ((None,) if field.nullable else ()) + (() if field.bounds or value in plain else plain)
        for choice in choices:
            yield replace(step, event={**row, field.name: choice})
