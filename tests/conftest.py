"""Real servers for tests: each is started once a session, on a free loopback port, in a directory of its own.

A test that uses one of them gets its marker by that: ``jvm`` for Kafka and Spark, ``server`` for the online store.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest
import redis

from featurestore.stack.kafka import KafkaServer
from featurestore.stack.valkey import OnlineServer
from tests.servers import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

# What a shell starts in the background ignores SIGINT, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MARKER_OF_FIXTURE = {"spark": "jvm", "kafka_server": "jvm", "online_server": "server", "cluster": "server"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not read a file all of whose tests -m leaves out: models and Spark take longer to import than most tests to run."""
    terms = re.split(r"\s+and\s+", config.getoption("markexpr"))
    left_out = [found[1] for term in terms if (found := re.fullmatch(r"\s*not (\w+)\s*", term))]
    if len(left_out) < len(terms) or collection_path.suffix != ".py" or not collection_path.is_file():
        return None
    lines = collection_path.read_text(encoding="utf-8").splitlines()
    return True if any(f"pytestmark = pytest.mark.{marker}" in lines for marker in left_out) else None


LATE_FROM = "test_score.py"
"""From this file of tests/streaming on, scripts/test runs what needs Java when what needs none is through: move it to where both
processes end together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the servers they use, before -m selects."""
    for item in items:
        if item.path.parent.name == "streaming" and item.path.name >= LATE_FROM:
            item.add_marker("late")
        for fixture in set(getattr(item, "fixturenames", ())) & MARKER_OF_FIXTURE.keys():
            item.add_marker(MARKER_OF_FIXTURE[fixture])


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> None:
    """A configured store or broker is somebody's: tests never touch it."""
    for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
        if name not in {"FEATURESTORE_CACHE", "FEATURESTORE_IVY_SETTINGS"}:
            del os.environ[name]
    os.environ["FEATURESTORE_COMPILED"] = "1"  # a test is of one of the two readers, not of whichever is there by then


@pytest.fixture(scope="session", autouse=True)
def _no_job_left_unwaited() -> Iterator[None]:
    """Submitted jobs are children of this process: what has ended is waited for, or its end would be told as a warning."""
    yield
    from featurestore.jobs.job import CHILDREN

    for process in CHILDREN.values():
        process.poll()


@pytest.fixture(scope="session")
def online_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlineServer]:
    """A Valkey or Redis server of this session's own."""
    with OnlineServer(tmp_path_factory.mktemp("online")) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0
        yield server


@pytest.fixture
def online_url(online_server: OnlineServer) -> str:
    """URL of an empty online store."""
    with redis.Redis.from_url(online_server.url) as client:
        client.flushdb()
    return online_server.url


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Redis Cluster of three primaries of this session's own."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster_url(cluster: Cluster) -> str:
    """URL of an empty online store on a cluster."""
    cluster.flush()
    return cluster.url


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A Kafka broker of this session's own; tests share it, so each takes topic names of its own."""
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One Spark session on two threads, with Delta and Kafka."""
    from featurestore.engines.session import JOB_CONF, build_session

    warehouse = {"spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    session = build_session("tests", conf=JOB_CONF | warehouse)
    yield session
    session.stop()
