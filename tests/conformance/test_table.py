"""The case table on every path: each answers every question with the value that was worked out by hand.

Paths without a JVM run here, the specification among them; those through Kafka and Spark in ``tests/streaming/test_table``.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import featurestore
from featurestore.algebra import AGGREGATES
from featurestore.engines.oracle import values_at
from featurestore.errors import PastLookupError
from featurestore.jobs.archive import DecodeWorker
from featurestore.jobs.hot import HotWorker
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.log import values_of
from featurestore.testing.replay import replay
from featurestore.testing.streams import shape_events
from tests.conformance.table import SOURCE, instant, named, spoilt, wrong
from tests.conformance.together import (
    QUESTIONS,
    TABLE,
    VIEWS,
    answer_of,
    judge,
    kafka_rows,
    mixed,
    row_answer,
    spine_of,
    steps_of,
)
from tests.unit.offline.local import run as run_workers

each_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)


def check(view, question, answer):
    """Fail unless the answer is the expected one, and unless each value of it would be missed if it were another."""
    found = wrong(view, question, answer)
    assert not found, "\n".join(found)
    for mistaken in spoilt(view, question):
        assert len(wrong(view, mistaken, answer)) == 1, f"a mistake in the table goes unnoticed: {mistaken}"


@each_case
@pytest.mark.parametrize("together", [False, True], ids=["own", "together"])
def test_the_specification(case, together):
    view = case.together if together else case.view
    for question in case.questions:
        key = [*([case.id] if together else []), *question.key.values()]
        values = values_at(view, case.events, key, question.t, visible_at=question.seen)
        check(view, question, named(view, values.values()))


@each_case
def test_the_points_kernel(case):
    view, shaped = case.view, shape_events(case.view, case.events)
    for question in case.questions:
        ((*values,),) = values_of(view, shaped, [(tuple(question.key.values()), question.t, question.seen)])
        check(view, question, named(view, values))


def test_the_points_kernel_for_all_cases_of_a_view_at_once():
    for name in {case.view.name for case in TABLE}:
        mine = [case for case in TABLE if case.view.name == name]
        view = mine[0].together
        shaped = shape_events(view, [event for case in mine for event in case.events])
        for served in (False, True):
            asked = [q for case in mine for q in case.questions if (q.seen is not None) == served]
            points = [((question.case, *question.key.values()), question.t, question.seen) for question in asked]
            for question, values in zip(asked, values_of(view, shaped, points), strict=True):
                check(view, question, named(view, values))


def ask(case, run):
    """Ask a replay every question as soon as it can be answered, and those by event time again in the end.

    Returns:
        How many answers were right, and how many questions were refused. A refusal has to have its reason: an event at or
        after t that has been merged already.
    """
    right, refused, sent = 0, 0, 0

    def one(question):
        nonlocal right, refused
        try:
            vector = run.get(question.key, now=question.t)
        except PastLookupError:
            assert any(event.event_time >= question.t for event in case.events[:sent]), question
            refused += 1
            return
        check(case.view, question, named(case.view, vector.to_list()))
        right += 1

    for question in case.questions:
        for event in case.events[sent : question.known]:
            record = run.send(SOURCE.name, event.row, arrival=event.arrival, partition=event.partition)
            assert (record.partition, record.offset) == (event.partition, event.offset)
        sent = max(sent, question.known)
        one(question)
    assert right, "an online store has to be able to answer some question of a case"
    for event in case.events[sent:]:
        run.send(SOURCE.name, event.row, arrival=event.arrival, partition=event.partition)
    sent = len(case.events)
    for question in case.questions:
        if question.seen is None or question.known == sent:
            one(question)
    assert not run.quarantine
    return right, refused


@each_case
@pytest.mark.parametrize("tail_cap", [0, 16])
def test_the_store_in_memory(case, tail_cap):
    with replay(case.view, start=0, tail_cap=tail_cap) as run:
        ask(case, run)
        run.assert_equal()


def test_nearly_every_question_can_be_asked_of_an_online_store_in_time():
    asked = [(case, question) for case in TABLE for question in case.questions]
    early = [
        question
        for case, question in asked
        if any(event.event_time >= question.t for event in case.events[: question.known])
    ]
    assert len(early) < len(QUESTIONS) / 10


@pytest.mark.thorough
@pytest.mark.server
@pytest.mark.parametrize("tail_cap", [0, 16])
def test_a_real_store(online_url, tail_cap):
    right = 0
    for number, case in enumerate(TABLE):
        store = RedisOnlineStore(online_url, f"case_{number}")
        try:
            with replay(case.view, start=0, tail_cap=tail_cap, store=store) as run:
                right += ask(case, run)[0]
        finally:
            store.close()
    assert right > 0.9 * len(QUESTIONS)


# ------------------------------------------------------------------------- all cases at once, in Spark's workers


@pytest.mark.parametrize("served", [False, True])
def test_the_workers_of_a_training_set(served):
    """What runs in Spark's Python workers, in this process: decoder, event log, training set."""
    events = mixed({case.id: case.events for case in TABLE}, random.Random(1))
    log = pa.Table.from_batches(DecodeWorker(SOURCE)(iter([kafka_rows(events, Counter())])))
    assert log.num_rows == len(events)
    assert log.column("_reason").null_count == len(events)
    asked = [question for question in QUESTIONS if (question.seen is not None) == served]
    at = np.array([question.t for question in asked])
    seen = np.array([question.seen for question in asked]) if served else None
    made, _ = run_workers(VIEWS, {SOURCE.name: log}, spine_of(asked), at, visible=seen)
    judge([(question, row_answer(question, row)) for question, row in zip(asked, made.to_pylist(), strict=True)])


