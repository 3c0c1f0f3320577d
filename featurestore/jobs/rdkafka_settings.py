"""Kafka settings as librdkafka has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.events.kafka_options import JAVA_ALONE

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAME = (
    "bootstrap.servers", "security.protocol", "sasl.mechanism", "client.id", "client.rack", "session.timeout.ms",
    "heartbeat.interval.ms", "max.poll.interval.ms", "reconnect.backoff.ms", "reconnect.backoff.max.ms",
    "retry.backoff.ms", "connections.max.idle.ms", "fetch.min.bytes", "fetch.max.bytes",
)  # fmt: skip
_OTHERS = {
    "sasl.plain.username": "sasl.username",
    "sasl.plain.password": "sasl.password",
    "ssl.cafile": "ssl.ca.location",
    "ssl.certfile": "ssl.certificate.location",
    "ssl.keyfile": "ssl.key.location",
    "ssl.password": "ssl.key.password",
    "ssl.crlfile": "ssl.crl.location",
    "fetch.max.wait.ms": "fetch.wait.max.ms",
    "max.partition.fetch.bytes": "max.partition.fetch.bytes",
}


def translated(kafka: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return settings, which kafka-python takes, as librdkafka's, and the names of those that it may not have the like of.

    >>> translated({"bootstrap.servers": "b:9092", "ssl.cafile": "ca.pem", "api.version": "2.0"})
    ({'bootstrap.servers': 'b:9092', 'ssl.ca.location': 'ca.pem'}, ['api.version'])
    """
    names = {**{name: name for name in _SAME}, **_OTHERS}
    known = {names[name]: value for name, value in kafka.items() if name in names}
    return known, sorted(set(kafka) - set(names) - JAVA_ALONE)
