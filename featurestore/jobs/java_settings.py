"""Kafka settings as Java's clients, and so Spark, have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECURITY = "org.apache.kafka.common.security"
_MODULES = {
    "PLAIN": f"{_SECURITY}.plain.PlainLoginModule",
    "SCRAM-SHA-256": f"{_SECURITY}.scram.ScramLoginModule",
    "SCRAM-SHA-512": f"{_SECURITY}.scram.ScramLoginModule",
}
_TRANSLATED = {
    "sasl.plain.username", "sasl.plain.password", "ssl.cafile", "ssl.certfile", "ssl.keyfile", "ssl.password",
}  # fmt: skip


def java_settings(kafka: Mapping[str, str]) -> dict[str, str]:
    r"""Return settings, which kafka-python takes, as Java's: the user in a login configuration, PEM files as stores.

    Executors open ``ssl.cafile`` themselves: on a cluster it has to be there on each machine. The client's own certificate and
    key are read here.

    Raises:
        ConfigError: A file cannot be read.

    >>> java_settings({"bootstrap.servers": "b:9093", "ssl.cafile": "ca.pem"})
    {'bootstrap.servers': 'b:9093', 'ssl.truststore.type': 'PEM', 'ssl.truststore.location': 'ca.pem'}
    >>> made = java_settings({"sasl.mechanism": "PLAIN", "sasl.plain.username": "u", "sasl.plain.password": 'p"'})
    >>> made["sasl.jaas.config"].partition(" ")[2]
    'required username="u" password="p\\"";'
    """
    settings = {name: value for name, value in kafka.items() if name not in _TRANSLATED}
    module = _MODULES.get(kafka.get("sasl.mechanism", ""))
    if module is not None and "sasl.plain.username" in kafka:
        user, password = (_quoted(kafka.get(f"sasl.plain.{word}", "")) for word in ("username", "password"))
        settings["sasl.jaas.config"] = f"{module} required username={user} password={password};"
    if "ssl.cafile" in kafka:
        settings |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": kafka["ssl.cafile"]}
    if "ssl.certfile" in kafka:
        settings |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": _text("ssl.certfile", kafka["ssl.certfile"]),
            "ssl.keystore.key": _text("ssl.keyfile", kafka.get("ssl.keyfile", kafka["ssl.certfile"])),
        }
        if "ssl.password" in kafka:
            settings["ssl.key.password"] = kafka["ssl.password"]
    return settings


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(setting: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(f"kafka setting {setting}: {path} cannot be read: {error}.") from error
