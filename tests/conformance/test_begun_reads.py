"""Reads by callback: the same answers, told once, and a connection in trouble costs no more than elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.algebra.additive import Count, Sum
from featurestore.definitions.service import FeatureService
from featurestore.definitions.view import FeatureView
from featurestore.errors import DefinitionError, OnlineStoreTimeoutError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.valkey import OnlineServer
from tests.conformance.cases import CARD, SOURCE
from tests.conformance.support import SECOND, Online, one, stream_of
from tests.frozen import freeze

pytestmark = pytest.mark.server
PLAIN = FeatureView("plain", CARD, SOURCE, {"n": Count().over("1h"), "spend": Sum("amount").over("1h", "24h")})
STATED = FeatureView(
    "stated", CARD, SOURCE, {"n": Count().over("1h")}, max_staleness="10m", on_stale="default", defaults={"n_1h": 7}
)


class Told:
    """An outcome that keeps all that it is told, and in which call of the connection."""

    def __init__(self):
        self.told = []
        self.came = asyncio.Event()

    def done(self):
        return bool(self.told)

    def set_result(self, result):
        self.told.append(result)
        self.came.set()

    def set_exception(self, error):
        self.told.append(error)
        self.came.set()

    async def one(self):
        await asyncio.wait_for(self.came.wait(), 20)
        await asyncio.sleep(0)
        (only,) = self.told
        return only if isinstance(only, Exception) else only()


def filled(url, *views):
    online = Online(RedisOnlineStore(url, "default"), views)
    online.store.publish_plan(LookupPlan.of(FeatureService("cards", views)))
    online.apply([one(number * SECOND, card=f"c{number}", amount=float(number), offset=number) for number in range(9)])
    online.store.publish_complete(SOURCE.name, 9 * SECOND)
    online.store.close()


def keys_of(*cards):
    return [{"card_id": card} for card in cards]


@contextmanager
def stopped(server):
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), 60))


@contextmanager
def own_server(folder, view):
    """A filled server of the test's own, which it may stop."""
    with OnlineServer(folder / "server") as server:
        filled(server.url, view)
        yield server


def test_it_reads_what_the_others_read(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    stream = stream_of(5)
    online.apply(stream.events)
    online.store.publish_complete(SOURCE.name, 1)
    online.store.close()
    cards = sorted({event.row["card_id"] for event in stream.events if event.row["card_id"]})
    t = max(event.event_time for event in stream.events) + 1
    with FeatureClient(online_url, timeout="5s") as client:
        expected = {
            size: client.get_many("cards", keys_of(*cards[:size], "nobody"), now=t) for size in (0, 1, len(cards))
        }

    async def scenario():
        async with AsyncFeatureClient(online_url, timeout="5s") as client:
            await client.get_many("cards", keys_of("c"), now=t)
            for size, table in expected.items():
                told = Told()
                assert client.begin_numbers(told, "cards", keys_of(*cards[:size], "nobody"), now=t)
                assert not told.done()
                found = await told.one()
                assert [repr(row.to_dict()) for row in found] == [repr(row.to_dict()) for row in table]

    run(scenario)


def test_numbers_are_those_of_the_table(online_url):
    filled(online_url, PLAIN)

    async def scenario():
        async with AsyncFeatureClient(online_url, timeout="5s") as client:
            table = await client.get_many("cards", keys_of("c1", "c8"), now=9 * SECOND)
            told = Told()
            assert client.begin_numbers(told, "cards", keys_of("c1", "c8"), now=9 * SECOND)
            found = await told.one()
            np.testing.assert_array_equal(found.to_numpy(), table.to_numpy())
            assert found.to_numpy().tolist() == [[1, 1, 1], [1, 8, 8]]
            assert found.complete_through == table.complete_through == 9 * SECOND

    run(scenario)


def test_without_a_connection_or_a_plan_nothing_begins(online_url):
    filled(online_url, PLAIN)

    async def scenario():
        async with AsyncFeatureClient(online_url, timeout="5s") as client:
            told = Told()
            assert not client.begin_numbers(told, "cards", keys_of("c1"))
            await client.service("cards")
            assert not client.begin_numbers(told, "cards", keys_of("c1"))
            await client.ping()
            assert client.begin_numbers(told, "cards", keys_of("c1"), now=9 * SECOND)
            assert (await told.one()).to_numpy().tolist() == [[1, 1, 1]]
            for wrong, error in ((keys_of(3), DefinitionError), ([{}], UnknownNameError)):
                with pytest.raises(error):
                    client.begin_numbers(told, "cards", wrong)

    run(scenario)


def test_a_connection_that_breaks_on_the_way_is_made_again(tmp_path):
    with own_server(tmp_path, PLAIN) as server:

        async def scenario():
            async with AsyncFeatureClient(server.url, timeout="10s") as client:
                await client.get_many("cards", keys_of("c1"))
                broken = client._reads._link._connected()
                told = Told()
                with stopped(server):  # so that it cannot have answered before
                    assert client.begin_numbers(told, "cards", keys_of("c1"), now=9 * SECOND)
                    broken.abort()
                    await asyncio.sleep(0)
                    assert not told.done()
                assert (await told.one()).to_numpy().tolist() == [[1, 1, 1]]
                assert not broken.is_open

        run(scenario)


def test_a_server_that_hangs_costs_one_deadline_and_is_left_alone_until_it_answers(tmp_path):
    with own_server(tmp_path, PLAIN) as server:

        async def scenario():
            async with AsyncFeatureClient(server.url, timeout="200ms") as client:
                await client.get_many("cards", keys_of("c1"))
                told = [Told(), Told(), Told()]
                with stopped(server):
                    begin = time.monotonic()
                    for each in told:
                        assert client.begin_numbers(each, "cards", keys_of("c1"), now=9 * SECOND)
                    answers = [await each.one() for each in told]
                    assert 0.15 < time.monotonic() - begin < 0.2 + 0.25  # the machine's own delays on top
                    assert all(
                        isinstance(one, OnlineStoreTimeoutError | OnlineStoreUnavailableError) for one in answers
                    )
                    assert isinstance(answers[0], OnlineStoreTimeoutError)
                    assert not client.begin_numbers(Told(), "cards", keys_of("c1"))
                give_up = time.monotonic() + 20
                while True:
                    try:
                        await client.get_many("cards", keys_of("c1"))
                        break
                    except (OnlineStoreTimeoutError, OnlineStoreUnavailableError):
                        assert time.monotonic() < give_up
                last = Told()
                assert client.begin_numbers(last, "cards", keys_of("c1"), now=9 * SECOND)
                assert (await last.one()).to_numpy().tolist() == [[1, 1, 1]]
                assert [len(each.told) for each in told] == [1, 1, 1]  # late replies are nobody's

        run(scenario)


def test_where_a_policy_has_defaults_they_are_what_is_read_of_a_store_that_is_away(tmp_path):
    with own_server(tmp_path, STATED) as server:

        async def scenario():
            async with AsyncFeatureClient(server.url, timeout="100ms") as client:
                await client.get_many("cards", keys_of("c1"), now=9 * SECOND)
                told = Told()
                with stopped(server):
                    assert client.begin_numbers(told, "cards", keys_of("c1"), now=9 * SECOND)
                    found = await told.one()
                assert found[0].to_list() == [7]
                assert set(found[0].status.values()) == {"degraded"}

        run(scenario)
