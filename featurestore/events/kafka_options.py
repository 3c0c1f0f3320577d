"""Kafka's settings as kafka-python's clients take them: what each has, as numbers and yes or no where it wants those.

Names are kafka-python's with dots. Spark and librdkafka get the same settings by their own names (``jobs.java_settings``,
``jobs.rdkafka_settings``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient

from featurestore.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLIENTS = (KafkaConsumer, KafkaProducer, KafkaAdminClient)
_YES_NO = {"true": True, "false": False}
JAVA_ALONE = frozenset({"default.api.timeout.ms"})
"""Settings that Spark gets, and clients in Python do without."""
_JAVA = {
    "sasl.jaas.config": "'sasl.plain.username' and 'sasl.plain.password'",
    "ssl.truststore.": "'ssl.cafile', a PEM file",
    "ssl.keystore.": "'ssl.certfile' and 'ssl.keyfile', PEM files",
    "ssl.key.password": "'ssl.password'",
}
"""Names of Java's clients, and what to write, which becomes those."""


def client_options(settings: Mapping[str, str], client: type = KafkaConsumer) -> dict[str, Any]:
    """Return Kafka's dotted settings as options of a client of kafka-python; those that others alone have are left out.

    Args:
        settings: Kafka settings.
        client: ``KafkaConsumer``, ``KafkaProducer`` or ``KafkaAdminClient``.

    Raises:
        ConfigError: ``bootstrap.servers`` is missing, no client has a setting of that name, or its value is none.

    >>> client_options({"bootstrap.servers": "a:1,b:1", "session.timeout.ms": "6000", "linger.ms": "5"})
    {'bootstrap_servers': ['a:1', 'b:1'], 'session_timeout_ms': 6000}
    """
    if not settings.get("bootstrap.servers"):
        raise ConfigError(
            "kafka settings have no 'bootstrap.servers'.", hint='write [kafka] "bootstrap.servers" = "localhost:9092".'
        )
    options: dict[str, Any] = {}
    for name, value in settings.items():
        word = name.replace(".", "_")
        defaults = [each.DEFAULT_CONFIG[word] for each in _CLIENTS if word in each.DEFAULT_CONFIG]
        if not defaults and name not in JAVA_ALONE:
            raise ConfigError(f"kafka setting {name!r} is not known to the clients in Python.", hint=_instead(name))
        if word in client.DEFAULT_CONFIG:  # type: ignore[attr-defined]
            options[word] = _typed(name, value, defaults[0])
    options["bootstrap_servers"] = settings["bootstrap.servers"].split(",")
    return options


def _typed(name: str, value: str, default: object) -> object:
    if name == "api.version":
        return tuple(int(part) if part.isdigit() else part for part in value.split("."))
    if isinstance(default, bool):
        if value.lower() not in _YES_NO:
            raise ConfigError(f"kafka setting {name} is {value!r}.", hint="write 'true' or 'false'.")
        return _YES_NO[value.lower()]
    if isinstance(default, int | float) and value != "all":  # that is said of ``acks``
        try:
            return int(value)
        except ValueError as error:
            raise ConfigError(f"kafka setting {name} is {value!r}.", hint="write a whole number.") from error
    return value


def _instead(name: str) -> str:
    for start, words in _JAVA.items():
        if name.startswith(start):
            return f"write {words}: Spark gets that by Java's names."
    known = {word.replace("_", ".") for client in _CLIENTS for word in client.DEFAULT_CONFIG}
    return did_you_mean(name, known, what="settings")
