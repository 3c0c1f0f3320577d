"""The real-time consumers on real Kafka and Valkey: the oracle's values, exactly once, whatever ends or stalls."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import redis
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from featurestore import Count, Entity, EventSource, FeatureService, FeatureStore, FeatureView
from featurestore.errors import JobError, OffsetsGoneError
from featurestore.failpoints import VARIABLE
from featurestore.jobs import membership
from featurestore.jobs.consumers import Consumers, consumer_command
from featurestore.jobs.hot import HotWorker
from featurestore.jobs.intake import CLIENTS
from featurestore.jobs.realtime import RealtimeConsumer, connect, group_of
from featurestore.jobs.worker import by_topic
from featurestore.offline.epochs import OnlineEpochs
from featurestore.offline.losses import Losses
from featurestore.stack.valkey import OnlineServer
from tests.faults.places import CONSUMER
from tests.frozen import freeze
from tests.streaming.support import (
    Shop,
    applied_offsets,
    contract,
    ends_of,
    online_differences,
    produce_events,
    reached,
    simple_events,
    wait_applied,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 60


@pytest.fixture
def started(tmp_path):
    """Start consumer processes of a store's service; all are stopped at the end."""
    all_of_them = []

    def start(store, number=1, until=lambda made: made.check() or made.ready, client=None):
        config = tmp_path / f"config-{len(all_of_them)}.json"
        store.settings.to_json(config)
        made = Consumers(consumer_command(config, "shop", client=client), number)
        all_of_them.append(made)
        wait_for("consumers", lambda: until(made))
        return made

    yield start
    for each in all_of_them:
        each.stop()


def in_process(store, shop, group=None, client=None, losses=None):
    """Return a consumer of this process, with a group of its own if one is given."""
    worker = HotWorker(store.settings.online.url, store.settings.project, by_topic(shop.views))
    views = group_of(store.settings.project, shop.views)
    return RealtimeConsumer(worker, store.settings.kafka, group or views, client=client, losses=losses)


@pytest.mark.parametrize("client", CLIENTS)
def test_hostile_streams_give_the_oracle_and_every_event_is_counted(
    kafka_server, online_server, tmp_path, started, client
):
    shop = Shop(f"rt_hostile_{client[0]}")
    store = shop.open(tmp_path, kafka_server.bootstrap_servers, online_server.url)
    stream = shop.stream(seed=5, events=300)
    consumers = started(store, 2, client=client)
    half = len(stream.events) // 2
    for events in (stream.events[:half], stream.events[half:]):
        produce_events(kafka_server.bootstrap_servers, shop.source.topic, events)
    wait_applied(online_server.url, shop.name, ends_of(stream.events))
    assert online_differences(store, shop, stream.events) == []
    wait_for("the reports", lambda: consumers.counts.get("consumed", 0) >= len(stream.events))
    counts = consumers.counts
    assert counts["consumed"] == len(stream.events)
    assert counts["fenced"] == 0
    wait_for("no lag", lambda: consumers.status()["lag"] == 0)
    assert consumers.status()["error"] is None
    assert consumers.status()["client"] == client


