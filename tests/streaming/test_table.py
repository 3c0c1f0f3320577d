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
from featurestore.events.broker import ensure_topics
from featurestore.jobs.archive import ArchiveBatch
from featurestore.jobs.counting import counter
from featurestore.jobs.hot import HotWorker, start_hot
from featurestore.offline.training import training_set
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.records import row_bytes
from featurestore.testing.streams import hostile_stream
from featurestore.timeline import HOUR
from tests.conformance import cases as payments
from tests.conformance.cases import assert_same
from tests.conformance.table import plain
from tests.conformance.together import (
    QUESTIONS,
    SOURCE,
    TABLE,
    VIEWS,
    answer_of,
    judge,
    kafka_rows,
    mixed,
    row_answer,
    spine_of,
    steps_of,
    why_wrong,
)
from tests.streaming.support import MILLISECOND, places_of, produce, wait_applied

pytestmark = pytest.mark.jvm

PARTITIONS = 3


# --------------------------------------------------------------------------------------------------------- batch


def write_log(spark, root):
    """Write the events of all cases as the archive query does, in two batches."""
    events = mixed({case.id: case.events for case in TABLE}, random.Random(1))
    archive = ArchiveBatch(root, {SOURCE.topic: (SOURCE, VIEWS)})
    offsets = Counter()
    spark.sparkContext.setLocalProperty("sql.streaming.queryId", "case-table")
    for number, part in enumerate((events[:200], events[200:])):
        archive(spark.createDataFrame(pa.Table.from_batches([kafka_rows(part, offsets)])), number)
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
        judge([(question, row_answer(question, row)) for question, row in zip(asked, rows, strict=True)])


# -------------------------------------------------------------------------------------------------------- stream


class CutStream:
    """A topic, the hot query over it and a store; the query is stopped and started again with every step.

    Attributes:
        ends: Partition to the offset after the newest record sent.
        client: Reads the store.
    """

    def __init__(self, spark, broker, url, source, views, folder, seed):
        self.spark, self.broker, self.url, self.source = spark, broker, url, source
        self.project, self.folder, self.dice = source.topic, folder, random.Random(seed)
        self.worker = HotWorker(url, self.project, {source.topic: (source, views)}, counts=counter(spark))
        self.store = RedisOnlineStore(url, self.project)
        for view in views:
            self.store.publish_plan(LookupPlan(view.name, (view.layout,)))
        self.client = FeatureClient.over(self.store)
        ensure_topics({"bootstrap.servers": broker}, {source.topic: PARTITIONS}, config={"retention.ms": "-1"})
        self.ends, self.checkpoint, self.batches = {}, 0, 0
        self.again = 0  # records that the next query reads although they have been applied

    def step(self, events):
        """Send events, and let a query of its own apply them in micro-batches of a few."""
        records = [(event.partition, row_bytes(self.source, event.row, {}), event.arrival) for event in events]
        for partition, offset in produce(self.broker, self.source.topic, records):
            self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
        most = max(3, (len(events) + self.again) // self.dice.randrange(4, 12))
        self.again = 0
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
        self.batches += sum(progress["numInputRows"] > 0 for progress in query.recentProgress)

    @property
    def totals(self):
        """What became of the records, over all runs of the query."""
        return self.worker.counts.value

    def wait(self, query):
        """Return when everything sent has been applied; tell the store, as the job does, so that it answers for empty keys."""
        wait_applied(self.url, self.project, self.ends, None, source=self.source.name)
        assert query.exception() is None
        newest = max(arrival for _, arrival in self.store.progress(self.source.name).values())
        self.store.publish_complete(self.source.name, newest)

    def lose_checkpoint(self):
        """Let the next query begin with the topic; what was applied is behind the fences."""
        self.checkpoint += 1
        self.again = sum(self.ends.values())

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
    answers, refused = [], 0
    for number, (queues, asked) in enumerate(steps_of(TABLE)):
        if number == 2:
            stream.lose_checkpoint()
        stream.step(mixed(queues, stream.dice))
        for case, question in asked:
            answer = answer_of(stream.client, case, question)
            if answer is None:
                refused += 1
            else:
                answers.append((question, answer))
    judge(answers)
    assert len(answers) + refused == len(QUESTIONS)
    assert len(answers) > 0.9 * len(QUESTIONS)
    assert stream.batches > 12
    assert stream.totals["quarantined"] == 0
    assert stream.totals["fenced"] > 0, "the lost checkpoint repeated nothing"


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
    assert stream.batches > 12


def test_a_record_that_is_lost_is_found(open_stream):
    """The negative control of the stream: the questions of cases whose newest event was never sent."""
    stream = open_stream(replace(SOURCE, topic="case_events_lost"), VIEWS, seed=9)
    cases = [case for case in TABLE if case.view.name == "totals"]
    stream.step(mixed({case.id: case.events[:-1] for case in cases}, stream.dice))
    found = [why_wrong(case.questions[-1], answer_of(stream.client, case, case.questions[-1])) for case in cases]
    assert all(found)
