"""oracle == points kernel == online blob, on hostile streams cut at random places and folded at random moments."""

from __future__ import annotations

import random

import numpy as np
import pytest

from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key
from featurestore.engines.oracle import values_at
from featurestore.engines.points import values_at_points
from featurestore.engines.scalar import evaluate_row
from featurestore.engines.shape import tiles
from featurestore.errors import PastLookupError
from featurestore.online.codec import empty_base, parse_frame, record_format, record_size, records_in_tail
from featurestore.online.fold import drop_unreachable, fold
from featurestore.online.reader import ViewReader
from featurestore.testing.streams import hostile_stream, shape_events
from featurestore.timeline import MAX_INSTANT
from tests.conformance.cases import LIFETIME, SHORT, VIEWS, assert_same, encoded
from tests.effort import tries


class Store:
    """The online store in memory, without its server: what the writer appends and folds, cut where the test says."""

    def __init__(self, view):
        self.view, self.parts = view, view.layout.parts
        self.blobs = {}

    def append(self, events):
        shaped = shape_events(self.view, events)
        for part in self.parts:
            rows = drop_unreachable(part, shaped, tiles(part, shaped))
            data, ends = record_format(part).encode(rows.records)
            for row, code in enumerate(rows.key.tolist()):
                blobs = self.blobs.setdefault(shaped.keys[code], [empty_base(part) for part in self.parts])
                blobs[part.number] += data[ends[row] : ends[row + 1]]

    def fold(self, keys, clock, parts=None):
        for part in self.parts if parts is None else parts:
            folded = fold(part, [self.blobs[key][part.number] for key in keys], clock=clock)
            for key, blob in zip(keys, folded, strict=True):
                assert in_tail(part, blob) <= in_tail(part, self.blobs[key][part.number])
                self.blobs[key][part.number] = blob

    def read(self, key, reader, t, **options):
        return reader.read(self.blobs.get(key, [None] * len(self.parts)), t, **options)


def in_tail(part, blob):
    return records_in_tail(part, blob, parse_frame(blob, part).base_length)


def entering(view, events, key):
    """Return the events of a key that enter the view."""
    return [
        event
        for event in events
        if tuple(event.row[column] for column in view.entity.keys) == key
        and (view.condition is None or evaluate_row(view.condition, event.row) is True)
    ]


CASES = [pytest.param(view, seed, id=f"{view.name}-{seed}") for view in VIEWS for seed in range(tries(4))]
"""The planted bugs that these streams can show at all are shown by the first three seeds, all but one by the first."""


@pytest.mark.parametrize(("view", "seed"), CASES)
def test_the_online_blob_is_the_oracle_or_refuses_the_past(view, seed):
    dice = random.Random(seed)
    stream = hostile_stream(view, seed=seed, events=100, probes=12)
    store, reader = Store(view), ViewReader(view.layout)
    cuts = [*sorted(dice.sample(range(1, len(stream.events)), dice.randrange(1, 8))), len(stream.events)]
    answered = refused = 0
    done = 0
    for cut in cuts:
        store.append(stream.events[done:cut])
        done = cut
        applied = stream.events[:cut]
        now = max(event.arrival for event in applied)
        if dice.random() < 0.7:
            chosen = [key for key in store.blobs if dice.random() < 0.7]
            clock = dice.choice([now, now, now - 3_000_000_000, MAX_INSTANT if cut == cuts[-1] else now])
            store.fold(chosen, clock, [part for part in store.parts if dice.random() < 0.8])
        for key, t in stream.probes if cut == cuts[-1] else dice.sample(stream.probes, 3):
            mine = entering(view, applied, key)
            for asked in {t, max([t, *(e.event_time + 1 for e in mine if e.event_time <= e.arrival)])}:
                at = asked
                try:
                    read = store.read(encoded(view, key), reader, at)
                except PastLookupError:
                    merged = max([e.event_time for e in mine])
                    assert at <= merged
                    refused += 1
                    read = store.read(encoded(view, key), reader, at, exact_time=False)
                    assert at <= read.as_of <= merged
                    at = read.as_of + 1
                answered += 1
                assert_same(view, values_at(view, applied, key, at), read.values, f"online at {at}")
                past = [e.event_time for e in mine if e.event_time < at]
                assert read.as_of == max(past, default=None)
                assert read.known == bool(mine)
    assert answered
    if view.name == "many":
        assert refused or seed != 0


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_lookup_after_everything_applied_is_never_refused(view):
    for seed in range(20, 20 + tries(4)):
        stream = hostile_stream(view, seed=seed, events=60, probes=4)
        store, reader = Store(view), ViewReader(view.layout)
        for begin in range(0, 60, 20):
            store.append(stream.events[begin : begin + 20])
            store.fold([key for key in store.blobs if seed % 2], clock=stream.events[begin + 19].arrival)
        t = max(event.event_time for event in stream.events) + 1
        for key, _ in stream.probes:
            values = store.read(encoded(view, key), reader, t).values
            assert_same(view, values_at(view, stream.events, key, t), values, "online")


