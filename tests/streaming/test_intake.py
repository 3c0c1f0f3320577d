"""Both clients of Kafka on a real broker: the same records, offsets and errors, and one group for both."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
from confluent_kafka import KafkaError as RdkafkaError
from confluent_kafka import KafkaException
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from featurestore.errors import ConfigError
from featurestore.events.broker import ensure_topics, producer
from featurestore.jobs import intake_rdkafka
from featurestore.jobs.intake import CLIENTS, open_intake
from featurestore.stack.kafka import KafkaServer

pytestmark = pytest.mark.jvm

BEGIN_MS = 1_750_000_000_000


@pytest.fixture
def joined(kafka_server):
    """Join groups; all leave at the end."""
    with contextlib.ExitStack() as left:

        def join(client, topic, *, group=None, rows=1_000, instance=None):
            kafka = {"bootstrap.servers": kafka_server.bootstrap_servers}
            made = open_intake(client, [topic], kafka, group or topic, batch_rows=rows, instance=instance)
            left.callback(made.close)
            return made

        yield join


def topic_of(kafka_server, name, client, partitions=2):
    topic = f"intake_{name}_{client.replace('-', '_')}"
    ensure_topics({"bootstrap.servers": kafka_server.bootstrap_servers}, {topic: partitions})
    return topic


def send(kafka_server, topic, rows, *, partition=0):
    """Send numbered records, a millisecond apart."""
    with contextlib.closing(producer({"bootstrap.servers": kafka_server.bootstrap_servers})) as sender:
        for row in rows:
            value = None if row % 10 == 9 else b"%d" % row
            sender.send(topic, key=b"k", value=value, partition=partition, timestamp_ms=BEGIN_MS + row)
        sender.flush()


def take(intakes, until, *, begin=True):
    """Take from intakes in turn until a condition holds of what has come: place to offset to (arrival, value)."""
    found, give_up = {}, time.monotonic() + 150  # a group waits a minute for a member that is busy
    while not until(found):
        assert time.monotonic() < give_up, f"nothing more came: {found}"
        for intake in intakes:
            try:
                polled = intake.take(100)
            except NoOffsetForPartitionError as error:
                if not begin:
                    raise
                places = error.args[0]
                intake.seek_to_beginning(*([places] if isinstance(places, TopicPartition) else places))
                continue
            for place, part in polled.items():
                assert part.offsets.dtype == part.arrival.dtype == np.int64
                mine = found.setdefault(place, {})
                for offset, arrival, value in zip(
                    part.offsets.tolist(), part.arrival.tolist(), part.values, strict=True
                ):
                    assert offset not in mine, "a record came twice"
                    mine[offset] = arrival, value
    return found


def count(found):
    return sum(map(len, found.values()))


def expected(rows):
    return {row: ((BEGIN_MS + row) * 1_000, None if row % 10 == 9 else b"%d" % row) for row in rows}


@pytest.mark.parametrize("client", CLIENTS)
def test_records_come_as_columns_and_a_group_goes_on_where_it_committed(kafka_server, joined, client):
    topic = topic_of(kafka_server, "columns", client)
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    for place in places:
        send(kafka_server, topic, range(50), partition=place.partition)
    intake = joined(client, topic, rows=30)
    assert intake.name == client
    for _ in range(2):  # again, until it is sought: whoever asks may not have been able to say
        with pytest.raises(NoOffsetForPartitionError):
            take([intake], lambda _: False, begin=False)
    found = take([intake], lambda found: count(found) == 100)
    assert found == dict.fromkeys(places, expected(range(50)))
    assert intake.assignment() == set(places)
    assert [(intake.position(place), intake.highwater(place)) for place in places] == [(50, 50)] * 2
    told = []
    intake.commit_async(callback=lambda *_: told.append(1))
    assert take([intake], lambda _: told) == {}, "all had been taken"
    intake.close()

    send(kafka_server, topic, range(50, 60))
    again = joined(client, topic)
    assert take([again], lambda found: count(found) == 10, begin=False) == {places[0]: expected(range(50, 60))}
    assert again.beginning_offsets(places) == dict.fromkeys(places, 0)
    assert again.end_offsets(places) == {places[0]: 60, places[1]: 50}


@pytest.mark.parametrize("client", CLIENTS)
def test_offsets_that_are_gone_are_named_and_others_can_be_sought(kafka_server, joined, client):
    topic = topic_of(kafka_server, "gone", client, partitions=1)
    place = TopicPartition(topic, 0)
    send(kafka_server, topic, range(40))
    intake = joined(client, topic)
    take([intake], lambda found: count(found) == 40)
    intake.commit()
    intake.close()
    send(kafka_server, topic, range(40, 60))
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap_servers)
    with contextlib.closing(admin):
        admin.delete_records({place: 45})
    again = joined(client, topic)
    with pytest.raises(OffsetOutOfRangeError) as refused:
        take([again], lambda _: False)
    assert refused.value.args[0] == {place: 40}
    assert again.beginning_offsets([place]) == {place: 45}
    again.seek(place, 45)
    assert take([again], lambda found: count(found) == 15) == {place: expected(range(45, 60))}


def test_both_clients_share_a_group_and_take_over_from_each_other(kafka_server, joined):
    topic = topic_of(kafka_server, "shared", "both")
    places = {TopicPartition(topic, 0), TopicPartition(topic, 1)}
    both = [joined(client, topic) for client in CLIENTS]
    take(both, lambda _: all(len(each.assignment()) == 1 for each in both))
    assert set.union(*(each.assignment() for each in both)) == places
    for place in places:
        send(kafka_server, topic, range(20), partition=place.partition)
    assert take(both, lambda found: count(found) == 40) == dict.fromkeys(places, expected(range(20)))
    for each in both:
        each.commit()
    for number in (0, 1):  # one leaves, and the other, which the next round lets leave, has both
        both[number].close()
        staying = both[1 - number]
        take([staying], lambda _, staying=staying: staying.assignment() == places)
        rows = range(20 + 20 * number, 40 + 20 * number)
        for place in places:
            send(kafka_server, topic, rows, partition=place.partition)
        assert take([staying], lambda found: count(found) == 40) == dict.fromkeys(places, expected(rows))
        staying.commit()
        both[number] = joined(CLIENTS[number], topic)
        take(both, lambda _: all(len(each.assignment()) == 1 for each in both))


def answered(intake):
    """Take without waiting, until the group has answered between two polls."""
    coordinator, give_up = intake._coordinator, time.monotonic() + 60
    while (join := coordinator._join_task) is None:
        assert time.monotonic() < give_up
        coordinator._cluster.request_update()
        intake.take(1 if coordinator.coordinator_unknown() else 0)
    came = threading.Event()
    join.add_both(lambda *_: came.set())
    assert came.wait(60)


def test_an_answer_of_the_group_between_two_polls_is_taken_by_the_next(kafka_server, joined, monkeypatch):
    topic = topic_of(kafka_server, "between", "kafka-python")
    intake = joined("kafka-python", topic)
    check = intake._membership.check
    monkeypatch.setattr(intake._membership, "check", lambda: None)
    answers = []
    for _ in range(5):  # negative control: each is passed over for another join
        answered(intake)
        answers.append(intake._coordinator._join_task)
        intake.take(0)
        assert not intake.has_joined
    assert len(set(answers)) == 5
    answered(intake)
    monkeypatch.setattr(intake._membership, "check", check)
    with contextlib.suppress(NoOffsetForPartitionError):
        intake.take(0)
    assert intake.has_joined
    take([intake], lambda _: len(intake.assignment()) == 2)  # the first answer may be of before the topic was known


def test_added_partitions_are_had_though_the_answer_comes_between_two_polls(kafka_server, joined, monkeypatch):
    topic = topic_of(kafka_server, "briefly", "kafka-python")
    intake = joined("kafka-python", topic)
    take([intake], lambda _: len(intake.assignment()) == 2)
    check = intake._membership.check
    monkeypatch.setattr(intake._membership, "check", lambda: None)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap_servers)) as admin:
        admin.create_partitions({topic: 4})
    answered(intake)
    for _ in range(100):  # negative control: left to itself, it is lost
        intake.take(10)
    assert not intake.has_joined
    assert len(intake.assignment()) == 2
    monkeypatch.setattr(intake._membership, "check", check)
    take([intake], lambda _: len(intake.assignment()) == 4)


class Between:
    """librdkafka's consumer, with something that happens before its n-th part of a poll."""

    def __init__(self, inner, number, happens):
        self._inner, self._left, self._happens = inner, number, happens

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def consume(self, *args):
        self._left -= 1
        if not self._left:
            self._happens()
        return self._inner.consume(*args)


