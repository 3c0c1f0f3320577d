"""A submitted job in real time, which waits out what befalls its store and its brokers, one fault after the other.

The store is out of memory, read-only, hung and failed over; then the leader of a partition dies. A reader asks all the while,
and after each of them all there is equals the oracle. Micro-batches take over at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from featurestore.errors import OnlineError, SubmitError
from featurestore.events.broker import ensure_topics
from tests.faults.brokers import three_brokers
from tests.faults.feeding import Feed, Watcher
from tests.faults.guards import assert_whole, forget_fences
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

    def __init__(self, shop, store, feed, job, watched):
        self.shop, self.store, self.feed, self.job, self.watched = shop, store, feed, job, watched

    def assert_whole(self):
        assert_whole(self.job, self.store, self.shop, self.feed.events, self.feed.junk)

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

    def fail_over(self):
        """Let the master hang, once its replica has all there is, until there is another; it wakes, and everything is compared."""
        servers = self.watched
        master, replica = servers.master, servers.replica
        assert master.ask(b"WAIT", 1, 5000) == 1
        os.kill(master.process.pid, signal.SIGSTOP)
        self.feed.send(60)
        wait_for("another master", lambda: replica.ask(b"ROLE")[0] == b"master", 60.0, job=self.job)
        wait_for("Sentinels that name it", self._is_reached, job=self.job)
        os.kill(master.process.pid, signal.SIGCONT)
        servers.master, servers.replica = replica, master
        self.assert_whole()
        wait_for("its submission", lambda: master.ask(b"ROLE")[0] == b"slave", job=self.job)

    def _is_reached(self):
        with contextlib.suppress(OnlineError):
            return applied_offsets(self.watched.url, self.shop.name)


def leader_of(topic, brokers):
    """Return who leads the first partition of a topic, None where nobody can be asked."""
    with contextlib.suppress(KafkaError):  # it may ask the broker that is gone
        admin = KafkaAdminClient(bootstrap_servers=brokers)
        try:
            found = admin.describe_topics([topic])[0]["partitions"]
        finally:
            admin.close()
        return next(each["leader_id"] for each in found if each["partition_index"] == 0)


def test_a_realtime_job_waits_out_its_store_and_its_brokers_and_micro_batches_take_over(spark, tmp_path):
    shop = Shop("whole")
    with three_brokers(tmp_path / "brokers") as brokers, Watched(tmp_path / "servers") as servers:
        every = ",".join(each.bootstrap_servers for each in brokers)
        ensure_topics({"bootstrap.servers": every}, {shop.source.topic: 2}, replication_factor=len(brokers))
        store = shop.open(tmp_path, every, servers.url)
        with pytest.raises(SubmitError, match="'real' is none of"):
            store.submit("materialize", service="shop", freshness="real")
        with pytest.raises(SubmitError, match="consumers is 2 with freshness 'micro-batch'"):
            store.submit("materialize", service="shop", consumers=2)
        feed = Feed(every, shop, keys=KEYS)
        job = store.submit("materialize", service="shop", freshness="realtime", archive_every="1 second")
        scene = Scene(shop, store, feed, job, servers)
        try:
            with Watcher(shop, servers.url, simple_events(2_000, keys=KEYS)) as watcher:
                feed.send(200)
                job.wait_until("running")
                scene.assert_whole()
                maxmemory = (b"CONFIG", b"SET", b"maxmemory")
                scene.befall("is out of memory", (*maxmemory, b"1"), (*maxmemory, b"0"))
                scene.befall("replica", (b"REPLICAOF", b"127.0.0.1", b"1"), (b"REPLICAOF", b"NO", b"ONE"))
                assert watcher.reads > 1
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
                pids = job.status().queries["hot"]["pids"]
                assert job.stop().state == "stopped"
                assert job.status().totals["applied"] == entered
                assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

                # Micro-batches begin at the first record, behind the same fences.
                job = InProcess(spark, store, shop, job.folder, queries=("hot",))
                assert_whole(job, store, shop, feed.events, feed.junk)
                assert job.status().totals["applied"] == 0 < job.status().totals["fenced"]
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
