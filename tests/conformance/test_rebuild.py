"""Rebuilding the online store from Delta: after any loss and a rebuild every value is the oracle's, and so it stays.

On both stores: in memory, and on a real Valkey that is emptied with FLUSHALL.
"""

from __future__ import annotations

import random

import pytest
import redis

from featurestore.definitions.registry import Definitions
from featurestore.errors import OfflineError, OffsetsGoneError, OnlineStoreLostError, UnknownNameError
from featurestore.jobs.online_epoch import (
    ProgressWatch,
    SeenProgress,
    hot_checkpoint,
    join_epoch,
    progress_of,
    refuse_gone,
    starting_offsets,
)
from featurestore.jobs.rebuild import accept_online, rebuild_online
from featurestore.jobs.rebuild_key import rebuild_key
from featurestore.jobs.worker import SourceWorker, by_topic, decoder_of
from featurestore.offline.epochs import OnlineEpochs
from featurestore.offline.events import write_events
from featurestore.online.client import FeatureClient
from featurestore.online.epoch import move_epoch, one_epoch, read_epochs
from featurestore.online.keys import BUCKETS
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.replay import Replay
from tests.streaming.support import Shop

pytestmark = pytest.mark.thorough

SHOP = Shop("rebuilt")
SERVICE = SHOP.service
DEFINITIONS = Definitions.of([SERVICE])


@pytest.fixture(params=["memory", "redis"])
def store(request):
    if request.param == "memory":
        yield MemoryOnlineStore("rebuilt")
        return
    made = RedisOnlineStore(request.getfixturevalue("online_url"), "rebuilt")
    yield made
    made.close()


def empty(store):
    """Lose everything, as FLUSHALL or a restart without persistence does."""
    if isinstance(store, MemoryOnlineStore):
        fresh = MemoryOnlineStore(store.project)
        store.values, store.bucket_fences, store._progress, store._plans = fresh.values, fresh.bucket_fences, {}, {}
    else:
        with redis.Redis.from_url(store.url) as client:
            client.flushall()
            assert client.dbsize() == 0


class Stream:
    """A hostile stream over two partitions, applied by production's worker and archived as production archives it."""

    def __init__(self, store, root, seed=5, events=300, tail_cap=4):
        self.store, self.root, self.tail_cap = store, str(root), tail_cap
        self.replay = Replay(SERVICE, tail_cap=tail_cap)  # the judge: its own store, its own oracle
        self.events = SHOP.stream(seed, events).events
        self.records, self.archived_rows, self.start = [], 0, {}
        self.worker = None

    def begin(self, *, guarded=True, views=SERVICE.views):
        """Begin a job on the store, as a driver does."""
        epoch = join_epoch(self.store, self.root) if guarded else None
        ((_, (source, views)),) = by_topic(views).items()
        writer = FencedWriter(self.store, source.name, views, tail_cap=self.tail_cap, epoch=epoch)
        self.worker = SourceWorker(source, decoder_of(source), writer)
        self.start = starting_offsets(self.store, by_topic(SERVICE.views), {source.topic: [0, 1]})[source.topic]
        return epoch

    def arrive(self, count):
        """Let the next events arrive in their topic."""
        for event in self.events[len(self.records) : len(self.records) + count]:
            self.records.append(
                self.replay.send("payments", event.row, arrival=event.arrival, partition=event.partition)
            )

    def apply(self, *, size=17, first=None):
        """Apply everything that has arrived, from the offsets at which the job began, in batches."""
        import numpy as np

        for partition in (0, 1):
            begin = max(0, self.start[partition] if first is None else first[partition])
            mine = [each for each in self.records if each.partition == partition and each.offset >= begin]
            for at in range(0, len(mine), size):
                batch = mine[at : at + size]
                self.worker.apply(
                    partition,
                    np.array([each.offset for each in batch]),
                    np.array([each.arrival for each in batch]),
                    [each.value for each in batch],
                )

    def archive(self):
        """Write what has arrived and is not in the event log yet."""
        log = self.replay.log("payments").archived()
        write_events(self.root, "payments", log.slice(self.archived_rows))
        self.archived_rows = log.num_rows

    def assert_equal(self):
        """Every value of every key equals the specification's, at the clock and later."""
        self.store.publish_plan(LookupPlan.of(SERVICE))
        self.store.publish_complete("payments", self.replay.clock.now())
        client = FeatureClient.over(self.store, clock=self.replay.clock)
        keys = [
            {"card_id": c, "shop": s}
            for c, s in sorted({(e.row["card_id"], e.row["shop"]) for e in self.events}, key=repr)
        ]
        wrong = []
        from tests.streaming.support import differences, oracle

        seen = self.replay.log("payments").events()
        newest = max(event.event_time for event in seen)
        for t in (max(self.replay.clock.now(), newest) + 1, newest + 1_800_000_000):
            for key in keys:
                expected = oracle(SERVICE.views, seen, key, t)
                wrong += differences(SERVICE.views, expected, dict(client.get("shop", key, now=t)), f"{key} at {t}")
        assert not wrong, "\n".join(wrong[:5])


