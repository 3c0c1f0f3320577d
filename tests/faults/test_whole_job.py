"""A submitted job in real time, which waits out what befalls its store and its brokers, one fault after the other.

The store is out of memory, read-only, slow, hung and failed over; then the leader of a partition dies. A reader asks all the while,
and after each of them all there is equals the oracle. A failover that loses writes ends the job; the store is accepted as it is, and
micro-batches take over.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
import redis
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from featurestore.errors import OnlineError, SubmitError
from featurestore.events.broker import ensure_topics
from featurestore.jobs.online_epoch import starting_offsets
from featurestore.jobs.rebuild import accept_online
from featurestore.jobs.worker import by_topic
from featurestore.online.redis_store import RedisOnlineStore
from tests.faults.brokers import three_brokers
from tests.faults.feeding import Feed, Watcher
from tests.faults.guards import assert_whole, forget_fences
from tests.faults.proxy import HoldingProxy
from tests.frozen import freeze
from tests.servers import Watched
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    ends_of,
    entering,
    online_differences,
    simple_events,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm

KEYS = 20


class Scene:
    """A job on brokers and servers of its own, what was sent to it, and who watches."""

    def __init__(self, shop, store, feed, job, watched, fronts):
        self.shop, self.store, self.feed, self.job = shop, store, feed, job
        self.watched, self._fronts = watched, fronts

    def assert_whole(self, *, archived=True):
        assert_whole(self.job, self.store, self.shop, self.feed.events, self.feed.junk, archived=archived)

    def error(self):
        """What keeps the consumers from going on, by the job's status."""
        return self.job.status().queries["hot"]["error"] or ""

    def befall(self, word, begin, end):
        """Let something befall the store while records come, until the job says so; then mend it, and compare everything."""
        self.watched.master.ask(*begin)
        self.feed.send(60)
        wait_for(f"the word {word!r}", lambda: word in self.error(), job=self.job)
        self.watched.master.ask(*end)
        self.assert_whole()
        wait_for("no word more", lambda: not self.error(), job=self.job)

    def _applied_within(self):
        """Send some records; return how long it took until the store had them."""
        begun = time.monotonic()
        self.feed.send(60)
        wait_applied(self.watched.url, self.shop.name, ends_of(self.feed.events, self.feed.junk), self.job)
        return time.monotonic() - begun

    def slow_down(self):
        """Let every write take half a second, of which a batch has several: longer than usual, and no error."""
        front, usual = self._fronts[self.watched.master.port], self._applied_within()
        before = front.held
        front.hold(0.5)
        slow = self._applied_within()
        front.let_go()
        assert front.held - before > 1
        assert slow > usual + 0.5
        self.assert_whole(archived=False)
        assert not self.error()

    def hang(self):
        """Let no write through until the job says so; then those too arrive that nobody waits for any longer."""
        front = self._fronts[self.watched.master.port]
        before = front.held
        front.hold(60.0)
        self.feed.send(60)
        wait_for("the word of a deadline", lambda: "did not answer in time" in self.error(), job=self.job)
        assert front.held > before
        front.let_go()
        self.assert_whole(archived=False)
        wait_for("no word more", lambda: not self.error(), job=self.job)

    def fail_over(self):
        """Let the master hang, once its replica has all there is, until there is another; it wakes, and everything is compared."""
        servers = self.watched
        master, replica = servers.master, servers.replica
        assert master.ask(b"WAIT", 1, 5000) == 1
        freeze(master.process.pid)
        self.feed.send(60)
        wait_for("another master", lambda: _is_master(replica), 60.0, job=self.job)
        wait_for("Sentinels that name it", self._is_reached, job=self.job)
        os.kill(master.process.pid, signal.SIGCONT)
        servers.master, servers.replica = replica, master
        self.assert_whole()
        wait_for("its submission", lambda: master.ask(b"ROLE")[0] == b"slave", job=self.job)

    def lose_writes(self):
        """Let the master die with records that its replica does not have; return them once the job has ended with that."""
        servers = self.watched
        master, replica = servers.master, servers.replica
        assert master.ask(b"WAIT", 1, 5000) == 1
        freeze(replica.process.pid)
        assert master.ask(b"CLIENT", b"KILL", b"TYPE", b"replica") >= 1
        before, stood = self.job.status().totals["applied"], len(self.feed.events)
        self._applied_within()
        lost = self.feed.events[stood:]
        reported = before + sum(entering(view, lost) for view in self.shop.views)
        wait_for("the counts", lambda: self.job.status().totals["applied"] == reported, job=self.job)
        master.process.kill()
        os.kill(replica.process.pid, signal.SIGCONT)
        wait_for("another master", lambda: _is_master(replica), 60.0)
        servers.master, servers.replica = replica, master
        wait_for("the job's end", lambda: not self.job.is_alive, 60.0)
        return lost

    def _is_reached(self):
        with contextlib.suppress(OnlineError):
            return applied_offsets(self.watched.url, self.shop.name)


class Fronts:
    """Proxies before the servers of the store, which can hold writes back."""

    def __init__(self, stack):
        self._stack, self.of = stack, {}

    def announced(self, port):
        """Return the port of the proxy before a port."""
        if port not in self.of:
            self.of[port] = self._stack.enter_context(HoldingProxy(port, word=b"EVALSHA"))
        return self.of[port].port


