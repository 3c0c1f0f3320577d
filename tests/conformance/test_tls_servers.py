"""TLS to a real Cluster and to real Sentinels: every node and every Sentinel shows a certificate, and each is checked.

The servers that PyPI has are built without TLS, so it ends in front of each of them, as with stunnel; what they tell of
each other are the addresses of those fronts.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import trustme

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import OnlineError
from featurestore.online.redis_slots import slot_of
from featurestore.online.redis_store import RedisOnlineStore
from tests.conformance.support import Online, one
from tests.conformance.test_sentinel import Both, until_it_answers
from tests.servers import Cluster, Watched
from tests.tls import TlsFront, server_context

pytestmark = [pytest.mark.server, pytest.mark.thorough]
CARDS = 40
KEYS = [{"card_id": f"c{number}"} for number in range(CARDS)]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


class Fronts:
    """TLS in front of ports, each with a certificate for the names."""

    def __init__(self, authority, *names):
        self._authority, self._names = authority, names
        self.stack = contextlib.ExitStack()
        self.of = {}

    def announced(self, port):
        if port not in self.of:
            front = TlsFront(port, server_context(self._authority, *self._names), plain_too=True)
            self.of[port] = self.stack.enter_context(front)
        return self.of[port].port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()


def asked_by_both(url, timeout="5s"):
    """Return the counts of all cards, the same from both clients."""
    with FeatureClient(url, timeout=timeout) as client:
        counts = [vector["many.n_1h"] for vector in client.get_many("cards", KEYS, now=1)]

    async def ask():
        async with AsyncFeatureClient(url, timeout=timeout) as client:
            return [vector["many.n_1h"] for vector in await client.get_many("cards", KEYS, now=1)]

    assert asyncio.run(ask()) == counts
    return counts


def refused_by_both(url):
    """Return what both clients say of a server that they do not trust."""
    said = []
    with FeatureClient(url, timeout="2s") as client, pytest.raises(OnlineError) as caught:
        client.get("cards", KEYS[0])
    said.append(str(caught.value))

    async def ask():
        async with AsyncFeatureClient(url, timeout="2s") as client:
            await client.ping()

    with pytest.raises(OnlineError) as caught:
        asyncio.run(ask())
    return [*said, str(caught.value)]


def test_every_node_of_a_cluster_is_spoken_to_by_tls(tmp_path, authority, ca_file):
    with (
        Fronts(authority, "127.0.0.1", "localhost") as fronts,
        Cluster(tmp_path, announced=fronts.announced) as cluster,
    ):
        ports = [fronts.announced(node.port) for node in cluster.primaries]
        url = f"rediss+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={ca_file}"  # one node, which tells the others
        online = Online(RedisOnlineStore(url, "default"))
        online.apply([one(0, card=f"c{number}", offset=number) for number in range(CARDS)])
        assert asked_by_both(url) == [1] * CARDS
        assert all(fronts.of[node.port].handshakes > 2 for node in cluster.primaries)
        # A slot moves: the answer MOVED names the other node's front, and both clients follow it there.
        with Both(url, "5s") as both:
            counts = lambda: [  # noqa: E731
                both.client.get("cards", KEYS[0], now=1)["many.n_1h"],
                both.loop.run_until_complete(both.awaiting.get("cards", KEYS[0], now=1))["many.n_1h"],
            ]
            assert counts() == [1, 1]
            name = next(name for name in online.blobs() if name.endswith(b"c0") and b"many@" in name)
            move(cluster, slot_of(name))
            assert counts() == [1, 1]
        online.store.close()
        for said in refused_by_both(f"rediss+cluster://127.0.0.1:{ports[0]}"):
            assert "certificate" in said or "self-signed" in said
        refused_by_both(url.replace(str(ca_file), str(foreign(tmp_path))))


def foreign(folder):
    """Return the certificate of an authority that signed nothing here."""
    path = folder / "foreign.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def move(cluster, slot):
    """Move one slot with its keys to another primary."""
    owner = next(node for node in cluster.primaries if owns(node, slot))
    taker = next(node for node in cluster.primaries if node is not owner)
    ids = {node: node.ask(b"CLUSTER", b"MYID") for node in (owner, taker)}
    assert taker.ask(b"CLUSTER", b"SETSLOT", slot, b"IMPORTING", ids[owner]) == b"OK"
    assert owner.ask(b"CLUSTER", b"SETSLOT", slot, b"MIGRATING", ids[taker]) == b"OK"
    keys = owner.ask(b"CLUSTER", b"GETKEYSINSLOT", slot, 1000)
    assert keys
    assert owner.ask(b"MIGRATE", b"127.0.0.1", taker.port, b"", 0, 5000, b"KEYS", *keys) == b"OK"
    for node in (taker, owner, *cluster.primaries):
        assert node.ask(b"CLUSTER", b"SETSLOT", slot, b"NODE", ids[taker]) == b"OK"


def owns(node, slot):
    me = node.ask(b"CLUSTER", b"MYID")
    return any(first <= slot <= last and main[2] == me for first, last, main, *_ in node.ask(b"CLUSTER", b"SLOTS"))


def test_a_node_that_shows_another_name_is_not_believed(tmp_path, authority, ca_file):
    with Fronts(authority, "elsewhere.example") as fronts, Cluster(tmp_path, announced=fronts.announced) as cluster:
        port = fronts.announced(cluster.primaries[0].port)
        for said in refused_by_both(f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={ca_file}"):
            assert "127.0.0.1" in said
            assert "mismatch" in said.lower() or "not valid for" in said.lower()


def test_sentinels_and_the_masters_they_name_are_spoken_to_by_tls(tmp_path, authority, ca_file):
    with Fronts(authority, "127.0.0.1") as fronts, Watched(tmp_path, announced=fronts.announced) as watched:
        ends = ",".join(f"127.0.0.1:{fronts.announced(node.port)}" for node in watched.sentinels)
        url = f"rediss+sentinel://{ends}/shop?ssl_ca_certs={ca_file}"
        online = Online(RedisOnlineStore(url, "default"))
        online.apply([one(0)])
        with Both(url, "2s") as both:
            for ask in both.asks():
                assert ask() == 1
            assert fronts.of[watched.master.port].handshakes >= 3  # the writer, and both clients
            assert fronts.of[watched.sentinels[0].port].handshakes >= 3
            assert fronts.of[watched.replica.port].handshakes == 0
            assert watched.master.ask(b"WAIT", 1, 5000) == 1
            watched.master.process.kill()
            for ask in both.asks():
                assert until_it_answers(ask)[0] == 1
            assert fronts.of[watched.replica.port].handshakes >= 2
        online.store.close()
        for said in refused_by_both(url.partition("?")[0]):
            assert "certificate" in said or "self-signed" in said
