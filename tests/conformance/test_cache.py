"""Values kept by a client: never older than stated, windows still slide, and complete_through claims no more than is in."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import DefinitionError, FeatureStoreError, OnlineStoreUnavailableError
from featurestore.online.cache import ReadCache
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.timeline import VirtualClock
from tests.conformance.cases import SOURCE
from tests.conformance.support import SECOND, Online, one
from tests.effort import tries


class Counting(MemoryOnlineStore):
    """A store that counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def read(self, keys):
        self.asked.append(list(keys))
        return super().read(keys)


class Kept:
    """A client with a cache on a clock of its own, over a store in memory."""

    def __init__(self, **options):
        self.store = Counting()
        self.online = Online(self.store)
        self.clock, self.seconds = VirtualClock(100 * SECOND), [0.0]
        self.client = FeatureClient.over(self.store, clock=self.clock, cache="200ms")
        self.client._cache = ReadCache(0.2, clock=lambda: self.seconds[0], **options)

    def count(self, card="c", **options):
        return self.client.get("cards", {"card_id": card}, **options)["many.n_1h"]


def test_values_are_kept_for_the_stated_time_and_no_longer():
    kept = Kept()
    kept.online.apply([one(0)])
    assert kept.count() == 1
    kept.online.apply([one(SECOND, offset=1)])
    kept.seconds[0] = 0.2
    assert kept.count() == 1
    kept.seconds[0] = 0.2001
    assert kept.count() == 2
    assert len(kept.store.asked) == 2


def test_windows_slide_over_values_that_are_kept():
    kept = Kept()
    kept.online.apply([one(0)])
    assert kept.count() == 1
    kept.clock.advance_to(5_000 * SECOND)
    assert kept.count() == 0
    assert len(kept.store.asked) == 1


def test_an_explicit_time_is_exact_and_leaves_nothing_behind():
    kept = Kept()
    assert kept.count(now=50 * SECOND) is None
    kept.online.apply([one(0)])
    assert kept.count() == 1  # not what was read for an explicit time
    kept.online.apply([one(SECOND, offset=1)])
    assert kept.count(now=50 * SECOND) == 2
    assert kept.count() == 1


def test_an_absent_key_is_kept_like_any_other_and_a_refresh_forgets():
    kept = Kept()
    kept.store.publish_complete(SOURCE.name, 5)
    assert kept.count() == 0
    kept.online.apply([one(0)])
    assert kept.count() == 0
    kept.client.refresh()
    assert kept.count() == 1


def test_complete_through_is_as_old_as_the_oldest_values_it_comes_with():
    kept = Kept()
    kept.store.publish_complete(SOURCE.name, 5)
    kept.online.apply([one(0, card="a")])
    kept.count("a")
    kept.online.apply([one(SECOND, card="a", offset=1), one(SECOND, card="b", offset=2)])
    kept.store.publish_complete(SOURCE.name, SECOND)
    alone, both = (
        kept.client.get("cards", {"card_id": "b"}),
        kept.client.get_many("cards", [{"card_id": "b"}, {"card_id": "a"}, {"card_id": "z"}]),
    )
    assert alone.complete_through == SECOND
    assert [vector["many.n_1h"] for vector in both] == [1, 1, 0]
    assert {vector.complete_through for vector in both} == {5}
    asked = kept.store.asked[-1]
    assert len(asked) == 3  # of z alone, and the instant
    assert kept.client.get("cards", {"card_id": "a"}).complete_through == 5
    kept.seconds[0] = 1.0
    assert kept.client.get("cards", {"card_id": "a"}).complete_through == SECOND


def test_a_failed_read_is_an_error_and_nothing_of_it_is_kept():
    class Failing(Counting):
        fails = False

        def read(self, keys):
            if self.fails:
                raise OnlineStoreUnavailableError("away")
            return super().read(keys)

    kept = Kept()
    kept.store.__class__ = Failing
    kept.online.apply([one(0)])
    assert kept.count() == 1
    kept.store.fails = True
    assert kept.count() == 1  # not yet older than stated
    kept.seconds[0] = 0.3
    with pytest.raises(OnlineStoreUnavailableError):
        kept.count()
    with pytest.raises(OnlineStoreUnavailableError):
        kept.client.get_many("cards", [{"card_id": "c"}, {"card_id": "d"}])
    kept.store.fails = False
    assert kept.count() == 1


