"""The read connections of both clients on a real store: threads, forks, tasks, broken connections, servers that stall."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time

import pytest
import redis

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import OnlineStoreTimeoutError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.online import redis_socket
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.redis_url import Endpoint, Login
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import VirtualClock
from tests.conformance.support import Online, one, stream_of

pytestmark = [pytest.mark.server, pytest.mark.thorough]
CARDS = 40


@pytest.fixture
def filled(online_url):
    """A store with one event per card; the amount of card ``ci`` is i."""
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(0, card=f"c{i}", amount=float(i), offset=i) for i in range(CARDS)])
    yield online
    online.store.close()


def amount(vector):
    return vector["many.high_1h"]


def kill_all(url):
    """Close every other client's connection, as a restarted or failed-over server does."""
    with redis.Redis.from_url(url) as admin:
        return admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class Drip:
    """A server that sends one byte of a reply that never ends, again and again."""

    def __init__(self, every_s):
        self._every_s = every_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        try:
            peer, _ = self._listener.accept()
            with peer:
                peer.sendall(b"$1000000\r\n")
                while not self._stop.wait(self._every_s):
                    peer.sendall(b"x")
                    self.sent += 1
        except OSError:
            pass

    def close(self):
        self._stop.set()
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def drip():
    server = Drip(0.005)
    yield server
    server.close()


def test_threads_share_a_client_and_each_gets_its_own_answer(filled, online_url):
    wrong, asked = [], []
    with FeatureClient(online_url, timeout="5s") as client:

        def ask(start):
            for step in range(60):
                card = (start + step * 7) % CARDS
                if amount(client.get("cards", {"card_id": f"c{card}"}, now=1)) != card:
                    wrong.append(card)
                asked.append(card)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (wrong, len(asked)) == ([], 8 * 60)


def test_a_forked_child_takes_connections_of_its_own(filled, online_url):
    with FeatureClient(online_url, timeout="5s") as client:
        assert amount(client.get("cards", {"card_id": "c1"}, now=1)) == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no test code may run on in the child
            try:
                said = [amount(client.get("cards", {"card_id": f"c{i}"}, now=1)) == i for i in range(20)]
                os.write(write, b"right" if all(said) else b"wrong")
            finally:
                os._exit(0)
        mine = [amount(client.get("cards", {"card_id": f"c{i}"}, now=1)) for i in range(20)]
        os.close(write)
        said = os.read(read, 16)
        os.close(read)
        os.waitpid(child, 0)
        assert said == b"right"
        assert mine == list(range(20))


def test_a_connection_that_the_server_closed_is_made_anew(filled, online_url):
    with FeatureClient(online_url, timeout="5s") as client:
        for card in (3, 4):
            assert amount(client.get("cards", {"card_id": f"c{card}"}, now=1)) == card
            assert kill_all(online_url) >= 1


def test_a_server_that_drips_costs_no_more_than_the_deadline(drip):
    client = FeatureClient(drip.url, timeout="200ms")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreTimeoutError):
        client._store.read([b"k"])
    assert time.monotonic() - begin < 1.0
    client.close()


@pytest.mark.parametrize("names", [1, 5_000])  # a command that leaves at once, and one that leaves in pieces
def test_a_server_that_is_silent_costs_no_more_than_the_deadline_and_the_next_deadline_is_its_own(names):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system accepts, nobody reads
        connection = redis_socket.connect(
            Endpoint("127.0.0.1", listener.getsockname()[1]), Login(), None, time.monotonic() + 5
        )
        packed = redis_socket.pack((b"MGET", *[b"k" * 50] * names))
        for seconds in (0.3, 0.1, 0.2):
            begin = time.monotonic()
            with pytest.raises(redis.exceptions.TimeoutError):
                connection.ask(packed, begin + seconds)
            assert seconds - 0.01 < time.monotonic() - begin < seconds + 0.08
        connection.close()


