"""What is sent again, and what never: bounded, inside the deadline, and only where nothing can be done twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.store import Append, Blobs, Fence
from featurestore.stack.valkey import OnlineServer
from tests.conformance.support import SECOND, Online, one
from tests.faults.proxy import HoldingProxy
from tests.frozen import freeze
from tests.raw import raw

pytestmark = pytest.mark.thorough


class Slamming:
    """A server that closes every connection once it was sent something, or answers by ``reply``; it counts what came."""

    def __init__(self, reply=None):
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.came = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer, contextlib.suppress(OSError):
                    while received := peer.recv(1 << 16):
                        self.came.append(received)
                        if self._reply is None or not (reply := self._reply(received, len(self.came))):
                            break
                        peer.sendall(reply)

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def slamming():
    made = []

    def make(reply=None):
        made.append(Slamming(reply))
        return made[-1]

    yield make
    for server in made:
        server.close()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_read_on_a_new_connection_is_sent_once(slamming):
    server = slamming()
    store = RedisOnlineStore(server.url, "p", timeout_s=2)
    with pytest.raises(OnlineStoreUnavailableError):
        store.read([b"k"])
    assert len(server.came) == 1
    store.close()


def test_a_read_on_a_connection_that_was_idle_is_sent_twice_at_most(slamming):
    once = slamming(lambda _, count: b"*1\r\n$-1\r\n" if count == 1 else None)
    store = RedisOnlineStore(once.url, "p", timeout_s=2)
    assert store.read([b"k"]) == [None]
    with pytest.raises(OnlineStoreUnavailableError):
        store.read([b"k"])
    assert len(once.came) == 3
    store.close()


def test_a_write_is_never_sent_twice(slamming):
    def reply(received, count):
        return b"$40\r\n" + b"0" * 40 + b"\r\n" if b"LOAD" in received else None

    server = slamming(reply)
    store = RedisOnlineStore(server.url, "p", timeout_s=2)
    store.prepare()
    before = len(server.came)
    with pytest.raises(OnlineStoreUnavailableError):
        store.append([Append(0, [Fence(b"f", None, 1)], [Blobs(b"base", [b"fs:{p.00}:v"], [b"records"])])])
    assert sum(b"EVALSHA" in each for each in server.came[before:]) == 1
    store.close()


@pytest.mark.parametrize("error", [b"-MOVED 1 127.0.0.1:%d", b"-ASK 1 127.0.0.1:%d"])
def test_nodes_that_send_on_for_ever_end_the_call(slamming, error):
    """A cluster that is not one: every node says that another serves."""

    def reply(received, _):
        port = server.port
        slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port
        if b"SLOTS" in received:
            return slots
        return b"+OK\r\n" * received.count(b"ASKING") + error % port + b"\r\n"

    server = slamming(reply)
    url = f"redis+cluster://127.0.0.1:{server.port}"
    store = RedisOnlineStore(url, "p", timeout_s=5)
    with pytest.raises(Exception, match="refused a command") as caught:
        store.read([store.space.fence(0)])
    assert type(caught.value).__name__ == "OnlineError"
    assert 2 < sum(b"MGET" in each for each in server.came) <= 6
    store.close()
    server.came.clear()

    async def ask():
        client = AsyncFeatureClient(url, project="p", timeout="5s")
        with pytest.raises(Exception, match="refused a command"):
            await client._reads.read([store.space.fence(0)])
        await client.close()

    run(ask())
    assert 2 < sum(b"MGET" in each for each in server.came) <= 6


@pytest.mark.server
def test_a_stopped_server_costs_a_deadline_and_then_nothing_until_it_goes_on(tmp_path):
    with OnlineServer(tmp_path / "server") as server:
        online = Online(RedisOnlineStore(server.url, "default"))
        online.apply([one(0, card="c", amount=4.0)])
        online.store.close()
        loop = asyncio.new_event_loop()
        client, awaiting = FeatureClient(server.url, timeout="150ms"), AsyncFeatureClient(server.url, timeout="150ms")
        asks = (
            lambda: client.get("cards", {"card_id": "c"}, now=1)["many.high_1h"],
            lambda: loop.run_until_complete(awaiting.get("cards", {"card_id": "c"}, now=1))["many.high_1h"],
        )
        for ask in asks:
            assert answer_of(ask) == 4.0
        freeze(server.pid)
        try:
            for ask in asks:
                took = []
                for _ in range(12):
                    begin = time.monotonic()
                    with pytest.raises((OnlineStoreTimeoutError, OnlineStoreUnavailableError)):
                        ask()
                    took.append(time.monotonic() - begin)
                assert max(took) < 0.15 + 0.25  # the machine's own delays on top
                assert min(took) < 0.02  # the breaker
                assert sum(took) < 12 * 0.15
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for ask in asks:
            assert answer_of(ask) == 4.0
        client.close()
        loop.run_until_complete(awaiting.close())
        loop.close()


def answer_of(ask, seconds=20):
    """Return the first answer."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (OnlineStoreTimeoutError, OnlineStoreUnavailableError):
            assert time.monotonic() < give_up


@pytest.mark.server
def test_a_write_held_up_on_its_way_is_a_timeout_and_its_retry_changes_nothing(online_server, online_url):
    """The append arrives after the writer gave up: the fence has moved, and the batch that is tried again is skipped."""
    with HoldingProxy(online_server.port, word=b"EVALSHA", seconds=0.4) as proxy:
        slow = RedisOnlineStore(f"redis://127.0.0.1:{proxy.port}", "default", timeout_s=0.2)
        online = Online(slow)
        with pytest.raises(OnlineStoreTimeoutError):
            online.apply([one(0), one(SECOND, offset=1)])
        fast = Online(RedisOnlineStore(online_url, "default"))
        give_up = time.monotonic() + 10
        while not fast.blobs():
            assert time.monotonic() < give_up
        counts = fast.apply([one(0), one(SECOND, offset=1)])
        assert (counts["applied"], counts["fenced"]) == (0, 4)
        fast.assert_oracle([one(0), one(SECOND, offset=1)])
        for each in (online, fast):
            each.store.close()


@pytest.mark.server
def test_an_idle_connection_that_the_server_closed_does_not_fail_a_write(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    for offset in range(3):
        online.apply([one(offset * SECOND, offset=offset)])
        raw(online.store).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    online.assert_oracle([one(offset * SECOND, offset=offset) for offset in range(3)])
    online.store.close()
