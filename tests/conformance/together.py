"""The case table asked of a path that all cases share: one log, one topic or one store; ``case_id`` tells them apart."""

from __future__ import annotations

import pyarrow as pa

from featurestore.errors import PastLookupError
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.testing.records import row_bytes
from tests.conformance.table import COLUMNS, SOURCE, load_all, named, spoilt, wrong

TABLE = load_all()
VIEWS = tuple({case.view.name: case.together for case in TABLE}.values())
VIEW = {case.id: next(view for view in VIEWS if view.name == case.view.name) for case in TABLE}
QUESTIONS = [question for case in TABLE for question in case.questions]


def why_wrong(question, answer):
    """Return which values of an answer are not the expected ones."""
    return wrong(VIEW[question.case], question, answer)


def judge(answers):
    """Fail unless every answer is the expected one, and unless each of its values would be missed if it were another."""
    found = [text for question, answer in answers for text in why_wrong(question, answer)]
    assert not found, "\n".join(found[:20])
    for question, answer in answers:
        for mistaken in spoilt(VIEW[question.case], question):
            assert len(why_wrong(mistaken, answer)) == 1, mistaken


def mixed(queues, dice):
    """Return the events of several queues as one, in random order but for the order within each."""
    turns = [name for name, events in queues.items() for _ in events]
    dice.shuffle(turns)
    left = {name: iter(events) for name, events in queues.items()}
    return [next(left[name]) for name in turns]


def key_of(question):
    return {"case_id": question.case, **question.key}


def spine_of(questions):
    """Return a spine with the key columns of every view; those that a question has not are null."""
    columns = {name: kind for view in VIEWS for name, kind in view.entity.keys.items()}
    rows = [key_of(question) for question in questions]
    keys = {name: pa.array([row.get(name) for row in rows], ARROW_TYPES[COLUMNS[name]]) for name in columns}
    t = pa.array([question.t for question in questions], pa.int64())
    seen = pa.array([question.seen or 0 for question in questions], pa.int64())
    return pa.table({**keys, "t": t, "seen": seen})


def row_answer(question, row):
    """Return the answer in a row of a training set."""
    view = VIEW[question.case]
    return named(view, [row[name] for name in view.layout.feature_ids])


def steps_of(table):
    """Yield, step by step, the events to send, case by case, and the (case, question) pairs that can be asked then."""
    sent = dict.fromkeys((case.id for case in table), 0)
    for step in range(1 + max(len({question.known for question in case.questions}) for case in table)):
        queues, asked = {}, []
        for case in table:
            known = sorted({question.known for question in case.questions})
            until = known[step] if step < len(known) else len(case.events)
            queues[case.id] = case.events[sent[case.id] : until]
            if step < len(known):
                asked += [(case, question) for question in case.questions if question.known == until]
            sent[case.id] = until
        yield queues, asked


def answer_of(client, case, question):
    """Return what an online store answers; None where it refuses, and an event at or after t is the reason."""
    try:
        vector = client.get(case.view.name, key_of(question), now=question.t)
    except PastLookupError:
        assert any(event.event_time >= question.t for event in case.events[: question.known]), question
        return None
    return named(VIEW[question.case], vector.to_list())


def kafka_rows(events, offsets):
    """Return events as a batch of Kafka rows behind the ``offsets`` of each partition, which move on."""
    places = []
    for event in events:
        places.append((event.partition, offsets[event.partition]))
        offsets[event.partition] += 1
    return pa.record_batch(
        {
            "topic": pa.array([SOURCE.topic] * len(events), pa.string()),
            "partition": pa.array([partition for partition, _ in places], pa.int32()),
            "offset": pa.array([offset for _, offset in places], pa.int64()),
            "timestamp": pa.array([event.arrival for event in events], pa.timestamp("us", "UTC")),
            "value": pa.array([row_bytes(SOURCE, event.row, {}) for event in events], pa.binary()),
        }
    )