def test_a_store_that_is_down_fails_at_once_after_some_failures():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        store = RedisOnlineStore(f"redis://127.0.0.1:{taken.getsockname()[1]}", "default", timeout_s=0.2)
        for _ in range(5):
            with pytest.raises(OnlineStoreUnavailableError, match="cannot be reached"):
                store.read([b"k"])
        with pytest.raises(OnlineStoreUnavailableError, match="left alone for a moment"):
            store.read([b"k"])
        store.close()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_tasks_share_a_client_and_each_gets_its_own_answer(filled, online_url):
    async def ask(client, card):
        return amount(await client.get("cards", {"card_id": f"c{card}"}, now=1))

    async def main():
        async with AsyncFeatureClient(online_url, timeout="30s") as client:
            with redis.Redis.from_url(online_url) as admin:
                before = {each["id"] for each in admin.client_list()}
            cards = [i % CARDS for i in range(400)]
            assert await asyncio.gather(*(ask(client, card) for card in cards)) == cards
            with redis.Redis.from_url(online_url) as admin:
                mine = [each for each in admin.client_list() if each["cmd"] == "mget" and each["id"] not in before]
            assert len(mine) == 1  # one connection for all

    run(main())


def test_async_answers_are_those_of_the_other_client(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    stream = stream_of(3)
    online.apply(stream.events)
    keys = [{"card_id": key[0]} for key, _ in stream.probes]
    t = max(event.event_time for event in stream.events) + 1

    async def main():
        async with AsyncFeatureClient(online_url, timeout="5s") as client:
            one_by_one = [await client.get("cards", key, now=t) for key in keys]
            many = await client.get_many("cards", keys, now=t)
            with pytest.raises(UnknownNameError, match="no service 'card'"):
                await client.get("card", keys[0])
            return one_by_one, many

    alone, many = run(main())
    for key, mine, other, one_ in zip(keys, alone, many, online.client.get_many("cards", keys, now=t), strict=True):
        expected = online.client.get("cards", key, now=t)
        assert repr(mine.to_dict()) == repr(expected.to_dict()) == repr(other.to_dict()) == repr(one_.to_dict())


@pytest.mark.parametrize("now", [1, None], ids=["given", "of the clock"])
def test_a_lookup_that_is_cancelled_does_not_shift_the_answers(filled, online_url, now):
    async def main():
        async with AsyncFeatureClient(online_url, timeout="30s", clock=VirtualClock(1)) as client:
            await client.get("cards", {"card_id": "c0"}, now=now)
            with redis.Redis.from_url(online_url) as admin:
                admin.execute_command("CLIENT", "PAUSE", 300, "ALL")
            asked = [asyncio.ensure_future(client.get("cards", {"card_id": f"c{i}"}, now=now)) for i in range(10)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in asked[::2]:
                task.cancel()
            done = await asyncio.gather(*asked, return_exceptions=True)
            assert [amount(each) for each in done[1::2]] == [1, 3, 5, 7, 9]
            assert all(isinstance(each, asyncio.CancelledError) for each in done[::2])

    run(main())


@pytest.mark.parametrize("now", [1, None], ids=["given", "of the clock"])
def test_an_async_lookup_outlives_the_servers_closing_and_another_event_loop(filled, online_url, now):
    client = AsyncFeatureClient(online_url, timeout="5s", clock=VirtualClock(1))

    async def ask(card):
        return amount(await client.get("cards", {"card_id": f"c{card}"}, now=now))

    async def broken():
        assert await ask(1) == 1
        assert await asyncio.to_thread(kill_all, online_url) >= 1
        assert await asyncio.gather(ask(2), ask(3)) == [2, 3]
        await client._reads.close()

    run(broken())

    async def elsewhere():
        assert await ask(4) == 4
        await client.close()

    run(elsewhere())


@pytest.mark.parametrize("now", [1, None], ids=["given", "of the clock"])
def test_an_async_lookup_of_a_stalled_server_ends_at_its_deadline_and_the_next_is_right(filled, online_url, now):
    async def main():
        async with AsyncFeatureClient(online_url, timeout="100ms", clock=VirtualClock(1)) as client:
            for _ in range(3):  # whatever the machine is doing
                try:
                    await client.get("cards", {"card_id": "c1"}, now=now)
                    break
                except OnlineStoreTimeoutError:
                    continue
            with redis.Redis.from_url(online_url) as admin:
                admin.execute_command("CLIENT", "PAUSE", 700, "ALL")
                begin = time.monotonic()
                with pytest.raises(OnlineStoreTimeoutError):
                    await client.get("cards", {"card_id": "c1"}, now=now)
                assert time.monotonic() - begin < 0.6
                await asyncio.to_thread(admin.ping)  # answered when the pause is over
            assert amount(await client.get("cards", {"card_id": "c2"}, now=now)) == 2

    run(main())


def test_an_async_store_that_drips_or_is_down_is_ours_within_the_deadline(drip):
    async def main():
        client = AsyncFeatureClient(drip.url, timeout="200ms")
        begin = time.monotonic()
        with pytest.raises(OnlineStoreTimeoutError):
            await client.ping()
        assert time.monotonic() - begin < 1.0
        await client.close()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            client = AsyncFeatureClient(f"redis://127.0.0.1:{taken.getsockname()[1]}", timeout="1s")
            with pytest.raises(OnlineStoreUnavailableError, match="cannot be reached"):
                await client.ping()
            await client.close()

    run(main())


def test_both_clients_log_in(tmp_path):
    with OnlineServer(tmp_path / "server") as server, redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "secret")
        port = server.url.rpartition(":")[2].partition("/")[0]
        right, wrong = f"redis://:secret@127.0.0.1:{port}/1", f"redis://:other@127.0.0.1:{port}/1"
        online = Online(RedisOnlineStore(right, "default"))
        online.apply([one(0, card="c", amount=5.0)])

        async def ask(url):
            async with AsyncFeatureClient(url, timeout="5s") as client:
                await client.ping()
                return amount(await client.get("cards", {"card_id": "c"}, now=1))

        with FeatureClient(right, timeout="5s") as client:
            assert amount(client.get("cards", {"card_id": "c"}, now=1)) == run(ask(right)) == 5.0
        with pytest.raises(OnlineStoreUnavailableError, match="refused the credentials"):
            run(ask(wrong))
        with (
            FeatureClient(wrong) as client,
            pytest.raises(OnlineStoreUnavailableError, match="refused the credentials"),
        ):
            client.ping()
        online.store.close()


@pytest.mark.server
@pytest.mark.parametrize("url", ["online_url", "cluster_url"])
def test_the_event_loop_may_be_uvloops(url, request):
    """Its transports and handles are classes of its own; the scorer's process runs on it."""
    uvloop = pytest.importorskip("uvloop")
    url = request.getfixturevalue(url)
    online = Online(RedisOnlineStore(url, "default"))
    online.apply([one(number, card=f"c{number}", offset=number) for number in range(20)])

    async def ask():
        async with AsyncFeatureClient(url, timeout="5s") as client:
            await client.ping()
            keys = [{"card_id": f"c{number}"} for number in range(20)]
            many = await client.get_many("cards", keys, now=99)
            each = await asyncio.gather(*(client.get("cards", key, now=99) for key in keys))
            return [vector["many.n_1h"] for vector in (*many, *each)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == [1] * 40
    online.store.close()


def test_a_client_that_is_forgotten_in_a_cycle_leaves_no_warning(filled, online_url):
    client = FeatureClient(online_url)
    assert amount(client.get("cards", {"card_id": "c3"}, now=1)) == 3
    client.itself = client
    del client
    gc.collect()  # what it warns of is an error here