@pytest.fixture
def stream(store, tmp_path):
    return Stream(store, tmp_path)


def test_after_a_flush_in_the_middle_nothing_is_written_and_a_rebuild_gives_the_oracle_and_goes_on(stream, store):
    assert stream.begin() == 1
    stream.arrive(120)
    stream.apply()
    stream.archive()
    stream.arrive(60)
    stream.apply()
    stream.assert_equal()
    empty(store)
    stream.arrive(20)
    with pytest.raises(OnlineStoreLostError, match=r"was emptied.*rebuild-online"):
        stream.apply()
    assert store.progress("payments") == {}
    assert not any(list(store.blobs(view.name, view.layout.fingerprint)) for view in SERVICE.views)
    with pytest.raises(OnlineStoreLostError, match="was emptied"):
        stream.begin()

    made = rebuild_online(store, DEFINITIONS, stream.root)
    log = stream.replay.log("payments").archived().slice(0, stream.archived_rows)
    ends = {}
    for partition, offset in zip(log.column("_partition").to_pylist(), log.column("_offset").to_pylist(), strict=True):
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    assert made.until == {"payments": ends}
    assert stream.begin() == made.epoch == 2
    assert stream.start == ends, "the stream goes on from exactly where the log ends"
    stream.apply()
    stream.assert_equal()
    stream.arrive(100)
    stream.apply(size=9)
    stream.assert_equal()


def test_without_an_epoch_the_stream_would_serve_what_came_after_the_loss_as_if_it_were_all(stream, store):
    stream.begin(guarded=False)
    stream.arrive(120)
    stream.apply()
    reached = {p: offset for p, (offset, _) in store.progress("payments").items()}
    empty(store)
    stream.arrive(60)
    stream.apply(first=reached)
    with pytest.raises(AssertionError, match="oracle"):
        stream.assert_equal()


@pytest.mark.parametrize("memory_bytes", [1, 1 << 14, 1 << 30])
def test_less_memory_takes_more_passes_and_gives_the_same(stream, store, memory_bytes):
    stream.arrive(200)
    stream.archive()
    made = rebuild_online(store, DEFINITIONS, stream.root, memory_bytes=memory_bytes)
    assert made.passes == {1: 16, 1 << 14: 8, 1 << 30: 1}[memory_bytes]
    assert made.events == 200 * made.passes
    stream.assert_equal()


def test_a_rebuild_over_a_store_that_serves_never_takes_a_value_back_and_removes_what_no_event_made(stream, store):
    stream.begin()
    stream.arrive(150)
    stream.apply()
    stream.archive()
    view = SERVICE.views[0]
    ghost = store.space.blob(view.name, view.layout.fingerprint, b"\x01nobody")
    from featurestore.online.store import Replacement

    assert store.replace([Replacement(ghost, b"", b"FB")]) == 1
    watched = []
    made = rebuild_online(
        store,
        DEFINITIONS,
        stream.root,
        progress=lambda done, total: (watched.append((done, total)), stream.assert_equal()),
    )
    assert watched[-1] == (16, 16)
    assert made.removed == 1
    assert store.read([ghost]) == [None]
    assert one_epoch(read_epochs(store)) == 2
    with pytest.raises(OnlineStoreLostError, match=r"was rebuilt \(epoch 2\)"):
        stream.apply(first={0: 0, 1: 0})
    stream.begin()
    stream.arrive(50)
    stream.apply()
    stream.assert_equal()


