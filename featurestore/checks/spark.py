"""Cases through the training sets of production on a local Spark session, many of one view in one run."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.checks.case import Case, Probe, Send
from featurestore.definitions.service import FeatureService
from featurestore.offline.events import write_events
from featurestore.offline.training import training_set
from featurestore.online.memory import MemoryOnlineStore
from featurestore.testing.judge import Difference, Judge
from featurestore.testing.replay import Replay
from featurestore.testing.together import AT, VISIBLE_AT, answers, numbered, one_log, one_spine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.testing.log import EventLog

TrainingSets: TypeAlias = "Callable[[FeatureView, Any, Any, bool | str], Any]"
"""Numbered view, event log, spine and ``as_served`` -> the spine with features, all as Arrow tables."""
ENGINE = "training set on Spark"


@contextmanager
def spark_batches() -> Iterator[Callable[[Sequence[Case]], list[list[Difference]]]]:
    """Give a function that returns what differs in each of some cases of one view.

    A Spark session that runs in this process is used; otherwise one is started, on two threads, and stopped again.

    Raises:
        StackError: Java or the connector jars cannot be had.
    """
    from featurestore.engines.session import local_session

    with local_session("featurestore-verify") as session:
        yield lambda cases: batch_differences(cases, partial(_on_spark, session))


def _on_spark(session: Any, view: FeatureView, log: Any, spine: Any, as_served: bool | str) -> Any:  # noqa: FBT001
    with tempfile.TemporaryDirectory(prefix="featurestore-verify-") as folder:
        write_events(folder, view.source.name, log)
        service = FeatureService("verify", [view])
        made = training_set(session, service, spine, offline=folder, event_time=AT, as_served=as_served)
        table = made.to_arrow()
        made.release()
    return table


def batch_differences(cases: Sequence[Case], answer: TrainingSets) -> list[list[Difference]]:
    """Return, per case, where a training set of all of them differs from the specification; all cases are of one view.

    All records of a case are in its event log, and every probe is asked; batches and crashes mean nothing here. Where a run
    raises, the cases are halved until the one that is to blame is alone.

    Args:
        cases: At least one.
        answer: Makes the training set of the numbered view, its event log, a spine, and the name of the column of times of
            ``as_served`` or False.
    """
    try:
        return _run(cases, answer)
    except Exception as error:  # noqa: BLE001 - whatever Spark raises is a finding
        if len(cases) == 1:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return [[Difference(cases[0].view.name, {}, 0, ENGINE, "error", None, text)]]
        half = len(cases) // 2
        return batch_differences(cases[:half], answer) + batch_differences(cases[half:], answer)


def _run(cases: Sequence[Case], answer: TrainingSets) -> list[list[Difference]]:
    view = cases[0].view
    logs = [_log_of(case) for case in cases]
    judges = [Judge(view, log.events(), log.shaped(view), MemoryOnlineStore(), 0) for log in logs]
    probes = [(number, step) for number, case in enumerate(cases) for step in case.steps if isinstance(step, Probe)]
    found: list[list[Difference]] = [[] for _ in cases]
    log = one_log(view, logs)
    for as_served in (False, True):
        asked = [(number, step) for number, step in probes if (step.visible_at is not None) == as_served]
        if not asked:
            continue
        spine = one_spine(view, [(number, step.keys, step.at, step.visible_at) for number, step in asked])
        values = answers(view, answer(numbered(view), log, spine, VISIBLE_AT if as_served else False))
        for (number, step), row in zip(asked, values, strict=True):
            found[number] += judges[number].compare(ENGINE, step.keys, step.at, row, step.visible_at)
    return found


def _log_of(case: Case) -> EventLog:
    """Return the event log of a case, with everything that is ever sent."""
    source = case.view.source.name
    with Replay(case.view) as run:
        for step in case.steps:
            if isinstance(step, Send):
                run.send(source, step.event, arrival=step.arrival, partition=step.partition)
        return run.log(source)
