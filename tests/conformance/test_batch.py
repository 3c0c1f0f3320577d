"""Many keys at once give to the bit what one by one gives, on hostile streams, and refuse what that refuses."""

from __future__ import annotations

import random

import pytest

from featurestore.errors import CodecError, PastLookupError
from featurestore.online.batch import BatchReader
from featurestore.online.reader import ViewReader
from featurestore.testing.streams import hostile_stream
from tests.conformance.cases import EXACT, MANY, VIEWS
from tests.conformance.support import SECOND, one
from tests.conformance.test_online import Store
from tests.effort import tries

LATE = 10**17
SERVED = [view for view in VIEWS if BatchReader.serves(view.layout)]


def outcome(read, *args, **options):
    try:
        return [(repr(one.values), one.known, one.as_of) for one in read(*args, **options)]
    except (CodecError, PastLookupError) as error:
        return type(error), str(error)


def one_by_one(reader):
    return lambda blobs, t, exact_time: [reader.read([blob], t, exact_time=exact_time) for blob in blobs]


def stored(view, seed, events=150):
    """Return blobs of many keys, folded and with tails, and times to ask at."""
    dice = random.Random(seed)
    stream = hostile_stream(view, seed=seed, events=events, probes=12)
    store = Store(view)
    for begin in range(0, events, 30):
        store.append(stream.events[begin : begin + 30])
        chosen = [key for key in store.blobs if dice.random() < 0.5]
        store.fold(chosen, max(event.arrival for event in stream.events[: begin + 30]))
    (blobs,) = (list(each) for each in zip(*store.blobs.values(), strict=True))
    blobs += [None, None]
    dice.shuffle(blobs)
    newest = max(event.event_time for event in stream.events)
    return blobs, [*(t for _, t in stream.probes), newest, newest + 1, newest + 10**9, newest + 10**15]


@pytest.mark.parametrize("seed", range(tries(10)))
@pytest.mark.parametrize("view", SERVED, ids=lambda view: view.name)
def test_many_at_once_are_what_each_is_alone(view, seed):
    reader = ViewReader(view.layout)
    batch = BatchReader(reader)
    blobs, times = stored(view, seed)
    answered = 0
    for t in times:
        for exact_time in (False, True):
            expected = outcome(one_by_one(reader), blobs, t, exact_time=exact_time)
            got = outcome(batch.read, blobs, t, exact_time=exact_time)
            if isinstance(expected, tuple):
                assert got[0] is expected[0]
            else:
                answered += 1
                assert got == expected, t
    assert answered > len(times)


def test_the_views_of_the_suite_are_served_where_they_can_be():
    assert len(SERVED) >= 4
    assert len(SERVED) < len(VIEWS)


@pytest.mark.parametrize("view", SERVED, ids=lambda view: view.name)
def test_damaged_blobs_are_refused_as_one_by_one(view):
    reader = ViewReader(view.layout)
    batch = BatchReader(reader)
    blobs, _ = stored(view, 3)
    dice = random.Random(5)
    refused = 0
    for _ in range(tries(300)):
        blob = bytearray(next(blob for blob in dice.sample(blobs, len(blobs)) if blob is not None))
        kind = dice.randrange(3)
        if kind == 0:
            blob[dice.randrange(len(blob))] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del blob[dice.randrange(len(blob)) :]
        else:
            blob[dice.randrange(40)] = dice.randrange(256)
        mixed = [*blobs[:3], bytes(blob)]
        expected = outcome(one_by_one(reader), mixed, LATE, exact_time=False)
        got = outcome(batch.read, mixed, LATE, exact_time=False)
        refused += isinstance(expected, tuple)
        assert got == expected
    assert refused


@pytest.mark.parametrize("tail", [0, 3, 61, 200])
@pytest.mark.parametrize("view", [EXACT, MANY], ids=lambda view: view.name)
def test_many_rows_and_long_tails_are_what_each_is_alone(view, tail):
    """More rows than are looked at one by one, more records than are merged at once; and a time for every key."""
    store = Store(view)
    events = [one(number * SECOND, card=f"c{number % 2}", offset=number, amount=number / 7) for number in range(400)]
    store.append(events[: len(events) - 2 * tail])
    store.fold(list(store.blobs), events[-1].arrival)
    for event in events[len(events) - 2 * tail :]:
        store.append([event])
    blobs = [blob for (blob,) in store.blobs.values()]
    reader = ViewReader(view.layout)
    batch = BatchReader(reader)
    last = events[-1].event_time
    for t in (last + 1, last + 300 * SECOND, last + 4_000 * SECOND):
        assert outcome(batch.read, blobs, t, exact_time=True) == outcome(one_by_one(reader), blobs, t, exact_time=True)
    times = [last - 90 * SECOND, last + 7 * SECOND]
    apart = [reader.read([blob], t, exact_time=False) for blob, t in zip(blobs, times, strict=True)]
    assert outcome(batch.read, blobs, times, exact_time=False) == [(repr(a.values), a.known, a.as_of) for a in apart]
