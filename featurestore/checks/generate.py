"""Cases drawn for a view from a seed: a hostile stream, cut, folded, crashed and probed at random moments."""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from featurestore.checks.case import Case, Crash, Drain, Probe, Send, Step
from featurestore.datatypes import DataType
from featurestore.engines.rows import rows_of
from featurestore.testing.streams import hostile_stream, with_key
from featurestore.timeline import DAY, HOUR, floor_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.engines.oracle import Event

_MALFORMED = (b"", b"{", b"null", b"[]", b'{"a": NaN}', b"\xff\xfe", b'"text"')


def generate(view: FeatureView, seed: int) -> Case:
    """Return the case of a seed; the same seed always gives the same case."""
    case = _generate(view, seed)
    return case if view.source.event_id is None else _with_repetitions(case, random.Random(seed))  # noqa: S311


def _generate(view: FeatureView, seed: int) -> Case:
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    on_edges = dice.random() < 0.5
    stream = hostile_stream(
        view,
        seed=seed,
        events=6 if on_edges else dice.choice((6, 20, 60, 100)),
        probes=12,
        partitions=dice.choice((1, 2, 3)),
        nan=dice.choice((0.0, 0.05)),
    )
    if on_edges:
        return _on_edges(view, stream.events, dice)
    cut = dice.choice((0.02, 0.1, 0.4))
    early = [probe for probe in stream.probes if dice.random() < 0.3]
    steps: list[Step] = []
    skew = view.source.allowed_skew_us
    for number, event in enumerate(stream.events):
        steps.append(Send(event.row, event.arrival, event.partition))
        if dice.random() < 0.02:
            steps.append(Send(dice.choice(_MALFORMED), event.arrival, event.partition))
        if dice.random() < 0.03:
            early_row = {**event.row, view.source.event_time: event.arrival + skew + dice.choice((0, 1, 2 * skew))}
            steps.append(Send(early_row, event.arrival, event.partition))
        if dice.random() < cut:
            steps.append(Drain())
        if dice.random() < 0.04:
            steps.append(Crash(dice.randrange(4), dice.random() < 0.3))
        if early and dice.random() < len(early) / len(stream.events):
            keys, at = dice.choice(early)
            steps.append(Probe(keys, at))
        if dice.random() < 0.06:
            some = dice.choice(stream.events[: number + 1])
            steps.append(Probe(_key_of(view, some), dice.choice((event.arrival, some.event_time, some.arrival)) + 1))
        if event.event_time > event.arrival and dice.random() < 0.5:  # ahead of the clock: skipped until its time
            steps.append(Probe(_key_of(view, event), dice.choice((event.arrival, event.event_time))))
    for keys, at in stream.probes:
        steps.append(Probe(keys, at))
        if dice.random() < 0.5:
            moments = [at, at - dice.randrange(10**9), dice.choice(stream.events).arrival]
            steps.append(Probe(keys, at, dice.choice(moments)))
    return Case(view, tuple(steps), dice.choice((0, 1, 4, 8)))


def _with_repetitions(case: Case, dice: random.Random) -> Case:
    """Return the case with ids of which most are new, and with copies of events around the end of the horizon."""
    source = case.view.source
    field = next(one for one in source.contract.fields if one.name == source.event_id)
    is_text, is_free = field.type == DataType.STRING, not field.bounds
    horizon = source.id_horizon_us
    steps: list[Step] = []
    waiting: list[tuple[int, int, Send]] = []  # copies to come, by arrival

    def arrive(until: int | None) -> None:
        while waiting and (until is None or waiting[0][0] <= until):
            steps.append(heappop(waiting)[2])

    for number, step in enumerate(case.steps):
        if not isinstance(step, Send) or isinstance(step.event, bytes):
            steps.append(step)
            continue
        arrive(step.arrival)
        row = dict(step.event)
        if is_free and dice.random() < 0.9:
            row[field.name] = f"id {number}" if is_text else number
        elif field.nullable and dice.random() < 0.3:
            row[field.name] = None
        made = Send(row, step.arrival, step.partition)
        steps.append(made)
        while dice.random() < 0.3:
            gap = dice.choice((0, 1, horizon // 2, horizon - 1, horizon, horizon + 1, 2 * horizon))
            changed = (
                row
                if dice.random() < 0.7
                else {**row, source.event_time: row[source.event_time] - dice.randrange(HOUR)}
            )
            partition = step.partition if dice.random() < 0.9 else step.partition + 1
            made = Send(changed, made.arrival + gap, partition)
            heappush(waiting, (made.arrival, len(steps) + len(waiting), made))
    arrive(None)
    return case.with_steps(tuple(steps))


def _on_edges(view: FeatureView, events: Sequence[Event], dice: random.Random) -> Case:
    """Return a few events of one key around both edges of one window, all of it asked at that window's time."""
    windows = [feature.window for feature in view.layout.features]
    furthest = max(windows, key=lambda window: (window.length or 0) + (window.hop or 0))
    window = furthest if dice.random() < 0.5 else dice.choice(windows)
    hop = window.hop or HOUR
    t = floor_to(dice.choice(events).event_time, hop) + dice.choice((0, hop - 1, hop - 1, dice.randrange(hop)))
    covered = window.interval(t)
    low, end = t - DAY if covered.start is None else covered.start, covered.end
    near = (low - 1, low + 1, end - 1, low - hop - 1, low - 3 * (end - low), (low + end) // 2)
    key = _key_of(view, *events)
    times = [low, end - 1, *(dice.choice(near) for _ in range(dice.choice((0, 1, 2, 6))))]
    times += [end] if dice.random() < 0.5 else []
    partitions = dice.choice((1, 1, 2))
    late = [_delay(dice, view.source.allowed_skew_us) for _ in times]
    name = view.source.event_time
    steps: list[Step] = []
    for arrival, time in sorted((time + delay, time) for time, delay in zip(times, late, strict=True)):
        row = with_key(view, dict(dice.choice(events).row), key, dice)
        steps.append(Send({**row, name: time}, arrival, dice.randrange(partitions)))
        if dice.random() < 0.2:
            steps.append(Drain())
    now = max(time + delay for time, delay in zip(times, late, strict=True))
    asked = dict.fromkeys((now, t, t + 1, *(dice.choice(times) + dice.choice((0, 1)) for _ in range(3))))
    probes = [Probe(key, at) for at in asked]
    return Case(view, (*steps, *probes), dice.choice((0, 1, 4)))


def _delay(dice: random.Random, skew: int) -> int:
    """Return arrival minus event time: mostly nothing, sometimes late, sometimes ahead of the clock."""
    kind = dice.random()
    return dice.randrange(HOUR) if kind < 0.15 else -dice.randrange(1, skew + 1) if kind < 0.3 else 0


def _key_of(view: FeatureView, *events: Event) -> tuple[Any, ...]:
    """Return the key of the first of some events; of an array's element, of the first there is, or else null."""
    rows = rows_of(view, events)
    if rows:
        return tuple(rows[0].row[column] for column in view.entity.keys)
    inside = {one.name for one in view.exploded}
    return tuple(None if column in inside else events[0].row[column] for column in view.key_columns)