@pytest.mark.parametrize("happens", ["nothing", "an error", "another assignment"])
def test_what_happens_between_two_parts_of_a_poll_loses_nothing_and_repeats_nothing(
    kafka_server, joined, monkeypatch, happens
):
    monkeypatch.setattr(intake_rdkafka, "_AT_ONCE", 20)
    topic = topic_of(kafka_server, f"parts_{happens.replace(' ', '_')}", "librdkafka", partitions=1)
    place = TopicPartition(topic, 0)
    send(kafka_server, topic, range(200))
    intake = joined("librdkafka", topic, rows=200)
    take([intake], lambda _: intake.assignment() == {place})
    give_up = time.monotonic() + 60
    while intake.highwater(place) != 200:  # all of them wait on this side
        assert time.monotonic() < give_up
        intake.seek(place, 0)
        intake.take(100)
    intake.seek(place, 0)

    def fail():
        raise KafkaException(RdkafkaError(RdkafkaError._FAIL))

    def assign():
        intake._revoke(None, [])
        intake._assign(None, [place])

    known = {"nothing": lambda: None, "an error": fail, "another assignment": assign}
    intake._consumer = Between(intake._consumer, 3, known[happens])
    parts = []
    while not parts or parts[-1].offsets[-1] < 199:
        assert time.monotonic() < give_up
        parts += intake.take(100).values()
    offsets = [offset for part in parts for offset in part.offsets.tolist()]
    assert all(len(part.values) == len(part.arrival) == len(part.offsets) for part in parts)
    if happens == "another assignment":  # those before it would come to whoever has them then
        assert offsets == list(range(offsets[0], 200))
        assert 20 <= offsets[0] <= 60
    else:
        assert offsets == list(range(200))


