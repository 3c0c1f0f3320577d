"""A case: what happens to one view, step by step, as data. It can be run on any online store, cut down, and printed.

    Send     a record arrives          Drain    the job applies what has arrived, as one micro-batch
    Crash    the job dies while it does so, and comes back          Probe    every path is asked, and compared

A run is judged by what ``testing.judge`` finds at every probe, and by the quarantine: what is no event by construction has
to be there, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.testing.judge import Difference
from featurestore.testing.records import held_instant
from featurestore.testing.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.definitions.view import FeatureView
    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Instant


@dataclass(frozen=True, slots=True)
class Send:
    """A record arrives.

    Attributes:
        event: A row that keeps the contract, or bytes that do not.
        arrival: When.
        partition: Where.
    """

    event: Mapping[str, Any] | bytes
    arrival: Instant
    partition: int


@dataclass(frozen=True, slots=True)
class Drain:
    """The job applies what has arrived."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The job dies after this many buckets, and starts from its checkpoint or from the beginning."""

    after: int
    lost_checkpoint: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """Every path is asked for one key at one time."""

    keys: tuple[Any, ...]
    at: Instant
    visible_at: Instant | None = None


Step: TypeAlias = Send | Drain | Crash | Probe


@dataclass(frozen=True)
class Case:
    """What happens to one view.

    Attributes:
        view: The definition.
        steps: In order; records in order of arrival.
        tail_cap: Records in a tail before it is folded.
    """

    view: FeatureView
    steps: tuple[Step, ...]
    tail_cap: int

    def with_steps(self, steps: tuple[Step, ...]) -> Case:
        """Return the case with other steps."""
        return replace(self, steps=steps)


def is_event(view: FeatureView, send: Send) -> bool:
    """Whether a record has to be accepted: it keeps the contract, and is not from too far in the future."""
    if isinstance(send.event, bytes):
        return False
    happened = held_instant(view.source, view.source.event_time, send.event[view.source.event_time])
    return happened <= send.arrival + view.source.allowed_skew_us


def run_case(case: Case, store: OnlineStore | None = None, *, first: bool = True) -> list[Difference]:
    """Run a case and return what differs; nothing where all is well.

    Args:
        case: The case.
        store: An empty online store; one in memory when None.
        first: Stop at the first probe that finds something.
    """
    found: list[Difference] = []
    view = case.view
    source = view.source.name
    with Replay(view, tail_cap=case.tail_cap, store=store) as run:
        expected: dict[tuple[int, int], bool] = {}
        try:
            for step in case.steps:
                if isinstance(step, Send):
                    record = run.send(source, step.event, arrival=step.arrival, partition=step.partition)
                    expected[record.partition, record.offset] = is_event(view, step)
                elif isinstance(step, Drain):
                    run.drain()
                elif isinstance(step, Crash):
                    run.crash(after=step.after, lost_checkpoint=step.lost_checkpoint)
                else:
                    keys = dict(zip(view.entity.keys, step.keys, strict=True))
                    found += run.differences(keys, at=step.at, visible_at=step.visible_at)
                    if found and first:
                        return found
            refused = {(one.partition, one.offset): f"{one.reason}: {one.detail}" for one in run.quarantine}
            found += [
                Difference(
                    view.name, {"partition": partition, "offset": offset}, run.clock.now(), "decoder", "quarantine",
                    "accepted" if fine else "refused", refused.get((partition, offset), "accepted"),
                )
                for (partition, offset), fine in expected.items()
                if fine == ((partition, offset) in refused)
            ]  # fmt: skip
        except Exception as error:  # noqa: BLE001 - whatever a path raises is a finding
            text = f"{type(error).__name__}: {error}"
            found.append(Difference(view.name, {}, run.clock.now(), "replay", "error", None, text))
    return found
