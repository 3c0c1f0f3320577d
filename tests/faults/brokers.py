"""Three brokers on loopback, each a voter of the quorum: what the death of a leader needs."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import uuid

from featurestore.stack.kafka import KafkaServer
from featurestore.stack.ports import free_ports

BROKERS = 3


class Voter(KafkaServer):
    """One of the brokers; it is not started a second time."""

    def __init__(self, directory, number, quorum, cluster):
        super().__init__(directory, heap="320m", ports=quorum[number])
        self.settings = {
            "node.id": number,
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{ports[1]}" for n, ports in enumerate(quorum)),
            "offsets.topic.replication.factor": BROKERS,
            "min.insync.replicas": 2,
        }
        self.cluster = cluster

    def _format(self, java, properties):
        lines = [line.partition("=") for line in properties.read_text().splitlines()]
        settings = {name: value for name, _, value in lines if name != "controller.quorum.bootstrap.servers"}
        settings |= self.settings
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = [*java, "kafka.tools.StorageTool", "format", "-t", self.cluster, "-c", str(properties)]
        subprocess.run(command, capture_output=True, timeout=120, check=True)


@contextlib.contextmanager
def three_brokers(folder):
    """Give three brokers that know each other."""
    ports = free_ports(2 * BROKERS)
    quorum = list(zip(ports[::2], ports[1::2], strict=True))
    cluster = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
    brokers = [Voter(folder / str(number), number, quorum, cluster) for number in range(BROKERS)]
    try:
        for broker in brokers:
            broker.begin()
        for broker in brokers:
            broker.wait()
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()