def test_a_log_that_is_behind_the_store_is_refused_before_anything_changes(stream, store):
    stream.begin()
    stream.arrive(100)
    stream.archive()
    stream.arrive(50)
    stream.apply()
    with pytest.raises(OfflineError, match=r"has applied payments partition \d up to offset.*would go back"):
        rebuild_online(store, DEFINITIONS, stream.root)
    assert one_epoch(read_epochs(store)) == 1
    stream.arrive(50)
    stream.apply()
    stream.assert_equal()


def test_an_interrupted_rebuild_lets_no_job_begin_and_runs_again(stream, store):
    stream.begin()
    stream.arrive(150)
    stream.apply()
    stream.archive()

    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        rebuild_online(store, DEFINITIONS, stream.root, progress=stop)
    with pytest.raises(OnlineStoreLostError, match="being rebuilt, or its rebuild was interrupted"):
        stream.begin()
    with pytest.raises(OnlineStoreLostError, match="being rebuilt"):
        stream.apply(first={0: 0, 1: 0})
    with pytest.raises(OnlineStoreLostError, match="one view is not enough"):
        rebuild_online(store, DEFINITIONS, stream.root, view="card")
    rebuild_online(store, DEFINITIONS, stream.root)
    stream.begin()
    stream.arrive(50)
    stream.apply()
    stream.assert_equal()


def test_one_view_is_rebuilt_alone_and_the_other_goes_on_where_it_was(stream, store):
    stream.begin()
    stream.arrive(150)
    stream.apply()
    stream.archive()
    view, other = SERVICE.views
    names = sorted(store.blobs(view.name, view.layout.fingerprint))
    rest = sorted(store.blobs(other.name, other.layout.fingerprint))
    before = store.read(rest)
    store.remove(names[::2])
    with pytest.raises(UnknownNameError, match="did you mean 'visit'"):
        rebuild_online(store, DEFINITIONS, stream.root, view="visits")
    made = rebuild_online(store, DEFINITIONS, stream.root, view=view.name)
    assert (made.views, made.blobs) == ((view.name,), len(names))
    assert store.read(rest) == before
    stream.begin()
    stream.arrive(50)
    stream.apply()
    stream.assert_equal()

    # Over a view that serves: on its way, each value of both views is right.
    stream.archive()
    watched = []
    rebuild_online(
        store,
        DEFINITIONS,
        stream.root,
        view=view.name,
        progress=lambda done, total: (watched.append((done, total)), done % 5 or stream.assert_equal()),
    )
    assert watched[-1] == (16, 16)


def test_a_new_view_gets_its_history_from_the_log_and_the_stream_joins_without_a_gap(stream, store):
    old, new = SERVICE.views
    stream.begin(views=[old])
    stream.arrive(100)
    stream.apply()
    stream.archive()
    stream.arrive(50)
    stream.apply()  # the log is behind the old view by these
    made = rebuild_online(store, DEFINITIONS, stream.root, view=new.name)
    assert made.views == (new.name,)
    stream.begin()
    stream.apply()
    stream.assert_equal()
    stream.arrive(50)
    stream.apply()
    stream.assert_equal()


def test_what_is_gone_from_the_topic_is_not_skipped_in_silence(stream, store):
    topics, topic = by_topic(SERVICE.views), SHOP.source.topic
    refuse_gone(store, topics, {topic: {0: 5, 1: 7}})
    stream.arrive(120)
    stream.archive()
    until = rebuild_online(store, DEFINITIONS, stream.root).until["payments"]
    refuse_gone(store, topics, {topic: until})
    with pytest.raises(
        OffsetsGoneError, match=rf"rebuilt_payments-1: the online store waits for offset {until[1]:,}, .* 3 records"
    ):
        refuse_gone(store, topics, {topic: {0: until[0], 1: until[1] + 3}})