def test_a_consumer_that_is_killed_neither_loses_nor_doubles_events(kafka_server, online_server, tmp_path, started):
    shop = Shop("rt_killed")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    consumers = started(store, 1)
    events, victim = [], consumers.status()["pids"][0]
    for _ in range(5):  # on a busy machine everything may be applied before this looks: then there is more of it
        before = sum(applied_offsets(url, shop.name).values())
        more = simple_events(30_000, keys=KEYS, begin=len(events))
        events += more
        freeze(victim)
        produce_events(broker, topic, more)
        os.kill(victim, signal.SIGCONT)
        # The consumer has begun and not ended: stopped there, looked at, killed.
        wait_for("the first write", lambda before=before: sum(applied_offsets(url, shop.name).values()) > before)
        freeze(victim)
        if not reached(applied_offsets(url, shop.name), ends_of(events)):
            break
        os.kill(victim, signal.SIGCONT)
    assert not reached(applied_offsets(url, shop.name), ends_of(events)), "everything was applied before the kill"
    os.kill(victim, signal.SIGKILL)
    wait_for("another consumer", lambda: consumers.check() or consumers.status()["pids"] != [victim])
    wait_for("the rest", lambda: consumers.check() or reached(applied_offsets(url, shop.name), ends_of(events)))
    assert online_differences(store, shop, events) == []

    # Negative control: without fences, a group that begins again doubles every event.
    consumers.stop()
    with redis.Redis.from_url(url) as raw:
        raw.delete(*raw.scan_iter(f"fs:{{{shop.name}.*}}:fence"), f"fs:{{{shop.name}}}:progress:payments")
    _run(in_process(store, shop, "rt_killed_again"), lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    assert len(online_differences(store, shop, events)) >= KEYS, "without its guard the test finds nothing"


@pytest.mark.parametrize("place", CONSUMER)
def test_a_consumer_that_dies_once_it_polled_or_committed_goes_on(
    kafka_server, online_server, tmp_path, started, monkeypatch, place
):
    shop = Shop(f"rt_{place.partition(':')[0].replace('.', '_')}")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    events = simple_events(14_000, keys=KEYS)
    produce_events(broker, topic, events[:6_000])
    monkeypatch.setenv(VARIABLE, place)
    consumers = started(store, until=lambda _: applied_offsets(url, shop.name))
    produce_events(broker, topic, events[6_000:12_000])
    assert consumers._running[0].process.wait(30) == -signal.SIGKILL
    applied = applied_offsets(url, shop.name)
    committed = _committed(broker, group_of(shop.name, shop.views, life=_life(store)), topic)
    assert all(applied.get(partition, 0) >= offset for partition, offset in committed.items())
    if place == "consumer.committed":
        assert sum(committed.values()) > 0
    else:
        assert 0 < sum(applied.values()) < 12_000, "it died with records in hand, of which the store knows nothing"
    monkeypatch.delenv(VARIABLE)
    produce_events(broker, topic, events[12_000:])
    wait_for("the rest", lambda: consumers.check() or reached(applied_offsets(url, shop.name), ends_of(events)))
    assert online_differences(store, shop, events) == []


def _life(store):
    return OnlineEpochs(store.settings.offline, store.settings.project).life()


def _committed(broker, group, topic):
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        found = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    return {place.partition: each.offset for place, each in found.items() if place.topic == topic}


@contextlib.contextmanager
def _running(consumer):
    """Run a consumer in a thread for a block; give a list that gets what it raises."""
    stop, failed = threading.Event(), []

    def run():
        try:
            consumer.run(stop)
        except Exception as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join(30)
        consumer.close()


def _run(consumer, until):
    """Run a consumer in a thread until a condition holds; raise what it raised."""
    with _running(consumer) as failed:
        wait_for("the consumer", lambda: failed or until())
    if failed:
        raise failed[0]


def test_two_drivers_of_one_project_do_not_double_events(kafka_server, online_server, tmp_path):
    shop = Shop("rt_twice")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    events = simple_events(20_000, keys=KEYS)
    produce_events(broker, shop.source.topic, events)
    both = [in_process(store, shop, f"rt_twice_{number}") for number in (1, 2)]
    done = threading.Event()
    other = threading.Thread(target=both[0].run, args=(done,))
    other.start()
    try:
        _run(both[1], lambda: all(each.counts["consumed"] >= len(events) for each in both))
    finally:
        done.set()
        other.join(30)
        both[0].close()
    assert online_differences(store, shop, events) == []
    entered = sum(each.counts["applied"] for each in both)
    assert both[0].counts["fenced"] + both[1].counts["fenced"] == entered > 0


def test_a_store_that_hangs_is_waited_for(kafka_server, online_server, tmp_path):
    shop = Shop("rt_hung")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    events = simple_events(4_000, keys=KEYS)
    consumer = in_process(store, shop)
    seen = []

    def has_said_so():
        if consumer.error and not seen:
            seen.append(consumer.error)
            os.kill(online_server.pid, signal.SIGCONT)
        return seen and reached(applied_offsets(url, shop.name), ends_of(events))

    freeze(online_server.pid)
    try:
        produce_events(broker, shop.source.topic, events)
        _run(consumer, has_said_so)
    finally:
        os.kill(online_server.pid, signal.SIGCONT)
    assert online_differences(store, shop, events) == []
    assert consumer.error is None
    assert consumer.counts["consumed"] >= len(events)


def test_a_consumer_that_is_stopped_while_the_store_hangs_does_not_pass_what_it_holds(
    kafka_server, online_server, tmp_path
):
    shop = Shop("rt_held")
    broker, url = kafka_server.bootstrap_servers, online_server.url
    store = shop.open(tmp_path, broker, url)
    events = simple_events(2_000, keys=KEYS)
    consumer = in_process(store, shop)
    freeze(online_server.pid)
    try:
        produce_events(broker, shop.source.topic, events)
        _run(consumer, lambda: consumer.error)
    finally:
        os.kill(online_server.pid, signal.SIGCONT)
    assert not reached(applied_offsets(url, shop.name), ends_of(events)), "the store did not hang"
    _run(in_process(store, shop), lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    assert online_differences(store, shop, events) == []


def test_one_that_joins_a_busy_consumer_says_for_whom_it_waits_and_takes_over_in_time(
    kafka_server, online_server, tmp_path, monkeypatch
):
    monkeypatch.setattr(membership, "RETURN_WITHIN_MS", 6_000)  # in place of a minute
    monkeypatch.setattr(membership, "PATIENCE_S", 0.5)
    shop = Shop("rt_busy")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    events = simple_events(2_000, keys=KEYS)
    produce_events(broker, topic, events[:1_000])
    busy, other = in_process(store, shop), in_process(store, shop)
    with _running(busy) as failed:
        wait_for("the first", lambda: reached(applied_offsets(url, shop.name), ends_of(events[:1_000])))
        freeze(online_server.pid)
        try:
            produce_events(broker, topic, events[1_000:])
            wait_for("records in hand", lambda: not busy._is_applied)
            with _running(other) as failed_too:
                waits = f"nothing for .* s: group {group_of(shop.name, shop.views)} waits for another member"
                wait_for("that it waits", lambda: re.search(waits, other.error or ""))
                # Once it has got the partitions, the store hangs for it too.
                wait_for("its partitions", lambda: "did not answer" in (other.error or ""), 60.0)
                os.kill(online_server.pid, signal.SIGCONT)
                wait_for(
                    "all", lambda: failed or failed_too or reached(applied_offsets(url, shop.name), ends_of(events))
                )
        finally:
            os.kill(online_server.pid, signal.SIGCONT)
    assert failed == failed_too == []
    assert other.counts["consumed"] > 0
    assert online_differences(store, shop, events) == []


@pytest.mark.parametrize("client", CLIENTS)
def test_records_gone_from_kafka_end_the_job_with_their_range_and_are_accepted_as_a_loss(
    kafka_server, online_server, tmp_path, client
):
    shop = Shop(f"rt_gone_{client[0]}")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    store = shop.open(tmp_path, broker, url)
    events = simple_events(240, keys=20)
    produce_events(broker, topic, events[:100])
    _run(
        in_process(store, shop, client=client), lambda: reached(applied_offsets(url, shop.name), ends_of(events[:100]))
    )
    produce_events(broker, topic, events[100:200])
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.delete_records({TopicPartition(topic, 0): 90})
    finally:
        admin.close()
    expected = rf"{topic}-0: offset 50 was next, Kafka has 90 to 100 \(40 records lost\)"
    with pytest.raises(OffsetsGoneError, match=expected):
        _run(in_process(store, shop, client=client), lambda: False)
    book = Losses(store.settings.offline)
    assert book.rows() == [], "what is refused is not written down"

    kept = [event for event in events if event.partition == 1 or not 50 <= event.offset < 90]
    accepting = in_process(store, shop, client=client, losses=book)
    _run(accepting, lambda: reached(applied_offsets(url, shop.name), ends_of(events[:200])))
    assert accepting.client == client
    assert [(row["query"], row["topic"], row["partition"], row["begin"], row["end"]) for row in book.rows()] == [
        ("hot", topic, 0, 50, 90)
    ]
    # It is accepted once: whoever comes next goes on behind it.
    produce_events(broker, topic, events[200:])
    _run(in_process(store, shop, client=client), lambda: reached(applied_offsets(url, shop.name), ends_of(events)))
    assert len(book.rows()) == 1
    assert online_differences(store, shop, kept) == []
    assert online_differences(store, shop, events), (
        "the values are the same without what is lost: the test finds nothing"
    )


def test_two_deployments_of_a_project_on_one_broker_each_get_every_event(kafka_server, online_server, tmp_path):
    shop = Shop("rt_deployed")
    broker, url, topic = kafka_server.bootstrap_servers, online_server.url, shop.source.topic
    events = simple_events(2_000, keys=KEYS)
    ends = ends_of(events)
    first = shop.open(tmp_path / "first", broker, url)
    produce_events(broker, topic, events)
    group = group_of(shop.name, shop.views, life=_life_after(connect(first.settings, "shop"), first, url, ends))
    assert _committed(broker, group, topic) == ends

    with OnlineServer(tmp_path / "online") as other:  # new stores, the same topic
        second = shop.open(tmp_path / "second", broker, other.url)
        assert _life_after(connect(second.settings, "shop"), second, other.url, ends) != _life(first)
        assert online_differences(second, shop, events) == []

        # Negative control: in the first one's group, an empty store never gets what that has passed.
        with redis.Redis.from_url(other.url) as raw:
            raw.flushall()
        more = simple_events(200, keys=KEYS, begin=len(events))
        produce_events(broker, topic, more)
        sharing = in_process(second, shop, group)
        _run(sharing, lambda: reached(applied_offsets(other.url, shop.name), ends_of(more)))
        assert sharing.counts["consumed"] == len(more)


def _life_after(consumer, store, url, ends):
    """Run a consumer until a store has everything; return the life of its stores."""
    _run(consumer, lambda: reached(applied_offsets(url, store.settings.project), ends))
    return _life(store)


def test_the_group_follows_what_is_stored_and_where():
    views = Shop("rt_group").views
    assert group_of("p", views) == group_of("p", views[::-1])
    others = [
        group_of("q", views),
        group_of("p", views[:1]),
        group_of("p", views, life="a"),
        group_of("p", views, epoch=2),
    ]
    assert len({group_of("p", views), *others}) == 5


def test_the_canaries_of_the_guide_are_all_read(kafka_server, online_url, tmp_path):
    """The code in docs/guide/streaming.md, for a shorter while, with a topic, job and store that are there."""
    guide = (Path(__file__).parents[2] / "docs/guide/streaming.md").read_text(encoding="utf-8")
    (code,) = (
        each
        for each in re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
        if "measure_freshness" in each
    )
    broker, names = kafka_server.bootstrap_servers, {}
    for theirs, ours in (
        ("localhost:9092", broker),
        ('"redis://localhost:6379"', f'"{online_url}", timeout="5s"'),  # the machine may be busy
        ("rate=100, seconds=30", "rate=100, seconds=1, warm_up=0.5"),
    ):
        assert theirs in code
        code = code.replace(theirs, ours)
    source = EventSource("payments", topic="payments", schema=contract(), event_time="event_time")
    card = FeatureView("card", Entity("card", keys={"card_id": "string"}), source, {"n": Count().over("1h")})
    store = FeatureStore.open(root=tmp_path, kafka={"bootstrap.servers": broker}, online={"url": online_url})
    store.apply(FeatureService("fraud", [card]), create_topics=True)
    with _running(connect(store.settings, "fraud")) as failed:
        exec(compile(code, "streaming.md", "exec"), names)
    names["client"].close()
    names["sender"].close()
    assert failed == []
    assert names["found"].markers > 0 == names["found"].lost


def test_consumers_that_keep_dying_end_the_job():
    consumers = Consumers([sys.executable, "-c", "import sys; sys.exit('no memory')"], 1)
    try:
        with pytest.raises(JobError, match="ended 5 times within 60 s; the last said: no memory"):
            wait_for("the end", consumers.check)
    finally:
        consumers.stop()
