"""The online store fails in its ways, under a worker and a reader: the error says which, and what was sent counts once."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import redis

from featurestore.errors import (
    OnlineError,
    OnlineStoreLostError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
)
from featurestore.jobs.online_epoch import join_epoch
from featurestore.jobs.rebuild import accept_online
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.valkey import OnlineServer
from tests.faults.feeding import Feeder, Watcher, batches, wrong_values
from tests.frozen import freeze
from tests.servers import Watched
from tests.streaming.support import Shop, simple_events, wait_for

pytestmark = [pytest.mark.server, pytest.mark.thorough]

KEYS = 20
EVENTS = simple_events(400, keys=KEYS)
HALF = EVENTS[:200]


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, whose settings it may change."""
    with OnlineServer(tmp_path / "store") as started, redis.Redis.from_url(started.url) as admin:
        yield started, admin


def refused(feeder, events, error, match, *, size=100, again=True):
    """Apply events batch by batch, until one is refused and, as a job would do, tried again; return its partition."""
    for partition, rows in batches(events, size):
        try:
            feeder.one(partition, rows)
        except error as refusal:
            first = refusal
        else:
            continue
        assert re.search(match, str(first))
        if again:
            with pytest.raises(error, match=match):
                feeder.one(partition, rows)
        return partition
    raise AssertionError("the fault did not happen")


def refusal_of(feeder, events):
    """Return that the store was lost, once it answers; None as long as it does not."""
    try:
        feeder.apply(events)
    except OnlineStoreLostError as error:
        return error
    except OnlineError:
        return None
    raise AssertionError("the lost write was not noticed")


def standing(feeder, partition):
    """Return where the fences of the first view stand in all buckets that have one."""
    store = RedisOnlineStore(feeder.url, feeder.shop.name)
    view = feeder.shop.views[0]
    field = store.space.fence_field(view.name, view.layout.fingerprint, "payments", partition)
    found = {int(row[0]) for row in store.fences([field]) if row[0] is not None}
    store.close()
    return found


def assert_exact(shop, url, watcher):
    assert wrong_values(shop, url, EVENTS) == []
    watcher.look()
    assert watcher.back == []
    assert watcher.reads > 1


def assert_fences_matter(shop, feeder, admin, url):
    """The negative control: what was sent again counts twice as soon as the fences are gone."""
    admin.delete(*admin.scan_iter(f"fs:{{{shop.name}.*}}:fence"))
    feeder.apply(EVENTS)
    assert len(wrong_values(shop, url, EVENTS)) >= KEYS, "without its guard the test finds nothing"


def test_a_store_that_runs_out_of_memory_refuses_and_has_half_of_nothing(server):
    (started, admin), shop = server, Shop("oom")
    feeder = Feeder(shop, started.url)
    with Watcher(shop, started.url, EVENTS) as watcher:
        feeder.apply(HALF)
        # A little is left, more each time, until some buckets of a batch find room and others do not.
        admin.config_set("maxmemory-policy", "noeviction")
        used = admin.info("memory")["used_memory"]
        for room in range(0, 100_000, 500):
            admin.config_set("maxmemory", used + room)
            # Not tried again: the reader's buffers come and go, and so does the room that is left.
            partition = refused(feeder, EVENTS, OnlineStoreUnavailableError, "is out of memory", again=False)
            if len(standing(feeder, partition)) == 2:
                break
        assert len(standing(feeder, partition)) == 2, "some buckets have the batch, others have not"
        assert admin.info("errorstats")["errorstat_OOM"]["count"] > 0
        assert admin.info("stats")["evicted_keys"] == 0
        admin.config_set("maxmemory", 0)
        assert feeder.apply(EVENTS)["fenced"] > 0
        assert_exact(shop, started.url, watcher)
    assert_fences_matter(shop, feeder, admin, started.url)


