"""Cases through the training sets of production on a local Spark session, many of one view in one run."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

    from featurestore.testing.log import EventLog

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
        yield lambda cases: spark_differences(session, cases)


def spark_differences(session: Any, cases: Sequence[Case]) -> list[list[Difference]]:
    """Return, per case, where Spark's training set differs from the specification; all cases are of one view.

    All records of a case are in its event log, and every probe is asked; batches and crashes mean nothing here. Where a run
    raises, the cases are halved until the one that is to blame is alone.
    """
    try:
        return _run(session, cases)
    except Exception as error:  # noqa: BLE001 - whatever Spark raises is a finding
        if len(cases) == 1:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return [[Difference(cases[0].view.name, {}, 0, ENGINE, "error", None, text)]]
        half = len(cases) // 2
        return spark_differences(session, cases[:half]) + spark_differences(session, cases[half:])


def _run(session: Any, cases: Sequence[Case]) -> list[list[Difference]]:
    view = cases[0].view
    logs = [_log_of(case) for case in cases]
    judges = [Judge(view, log.events(), log.shaped(view), MemoryOnlineStore(), 0) for log in logs]
    probes = [(number, step) for number, case in enumerate(cases) for step in case.steps if isinstance(step, Probe)]
    found: list[list[Difference]] = [[] for _ in cases]
    service = FeatureService("verify", [numbered(view)])
    with tempfile.TemporaryDirectory(prefix="featurestore-verify-") as folder:
        write_events(folder, view.source.name, one_log(view, logs))
        for as_served in (False, True):
            asked = [(number, step) for number, step in probes if (step.visible_at is not None) == as_served]
            if not asked:
                continue
            spine = one_spine(view, [(number, step.keys, step.at, step.visible_at) for number, step in asked])
            made = training_set(
                session, service, spine, offline=folder, event_time=AT, as_served=VISIBLE_AT if as_served else False
            )
            values = answers(view, made.to_arrow())
            made.release()
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
