"""A broker with TLS and SASL: one set of settings for Spark, librdkafka and kafka-python, and errors that say what to check."""

from __future__ import annotations

import contextlib
import threading

import pytest
import trustme

from featurestore.errors import BrokerUnavailableError
from featurestore.jobs import intake_rdkafka
from featurestore.jobs.hot import HotWorker
from featurestore.jobs.intake import CLIENTS
from featurestore.jobs.realtime import RealtimeConsumer, group_of
from featurestore.jobs.worker import by_topic
from tests.faults.guards import assert_whole
from tests.streaming.secured import MECHANISMS, SecuredServer
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    collect_forgotten_sockets,
    ends_of,
    online_differences,
    produce_events,
    reached,
    simple_events,
    wait_for,
)

pytestmark = pytest.mark.jvm


_forgotten = pytest.fixture(autouse=True)(collect_forgotten_sockets)


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A broker."""
    with SecuredServer(tmp_path_factory.mktemp("secured"), trustme.CA()) as server:
        yield server


@contextlib.contextmanager
def consuming(shop, url, kafka, client):
    """Run a consumer on a thread."""
    worker = HotWorker(url, shop.name, by_topic(shop.views))
    consumer = RealtimeConsumer(worker, kafka, group_of(shop.name, shop.views), client=client)
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    try:
        yield consumer
    finally:
        stop.set()
        thread.join(30)
        consumer.close()


def test_a_whole_job_reads_a_secured_broker(spark, secured, online_server, tmp_path):
    server, shop = secured, Shop("secured")
    store = shop.open(tmp_path, server.settings("SCRAM-SHA-256"), online_server.url)
    events = simple_events(100, keys=20)
    produce_events(server.bootstrap_servers, shop.source.topic, events)
    job = InProcess(spark, store, shop, tmp_path / "job", freshness="realtime")
    try:
        assert_whole(job, store, shop, events)
        assert job.status().queries["hot"]["client"] == "librdkafka"
    finally:
        assert job.stop().state == "stopped"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("client", CLIENTS)
def test_both_clients_read_a_secured_broker(secured, online_url, tmp_path, client, mechanism):
    server, shop = secured, Shop(f"secured_{client[0]}_{mechanism[0].lower()}")
    kafka = server.settings(mechanism)
    store = shop.open(tmp_path, kafka, online_url)
    events = simple_events(40, keys=20)
    produce_events(server.bootstrap_servers, shop.source.topic, events)
    with consuming(shop, online_url, kafka, client) as consumer:
        wait_for("the events", lambda: reached(applied_offsets(online_url, shop.name), ends_of(events)), 30.0)
        assert consumer.client == client
    assert online_differences(store, shop, events) == []


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_password_and_a_foreign_authority_are_told_with_what_to_check(
    secured, online_url, tmp_path, monkeypatch, client
):
    server, shop = secured, Shop("secured_refused")
    trustme.CA().cert_pem.write_to_path(tmp_path / "foreign.pem")
    monkeypatch.setattr(intake_rdkafka, "_WAIT_S", 1.5)
    patient = {} if client == "librdkafka" else {"bootstrap.timeout.ms": "1500"}
    worker = HotWorker(online_url, shop.name, by_topic(shop.views))
    for settings, words, hint in (
        (server.settings("PLAIN", password="wrong"), "Invalid username or password", "'sasl.mechanism', "),
        (server.settings("PLAIN", ca=tmp_path / "foreign.pem"), "certificate", "'security.protocol', and 'ssl.cafile'"),
    ):
        with pytest.raises(BrokerUnavailableError, match=f"Kafka at {server.secured}: connecting") as refused:
            RealtimeConsumer(worker, settings | patient, "refused", client=client)
        said = str(refused.value)
        assert words in said or (client == "kafka-python" and "socket disconnected" in said)
        assert f"check kafka.{hint}" in said


def test_a_job_is_refused_with_what_to_check_before_it_starts(secured, online_url, tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.events.broker._WAIT_MS", 1_500)
    with pytest.raises(BrokerUnavailableError, match=r"creating topics failed.*check kafka\.'sasl\.mechanism'"):
        Shop("secured_topics").open(tmp_path, secured.settings("SCRAM-SHA-256", password="wrong"), online_url)