def leader_of(topic, brokers):
    """Return who leads the first partition of a topic, None where nobody can be asked."""
    with contextlib.suppress(KafkaError):  # it may ask the broker that is gone
        admin = KafkaAdminClient(bootstrap_servers=brokers)
        try:
            found = admin.describe_topics([topic])[0]["partitions"]
        finally:
            admin.close()
        return next(each["leader_id"] for each in found if each["partition_index"] == 0)


def _is_master(server):
    """Return whether a server says so; one that changes its part hangs up on who asks meanwhile."""
    try:
        return server.ask(b"ROLE")[0] == b"master"
    except redis.exceptions.ConnectionError:
        return False


def test_a_realtime_job_waits_out_its_store_and_its_brokers_and_micro_batches_take_over(spark, tmp_path):
    shop = Shop("whole")
    with contextlib.ExitStack() as stack:
        fronts = Fronts(stack)
        brokers = stack.enter_context(three_brokers(tmp_path / "brokers"))
        servers = stack.enter_context(Watched(tmp_path / "servers", announced=fronts.announced))
        every = ",".join(each.bootstrap_servers for each in brokers)
        ensure_topics({"bootstrap.servers": every}, {shop.source.topic: 2}, replication_factor=len(brokers))
        store = shop.open(tmp_path, every, servers.url)
        with pytest.raises(SubmitError, match="'real' is none of"):
            store.submit("materialize", service="shop", freshness="real")
        with pytest.raises(SubmitError, match="consumers is 2 with freshness 'micro-batch'"):
            store.submit("materialize", service="shop", consumers=2)
        feed = Feed(every, shop, keys=KEYS)
        job = store.submit("materialize", service="shop", freshness="realtime", archive_every="1 second")
        scene = Scene(shop, store, feed, job, servers, fronts.of)
        try:
            with Watcher(shop, servers.url, simple_events(2_000, keys=KEYS)) as watcher:
                feed.send(200)
                job.wait_until("running")
                scene.assert_whole()
                maxmemory = (b"CONFIG", b"SET", b"maxmemory")
                scene.befall("is out of memory", (*maxmemory, b"1"), (*maxmemory, b"0"))
                scene.befall("replica", (b"REPLICAOF", b"127.0.0.1", b"1"), (b"REPLICAOF", b"NO", b"ONE"))
                scene.slow_down()
                assert watcher.reads > 1
                scene.hang()
                scene.fail_over()
                assert watcher.refused, "the reader saw no outage"

                counted, victim = job.status().totals, leader_of(shop.source.topic, every)
                brokers[victim].kill()
                living = ",".join(each.bootstrap_servers for number, each in enumerate(brokers) if number != victim)
                wait_for("another leader", lambda: leader_of(shop.source.topic, living) not in {victim, None, -1})
                feed.broker = living
                more = feed.send(200)
                wait_applied(servers.url, shop.name, ends_of(feed.events, feed.junk), job)
                wait_archived(store.settings.offline, len(feed.events) + len(feed.junk), job)
                # What was applied and not committed yet is read again: fenced, never applied.
                entered = counted["applied"] + sum(entering(view, more) for view in shop.views)
                wait_for("the counts", lambda: job.status().totals["applied"] >= entered, job=job)
                watcher.assert_steady(feed.events)

            pids = job.status().queries["hot"]["pids"]
            lost = scene.lose_writes()
            assert job.status().state == "failed"
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
            first = job.status().error
            job = InProcess(spark, store, shop, job.folder, queries=("hot",))
            assert job.wait_end() == 1, "the next one is refused too"
            for said in (first, job.status().error):
                assert re.search(r"online store (went back|is an older one)", said)
                assert "rebuild-online, with --from-topics if they still hold what it lost" in said
            assert online_differences(store, shop, feed.events), "nothing was lost"

            # As it is, it is accepted, and micro-batches begin at what its fences wait for.
            online = RedisOnlineStore(servers.url, shop.name)
            accept_online(online, store.settings.offline)
            starts = starting_offsets(online, by_topic(shop.views), {shop.source.topic: (0, 1)})[shop.source.topic]
            online.close()
            with Watcher(shop, servers.url, simple_events(2_000, keys=KEYS)) as watcher:
                job = InProcess(spark, store, shop, job.checkpoints.parent)
                began = {partition: max(0, offset) for partition, offset in starts.items()}
                assert_whole(job, store, shop, feed.events, feed.junk, began=began)
                totals = job.status().totals
                assert totals["applied"] == sum(entering(view, lost) for view in shop.views)
                assert totals["fenced"] > 0
                assert job.stop().state == "stopped"
                watcher.assert_steady(feed.events)

            # Negative control: without the fences they would count everything twice.
            forget_fences(f"redis://127.0.0.1:{servers.master.port}", shop.name, job.checkpoints)
            job = InProcess(spark, store, shop, job.checkpoints.parent, queries=("hot",))
            wait_applied(servers.url, shop.name, ends_of(feed.events), job)
            assert job.stop().state == "stopped"
            assert len(online_differences(store, shop, feed.events)) >= KEYS, "the test finds nothing"
        finally:
            job.stop()