def test_what_a_store_acknowledged_is_held_against_it_and_what_nobody_heard_of_is_not(tmp_path):
    def progress(offset):
        return {"payments": {0: offset}}

    def watched(name, *ticks):
        watch = ProgressWatch(SeenProgress(tmp_path / name, 1))
        for now, reached in ticks:
            watch.check(progress(now), progress(reached))
            watch.keep()

    watched("steady", (10, 0), (20, 12), (30, 20), (30, 35))
    watched("woken", (10, 10), (20, 10), (10, 10), (20, 20))  # a master that woke had 20, which nobody was told
    with pytest.raises(OnlineStoreLostError, match="had reached offset 20, and is at 10"):
        watched("lost", (10, 10), (20, 10), (10, 20))
    SeenProgress(tmp_path / "steady", 1).check(progress(30))
    with pytest.raises(OnlineStoreLostError, match="had reached offset 30, and is at 29"):
        watched("steady", (29, 0))  # begun again: nothing has been reached yet
    both = SeenProgress(tmp_path / "both", 1)
    both.note({"payments": {0: 5, 1: 7}, "visits": {0: 1}})
    watch = ProgressWatch(both)
    for _ in range(2):
        watch.check({"payments": {0: 6, 1: 7}, "visits": {0: 1}}, progress(6))
    watch.keep()  # of one partition more is known now, of the others as much as before
    assert both.read() == {"payments": {0: 6, 1: 7}, "visits": {0: 1}}


def test_a_store_restored_from_an_older_state_is_refused(stream, store, tmp_path):
    stream.begin()
    stream.arrive(100)
    stream.apply()
    seen = SeenProgress(tmp_path / "seen.json", 1)
    seen.note(progress_of(store, ["payments"]))
    seen.check(progress_of(store, ["payments"]))
    stream.arrive(100)
    old = {p: offset for p, (offset, _) in store.progress("payments").items()}
    if isinstance(store, MemoryOnlineStore):
        saved = (
            dict(store.values),
            [dict(each) for each in store.bucket_fences],
            {name: dict(each) for name, each in store._progress.items()},
        )
    else:
        with redis.Redis.from_url(store.url) as client:
            saved = {key: client.dump(key) for key in client.keys("*")}
    stream.apply()
    seen.note(progress_of(store, ["payments"]))
    assert {p: offset for p, (offset, _) in store.progress("payments").items()} != old
    if isinstance(store, MemoryOnlineStore):
        store.values, store.bucket_fences, store._progress = saved
    else:
        empty(store)
        with redis.Redis.from_url(store.url) as client:
            for key, value in saved.items():
                client.restore(key, 0, value)
    with pytest.raises(OnlineStoreLostError, match=r"is an older one: source payments, partition \d had reached"):
        seen.check(progress_of(store, ["payments"]))
    SeenProgress(tmp_path / "seen.json", 2).check(progress_of(store, ["payments"]))
    with pytest.raises(OnlineStoreLostError, match=r"went back: view \w+, source payments"):
        stream.apply(first={0: 0, 1: 0})


def test_two_jobs_that_begin_the_first_epoch_at_once_both_begin_it(store, tmp_path):
    class Overtaken(Busy):
        """Another job begins after this one has seen an empty store."""

        def append(self, appends):
            if self._meanwhile:
                self._meanwhile.pop(0)()
            return self._inner.append(appends)

    other = Overtaken(store, [lambda: move_epoch(store, 1)])
    assert join_epoch(other, str(tmp_path)) == 1
    assert read_epochs(store) == [1] * BUCKETS
    lost = Overtaken(MemoryOnlineStore("rebuilt"), [])
    lost._meanwhile.append(lambda: move_epoch(lost._inner, -2))
    with pytest.raises(OnlineStoreLostError, match="being rebuilt"):
        join_epoch(lost, str(tmp_path / "other"))


