"""A broker that clients reach by TLS alone, only with a certificate of their own, a name and a password."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from featurestore.stack.kafka import KafkaServer
from featurestore.stack.ports import free_ports

MECHANISMS = ("PLAIN", "SCRAM-SHA-256")
USER, PASSWORD = "alice", 'pass "and\\ word'  # with what has to be escaped in Java's login configuration


class SecuredServer(KafkaServer):
    """One with a listener more, SASL_SSL; its certificate is of ``authority``."""

    def __init__(self, directory, authority):
        super().__init__(directory, heap="320m")
        self.authority, self.secured_port = authority, free_ports(1)[0]
        self.ca = self.directory / "ca.pem"

    @property
    def secured(self):
        """Where clients connect by SASL_SSL."""
        return f"127.0.0.1:{self.secured_port}"

    def settings(self, mechanism, *, password=PASSWORD, ca=None):
        """Return the Kafka settings of a client."""
        return {
            "bootstrap.servers": self.secured,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.plain.username": USER,
            "sasl.plain.password": password,
            "ssl.cafile": str(ca or self.ca),
            "ssl.certfile": str(self.directory / "client.pem"),
            "ssl.keyfile": str(self.directory / "client.key"),
        }

    def _format(self, java, properties):
        self.authority.cert_pem.write_to_path(self.ca)
        for name in ("server", "client"):
            issued = self.authority.issue_cert("127.0.0.1")
            key = load_pem_private_key(issued.private_key_pem.bytes(), None)  # Java reads PKCS #8 alone
            Path(self.directory, f"{name}.key").write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            Path(self.directory, f"{name}.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        both = self.directory / "both.pem"
        both.write_bytes(b"".join(Path(self.directory, f"server.{end}").read_bytes() for end in ("key", "pem")))
        escaped = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
        users = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{escaped}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        lines = [line.partition("=") for line in properties.read_text().splitlines()]
        settings = {name: value for name, _, value in lines}
        more = f",SASL_SSL://{self.secured}"
        settings["listeners"] += more
        settings["advertised.listeners"] += more
        settings["listener.security.protocol.map"] += ",SASL_SSL:SASL_SSL"
        settings |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "listener.name.sasl_ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.sasl_ssl.plain.sasl.jaas.config": users.replace("\\", "\\\\"),  # as Java reads properties
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
        }
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]
        given = f'SCRAM-SHA-256=[name={USER},password="{PASSWORD}"]'
        subprocess.run([*command, str(properties), "--add-scram", given], capture_output=True, timeout=120, check=True)