@pytest.mark.parametrize(("view", "seed"), CASES)
def test_the_points_kernel_is_the_oracle(view, seed):
    stream = hostile_stream(view, seed=seed, events=100, probes=15)
    shaped = shape_events(view, stream.events)
    codes = {key: code for code, key in enumerate(shaped.keys)}
    key = np.array([codes.get(encoded(view, key), -1) for key, _ in stream.probes], dtype=np.int64)
    t = np.array([t for _, t in stream.probes], dtype=np.int64)
    dice = random.Random(seed)
    visible = t + np.array([dice.choice([0, 0, 10**6, -(10**8), 10**13]) for _ in t], dtype=np.int64)
    for hidden in (None, visible):
        results = values_at_points(view.layout, shaped, key, t, hidden)
        for row, (values, at) in enumerate(stream.probes):
            seen = None if hidden is None else int(hidden[row])
            got = [column.item(row) if valid[row] else None for column, valid in results]
            assert_same(
                view, values_at(view, stream.events, values, at, visible_at=seen), got, f"points at {at}, {seen}"
            )


@pytest.mark.parametrize("seed", range(3))
def test_an_event_is_seen_from_its_arrival_on(seed):
    """Asked at the arrival of every event, and just before: both sides of the kernel's split into prompt and late ones."""
    view = LIFETIME
    stream = hostile_stream(view, seed=seed, events=100)
    shaped = shape_events(view, stream.events)
    t = max(event.event_time for event in stream.events) + 1
    asked = [(event, event.arrival + step) for event in stream.events for step in (-1, 0)]
    key = np.array([shaped.keys.index(encoded(view, [event.row["card_id"]])) for event, _ in asked])
    seen = np.array([at for _, at in asked])
    results = values_at_points(view.layout, shaped, key, np.full(len(asked), t), seen)
    for row, (event, at) in enumerate(asked):
        got = [column.item(row) if valid[row] else None for column, valid in results]
        expected = values_at(view, stream.events, [event.row["card_id"]], t, visible_at=at)
        assert_same(view, expected, got, f"points seen at {at}")


def test_the_points_kernel_answers_nothing_about_nothing():
    view = VIEWS[0]
    none = shape_events(view, [])
    results = values_at_points(view.layout, none, np.array([-1, -1]), np.array([0, 5]), np.array([0, 5]))
    assert [bool(valid.any()) for _, valid in results] == [
        feature.name.startswith(("n_", "known_")) for feature in view.layout.features
    ]
    stream = hostile_stream(view, seed=1)
    nobody = values_at_points(
        view.layout, shape_events(view, stream.events), np.zeros(0, np.int64), np.zeros(0, np.int64)
    )
    assert all(len(values) == len(valid) == 0 for values, valid in nobody)


# ------------------------------------------------------------------------------- cases told one by one

SECOND = 1_000_000
(ONE,) = SHORT.layout.parts


def event(time, arrival=None, offset=0, **row):
    from featurestore.engines.oracle import Event

    full = {"card_id": "c", "shop": None, "online": None, "amount": 1.0, "points": 1, "status": "a", "shipped": None}
    return Event({**full, **row, "event_time": time}, time, time if arrival is None else arrival, 0, offset)


def counted(view=SHORT):
    store, reader = Store(view), ViewReader(view.layout)
    key = encode_key(["c"], [DataType.STRING])

    def read(t, **options):
        return store.read(key, reader, t, **options)

    return store, read


