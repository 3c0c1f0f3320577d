"""Real Sentinels: the master is found, past Sentinels that are away, and after a failover; both clients, and the writer."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import OnlineError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.redis_store import RedisOnlineStore
from tests.conformance.support import Online, one
from tests.frozen import freeze
from tests.servers import Watched

pytestmark = [pytest.mark.server, pytest.mark.thorough]


class Both:
    """The two clients, kept open from one question to the next."""

    def __init__(self, url, timeout):
        self.client, self.awaiting = FeatureClient(url, timeout=timeout), AsyncFeatureClient(url, timeout=timeout)
        self.loop = asyncio.new_event_loop()

    def asks(self):
        return (
            lambda: self.client.get("cards", {"card_id": "c"}, now=9)["many.n_1h"],
            lambda: self.loop.run_until_complete(self.awaiting.get("cards", {"card_id": "c"}, now=9))["many.n_1h"],
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.loop.run_until_complete(self.awaiting.close())
        self.loop.close()


def until_it_answers(ask, seconds=30, refusals=(OnlineStoreUnavailableError, OnlineStoreTimeoutError)):
    """Return the first answer, and the longest time a refusal took."""
    give_up, longest = time.monotonic() + seconds, 0.0
    while True:
        begin = time.monotonic()
        try:
            return ask(), longest
        except refusals:
            longest = max(longest, time.monotonic() - begin)
            assert time.monotonic() < give_up


@pytest.mark.thorough
def test_a_failover_is_an_error_and_then_the_new_master(tmp_path):
    with Watched(tmp_path) as watched:
        online = Online(RedisOnlineStore(watched.url, "default"))
        online.apply([one(0)])
        with Both(watched.url, "1s") as both:
            for ask in both.asks():
                assert ask() == 1
            freeze(watched.sentinels[0].process.pid)  # one Sentinel hangs, the master dies
            try:
                assert watched.master.ask(b"WAIT", 1, 5000) == 1
                watched.master.process.kill()
                for ask in both.asks():
                    begin = time.monotonic()
                    with pytest.raises((OnlineStoreUnavailableError, OnlineStoreTimeoutError)):
                        ask()
                    assert time.monotonic() - begin < 1.5
                for ask in both.asks():
                    answer, longest = until_it_answers(ask)
                    assert answer == 1
                    assert longest < 1.5  # every refusal kept to the deadline
            finally:
                os.kill(watched.sentinels[0].process.pid, signal.SIGCONT)
            # The new master has no scripts yet, as after any restart; and the Sentinel that hung may still name the old one.
            until_it_answers(lambda: online.apply([one(1, offset=1)]), refusals=OnlineError)
            assert online.store.progress("payments") == {0: (2, 1)}
            for ask in both.asks():
                assert ask() == 2
        online.store.close()


def test_a_master_that_nobody_knows_and_sentinels_that_are_away_are_told(tmp_path):
    with Watched(tmp_path) as watched:
        for url, said in (
            (watched.url.replace("/shop", "/shed"), "no Sentinel names the master 'shed'"),
            ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/shop", "no Sentinel names the master 'shop'.*(refused|failed)"),
        ):
            with FeatureClient(url, timeout="1s") as client, pytest.raises(OnlineStoreUnavailableError, match=said):
                client.ping()

            async def ping(url=url):
                async with AsyncFeatureClient(url, timeout="1s") as client:
                    await client.ping()

            with pytest.raises(OnlineStoreUnavailableError, match=said):
                asyncio.run(ping())
        only_last = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watched.sentinels[-1].port}/shop"
        with FeatureClient(only_last, timeout="2s") as client:
            client.ping()
        # A replica that a Sentinel still calls the master is not read from.
        watched.replica.ask(b"REPLICAOF", b"NO", b"ONE")
        watched.master.ask(b"REPLICAOF", b"127.0.0.1", watched.replica.port)
        with (
            FeatureClient(watched.url, timeout="2s") as client,
            pytest.raises(OnlineStoreUnavailableError, match="it is a replica"),
        ):
            client.ping()
