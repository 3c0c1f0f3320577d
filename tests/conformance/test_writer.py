"""The fenced writer on every store: exactly once, whatever the batches, and equal to the oracle."""

from __future__ import annotations

import random
import threading

import pytest

from featurestore.errors import CodecError, FenceError
from featurestore.online import writer
from featurestore.online.codec import base_length, record_size
from featurestore.online.store import OnlineStore, Replacement
from featurestore.online.writer import FencedWriter
from featurestore.testing.streams import shape_events
from tests.conformance.cases import SOURCE
from tests.conformance.support import SECOND, VIEWS, Online, batches, one, stream_of

pytestmark = pytest.mark.thorough

# ------------------------------------------------------------------------------------------------ exactly once


@pytest.mark.parametrize("seed", range(4))
def test_any_batches_give_the_oracle(open_store, seed):
    dice = random.Random(seed)
    online = Online(open_store(), tail_cap=dice.choice([0, 1, 4, 8]))
    stream = stream_of(seed)
    counts = [online.apply(batch) for batch in batches(stream.events, dice)]
    assert sum(count["fenced"] for count in counts) == 0
    assert sum(count["folded"] for count in counts) > 0
    online.assert_oracle(stream.events, stream.probes)


@pytest.mark.parametrize("seed", range(4))
def test_replays_of_overlapping_ranges_change_nothing(online, seed):
    """Crashes and lost checkpoints, written as input: every batch starts somewhere before where the last one ended."""
    dice = random.Random(100 + seed)
    stream = stream_of(seed)
    for partition in (0, 1):
        mine = [event for event in stream.events if event.partition == partition]
        applied = 0
        while applied < len(mine):
            begin, applied = dice.randrange(applied + 1), min(len(mine), applied + dice.randrange(1, 15))
            online.apply(mine[begin:applied], writer=online.new_writer() if dice.random() < 0.5 else None)
    before = online.dump()
    counts = online.apply(stream.events, writer=online.new_writer())
    assert counts["applied"] == counts["records"] == counts["folded"] == 0
    assert counts["fenced"] > 0
    assert online.dump() == before
    online.assert_oracle(stream.events, stream.probes)


def test_without_the_fence_a_replay_counts_twice(online):
    """The negative control of the test above."""
    stream = stream_of(1)
    online.apply(stream.events)
    online.forget_fences()
    online.apply(stream.events)
    with pytest.raises(AssertionError, match="oracle"):
        online.assert_oracle(stream.events)


class Overtaken(FencedWriter):
    """A writer that another one overtakes between reading the fences and sending."""

    overtake = None

    def _send(self, *args):
        callback, self.overtake = self.overtake, None
        if callback is not None:
            callback()
        return super()._send(*args)


def test_a_moved_fence_stops_the_zombie_and_changes_nothing(online):
    stream = stream_of(2)
    first, rest = stream.events[:30], stream.events[30:]
    online.apply(first)
    zombie = Overtaken(online.store, SOURCE.name, VIEWS)
    mine = [event for event in rest if event.partition == 0]
    after = {}

    def overtake():
        online.apply(mine)
        after.update(online.dump())

    zombie.overtake = overtake
    with pytest.raises(FenceError, match=r"payments: FENCE many@.* is at .*another writer"):
        online.apply(mine, writer=zombie)
    assert online.dump() == after
    online.apply(rest)
    online.assert_oracle(stream.events)


def test_a_zombie_that_was_overtaken_in_some_buckets_only_finishes_on_retry(online):
    """Buckets whose fence moved are refused, the others are applied; the retry skips exactly those."""
    events = [one(i * SECOND, card=f"c{i % 40}", offset=i) for i in range(200)]
    zombie = Overtaken(online.store, SOURCE.name, VIEWS)
    zombie.overtake = lambda: online.apply(events[:3])
    with pytest.raises(FenceError):
        online.apply(events, writer=zombie)
    counts = online.apply(events, writer=zombie)
    assert counts["fenced"] > 0
    assert counts["applied"] > 0
    online.assert_oracle(events)


