"""A real Redis Cluster: round trips, slots that move, nodes that hang or die; both clients, and the writer."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key
from featurestore.errors import OnlineError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.keys import bucket_of
from featurestore.online.redis_slots import slot_of
from featurestore.online.redis_store import RedisOnlineStore
from tests.conformance.cases import SOURCE
from tests.conformance.support import Online, one, stream_of
from tests.frozen import freeze
from tests.raw import raw
from tests.servers import Cluster

pytestmark = [pytest.mark.server, pytest.mark.thorough]
CARDS = 60


def filled(url):
    """A store with one event per card; the amount of card ``ci`` is i."""
    online = Online(RedisOnlineStore(url, "default"))
    online.apply([one(0, card=f"c{i}", amount=float(i), offset=i) for i in range(CARDS)])
    online.store.publish_complete(SOURCE.name, 7)
    return online


def keys_of(cards):
    return [{"card_id": f"c{card}"} for card in cards]


def amounts(table):
    return [vector["many.high_1h"] for vector in table]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Both:
    """The two clients as one: every answer is asked of both."""

    def __init__(self, url, timeout="5s"):
        self.client = FeatureClient(url, timeout=timeout)
        self.awaiting = AsyncFeatureClient(url, timeout=timeout)
        self.loop = asyncio.new_event_loop()

    def ask(self, cards):
        """Return the vectors, the same from both."""
        found = self.client.get_many("cards", keys_of(cards), now=1)
        other = self.loop.run_until_complete(self.awaiting.get_many("cards", keys_of(cards), now=1))
        assert [repr(vector.to_dict()) for vector in found] == [repr(vector.to_dict()) for vector in other]
        assert [v.complete_through for v in found] == [v.complete_through for v in other]
        return found

    def fails(self, cards, error):
        """Ask both for what has to fail; return the longest time one took."""
        took = []
        for ask in (
            lambda: self.client.get_many("cards", keys_of(cards), now=1),
            lambda: self.loop.run_until_complete(self.awaiting.get_many("cards", keys_of(cards), now=1)),
        ):
            begin = time.monotonic()
            with pytest.raises(error):
                ask()
            took.append(time.monotonic() - begin)
        return max(took)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.loop.run_until_complete(self.awaiting.close())
        self.loop.close()


def mgets(cluster):
    """Return per node how often MGET was called."""
    calls = []
    for node in cluster.primaries:
        stats = node.ask(b"INFO", b"commandstats").decode()
        found = [line for line in stats.splitlines() if line.startswith("cmdstat_mget:")]
        calls.append(int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0)
    return calls


def test_hostile_streams_give_the_oracle_by_both_clients(cluster_url):
    online = Online(RedisOnlineStore(cluster_url, "default"))
    stream = stream_of(11)
    online.apply(stream.events)
    online.assert_oracle(stream.events, stream.probes)
    keys = [{"card_id": key[0]} for key, _ in stream.probes]
    t = max(event.event_time for event in stream.events) + 1

    async def ask():
        async with AsyncFeatureClient(cluster_url, timeout="5s") as client:
            return [await client.get("cards", key, now=t) for key in keys], await client.get_many("cards", keys, now=t)

    alone, many = run(ask())
    for key, mine, other in zip(keys, alone, many, strict=True):
        expected = repr(online.client.get("cards", key, now=t).to_dict())
        assert repr(mine.to_dict()) == repr(other.to_dict()) == expected
    online.store.close()


def test_a_lookup_of_one_key_is_one_command_on_one_node(cluster, cluster_url):
    filled(cluster_url).store.close()
    with Both(cluster_url) as both:
        both.ask([0])
        before = mgets(cluster)
        assert amounts(both.ask([5])) == [5]
        assert both.ask([5])[0].complete_through == 7
        moved = [after - then for after, then in zip(mgets(cluster), before, strict=True)]
        assert sorted(moved) == [0, 0, 4]


def test_many_keys_are_one_command_per_slot_of_which_every_node_has_its_share(cluster, cluster_url):
    filled(cluster_url).store.close()
    with Both(cluster_url) as both:
        both.ask([0])
        before = mgets(cluster)
        cards = [*range(CARDS), 3, 3]
        assert amounts(both.ask(cards)) == cards
        moved = [after - then for after, then in zip(mgets(cluster), before, strict=True)]
        assert sum(moved) == 2 * 16
        assert min(moved) == 2 * 5


def test_projects_in_one_cluster_neither_see_nor_delete_each_other(cluster, cluster_url):
    left, right = (Online(RedisOnlineStore(cluster_url, name)) for name in ("shop", "shop_2"))
    for each in (left, right):
        each.apply([one(0, card=f"c{i}", offset=i) for i in range(20)])
        each.store.publish_complete(SOURCE.name, 3)
    everything = right.dump()
    left.store.forget_project()
    kept = {name: value for name, value in everything.items() if not name.startswith((b"fs:{shop.", b"fs:{shop}"))}
    assert len(kept) == len(everything) // 2
    assert right.dump() == kept
    assert right.client.get("cards", {"card_id": "c3"}, now=1)["many.n_1h"] == 1
    right.store.forget_project()
    assert [node.ask(b"DBSIZE") for node in cluster.primaries] == [0, 0, 0]
    for each in (left, right):
        each.store.close()


def test_complete_through_is_never_newer_than_the_values_it_comes_with(cluster_url):
    """It lies beside the values and is read by the same command; without any copy it is unknown, never guessed."""
    online = filled(cluster_url)
    assert online.client.get("cards", {"card_id": "c1"}, now=1).complete_through == 7
    copies = online.store.space.copies(online.store.space.complete(SOURCE.name))
    raw(online.store).delete(copies[bucket(1)])
    assert online.client.get("cards", {"card_id": "c1"}, now=1).complete_through is None
    raw(online.store).set(copies[bucket(1)], 5)
    table = online.client.get_many("cards", keys_of(range(20)), now=1)
    assert {vector.complete_through for vector in table} == {5}
    online.store.close()


def bucket(card):
    return bucket_of(encode_key([f"c{card}"], [DataType.STRING]))


# ------------------------------------------------------------------------------- threads, forks, tasks, event loops


def test_threads_and_a_forked_child_share_a_client_of_a_cluster(cluster_url):
    filled(cluster_url).store.close()
    wrong, asked = [], []
    with FeatureClient(cluster_url, timeout="10s") as client:

        def ask(start):
            for step in range(30):
                cards = [(start + step * 7 + extra) % CARDS for extra in range(1 + step % 5)]
                if amounts(client.get_many("cards", keys_of(cards), now=1)) != cards:
                    wrong.append(cards)
                asked.append(cards)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (wrong, len(asked)) == ([], 6 * 30)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no test code may run on in the child
            try:
                said = [amounts(client.get_many("cards", keys_of([i, i + 1]), now=1)) == [i, i + 1] for i in range(20)]
                os.write(write, b"right" if all(said) else b"wrong")
            finally:
                os._exit(0)
        mine = [amounts(client.get_many("cards", keys_of([i, i + 2]), now=1)) for i in range(20)]
        os.close(write)
        said = os.read(read, 16)
        os.close(read)
        os.waitpid(child, 0)
        assert said == b"right"
        assert mine == [[i, i + 2] for i in range(20)]


def test_cancelled_lookups_of_a_cluster_do_not_shift_the_answers_and_another_loop_starts_anew(cluster_url):
    filled(cluster_url).store.close()
    client = AsyncFeatureClient(cluster_url, timeout="30s")

    async def main():
        await client.get_many("cards", keys_of(range(CARDS)), now=1)
        tasks = [asyncio.ensure_future(client.get_many("cards", keys_of([i, i + 1, i + 2]), now=1)) for i in range(30)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [amounts(each) for each in done[1::2]] == [[i, i + 1, i + 2] for i in range(1, 30, 2)]
        assert all(isinstance(each, asyncio.CancelledError) for each in done[::2])
        assert amounts(await client.get_many("cards", keys_of([5, 6]), now=1)) == [5, 6]
        await client._reads.close()

    async def elsewhere():
        assert amounts(await client.get_many("cards", keys_of(range(CARDS)), now=1)) == list(range(CARDS))
        await client.close()

    run(main())
    run(elsewhere())


# ------------------------------------------------------------------------------------------------ slots that move


class Move:
    """The move of one slot between two nodes, step by step, as a resharding tool makes it."""

    def __init__(self, cluster, slot):
        self.slot = slot
        self.source = next(node for node in cluster.primaries if self._serves(node))
        self.target = next(node for node in cluster.primaries if node is not self.source)
        self.others = [node for node in cluster.primaries if node not in (self.source, self.target)]
        self.ids = {node: node.ask(b"CLUSTER", b"MYID") for node in (self.source, self.target)}

    def _serves(self, node):
        me = node.ask(b"CLUSTER", b"MYID")
        ranges = node.ask(b"CLUSTER", b"SLOTS")
        return any(first <= self.slot <= last and primary[2] == me for first, last, primary, *_ in ranges)

    def begin(self):
        self._set(self.target, b"IMPORTING", self.source)
        self._set(self.source, b"MIGRATING", self.target)

    def keys(self):
        return sorted(self.source.ask(b"CLUSTER", b"GETKEYSINSLOT", self.slot, 10_000))

    def send(self, keys):
        if keys:
            said = self.source.ask(b"MIGRATE", b"127.0.0.1", self.target.port, b"", 0, 5000, b"KEYS", *keys)
            assert said == b"OK"

    def end(self):
        for node in (self.target, self.source, *self.others):
            assert node.ask(b"CLUSTER", b"SETSLOT", self.slot, b"NODE", self.ids[self.target]) == b"OK"

    def _set(self, node, word, other):
        assert node.ask(b"CLUSTER", b"SETSLOT", self.slot, word, self.ids[other]) == b"OK"


@pytest.fixture
def own_cluster(tmp_path):
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_lookups_are_right_while_a_slot_moves_key_by_key_and_after(own_cluster):
    online = filled(own_cluster.url)
    card = next(card for card in range(CARDS) if bucket(card) == bucket(0) and card)
    slot = slot_of(online.store.space.fence(bucket(0)))
    cards, expected = [0, card, *range(10, 20)], [0, card, *range(10, 20)]
    with Both(own_cluster.url) as both:
        assert amounts(both.ask(cards)) == expected
        move = Move(own_cluster, slot)
        move.begin()
        assert amounts(both.ask(cards)) == expected
        assert both.ask(["nobody"])[0].known == {"many": False, "conditions": False}
        keys = move.keys()
        assert len(keys) >= 6
        for key in (keys[::3], keys[1::3]):  # some here, some there: MGET is refused with TRYAGAIN, or sent on by ASK
            move.send(key)
            found = both.ask(cards)
            assert amounts(found) == expected
            assert {vector.complete_through for vector in found} == {7}
        move.send(keys[2::3])
        assert amounts(both.ask(cards)) == expected
        move.end()
        for _ in range(2):  # MOVED, then by the new map
            assert amounts(both.ask(cards)) == expected
        moved = mgets(own_cluster)
        both.ask([0])
        assert sum(mgets(own_cluster)) - sum(moved) == 2
    online.apply([one(1, card="c0", amount=100.0, offset=CARDS)])
    assert amounts(online.client.get_many("cards", keys_of([0, 1]), now=2)) == [100.0, 1.0]
    online.store.close()


# ------------------------------------------------------------------------------------------------ nodes that hang or die


def cards_by_node(cluster, store):
    """Return per primary the cards whose bucket lies there."""
    by_node = []
    for node in cluster.primaries:
        mine = node.ask(b"CLUSTER", b"MYID")
        ranges = [(a, b) for a, b, primary, *_ in node.ask(b"CLUSTER", b"SLOTS") if primary[2] == mine]
        slots = {card: slot_of(store.space.fence(bucket(card))) for card in range(CARDS)}
        by_node.append([card for card, slot in slots.items() if any(a <= slot <= b for a, b in ranges)])
    assert all(by_node)
    return by_node


def test_a_node_that_hangs_costs_its_own_keys_a_deadline_and_the_others_nothing(tmp_path):
    with Cluster(tmp_path / "cluster", timeout_ms=60_000) as cluster:
        online = filled(cluster.url)
        mine, others, _ = cards_by_node(cluster, online.store)
        with Both(cluster.url, timeout="300ms") as both:
            online.store.close()
            retried(lambda: both.ask(range(CARDS)))
            freeze(cluster.primaries[0].process.pid)
            try:
                assert both.fails([mine[0]], OnlineStoreTimeoutError) < 0.6
                assert both.fails(range(CARDS), OnlineStoreTimeoutError) < 0.6
                assert amounts(retried(lambda: both.ask(others))) == others
                for _ in range(6):
                    both.fails([mine[0]], (OnlineStoreTimeoutError, OnlineStoreUnavailableError))
                assert both.fails([mine[0]], OnlineStoreUnavailableError) < 0.1  # the breaker of that node
                assert amounts(retried(lambda: both.ask(others))) == others
            finally:
                os.kill(cluster.primaries[0].process.pid, signal.SIGCONT)
            until = time.monotonic() + 20
            while True:
                try:
                    assert amounts(both.ask(range(CARDS))) == list(range(CARDS))
                    break
                except (OnlineStoreTimeoutError, OnlineStoreUnavailableError):
                    assert time.monotonic() < until


def retried(ask):
    """Return an answer that a busy machine may need a few deadlines for."""
    for _ in range(10):
        try:
            return ask()
        except OnlineStoreTimeoutError:
            continue
    return ask()


@pytest.mark.thorough
def test_a_primary_that_dies_is_an_error_until_its_replica_serves_and_nothing_is_lost(tmp_path):
    with Cluster(tmp_path / "cluster", replicas=3, timeout_ms=1000) as cluster:
        online = filled(cluster.url)
        mine, _, _ = cards_by_node(cluster, online.store)
        for node in cluster.primaries:
            assert node.ask(b"WAIT", 1, 5000) == 1
        with Both(cluster.url, timeout="1s") as both:
            assert amounts(both.ask(range(CARDS))) == list(range(CARDS))
            cluster.primaries[0].process.kill()
            assert both.fails([mine[0]], (OnlineStoreUnavailableError, OnlineStoreTimeoutError)) < 1.5
            until = time.monotonic() + 30
            while True:
                try:
                    found = both.ask(range(CARDS))
                    break
                except (OnlineStoreUnavailableError, OnlineStoreTimeoutError):
                    assert time.monotonic() < until
            assert amounts(found) == list(range(CARDS))
        # The writer finds it too: the first write may say that the scripts are gone, as after any restart.
        more = [one(1, card=f"c{i}", amount=1000.0 + i, offset=CARDS + i) for i in range(CARDS)]
        try:
            online.apply(more)
        except OnlineError:
            online.apply(more)
        assert amounts(online.client.get_many("cards", keys_of(range(CARDS)), now=2)) == [
            1000.0 + i for i in range(CARDS)
        ]
        online.store.close()