def test_an_epoch_is_remembered_and_a_foreign_or_older_store_is_told_apart(store, tmp_path):
    root = str(tmp_path)
    assert join_epoch(store, root) == join_epoch(store, root) == 1
    assert OnlineEpochs(root, "rebuilt").newest() == 1
    assert OnlineEpochs(root, "other").newest() is None
    OnlineEpochs(root, "rebuilt").record(3, "test")
    with pytest.raises(OnlineStoreLostError, match=r"is an older one \(epoch 1\); this job writes to epoch 3"):
        join_epoch(store, root)
    move_epoch(store, 4)
    assert join_epoch(store, root) == 4, "a backup of the offline store may be older than the online store"
    assert OnlineEpochs(root, "rebuilt").newest() == 4
    assert (hot_checkpoint("c", 1), hot_checkpoint("c", 4)) == ("c/hot", "c/hot-4")


def test_an_emptied_store_can_be_filled_from_the_topics_alone(stream, store):
    stream.begin()
    stream.arrive(150)
    stream.apply()
    empty(store)
    with pytest.raises(OnlineStoreLostError):
        stream.begin()
    assert accept_online(store, stream.root) == stream.begin() == 2
    assert stream.start == {0: -2, 1: -2}
    stream.apply(size=23)
    stream.assert_equal()
    move_epoch(store, -3)
    with pytest.raises(OnlineStoreLostError, match="interrupted"):
        accept_online(store, stream.root)


def test_one_key_is_rebuilt_while_the_stream_goes_on(stream, store):
    stream.begin()
    stream.arrive(120)
    stream.apply()
    stream.archive()
    chance = random.Random(3)
    for view in SERVICE.views:
        keys = {tuple(e.row[c] for c in view.key_columns) for e in stream.events[:120]}
        for key in sorted(keys, key=repr):
            names = sorted(store.blobs(view.name, view.layout.fingerprint))
            if chance.random() < 0.5 and names:
                from featurestore.definitions.keys import encode_key

                encoded = encode_key(key, [kind for _, kind in view.layout.keys])
                store.remove([n for n in names if n.endswith(b":" + encoded)])
            rebuild_key(store, view, key, stream.root)
    stream.assert_equal()
    stream.arrive(60)
    stream.apply()
    stream.assert_equal()


class Busy:
    """A store on which the stream goes on between a rebuild's reading and writing."""

    def __init__(self, inner, meanwhile):
        self._inner, self._meanwhile = inner, list(meanwhile)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def replace(self, replacements):
        if self._meanwhile:
            self._meanwhile.pop(0)()
        return self._inner.replace(replacements)


@pytest.mark.parametrize("tail_cap", [1, 4, 1000])
def test_what_the_stream_appends_while_a_key_is_rebuilt_is_kept(store, tmp_path, tail_cap):
    stream = Stream(store, tmp_path, tail_cap=tail_cap)
    stream.begin()
    stream.arrive(120)
    stream.apply()
    stream.archive()

    def more():
        stream.arrive(15)
        stream.apply(first={p: offset for p, (offset, _) in store.progress("payments").items()})

    def wait():
        stream.archive()
        return True

    row = stream.events[0].row
    for view in SERVICE.views:
        rebuild_key(Busy(store, [more, more]), view, [row[c] for c in view.key_columns], stream.root, wait=wait)
    stream.assert_equal()


def test_a_key_waits_for_a_log_that_is_behind_and_gives_up_with_a_hint(stream, store):
    stream.begin()
    stream.arrive(100)
    stream.apply()
    stream.arrive(0)
    log = stream.replay.log("payments").archived()
    write_events(stream.root, "payments", log.slice(0, 5))
    view = SERVICE.views[0]
    last = stream.events[99].row
    with pytest.raises(OfflineError, match="has not reached offsets"):
        rebuild_key(store, view, [last[c] for c in view.key_columns], stream.root)