def test_an_unknown_key_has_empty_values_and_no_as_of():
    _, read = counted()
    values = read(0)
    assert (values.values, values.known, values.as_of) == ((0, 0, None), False, None)


def test_a_time_that_a_fold_has_passed_is_refused_or_moved():
    store, read = counted()
    store.append([event(5 * SECOND), event(7 * SECOND, offset=1)])
    store.fold(list(store.blobs), clock=MAX_INSTANT)
    assert read(7 * SECOND + 1).values[0] == 2
    with pytest.raises(
        PastLookupError, match=r"1970-01-01T00:00:07Z is not after .* 1970-01-01T00:00:07Z.*training set"
    ):
        read(7 * SECOND)
    moved = read(6 * SECOND, exact_time=False)
    assert (moved.values[0], moved.as_of) == (2, 7 * SECOND)


def test_now_on_a_clock_behind_the_producer_is_moved_past_an_unfolded_tile_too():
    store, read = counted()
    store.append([event(5 * SECOND), event(5 * SECOND + 10, offset=1)])
    with pytest.raises(PastLookupError):
        read(5 * SECOND + 5)
    moved = read(5 * SECOND + 5, exact_time=False)
    assert (moved.values[0], moved.as_of) == (2, 5 * SECOND + 10)


def test_an_event_ahead_of_its_arrival_waits_for_its_time():
    store, read = counted()
    store.append([event(5 * SECOND), event(5 * SECOND + 500_000, arrival=4 * SECOND, offset=1)])
    store.fold(list(store.blobs), clock=5 * SECOND)
    early, late = read(5 * SECOND + 500_000), read(5 * SECOND + 500_001)
    assert (early.values[0], early.as_of) == (1, 5 * SECOND)
    assert (late.values[0], late.as_of) == (2, 5 * SECOND + 500_000)
    store.fold(list(store.blobs), clock=6 * SECOND)
    with pytest.raises(PastLookupError):
        read(5 * SECOND + 500_000)
    assert read(5 * SECOND + 500_001).values[0] == 2


def test_a_key_with_only_future_events_is_known_and_empty():
    store, read = counted()
    store.append([event(9 * SECOND, arrival=SECOND)])
    values = read(2 * SECOND)
    assert (values.values, values.known, values.as_of) == ((0, 0, None), True, None)


def test_an_event_ahead_does_not_push_events_of_its_batch_out_of_the_window():
    """Its time is still to come: a lookup before it needs what lies a whole window before *now*."""
    store, read = counted()
    store.append([event(0), event(3 * SECOND, offset=1), event(60 * SECOND, arrival=4 * SECOND, offset=2)])
    assert read(5 * SECOND).values[0] == 2


def test_a_time_before_rows_that_were_not_stored_is_refused():
    """A batch spanning more than every window stores only what lookups after its newest event can reach."""
    store, read = counted()
    store.append([event(0), event(3600 * SECOND, offset=1)])
    assert len(store.blobs[next(iter(store.blobs))][0]) == len(empty_base(ONE)) + record_size(ONE)
    with pytest.raises(PastLookupError):
        read(SECOND)
    assert read(3600 * SECOND + 1).values[0] == 1
    assert read(0).values[0] == 0


def test_folding_is_idempotent_and_counts():
    store, read = counted()
    store.append([event(second * SECOND, offset=second) for second in range(20)])
    store.fold(list(store.blobs), clock=MAX_INSTANT)
    ((key, (once,)),) = store.blobs.items()
    store.fold([key], clock=MAX_INSTANT)
    frames = [parse_frame(blob, ONE) for blob in (once, *store.blobs[key])]
    assert [frame.folds for frame in frames] == [1, 2]
    assert once[32:] == store.blobs[key][0][32:]
    assert read(20 * SECOND).values[0] == 10


def test_folding_forgets_what_no_later_lookup_can_reach():
    store, _ = counted()
    for second in range(0, 400, 10):
        store.append([event(second * SECOND, offset=second)])
        store.fold(list(store.blobs), clock=MAX_INSTANT)
    ((blob,),) = store.blobs.values()
    assert [rows for _, rows in parse_frame(blob, ONE).ladders] == [2, 2]


def test_folding_nothing_is_nothing():
    for part in (part for view in VIEWS for part in view.layout.parts):
        assert fold(part, []) == []
