"""The case table: feature values worked out by hand, as data in ``tests/cases/features`` (see ``tests/cases/README.md``).

A case becomes events, a view and questions with the values they must have; every path is a runner that answers the same
questions. A runner that shares a log, a topic or a store between all cases asks for the views ``together``: their entities
have ``case_id`` as one more key column, in front.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import featurestore
from featurestore.algebra import Aggregate
from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.engines.oracle import Event
from featurestore.testing.compare import values_match
from featurestore.timeline import parse_duration, to_instant

CASES = Path(__file__).parents[1] / "cases"
SOURCE = EventSource(
    "events", topic="case_events", schema=Contract.load(CASES / "contract.json"), event_time="event_time"
)
COLUMNS = SOURCE.contract.columns
MILLISECOND = 1_000
_STEP = re.compile(r"([+-])([0-9][0-9a-z]*)")


@dataclass(frozen=True)
class Question:
    """A lookup and what it must answer.

    Attributes:
        case: The case's id.
        key: Key columns and values.
        t: The time.
        seen: Hides what arrived later; None hides nothing.
        known: How many of the case's events have to be applied before an online store can answer.
        values: Feature name, without the view's, to its value. Features not named are not asked about.
    """

    case: str
    key: dict
    t: int
    seen: int | None
    known: int
    values: dict

    def __str__(self):
        seen = "" if self.seen is None else f", seen at {self.seen}"
        return f"{self.case}: {self.key} at {self.t}{seen}"


@dataclass(frozen=True)
class Case:
    """A case: events in order of arrival, and questions in order of ``known``.

    Attributes:
        id: File and name; unique in the table.
        view: The definition.
        events: Every partition's offsets ascend from 0.
        questions: What is asked.
        why: The reasoning behind the values.
    """

    id: str
    view: FeatureView
    events: tuple[Event, ...]
    questions: tuple[Question, ...]
    why: str

    @cached_property
    def together(self):
        """The view with ``case_id`` as its first key column, the same object's equal for all cases of a file."""
        keys = {"case_id": "string", **self.view.entity.keys}
        return replace(self.view, entity=Entity(self.view.entity.name, keys=keys))


def instant(text, begin):
    """Return the instant of ISO 8601 or of steps from ``begin``: "0", "+1h", "-1us", "+1h-1us"."""
    if text == "0":
        return begin
    steps = _STEP.findall(text)
    if "".join(sign + step for sign, step in steps) != text:
        return to_instant(text)
    return begin + sum(parse_duration(step) * (1 if sign == "+" else -1) for sign, step in steps)


def take(given, allowed, what):
    """Return ``given`` when it has no other keys than ``allowed``; a slip of the pen must not go unnoticed."""
    assert set(given) <= set(allowed), f"{what}: unknown {sorted(set(given) - set(allowed))}"
    return given


def read_view(name, given):
    """Return the view that a file defines."""
    take(given, ("keys", "where", "features"), name)
    features = {}
    for feature, spec in given["features"].items():
        options = dict(spec)
        kind, over = getattr(featurestore, options.pop("aggregate")), options.pop("over")
        assert issubclass(kind, Aggregate)
        windows = [each if isinstance(each, str) else read_window(dict(each)) for each in over]
        features[feature] = kind(**options).over(*windows)
    return FeatureView(name, Entity(name, keys=given["keys"]), SOURCE, features, where=given.get("where"))


def read_window(options):
    """Return the window, or series of windows, of its kind and arguments."""
    kind = getattr(featurestore, options.pop("window"))
    length = options.pop("length", None)
    return kind(**options) if length is None else kind(length, **options)


def typed(value, kind, begin):
    """Return a value of the table as the engines have it: JSON has no NaN, no infinity and no time."""
    if value is None:
        return None
    if kind.element is not None:
        return [typed(each, kind.element, begin) for each in value]
    if kind == DataType.TIMESTAMP:
        return instant(value, begin)
    if kind == DataType.FLOAT64:
        assert not isinstance(value, str) or value in {"NaN", "Infinity", "-Infinity"}
        return float(value)
    expected = {DataType.INT64: int, DataType.BOOL: bool, DataType.STRING: str}[kind]
    assert type(value) is expected, f"{value!r} is no {kind}"
    return value


