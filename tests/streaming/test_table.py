"""The case table, and hostile streams, through Spark: a training set over a Delta log, and a Kafka topic in any cuts.

All cases share one log, one topic and one store; ``case_id`` is a key column more. The stream is the job's hot query, stopped
and started again at random offsets, with micro-batches of a few records, once with its checkpoint lost. An online store
cannot answer every past t: the cases' events are sent in steps, and each question is asked after the step that completes
it. A refusal has to have its reason, an event at or after t; by event time the training set answers every question.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pyarrow as pa
import pytest

from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.engines.oracle import values_at
from featurestore.errors import PastLookupError
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.events.broker import ensure_topics
from featurestore.jobs.archive import ArchiveBatch
from featurestore.jobs.hot import HotWorker, start_hot
from featurestore.jobs.worker import COUNTS
from featurestore.offline.training import training_set
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.records import row_bytes
from featurestore.testing.streams import hostile_stream
from featurestore.timeline import HOUR
from tests.conformance import cases as payments
from tests.conformance.cases import assert_same
from tests.conformance.table import COLUMNS, SOURCE, load_all, named, plain, spoilt, wrong
from tests.streaming.support import MILLISECOND, places_of, produce, wait_applied

pytestmark = pytest.mark.jvm

TABLE = load_all()
VIEWS = tuple({case.view.name: case.together for case in TABLE}.values())
VIEW = {case.id: next(view for view in VIEWS if view.name == case.view.name) for case in TABLE}
QUESTIONS = [question for case in TABLE for question in case.questions]
PARTITIONS = 3


def judge(answers):
    """Fail unless every answer is the expected one, and unless each of its values would be missed if it were another."""
    found = [text for question, answer in answers for text in wrong(VIEW[question.case], question, answer)]
    assert not found, "\n".join(found[:20])
    for question, answer in answers:
        for mistaken in spoilt(VIEW[question.case], question):
            assert len(wrong(VIEW[question.case], mistaken, answer)) == 1, mistaken


def mixed(queues, dice):
    """Return the events of several queues as one, in random order but for the order within each."""
    turns = [name for name, events in queues.items() for _ in events]
    dice.shuffle(turns)
    left = {name: iter(events) for name, events in queues.items()}
    return [next(left[name]) for name in turns]


def key_of(question):
    return {"case_id": question.case, **question.key}


# --------------------------------------------------------------------------------------------------------- batch


def spine_of(questions):
    """Return a spine with the key columns of every view; those that a question has not are null."""
    columns = {name: kind for view in VIEWS for name, kind in view.entity.keys.items()}
    rows = [key_of(question) for question in questions]
    keys = {name: pa.array([row.get(name) for row in rows], ARROW_TYPES[COLUMNS[name]]) for name in columns}
    t = pa.array([question.t for question in questions], pa.int64())
    seen = pa.array([question.seen or 0 for question in questions], pa.int64())
    return pa.table({**keys, "t": t, "seen": seen})


def write_log(spark, root):
    """Write the events of all cases as the archive query does, in two batches."""
    events = mixed({case.id: case.events for case in TABLE}, random.Random(1))
    archive = ArchiveBatch(root, {SOURCE.topic: (SOURCE, VIEWS)})
    offsets = Counter()
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", "case-table")
    for number, part in enumerate((events[:200], events[200:])):
        places = []
        for event in part:
            places.append((event.partition, offsets[event.partition]))
            offsets[event.partition] += 1
        rows = pa.table(
            {
                "topic": [SOURCE.topic] * len(part),
                "partition": pa.array([partition for partition, _ in places], pa.int32()),
                "offset": pa.array([offset for _, offset in places], pa.int64()),
                "timestamp": pa.array([event.arrival for event in part], pa.timestamp("us", "UTC")),
                "value": [row_bytes(SOURCE, event.row, {}) for event in part],
            }
        )
        archive(spark.createDataFrame(rows), number)
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", None)
    assert sum(places_of(root, "events/events").values()) == len(events)
    assert not places_of(root, "quarantine")


def test_training_sets_over_a_delta_log(spark, tmp_path):
    root = str(tmp_path)
    write_log(spark, root)
    service = FeatureService("table", VIEWS)
    for served in (False, True):
        asked = [question for question in QUESTIONS if (question.seen is not None) == served]
        made = training_set(
            spark, service, spine_of(asked), offline=root, event_time="t", as_served="seen" if served else False
        )
        rows = made.to_arrow().to_pylist()
        assert len(rows) == len(asked)
        answers = []
        for question, row in zip(asked, rows, strict=True):
            view = VIEW[question.case]
            answers.append((question, named(view, [row[name] for name in view.layout.feature_ids])))
        judge(answers)


# -------------------------------------------------------------------------------------------------------- stream


class CutStream:
    """A topic, the hot query over it and a store; the query is stopped and started again with every step.

    Attributes:
        ends: Partition to the offset after the newest record sent.
        client: Reads the store.
        totals: What became of the records, over all runs of the query.
    """

    def __init__(self, spark, broker, url, source, views, folder, seed):
        self.spark, self.broker, self.url, self.source = spark, broker, url, source
        self.project, self.folder, self.dice = source.topic, folder, random.Random(seed)
        self.worker = HotWorker(url, self.project, {source.topic: (source, views)})
        self.store = RedisOnlineStore(url, self.project)
        for view in views:
            self.store.publish_plan(LookupPlan(view.name, (view.layout,)))
        self.client = FeatureClient.over(self.store)
        ensure_topics({"bootstrap.servers": broker}, {source.topic: PARTITIONS}, config={"retention.ms": "-1"})
        self.ends, self.totals, self.checkpoint, self.batches = {}, Counter(), 0, 0

    def step(self, events):
        """Send events, and let a query of its own apply them in micro-batches of a few."""
        records = [(event.partition, row_bytes(self.source, event.row, {}), event.arrival) for event in events]
        for partition, offset in produce(self.broker, self.source.topic, records):
            self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
        most = max(3, len(events) // self.dice.randrange(4, 12))
        query = start_hot(
            self.spark,
            self.worker,
            {"bootstrap.servers": self.broker},
            checkpoint=f"{self.folder}/checkpoint_{self.checkpoint}",
            batch_rows=most,
        )
        try:
            self.wait(query)
        finally:
            query.stop()
        for progress in query.recentProgress:
            counts = (progress["observedMetrics"] or {}).get("hot")
            if progress["numInputRows"] and counts is not None:
                self.batches += 1
                self.totals += Counter({name: int(counts[name] or 0) for name in COUNTS})

    def wait(self, query):
        """Return when everything sent has been applied and reported."""
        wait_applied(self.url, self.project, self.ends, None, source=self.source.name)
        query.processAllAvailable()
        assert query.exception() is None

    def lose_checkpoint(self):
        """Let the next query begin with the topic; what was applied is behind the fences."""
        self.checkpoint += 1

    def close(self):
        self.client.close()


@pytest.fixture
def open_stream(spark, kafka_server, online_url, tmp_path):
    opened = []

    def open_one(source, views, seed):
        opened.append(CutStream(spark, kafka_server.bootstrap_servers, online_url, source, views, str(tmp_path), seed))
        return opened[-1]

    yield open_one
    for stream in opened:
        stream.close()


def test_a_stream_cut_at_random_offsets(open_stream):
    stream = open_stream(SOURCE, VIEWS, seed=3)
    dice = stream.dice
    steps = max(len({question.known for question in case.questions}) for case in TABLE)
    sent, answers, refused = dict.fromkeys((case.id for case in TABLE), 0), [], 0
    for step in range(steps + 1):
        queues, asked = {}, []
        for case in TABLE:
            known = sorted({question.known for question in case.questions})
            until = known[step] if step < len(known) else len(case.events)
            queues[case.id] = case.events[sent[case.id] : until]
            if step < len(known):
                asked += [(case, question) for question in case.questions if question.known == until]
            sent[case.id] = until
        if step == 2:
            stream.lose_checkpoint()
        stream.step(mixed(queues, dice))
        for case, question in asked:
            try:
                vector = stream.client.get(case.view.name, key_of(question), now=question.t)
            except PastLookupError:
                assert any(event.event_time >= question.t for event in case.events[: question.known]), question
                refused += 1
                continue
            answers.append((question, named(VIEW[question.case], vector.to_list())))
    judge(answers)
    assert len(answers) + refused == len(QUESTIONS)
    assert len(answers) > 0.9 * len(QUESTIONS)
    events = sum(len(case.events) for case in TABLE)
    assert stream.batches > 20
    assert stream.totals["quarantined"] == 0
    assert stream.totals["consumed"] > events, "the lost checkpoint repeated nothing"
    assert stream.totals["fenced"] > 0


# ------------------------------------------------------------------------------------------------- hostile streams

HOSTILE = tuple(view for view in payments.VIEWS if view not in (payments.WIDE, payments.TEXTS))
"""Every view of the conformance tests but those whose aggregates are the tests' own, which Spark's workers cannot import."""


def test_hostile_streams_cut_at_random_offsets_give_the_oracles_values(open_stream):
    source = EventSource(
        payments.SOURCE.name, topic="hostile_cuts", schema=payments.CONTRACT, event_time=payments.SOURCE.event_time
    )
    views = tuple(replace(view, source=source) for view in HOSTILE)
    stream = open_stream(source, views, seed=5)
    dice, events, wrongly = stream.dice, [], []
    checked = refused = 0
    offsets = Counter()
    for seed, view in ((21, payments.MANY), (22, payments.WINDOWS), (23, payments.COMPOSITE)):
        made = hostile_stream(view, seed=seed, events=90, probes=25, partitions=PARTITIONS, nan=0.0)
        fresh = []
        for event in made.events:
            arrival = max(0, -(-event.arrival // MILLISECOND) * MILLISECOND)
            fresh.append(replace(event, arrival=arrival, offset=offsets[event.partition]))
            offsets[event.partition] += 1
        cut = dice.randrange(20, 70)
        for part in (fresh[:cut], fresh[cut:]):
            if dice.random() < 0.3:
                stream.lose_checkpoint()
            stream.step(part)
            events += part
            newest = max(event.event_time for event in events)
            of_key = defaultdict(list)
            for asked in views:
                keys = list({tuple(event.row[column] for column in asked.entity.keys): None for event in events})
                for key in keys[:8]:
                    for t in (newest + 1, newest + HOUR, *(t for _, t in dice.sample(made.probes, 2))):
                        named_key = dict(zip(asked.entity.keys, key, strict=True))
                        try:
                            vector = stream.client.get(asked.name, named_key, now=t)
                        except PastLookupError:
                            assert any(event.event_time >= t for event in events)
                            refused += 1
                            continue
                        got = [
                            plain(value, feature.aggregate.result_type)
                            for value, feature in zip(vector.to_list(), asked.layout.features, strict=True)
                        ]
                        of_key[asked.name, key].append((t, got))
            for (name, key), answers in of_key.items():
                asked = next(view for view in views if view.name == name)
                for t, got in answers:
                    expected = values_at(asked, events, key, t)
                    checked += 1
                    try:
                        assert_same(asked, expected, got, f"stream for {key!r} at {t}")
                    except AssertionError as error:
                        wrongly.append(f"{name}: {error}")
    assert not wrongly, "\n".join(wrongly[:20])
    assert checked > 500
    assert refused
    assert stream.batches > 15


def test_a_record_that_is_lost_is_found(open_stream):
    """The negative control of the stream: the questions of cases whose newest event was never sent."""
    stream = open_stream(replace(SOURCE, topic="case_events_lost"), VIEWS, seed=9)
    cases = [case for case in TABLE if case.view.name == "totals"]
    stream.step(mixed({case.id: case.events[:-1] for case in cases}, stream.dice))
    last = [(case, case.questions[-1]) for case in cases]
    missed = [
        case.id
        for case, question in last
        if not wrong(
            VIEW[case.id],
            question,
            named(VIEW[case.id], stream.client.get(case.view.name, key_of(question), now=question.t).to_list()),
        )
    ]
    assert not missed
