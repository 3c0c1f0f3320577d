"""One set of Kafka settings, as each client has them."""

from __future__ import annotations

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient

from featurestore.errors import ConfigError
from featurestore.events.kafka_options import client_options
from featurestore.jobs.java_settings import java_settings
from featurestore.jobs.rdkafka_settings import translated

BROKER = {"bootstrap.servers": "b:1"}


def test_each_client_gets_the_settings_that_it_has_as_the_types_that_it_wants():
    settings = BROKER | {
        "session.timeout.ms": "6000",
        "acks": "all",
        "ssl.check.hostname": "false",
        "api.version": "2.0",
        "default.api.timeout.ms": "5000",
        "sasl.plain.username": "7",
    }
    shared = {
        "bootstrap_servers": ["b:1"],
        "ssl_check_hostname": False,
        "api_version": (2, 0),
        "sasl_plain_username": "7",
    }
    assert client_options(settings, KafkaConsumer) == shared | {"session_timeout_ms": 6000}
    assert client_options(settings, KafkaProducer) == shared | {"acks": "all"}
    assert client_options(settings, KafkaAdminClient) == shared
    assert client_options(BROKER | {"acks": "1"}, KafkaProducer)["acks"] == 1
    assert java_settings(settings)["default.api.timeout.ms"] == "5000"
    assert translated(BROKER | {"default.api.timeout.ms": "5000"}) == (BROKER, [])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sesion.timeout.ms", "1", r"'sesion\.timeout\.ms' is not known.*did you mean 'session\.timeout\.ms'"),
        ("sasl.jaas.config", "x", r"is not known.*write 'sasl\.plain\.username' and 'sasl\.plain\.password'"),
        ("ssl.truststore.location", "x", r"is not known.*write 'ssl\.cafile', a PEM file"),
        ("session.timeout.ms", "long", r"session\.timeout\.ms is 'long'.*write a whole number"),
        ("ssl.check.hostname", "no", r"ssl\.check\.hostname is 'no'.*write 'true' or 'false'"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_what_to_write(name, value, words):
    with pytest.raises(ConfigError, match=words):
        client_options(BROKER | {name: value})


def test_java_gets_certificate_and_key_as_text(tmp_path):
    (tmp_path / "both.pem").write_text("key and chain")
    made = java_settings({"ssl.certfile": str(tmp_path / "both.pem"), "ssl.password": "pa55"})
    assert made == {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": "key and chain",
        "ssl.keystore.key": "key and chain",
        "ssl.key.password": "pa55",
    }
    with pytest.raises(ConfigError, match=r"kafka setting ssl\.certfile: .*absent\.pem cannot be read"):
        java_settings({"ssl.certfile": str(tmp_path / "absent.pem")})