def read_case(file, view, given, begin):
    """Return one case of a file."""
    name = f"{file}: {given['name']}"
    take(given, ("name", "why", "begin", "key", "events", "lookups"), name)
    assert given["why"].strip(), f"{name} has no reason"
    begin = to_instant(given.get("begin", begin))
    events, offsets, arrived = [], {}, 0
    for own, at in repeated(given, name, begin):
        partition = own.get("partition", 0)
        if "arrival" in own:
            arrival = instant(own["arrival"], begin)
            assert arrival >= arrived, f"{name}: events are not in order of arrival"
            assert arrival % MILLISECOND == 0, f"{name}: a broker's arrival is in whole milliseconds"
        else:
            arrival = max(arrived, -(-at // MILLISECOND) * MILLISECOND)
        assert at <= arrival + SOURCE.allowed_skew_us, f"{name}: an event from too far in the future"
        arrived = arrival
        row = {column: typed(own.get(column), kind, begin) for column, kind in COLUMNS.items()}
        row |= {"case_id": name, "event_time": at}
        offset = offsets.get(partition, 0)
        offsets[partition] = offset + 1
        events.append(Event(row, at, arrival, partition, offset))
    questions = [read_question(name, view, events, one, given.get("key", {}), begin) for one in given["lookups"]]
    assert questions, f"{name} asks nothing"
    ordered = sorted(questions, key=lambda question: question.known)
    return Case(name, view, tuple(events), tuple(ordered), given["why"])


def repeated(given, name, begin):
    """Yield every event of a case with its time; those that are written once for many, as often as they say."""
    for one in given["events"]:
        own = take({**given.get("key", {}), **one}, ("at", "arrival", "partition", "repeat", "every", *COLUMNS), name)
        assert ("repeat" in own) == ("every" in own)
        assert not {"repeat", "arrival"} <= set(own), f"{name}: repeated events arrive when they happen"
        step = parse_duration(own["every"]) if "every" in own else 0
        for number in range(own.get("repeat", 1)):
            yield own, instant(own["at"], begin) + number * step


def read_question(name, view, events, given, key, begin):
    """Return one lookup of a case."""
    take(given, ("t", "key", "seen", "values"), name)
    t, seen = instant(given["t"], begin), None
    if "seen" in given:
        seen = instant(given["seen"], begin)
        known = sum(event.arrival <= seen for event in events)
    else:
        known = max((i + 1 for i, event in enumerate(events) if event.event_time < t), default=0)
    key = {**key, **given.get("key", {})}
    key = {column: typed(key.get(column), DataType(kind), begin) for column, kind in view.entity.keys.items()}
    kinds = {feature.name: feature.aggregate.result_type for feature in view.layout.features}
    assert given["values"], f"{name}: a lookup expects nothing"
    take(given["values"], kinds, name)
    values = {feature: typed(value, kinds[feature], begin) for feature, value in given["values"].items()}
    return Question(name, key, t, seen, known, values)


def load(path):
    """Return the cases of one file."""
    given = take(json.loads(path.read_text(encoding="utf-8")), ("about", "begin", "view", "cases"), path.name)
    view = read_view(path.stem, given["view"])
    return [read_case(path.stem, view, one, given["begin"]) for one in given["cases"]]


def load_all():
    """Return the whole table."""
    cases = [case for path in sorted((CASES / "features").glob("*.json")) for case in load(path)]
    assert len({case.id for case in cases}) == len(cases), "two cases have one name"
    return cases


# ------------------------------------------------------------------------------------------------- judging answers


def named(view, values):
    """Return what a path answers for a view, in order, by feature."""
    return {
        feature.name: plain(value, feature.aggregate.result_type)
        for feature, value in zip(view.layout.features, values, strict=True)
    }


def plain(value, kind):
    """Return a value as the specification has it: an instant as microseconds."""
    if isinstance(value, list):
        return [plain(each, kind.element) for each in value]
    return to_instant(value) if isinstance(value, datetime) else value


def same(feature, expected, got):
    """Return whether a value is the expected one, of the same type."""
    of = type(expected[0]) if isinstance(expected, list) and expected else type(expected)
    has = type(got[0]) if isinstance(got, list) and got else type(got)
    return of is has and type(expected) is type(got) and values_match(feature, expected, got)


def wrong(view, question, answer):
    """Return in words which values of an answer are not the expected ones.

    Args:
        view: The definition.
        question: What was asked.
        answer: Feature name to value, of all features.
    """
    features = {feature.name: feature for feature in view.layout.features}
    assert answer.keys() == features.keys()
    return [
        f"{question}: {name} is {answer[name]!r}, not {expected!r}"
        for name, expected in question.values.items()
        if not same(features[name], expected, answer[name])
    ]


def spoil(value, kind):
    """Return a value of the same type that is another one: what a table with a mistake would expect."""
    if value is None:
        return [] if kind.element else {DataType.STRING: "", DataType.FLOAT64: 0.0, DataType.BOOL: False}.get(kind, 0)
    if isinstance(value, list):
        return [*value[:-1], spoil(value[-1], kind.element)] if value else [spoil(None, kind.element)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, float):
        return 0.5 if not math.isfinite(value) else value + max(1e-6, abs(value) * 1e-6)
    return value + 1


def spoilt(view, question):
    """Return a question for each of its values, in which that value alone is wrong."""
    kinds = {feature.name: feature.aggregate.result_type for feature in view.layout.features}
    return [
        replace(question, values={**question.values, name: spoil(value, kinds[name])})
        for name, value in question.values.items()
    ]