def test_no_more_is_kept_than_stated():
    kept = Kept(most=10)
    for card in range(100):
        kept.count(f"c{card}")
        assert len(kept.client._cache) <= 10
    asked = len(kept.store.asked)
    kept.count("c99")
    assert len(kept.store.asked) == asked
    kept.client.get_many("cards", [{"card_id": f"d{card}"} for card in range(1000)])
    assert len(kept.client._cache) <= 10


@settings(max_examples=tries(200), deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.lists(st.integers(0, 4), min_size=1, max_size=5)),
            st.tuples(st.just("write"), st.integers(0, 4)),
            st.tuples(st.just("wait"), st.sampled_from([0.05, 0.15, 0.2, 0.25])),
        ),
        max_size=40,
    ),
    st.sampled_from([2, 4, 100]),
)
def test_every_value_is_one_the_store_held_within_the_stated_time(steps, most):
    """The store counts its writes; a value is the count at its last write. History says what held when."""
    now, writes = [0.0], [0]
    held = {place: [(0.0, 0)] for place in range(5)}
    cache = ReadCache(0.2, most=most, clock=lambda: now[0])
    for kind, argument in steps:
        if kind == "wait":
            now[0] += argument
        elif kind == "write":
            writes[0] += 1
            held[argument].append((now[0], writes[0]))
        else:
            names = [f"{place}{side}".encode() for place in argument for side in "ab"]
            values = cache.read(
                [*names, b"all"],
                len(argument),
                lambda names: [
                    str(held[int(name[:-1])][-1][1] if name != b"all" else writes[0]).encode() for name in names
                ],
            )
            stamp = int(values.pop())
            for place, one_, other in zip(argument, values[::2], values[1::2], strict=True):
                assert one_ == other  # of one read
                spans = zip(held[place], [*[at for at, _ in held[place][1:]], now[0] + 1], strict=True)
                ends = {value: end for (_, value), end in spans}
                assert ends[int(one_)] >= now[0] - 0.2
                assert int(one_) >= max(
                    value for _, value in held[place] if value <= stamp
                )  # what the instant claims is in
            assert len(cache) <= most


def test_threads_share_what_is_kept():
    kept = Kept(most=8)
    kept.online.apply([one(0, card=f"c{i}", amount=float(i), offset=i) for i in range(30)])
    wrong = []

    def ask(start):
        for step in range(200):
            card = (start + 7 * step) % 30
            if kept.client.get("cards", {"card_id": f"c{card}"})["many.high_1h"] != card:
                wrong.append(card)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.server
def test_the_async_client_keeps_values_too(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(0, card=f"c{i}", amount=float(i), offset=i) for i in range(4)])

    async def main():
        clock, seconds = VirtualClock(100 * SECOND), [0.0]
        async with AsyncFeatureClient(online_url, timeout="5s", cache="200ms", clock=clock) as client:
            client._cache = ReadCache(0.2, clock=lambda: seconds[0])

            async def count(card="c0", **options):
                return (await client.get("cards", {"card_id": card}, **options))["many.n_1h"]

            assert await asyncio.gather(*(count(f"c{i % 4}") for i in range(20))) == [1] * 20
            await asyncio.to_thread(online.apply, [one(SECOND, card="c0", offset=4)])
            assert await count() == 1
            assert await count(now=50 * SECOND) == 2
            table = await client.get_many("cards", [{"card_id": "c0"}, {"card_id": "new"}])
            assert [vector["many.n_1h"] for vector in table] == [1, None]
            seconds[0] = 0.3
            assert await count() == 2
            client.refresh()
            assert len(client._cache) == 0

    asyncio.run(main())
    online.store.close()


def test_a_client_keeps_nothing_unless_it_is_asked_to():
    client = FeatureClient.over(MemoryOnlineStore())
    assert client._cache is None
    for cache, entries in (("soon", 10), ("200ms", 1)):
        with pytest.raises(FeatureStoreError):
            FeatureClient("redis://h", cache=cache, cache_entries=entries)
    with pytest.raises(DefinitionError, match="at least 2"):
        FeatureClient("redis://h", cache="1s", cache_entries=0)
