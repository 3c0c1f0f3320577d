"""A worker that dies at every step of a batch: the next one, with other batches and from the first record, makes it right."""

from __future__ import annotations

import ast
import signal
from pathlib import Path

import pytest
import redis

import featurestore
from featurestore import failpoints
from featurestore.engines.oracle import without_repetitions
from featurestore.online.redis_store import RedisOnlineStore
from tests.faults.feeding import ShopWithIds, Watcher, feed_process, with_ids, wrong_values
from tests.faults.places import ALL, WORKER, WORKER_WITH_IDS
from tests.streaming.support import Shop, ends_of, simple_events

pytestmark = pytest.mark.thorough

KEYS = 20
EVENTS = 400


@pytest.mark.thorough
def test_a_worker_killed_at_every_step_of_a_batch_neither_loses_nor_doubles_events(online_url):
    shop, events = Shop("crash"), simple_events(EVENTS, keys=KEYS)
    store = RedisOnlineStore(online_url, shop.name)
    reached = []
    with Watcher(shop, online_url, events) as watcher:
        for place, size in WORKER.items():
            code = feed_process(shop, online_url, events, size=size, failpoint=place)
            assert code == -signal.SIGKILL, f"{place} was not reached"
            reached.append({partition: until for partition, (until, _) in store.progress("payments").items()})
        assert reached[-1] != ends_of(events), "everything was applied before the last kill"
        assert feed_process(shop, online_url, events, size=70) == 0
        watcher.look()
    assert wrong_values(shop, online_url, events) == []
    assert watcher.back == []
    assert watcher.reads > len(WORKER)
    assert {partition: until for partition, (until, _) in store.progress("payments").items()} == ends_of(events)

    # Negative control: the same kill without the fences that its predecessors left behind.
    with redis.Redis.from_url(online_url) as raw:
        raw.delete(*raw.scan_iter("*:fence"))
    assert feed_process(shop, online_url, events, size=70) == 0
    assert len(wrong_values(shop, online_url, events)) >= KEYS, "without its guard the test finds nothing"
    store.close()


@pytest.mark.thorough
def test_repeated_events_count_once_whatever_kills_the_worker(online_url):
    """Ids and entities live in different slots: between the two, too, nothing is lost and nothing counts twice."""
    shop, events = ShopWithIds("crash_ids"), with_ids(simple_events(240, keys=KEYS))
    kept = without_repetitions(shop.source, events)
    assert KEYS < len(kept) < 200
    with Watcher(shop, online_url, events) as watcher:
        for place, size in WORKER_WITH_IDS.items():
            code = feed_process(shop, online_url, events, size=size, failpoint=place)
            assert code == -signal.SIGKILL, f"{place} was not reached"
        assert feed_process(shop, online_url, events, size=50) == 0
        watcher.look()
    assert wrong_values(shop, online_url, kept) == []
    assert watcher.back == []

    # Negative control: where the ids of the first half are forgotten, and it is not read again, repetitions come in.
    other = ShopWithIds("crash_ids_lost")
    assert feed_process(other, online_url, events[:120], size=50) == 0
    with redis.Redis.from_url(online_url) as raw:
        raw.delete(*raw.scan_iter("fs:{crash_ids_lost.*}:ids:*"))
    assert feed_process(other, online_url, events[120:], size=50) == 0
    assert wrong_values(other, online_url, kept), "without its guard the test finds nothing"


def test_a_watcher_sees_a_value_that_goes_back(online_url):
    shop, events = Shop("crash_back"), simple_events(40, keys=4)
    assert feed_process(shop, online_url, events, size=40) == 0
    with Watcher(shop, online_url, events) as watcher:
        watcher.look()
        assert sum(watcher.seen.values()) > 40
        with redis.Redis.from_url(online_url) as raw:
            raw.delete(*raw.scan_iter("fs:{crash_back.*}:v:*"))
        watcher.look()
    assert watcher.back


def test_every_failpoint_is_reached_somewhere_in_the_code_and_no_other_is_named():
    named = set()
    for path in Path(featurestore.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"reach", "is_armed"}:
                named.add(ast.literal_eval(node.args[0]))
    assert named == set(failpoints.NAMES)


def test_at_every_failpoint_a_process_is_killed_by_some_test():
    assert {place.partition(":")[0] for place in ALL} == set(failpoints.NAMES)


def test_a_failpoint_that_does_not_exist_is_refused():
    for text in ("writer.bukket", "writer.bucket:x", ""):
        with pytest.raises(ValueError, match=r"no such failpoint; there are worker\.decoded"):
            failpoints.arm(text)
    assert not any(map(failpoints.is_armed, failpoints.NAMES))
