"""Lookups in flight at once are read and decoded together: each gets what it would get alone, its own error included."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle

import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.definitions.service import FeatureService
from featurestore.errors import (
    CodecError,
    OnlineStoreUnavailableError,
    PastLookupError,
    StaleFeatureError,
    UnknownNameError,
)
from featurestore.online.lookup import MANY, LookupPlan, ServiceLookup
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.valkey import OnlineServer
from featurestore.timeline import VirtualClock
from tests.conformance.cases import MANY as VIEW
from tests.conformance.cases import SOURCE
from tests.conformance.support import SECOND, Online, one, stream_of
from tests.raw import raw

pytestmark = pytest.mark.server
CARDS = [f"c{number}" for number in range(4 * MANY)]


def gathered(url, clock, asks):
    """Return the answers, or errors, of many lookups at once; each is (keys, options)."""

    async def ask():
        async with AsyncFeatureClient(url, timeout="5s", clock=clock) as client:
            await client.service("cards")
            return await asyncio.gather(*(client.get("cards", *each) for each in asks), return_exceptions=True)

    return asyncio.run(ask())


def shown(answers):
    return [repr(answer.to_dict()) if not isinstance(answer, Exception) else repr(answer) for answer in answers]


@pytest.fixture
def decoded(monkeypatch):
    """How many entities were decoded at once, each time."""
    sizes = []
    for name in ("vectors_apart", "vectors_together"):
        original = getattr(ServiceLookup, name)

        def counted(self, replies, count, *rest, original=original):
            sizes.append(count if isinstance(count, int) else len(count))
            return original(self, replies, count, *rest)

        monkeypatch.setattr(ServiceLookup, name, counted)
    return sizes


@pytest.mark.parametrize("seed", [3, 4])
def test_hostile_streams_give_what_each_gives_alone(online_url, decoded, seed):
    online = Online(RedisOnlineStore(online_url, "default"), tail_cap=2)
    stream = stream_of(seed)
    online.apply(stream.events)
    online.store.publish_complete(SOURCE.name, 1)
    keys = [{"card_id": key} for key in sorted({event.row["card_id"] for event in stream.events} | {"nobody"})]
    keys *= MANY
    for t in sorted({t for _, t in stream.probes} | {max(event.event_time for event in stream.events) + 1}):
        clock = VirtualClock(t)
        with FeatureClient(online_url, timeout="5s", clock=clock) as alone:
            expected = [alone.get("cards", key) for key in keys]
        assert shown(gathered(online_url, clock, [(key,) for key in keys])) == shown(expected)
    assert max(decoded) > MANY
    online.store.close()


def test_one_time_of_all_and_chosen_features(online_url, decoded):
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])

    class Steps(VirtualClock):
        def now(self):
            self.advance_to(self.instant + SECOND)
            return self.instant

    asks = [({"card_id": card},) for card in CARDS]
    answers = gathered(online_url, Steps(99 * SECOND), asks * 2)
    assert [answer.at for answer in answers] == [100 * SECOND] * 64 + [101 * SECOND] * 16
    assert [answer["many.n_1h"] for answer in answers] == [1] * len(asks) * 2
    assert max(decoded) > MANY

    async def chosen():
        async with AsyncFeatureClient(online_url, timeout="5s", clock=VirtualClock(99 * SECOND)) as client:
            return await asyncio.gather(
                *(client.get("cards", {"card_id": card}, features=["many.n_1h"]) for card in CARDS)
            )

    assert [dict(answer) for answer in asyncio.run(chosen())] == [{"many.n_1h": 1}] * len(CARDS)
    online.store.close()


def test_values_that_nobody_asked_for_yet_are_in_what_is_copied_compared_and_pickled(online_url, decoded):
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])
    clock = VirtualClock(99 * SECOND)
    asks = [({"card_id": card},) for card in CARDS]
    made = [
        lambda vector: vector,
        copy.copy,
        copy.deepcopy,
        lambda vector: pickle.loads(pickle.dumps(vector)),
        lambda vector: dataclasses.replace(vector, at=vector.at),
    ]
    with FeatureClient(online_url, timeout="5s", clock=clock) as alone:
        expected = [alone.get("cards", keys) for (keys,) in asks]
    for make in made:
        answers = gathered(online_url, clock, asks)
        assert decoded.pop() > MANY
        assert [make(answer) for answer in answers] == expected
        assert [len(answer.row) for answer in answers] == [len(answer.names) for answer in answers]
    with pytest.raises(AttributeError, match="rows"):
        _ = expected[0].rows
    online.store.close()


def test_keys_are_those_of_the_call_whatever_becomes_of_their_mapping(online_url, decoded):
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])
    keys = {}

    async def ask():
        async with AsyncFeatureClient(online_url, timeout="5s", clock=VirtualClock(99 * SECOND)) as client:
            await client.service("cards")

            async def get(card):
                keys["card_id"] = card
                return await client.get("cards", keys)

            return await asyncio.gather(*map(get, CARDS))

    answers = asyncio.run(ask())
    assert [answer.as_of["many"] for answer in answers] == [number * SECOND for number in range(len(CARDS))]
    assert max(decoded) > MANY
    online.store.close()


def test_an_error_is_that_of_its_lookup_alone(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])
    bad = next(name for name in online.blobs() if name.endswith(CARDS[2].encode()))
    raw(online.store).set(bad, b"spoilt")
    asks = [({"card_id": card},) for card in CARDS]
    asks[5] = ({"cart_id": "c5"},)
    answers = gathered(online_url, VirtualClock(99 * SECOND), asks)
    kinds = {number: type(answer) for number, answer in enumerate(answers) if isinstance(answer, Exception)}
    assert kinds == {2: CodecError, 5: UnknownNameError}
    assert all(answer["many.n_1h"] == 1 for number, answer in enumerate(answers) if number not in kinds)
    online.store.close()


def test_what_is_asked_at_once_is_few_commands_and_a_time_in_the_past_refuses_its_lookup_alone(online_url):
    online = Online(RedisOnlineStore(online_url, "default"))
    events = [one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)]
    online.apply([*events, one(4 * SECOND, card=CARDS[3], offset=len(CARDS))])  # its two events are one record
    asks = [({"card_id": card},) for card in CARDS * 5]
    server = raw(online.store)

    def commands():
        return server.info("commandstats")["cmdstat_mget"]["calls"]

    async def ask():
        async with AsyncFeatureClient(online_url, timeout="5s", clock=VirtualClock(99 * SECOND)) as client:
            await client.service("cards")
            before = commands()
            times = {3: 3 * SECOND + 1, 4: 5 * SECOND}
            asked = [client.get("cards", *each, now=times.get(place)) for place, each in enumerate(asks)]
            return await asyncio.gather(*asked, return_exceptions=True), commands() - before

    answers, commands_sent = asyncio.run(ask())
    assert len(answers) == 200
    assert commands_sent == 4 + 2  # those by the clock 64 a command; one with a time goes at once, the next by another
    assert isinstance(answers[3], PastLookupError)
    assert answers[4].at == 5 * SECOND
    others = [
        (keys["card_id"], answer) for (keys,), answer in zip(asks, answers, strict=True) if answer is not answers[3]
    ]
    assert all(answer["many.n_1h"] == (2 if card == CARDS[3] else 1) for card, answer in others)
    online.store.close()


def test_of_a_store_that_goes_everyone_who_waits_hears(tmp_path):
    with OnlineServer(tmp_path / "store") as server:
        online = Online(RedisOnlineStore(server.url, "default"))
        online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])
        online.store.close()

        async def ask():
            async with AsyncFeatureClient(server.url, timeout="5s", clock=VirtualClock(99 * SECOND)) as client:
                found = [await asyncio.gather(*(client.get("cards", {"card_id": card}) for card in CARDS))]
                await asyncio.to_thread(server.stop)
                asked = (client.get("cards", {"card_id": card}) for card in CARDS)
                return [*found, await asyncio.gather(*asked, return_exceptions=True)]

        there, gone = asyncio.run(ask())
    assert [answer["many.n_1h"] for answer in there] == [1] * len(CARDS)
    assert {type(answer) for answer in gone} == {OnlineStoreUnavailableError}


def test_a_policy_fails_whom_it_concerns_and_who_leaves_is_not_waited_for(online_url):
    from dataclasses import replace

    strict = FeatureService("cards", [replace(VIEW, max_staleness="10s")])
    online = Online(RedisOnlineStore(online_url, "default"))
    online.store.publish_plan(LookupPlan.of(strict))
    online.apply([one(number * SECOND, card=card, offset=number) for number, card in enumerate(CARDS)])
    online.store.publish_complete(SOURCE.name, 0)

    class Jumps(VirtualClock):
        jumped = False

        def now(self):
            self.jumped = not self.jumped
            return super().now() + (SECOND if self.jumped else 100 * SECOND)

    async def ask():
        async with AsyncFeatureClient(online_url, timeout="5s", clock=Jumps(0)) as client:
            await client.service("cards")
            tasks = [asyncio.ensure_future(client.get("cards", {"card_id": card})) for card in CARDS]
            await asyncio.sleep(0)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, StaleFeatureError) for answer in answers[1::2])
    assert all(answer.status["many.n_1h"] == "present" for answer in answers[2::2])
    online.store.close()