class Fates(Counter):
    """Counts as an accumulator does."""

    def add(self, found):
        self.update(found)


@pytest.mark.thorough
@pytest.mark.server
@pytest.mark.parametrize("seed", [1, 2])
def test_the_worker_of_the_stream_in_any_cuts(online_url, seed):
    """The stream's worker on Kafka rows, cut at random offsets, with ranges that come again as after a lost checkpoint."""
    dice, offsets, refused, answers, fates = random.Random(seed), Counter(), 0, [], Fates()
    worker = HotWorker(online_url, f"cuts_{seed}", {SOURCE.topic: (SOURCE, VIEWS)}, counts=fates)
    store = RedisOnlineStore(online_url, f"cuts_{seed}")
    for view in VIEWS:
        store.publish_plan(LookupPlan(view.name, (view.layout,)))
    client = FeatureClient.over(store)
    for queues, asked in steps_of(TABLE):
        rows = pa.Table.from_batches([kafka_rows(mixed(queues, dice), offsets)])
        for partition in range(3):
            mine = rows.filter(pc.equal(rows.column("partition"), partition))
            done = 0
            while done < mine.num_rows:
                begin, done = dice.randrange(done + 1), min(mine.num_rows, done + dice.randrange(1, 40))
                assert not list(worker(iter(mine.slice(begin, done - begin).combine_chunks().to_batches())))
        # Until something is complete, a key without events is unknown rather than empty.
        store.publish_complete(SOURCE.name, max(arrival for _, arrival in store.progress(SOURCE.name).values()))
        for case, question in asked:
            answer = answer_of(client, case, question)
            if answer is None:
                refused += 1
            else:
                answers.append((question, answer))
    client.close()
    judge(answers)
    assert len(answers) + refused == len(QUESTIONS)
    assert len(answers) > 0.9 * len(QUESTIONS)
    assert fates["fenced"] > 0
    assert fates["consumed"] > sum(offsets.values())


# --------------------------------------------------------------------------------------------- what the table covers


def test_every_aggregate_and_every_kind_of_window_has_a_case():
    asked = {
        (type(feature.aggregate).__name__, feature.window.kind, bool(feature.window.delay))
        for case in TABLE
        for feature in case.view.layout.features
        if any(feature.name in question.values for question in case.questions)
    }
    assert {name for name, _, _ in asked} == set(AGGREGATES)
    kinds = {"sawtooth", "exact", "hopping", "tumbling", "lifetime"}
    assert {kind for _, kind, _ in asked} == kinds
    assert {kind for _, kind, delayed in asked if delayed} == kinds
    for name in AGGREGATES:
        assert len({kind for each, kind, _ in asked if each == name}) > 1, f"{name} has one kind of window only"


def test_every_feature_a_file_defines_is_asked_for():
    for name in {case.view.name for case in TABLE}:
        mine = [case for case in TABLE if case.view.name == name]
        asked = {feature for case in mine for question in case.questions for feature in question.values}
        assert {feature.name for feature in mine[0].view.layout.features} == asked, name


def test_every_aggregate_is_asked_for_null_or_zero_and_for_a_value():
    for name in AGGREGATES:
        values = [
            question.values[feature.name]
            for case in TABLE
            for feature in case.view.layout.features
            if type(feature.aggregate).__name__ == name
            for question in case.questions
            if feature.name in question.values
        ]
        empty = [value for value in values if value is None or not any(value if isinstance(value, list) else [value])]
        assert empty, name
        assert len(empty) < len(values), name


def test_aggregates_are_the_public_ones():
    assert set(AGGREGATES) <= set(featurestore.__all__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 7),
        ("+1us", 8),
        ("-1us", 6),
        ("+1m-1us", 60_000_006),
        ("+1h30m", 5_400_000_007),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times_are_steps_from_the_begin_or_instants(text, expected):
    assert instant(text, 7) == expected