@pytest.mark.parametrize("client", CLIENTS)
def test_who_joins_under_a_name_takes_over_from_who_has_it(kafka_server, joined, client):
    topic = topic_of(kafka_server, "named", client, partitions=1)
    send(kafka_server, topic, range(10))
    first = joined(client, topic, instance="one")
    take([first], lambda found: count(found) == 10)
    first.commit()
    second = joined(client, topic, instance="one")
    send(kafka_server, topic, range(10, 20))
    assert count(take([second], lambda found: count(found) == 10, begin=False)) == 10
    with pytest.raises(KafkaError):  # the first is told, not left alone
        take([first], lambda _: False, begin=False)
    second.commit()
    second.close()
    send(kafka_server, topic, range(20, 30))  # it joins again by itself, and goes on where the other got to
    assert take([first], lambda found: count(found) == 10, begin=False) == {
        TopicPartition(topic, 0): expected(range(20, 30))
    }


def test_librdkafka_says_so_while_the_broker_is_down_and_goes_on_afterwards(tmp_path):
    with KafkaServer(tmp_path / "kafka") as server:
        topic = topic_of(server, "down", "librdkafka", partitions=1)
        intake = open_intake(
            "librdkafka", [topic], {"bootstrap.servers": server.bootstrap_servers}, topic, batch_rows=10, instance=None
        )
        with contextlib.closing(intake):
            send(server, topic, range(5))
            take([intake], lambda found: count(found) == 5)
            server.kill()
            for _ in range(2):  # again and again, not once
                with pytest.raises(KafkaError):
                    take([intake], lambda _: False)
            server.start()
            send(server, topic, range(5, 10))
            given_up = time.monotonic() + 60
            found = {}
            while not found:
                assert time.monotonic() < given_up
                try:
                    found = intake.take(100)
                except (
                    NoOffsetForPartitionError
                ):  # away for so long that it has joined anew: then it asks where to begin
                    intake.seek(TopicPartition(topic, 0), 5)
                except KafkaError:
                    pass
            assert min(next(iter(found.values())).offsets) == 5


def test_settings_of_which_librdkafka_has_no_like_leave_it_to_kafka_python(kafka_server, joined):
    topic = topic_of(kafka_server, "settings", "both", partitions=1)
    given = {"bootstrap.servers": kafka_server.bootstrap_servers}
    for settings, client in (({}, "librdkafka"), ({"max.in.flight.requests.per.connection": 3}, "kafka-python")):
        intake = open_intake(None, [topic], given | settings, topic, batch_rows=1, instance=None)
        intake.close()
        assert intake.name == client


def test_a_client_that_cannot_be_had_is_refused():
    with pytest.raises(ConfigError, match="client 'kafka' is none of kafka-python, librdkafka"):
        open_intake("kafka", ["t"], {"bootstrap.servers": "x:1"}, "g", batch_rows=1, instance=None)
    settings = {"bootstrap.servers": "x:1", "ssl.ciphers": "all"}
    with pytest.raises(ConfigError, match=r"does not have the kafka settings ssl\.ciphers"):
        open_intake("librdkafka", ["t"], settings, "g", batch_rows=1, instance=None)
    with pytest.raises(ConfigError, match="librdkafka refuses them"):
        open_intake(
            "librdkafka", ["t"], {"bootstrap.servers": "x:1", "fetch.min.bytes": "-5"}, "g", batch_rows=1, instance=None
        )
