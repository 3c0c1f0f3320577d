"""The local stack on real servers: what goes in comes out, what is started is stopped, what crashed comes back."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from featurestore.errors import StackError
from featurestore.jobs.worker import spare_collections
from featurestore.stack import KafkaServer, LocalStack, guard

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

pytestmark = pytest.mark.jvm


def make_topic(bootstrap_servers: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    admin.close()


def produce(bootstrap_servers: str, topic: str, count: int) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
    for number in range(count):
        producer.send(topic, str(number).encode())
    producer.flush()
    producer.close()


def consume(bootstrap_servers: str, topic: str, count: int) -> list[int]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
        group_id=None,
    )
    values = [int(record.value) for _, record in zip(range(count), consumer, strict=False)]
    consumer.close()
    return values


def wait_for_end(pid: int, born: str, timeout_s: float = 30.0) -> None:
    give_up = time.monotonic() + timeout_s
    while guard.birth(pid) == born:
        assert time.monotonic() < give_up, f"process {pid} still runs"
        time.sleep(0.05)


def test_what_is_produced_is_consumed(kafka_server: KafkaServer) -> None:
    make_topic(kafka_server.bootstrap_servers, "roundtrip")
    produce(kafka_server.bootstrap_servers, "roundtrip", 500)
    assert consume(kafka_server.bootstrap_servers, "roundtrip", 500) == list(range(500))


def test_a_broker_on_a_port_that_is_taken_is_an_error(kafka_server: KafkaServer, tmp_path: Path) -> None:
    assert kafka_server.ports is not None
    with pytest.raises(StackError, match="kafka ended with code 1 before it served"):
        KafkaServer(tmp_path, ports=kafka_server.ports).start()


def test_a_topic_is_not_made_by_accident(kafka_server: KafkaServer) -> None:
    consumer = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap_servers, group_id=None)
    consumer.partitions_for_topic("never_created")
    assert "never_created" not in consumer.topics()
    consumer.close()


def test_a_killed_broker_comes_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    with KafkaServer(tmp_path) as server:
        address = server.bootstrap_servers
        make_topic(address, "kept")
        produce(address, "kept", 100)
        server.kill()
        assert server.pid is None
        server.start()
        assert server.bootstrap_servers == address
        produce(address, "kept", 100)
        assert consume(address, "kept", 200) == [*range(100), *range(100)]


def test_a_stack_is_found_while_it_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with LocalStack(tmp_path) as stack:
        found = LocalStack.attach(tmp_path)
        assert found is not None
        assert (found.kafka, found.online) == (stack.kafka, stack.online)
        assert json.loads((tmp_path / "stack.json").read_text())["pids"] == found.pids
        assert found.pids.keys() == {"kafka", "online"}
        with redis.Redis.from_url(found.online) as client:
            assert client.ping()
        with pytest.raises(StackError, match=r"runs in .* already"):
            LocalStack(tmp_path).start()
    assert {name: guard.birth(pid) for name, pid in found.pids.items()} == {"kafka": None, "online": None}
    assert LocalStack.attach(tmp_path) is None
    assert not (tmp_path / "stack.json").exists()


START_AND_SLEEP = """
import sys, time
from featurestore.stack import LocalStack
with LocalStack(sys.argv[1]):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stack_ends_with_the_process_that_started_it(how: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_SLEEP, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        running = LocalStack.attach(tmp_path)
        assert running is not None
        starter.send_signal(how)
    for name, pid in running.pids.items():
        wait_for_end(pid, running.born[name])
    assert LocalStack.attach(tmp_path) is None


def test_a_released_stack_outlives_its_starter_until_it_is_stopped(tmp_path: Path) -> None:
    start_and_leave = (
        "import sys\nfrom featurestore.stack import LocalStack\nLocalStack(sys.argv[1]).start().release()\n"
    )
    subprocess.run([sys.executable, "-c", start_and_leave, str(tmp_path)], check=True, timeout=120)
    running = LocalStack.attach(tmp_path)
    assert running is not None
    with redis.Redis.from_url(running.online) as client:
        assert client.ping()
    running.stop()
    assert all(guard.birth(pid) is None for pid in running.pids.values())
    assert LocalStack.attach(tmp_path) is None


def test_spark_writes_and_reads_delta_tables(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "numbers")
    spark.range(10).write.format("delta").save(table)
    spark.range(10, 15).write.format("delta").mode("append").save(table)
    assert [row.id for row in spark.read.format("delta").load(table).orderBy("id").collect()] == list(range(15))
    assert spark.read.format("delta").option("versionAsOf", 0).load(table).count() == 10


def test_spark_reads_kafka(spark: SparkSession, kafka_server: KafkaServer) -> None:
    make_topic(kafka_server.bootstrap_servers, "for_spark")
    produce(kafka_server.bootstrap_servers, "for_spark", 50)
    records = (
        spark.read.format("kafka")
        .option("kafka.bootstrap.servers", kafka_server.bootstrap_servers)
        .option("subscribe", "for_spark")
        .load()
    )
    assert [int(row.value) for row in records.select("value").collect()] == list(range(50))


def test_spark_workers_run_the_python_of_the_tests(spark: SparkSession) -> None:
    assert spark.sparkContext.parallelize([0], 1).map(lambda _: sys.executable).collect() == [sys.executable]


def test_spark_workers_do_not_look_for_garbage_in_what_they_have_imported(spark: SparkSession) -> None:
    def held(_: int) -> list[int]:
        gc.unfreeze()  # whatever an earlier task of this worker has done
        spare_collections.cache_clear()
        before = len(gc.get_objects())
        spare_collections("test")
        return [before, len(gc.get_objects()), gc.get_freeze_count()]

    ((before, after, frozen),) = spark.sparkContext.parallelize([0], 1).map(held).collect()
    assert after < before / 10 < frozen
    spare_collections("test")
    assert gc.get_freeze_count() == 0, "a process that is none of Spark's workers is left alone"
