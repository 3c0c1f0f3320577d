"""Records straight into the worker that Spark and the real-time consumers run, and a reader that watches them arrive."""

from __future__ import annotations

import json
import multiprocessing
import random
import threading
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd  # noqa: F401 - pyarrow looks for it at the first array, which would take every process a second

from featurestore import failpoints
from featurestore.definitions.contract import Contract
from featurestore.errors import FeatureStoreError
from featurestore.jobs.hot import HotWorker
from featurestore.jobs.worker import by_topic
from featurestore.online.client import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.timeline import HOUR
from tests.streaming.support import (
    Shop,
    by_card,
    contract,
    differences,
    oracle,
    produce,
    produce_events,
    simple_events,
    to_bytes,
)


@dataclass(frozen=True)
class ShopWithIds(Shop):
    """The same definitions, over events that have ids."""

    @property
    def source(self):
        """Its source, with one more column."""
        made, more = contract(), {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
        fields = (*made.fields, *Contract.from_json(json.dumps(more), "id").fields)
        return replace(super().source, schema=replace(made, fields=fields), event_id="id", id_horizon="1m")


def with_ids(events):
    """Return the events with ids, most of which come again soon, and some later."""
    dice = random.Random(1)
    return [replace(event, row={**event.row, "id": f"{dice.randrange(60)}"}) for event in events]


class Feed:
    """Sends plain events of a shop to its topic, after each lot a record per partition that is no event; keeps what it sent."""

    def __init__(self, broker, shop, *, keys):
        self.broker, self._topic, self._keys = broker, shop.source.topic, keys
        self.events, self.junk = [], []

    def send(self, count):
        """Send some more; return them."""
        more = simple_events(count, keys=self._keys, begin=len(self.events))
        more = [replace(event, offset=event.offset + len(self.junk) // 2) for event in more]
        produce_events(self.broker, self._topic, more)
        records = [(partition, b"{", more[-1].arrival) for partition in (0, 1)]
        self.junk += produce(self.broker, self._topic, records)
        self.events += more
        return more


class Feeder:
    """Applies the events of a shop as its job would, batch by batch, every partition from its first record on."""

    def __init__(self, shop, url, *, epoch=None):
        self.shop, self.url = shop, url
        self.worker = HotWorker(url, shop.name, by_topic(shop.views), epoch)
        self.counts = Counter()

    def apply(self, events, size=100):
        """Apply events in batches of so many, the partitions taking turns; return what became of them."""
        before = self.counts.copy()
        for partition, rows in batches(events, size):
            self.one(partition, rows)
        return self.counts - before

    def one(self, partition, rows):
        """Apply consecutive events of one partition."""
        counts = self.worker.apply_records(
            self.shop.source.topic,
            partition,
            np.array([event.offset for event in rows]),
            np.array([event.arrival for event in rows]),
            [to_bytes(event) for event in rows],
        )
        self.counts.update(counts)


def batches(events, size):
    """Yield (partition, events) in turns over the partitions."""
    own = {}
    for event in events:
        own.setdefault(event.partition, []).append(event)
    for begin in range(0, max(map(len, own.values())), size):
        for partition, mine in own.items():
            if rows := mine[begin : begin + size]:
                yield partition, rows


def open_client(shop, url):
    """Return a client of a shop's project; its plan is published."""
    store = RedisOnlineStore(url, shop.name, timeout_s=2.0)
    store.publish_plan(LookupPlan.of(shop.service))
    return FeatureClient.over(store)


def keys_of(events):
    pairs = sorted({(event.row["card_id"], event.row["shop"]) for event in events})
    return [{"card_id": card, "shop": shop} for card, shop in pairs]


def wrong_values(shop, url, events):
    """Return where the online store differs from the oracle, over all keys, an hour after the last event."""
    t, keys, groups = max(event.event_time for event in events) + HOUR, keys_of(events), by_card(events)
    wrong = []
    with open_client(shop, url) as client:
        for key, vector in zip(keys, client.get_many("shop", keys, now=t), strict=True):
            wrong += differences(shop.views, oracle(shop.views, groups[key["card_id"]], key, t), dict(vector), f"{key}")
    return wrong


PROCESSES = multiprocessing.get_context("forkserver")  # a process that has imported everything makes the others
PROCESSES.set_forkserver_preload(["tests.faults.feeding"])
_ENDS_WITHIN_S = 180.0  # the first of them waits for the imports of the one that makes the others


def feed_process(shop, url, events, *, size, failpoint=None):
    """Run a process that applies events, until it dies at the failpoint if there is one; return its exit code."""
    process = PROCESSES.Process(target=_feed, args=(shop, url, events, size, failpoint))
    process.start()
    process.join(_ENDS_WITHIN_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a worker was still busy after {_ENDS_WITHIN_S:g} s, on the way to {failpoint}")
    return process.exitcode


def _feed(shop, url, events, size, failpoint):
    if failpoint is not None:
        failpoints.arm(failpoint)
    Feeder(shop, url).apply(events, size)


class Watcher:
    """A reader that asks for counts of all keys again and again; what only grows must never be seen to shrink."""

    FEATURES = ("visit.n_lifetime", "card.n_lifetime")

    def __init__(self, shop, url, events):
        self._client, self._keys = open_client(shop, url), keys_of(events)
        self._now = max(event.event_time for event in events) + HOUR
        self._stop, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen, self.back, self.reads, self.refused = {}, [], 0, 0

    def _run(self):
        while not self._stop.is_set():
            try:
                self.look()
            except FeatureStoreError:
                self.refused += 1
            self._stop.wait(0.01)

    def look(self):
        """Ask once for all keys; who asks first compares first, or an older answer would be taken for one that went back."""
        with self._looking:
            found = self._client.get_many("shop", self._keys, now=self._now)
            for key, vector in zip(self._keys, found, strict=True):
                for name in self.FEATURES:
                    place, value = (name, *key.values()), vector[name] or 0
                    if value < self.seen.get(place, 0):
                        self.back.append(f"{place}: {self.seen[place]} -> {value}")
                    self.seen[place] = value
            self.reads += 1

    def assert_steady(self, events):
        """Fail unless it has seen all events come, and nothing go."""
        self._end()
        self.look()
        assert self.back == []
        assert sum(value for place, value in self.seen.items() if place[0] == "visit.n_lifetime") == len(events)

    def _end(self):
        self._stop.set()
        self._thread.join(10)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end()
        self._client.close()