def test_a_store_that_is_made_a_replica_refuses_and_is_written_again_afterwards(server):
    (started, admin), shop = server, Shop("readonly")
    feeder = Feeder(shop, started.url)
    with Watcher(shop, started.url, EVENTS) as watcher:
        feeder.apply(HALF)
        admin.replicaof("127.0.0.1", "1")  # of a primary that is away: it keeps what it has, and serves it
        refused(feeder, EVENTS, OnlineStoreUnavailableError, "is a read-only replica")
        assert admin.info("errorstats")["errorstat_READONLY"]["count"] > 0
        watcher.look()
        admin.replicaof("NO", "ONE")
        feeder.apply(EVENTS)
        assert_exact(shop, started.url, watcher)
    assert_fences_matter(shop, feeder, admin, started.url)


def test_a_write_that_reaches_a_hung_store_late_counts_once(server):
    """The worker gives up waiting, and the store reads the request when it wakes: a writer from the past."""
    (started, admin), shop = server, Shop("hung")
    feeder = Feeder(shop, started.url)
    with Watcher(shop, started.url, EVENTS) as watcher:
        feeder.apply(HALF)
        partition, rows = next(batches(EVENTS[200:], 100))
        worker = feeder.worker._worker(*feeder.worker.sources[shop.source.topic])
        inner, late = worker.writer.store, []

        class HangsAtTheAppend:
            def __getattr__(self, name):
                return getattr(inner, name)

            def append(self, appends):
                if not late:
                    late.append(len(appends))
                    freeze(started.pid)
                return inner.append(appends)

        inner._link._timeout_s = 0.5
        worker.writer.store = HangsAtTheAppend()
        try:
            with pytest.raises(OnlineStoreTimeoutError, match="did not answer in time"):
                feeder.one(partition, rows)
        finally:
            os.kill(started.pid, signal.SIGCONT)
        assert late[0] > 1
        give_up = time.monotonic() + 10
        while max(standing(feeder, partition)) != 200:
            assert time.monotonic() < give_up, "the late write never came"
        assert feeder.apply(EVENTS)["fenced"] > 0
        assert_exact(shop, started.url, watcher)
    assert_fences_matter(shop, feeder, admin, started.url)


def test_a_store_that_is_emptied_gets_nothing_until_it_is_rebuilt(server, tmp_path):
    (started, admin), shop = server, Shop("emptied")
    store = RedisOnlineStore(started.url, shop.name)
    epoch = join_epoch(store, str(tmp_path))
    feeder = Feeder(shop, started.url, epoch=epoch)
    feeder.apply(HALF)
    admin.flushall()
    refused(feeder, EVENTS[200:], OnlineStoreLostError, "was emptied")
    assert admin.dbsize() == 0
    # From the topics, which still hold everything; a job then begins at their first records.
    again = Feeder(shop, started.url, epoch=accept_online(store, str(tmp_path)))
    again.apply(EVENTS)
    assert wrong_values(shop, started.url, EVENTS) == []
    store.close()

    # Negative control: a worker that does not ask for the epoch fills the empty store with the second half alone.
    admin.flushall()
    Feeder(shop, started.url).apply(EVENTS[200:])
    assert len(wrong_values(shop, started.url, EVENTS)) >= KEYS


@pytest.mark.thorough
def test_after_a_failover_the_worker_goes_on_and_a_lost_write_is_noticed(tmp_path):
    shop = Shop("failover")
    with Watched(tmp_path / "servers") as watched:
        store = RedisOnlineStore(watched.url, shop.name)
        feeder = Feeder(shop, watched.url, epoch=join_epoch(store, str(tmp_path)))
        feeder.apply(HALF)
        assert watched.master.ask(b"WAIT", 1, 5000) == 1
        # The replica no longer hears of what is written from here on.
        freeze(watched.replica.process.pid)
        assert watched.master.ask(b"CLIENT", b"KILL", b"TYPE", b"replica") == 1
        feeder.apply(EVENTS[200:300])
        watched.master.process.kill()
        os.kill(watched.replica.process.pid, signal.SIGCONT)
        lost = wait_for("the failover", lambda: refusal_of(feeder, EVENTS[300:]), 60.0)
        assert "the online store went back" in str(lost)
        assert watched.replica.ask(b"ROLE")[0] == b"master"
        # Values and fences went back together: read again from the topics, they are right.
        again = Feeder(shop, watched.url, epoch=accept_online(store, str(tmp_path)))
        assert again.apply(EVENTS)["fenced"] > 0
        assert wrong_values(shop, watched.url, EVENTS) == []
        store.close()