def test_two_partitions_writing_one_key_at_once_lose_nothing(online):
    events = [one(i * SECOND, offset=i // 4, partition=i % 4, amount=float(i)) for i in range(400)]
    failures = []

    def run(partition):
        writer = FencedWriter(online.store, SOURCE.name, VIEWS, tail_cap=2)
        mine = [event for event in events if event.partition == partition]
        try:
            for begin in range(0, len(mine), 7):
                online.apply(mine[begin : begin + 7], partition, writer)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    online.assert_oracle(events)


def test_rejected_records_move_the_progress_but_no_value(online):
    online.apply([one(0, offset=0)])
    before = online.dump()
    online.writer.apply(0, 10, 5 * SECOND, [shape_events(view, []) for view in VIEWS])
    assert online.dump() == before
    assert online.store.progress(SOURCE.name) == {0: (10, 5 * SECOND)}


def test_progress_never_goes_back(online):
    online.apply([one(0, offset=i, arrival=7 * SECOND) for i in range(5)])
    online.apply([one(0, offset=0, arrival=SECOND)])
    assert online.store.progress(SOURCE.name) == {0: (5, 7 * SECOND)}
    assert online.store.progress("other") == {}


# ----------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("cap", [0, 1, 5])
def test_no_tail_is_longer_than_its_cap_after_a_write(open_store, cap):
    online = Online(open_store(), tail_cap=cap)
    for begin in range(0, 120, 10):
        online.apply([one(i * 40 * SECOND, card=f"c{i % 3}", offset=i) for i in range(begin, begin + 10)])
        for key, blob in online.blobs().items():
            view = next(view for view in VIEWS if f":{view.name}@".encode() in key)
            assert (len(blob) - base_length(blob)) // record_size(view.layout.parts[0]) <= cap


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_that_catches_up_folds_later_and_the_next_small_batch_makes_up_for_it(open_store, monkeypatch, seed):
    monkeypatch.setattr(writer, "CATCH_UP_EVENTS", 12)
    online, stream = Online(open_store(), tail_cap=2, catch_up_cap=9), stream_of(seed, events=240, partitions=1)

    def tails():
        found = {}
        for key, blob in online.blobs().items():
            part = next(view for view in VIEWS if f":{view.name}@".encode() in key).layout.parts[0]
            if part.is_fixed:
                found[key] = (len(blob) - base_length(blob)) // record_size(part)
        return found

    longest = 0
    for begin in range(0, 180, 30):
        online.apply(stream.events[begin : begin + 30])
        longest = max(longest, *tails().values())
        assert longest <= 9
    assert longest > 2, "it folded as always"
    online.assert_oracle(stream.events[:180], stream.probes)
    for begin in range(180, 240, 10):
        before = tails()
        online.apply(stream.events[begin : begin + 10])
        now = tails()
        assert all(now[key] <= 2 for key in now if now[key] != before.get(key, 0))
    online.assert_oracle(stream.events, stream.probes)


class Interrupted:
    """A store where something happens between a read and what follows it."""

    def __init__(self, store):
        self.store = store
        self.then = None

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read(self, keys):
        values = self.store.read(keys)
        callback, self.then = self.then, None
        if callback is not None:
            callback()
        return values


def test_a_fold_that_lost_the_race_is_not_made_and_nothing_is_lost(online):
    events = [one(i * SECOND, offset=i) for i in range(60)]
    slow = Interrupted(online.store)
    writer = FencedWriter(slow, SOURCE.name, VIEWS, tail_cap=2)
    online.writer = FencedWriter(online.store, SOURCE.name, VIEWS, tail_cap=1_000)
    for begin in range(0, 20, 4):
        online.apply(events[begin : begin + 4])
    grown = online.grown()
    slow.then = lambda: online.apply(events[20:40])
    before = online.blobs()
    assert writer.fold(grown, clock=events[39].arrival) == 1  # the first view lost, the second was read afterwards
    changed = {key for key, blob in online.blobs().items() if base_length(blob) != base_length(before[key])}
    assert len(changed) == 1
    online.apply(events[40:])
    online.assert_oracle(events)


def test_writers_that_fold_the_same_keys_at_once_lose_nothing(open_store):
    online = Online(open_store(), tail_cap=1_000)
    stream = stream_of(5)
    for begin in range(0, len(stream.events), 10):
        online.apply(stream.events[begin : begin + 10])
    grown = online.grown()
    clock = max(event.arrival for event in stream.events)
    writers = [FencedWriter(open_store(), SOURCE.name, VIEWS, tail_cap=0) for _ in range(4)]
    done = []
    threads = [threading.Thread(target=lambda w=writer: done.append(w.fold(grown, clock=clock))) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert sum(done) >= len(online.blobs())
    online.assert_oracle(stream.events, stream.probes)


def test_a_blob_that_is_not_ours_is_a_codec_error(online):
    online.apply([one(0, card="c")])
    for key in online.blobs():
        online.put(key, b"garbage")
    with pytest.raises(CodecError, match="many"):
        online.client.get("cards", {"card_id": "c"})


# --------------------------------------------------------------------------------------------------- the store


def test_the_stores_have_every_method_of_the_protocol(open_store):
    """mypy holds signatures; this holds the names, where a test double forgot one."""
    wanted = {name for name in vars(OnlineStore) if not name.startswith("_")}
    assert wanted <= set(dir(open_store()))


def test_an_emptied_store_refuses_what_was_read_before(online):
    """Between reading the fences and sending, the store lost everything: nothing is written on top of nothing."""
    events = [one(i * SECOND, offset=i) for i in range(10)]
    online.apply(events[:5])
    late = Overtaken(online.store, SOURCE.name, VIEWS)
    late.overtake = online.forget_fences
    with pytest.raises(FenceError, match=r"FENCE many@\S+ is at"):
        online.apply(events, writer=late)


def test_a_replacement_needs_the_length_and_the_header_it_was_made_from(online):
    online.apply([one(0)])
    ((name, blob),) = [(key, blob) for key, blob in online.blobs().items() if b":many@" in key]
    longer, other_header = blob + bytes(8), bytes([blob[0] ^ 1]) + blob[1:]
    assert online.store.replace([Replacement(name, longer, b"x"), Replacement(name, other_header, b"x")]) == 0
    assert online.store.replace([Replacement(name + b"?", blob, b"x")]) == 0
    assert online.blobs()[name] == blob
    assert online.store.replace([Replacement(name, blob, longer)]) == 1
    assert online.blobs()[name] == longer


def test_no_work_is_done_at_once(online):
    assert (online.store.append([]), online.store.replace([])) == ([], 0)
