"""Short rows say what whole ones say: to the bit, in every way of reading, alone and among others, and when they are folded on."""

from __future__ import annotations

import pytest

from featurestore import Count, FeatureView, Max, Mean, Min, Sum
from featurestore.errors import CodecError
from featurestore.online.batch import BatchReader
from featurestore.online.codec import parse_frame
from featurestore.online.compiled import compiled, serves
from featurestore.online.fold import fold
from featurestore.online.inspect import inspect_blob, place_of
from featurestore.online.reader import ViewReader
from featurestore.testing.streams import hostile_stream
from tests.conformance.cases import CARD, SOURCE, VIEWS
from tests.conformance.support import SECOND, one
from tests.conformance.test_batch import outcome
from tests.conformance.test_online import Store
from tests.effort import tries
from tests.short_rows import whole_rows

COUNTED = FeatureView(
    "counted",
    CARD,
    SOURCE,
    {
        "n": Count().over("10m", "1h"),
        "sum": Sum("amount").over("10m", "lifetime"),
        "mean": Mean("points").over("1h"),
        "least": Min("amount").over("10m", "1h"),
        "most": Max("points", where="amount > 0").over("10m"),
    },
)
SHORT = [COUNTED, *(v for v in VIEWS if any(p.is_fixed and p.short_sizes != p.row_sizes for p in v.layout.parts))]


def stored(view, seed, events=150):
    """Return the blobs of many keys, all parts of each, folded and with tails; and times to ask at."""
    stream = hostile_stream(view, seed=seed, events=events, probes=8)
    store = Store(view)
    for begin in range(0, events, 30):
        store.append(stream.events[begin : begin + 30])
        chosen = [key for number, key in enumerate(store.blobs) if (number + begin // 30 + seed) % 3]
        store.fold(chosen, max(event.arrival for event in stream.events[: begin + 30]))
    newest = max(event.event_time for event in stream.events)
    for number, card in enumerate(("plain", "plainer") * 6):
        store.append([one(newest + number * SECOND, card=card, offset=1_000 + number, amount=1.5, points=number)])
        store.fold(list(store.blobs)[-2:], newest + 8 * SECOND)
    return list(store.blobs.values()), [*(t for _, t in stream.probes), newest + 20 * SECOND, newest + 10**9]


def ways(view):
    """Return every way to read keys of a view."""
    plain = ViewReader(view.layout)
    found = {"alone": lambda keys, t: [plain.read(blobs, t, exact_time=False) for blobs in keys]}
    if BatchReader.serves(view.layout):
        found["many"] = lambda keys, t: BatchReader(plain).read([blob for (blob,) in keys], t, exact_time=False)
    if serves(view.layout):
        fast = ViewReader(view.layout, compiled(view.layout))
        assert fast.compiled is not None
        found["compiled"] = lambda keys, t: [fast.read(blobs, t, exact_time=False) for blobs in keys]
        found["compiled, many"] = lambda keys, t: BatchReader(fast).read([b for (b,) in keys], t, exact_time=False)
    return found


@pytest.mark.parametrize("seed", range(tries(2)))
@pytest.mark.parametrize("view", SHORT, ids=lambda view: view.name)
def test_short_rows_are_read_as_whole_ones(view, seed):
    keys, times = stored(view, seed)
    parts = view.layout.parts
    whole = [tuple(map(whole_rows, parts, blobs)) for blobs in keys]
    mixed = [(short if number % 2 else long) for number, (short, long) in enumerate(zip(keys, whole, strict=True))]
    forms = [blob[2] for blobs in keys for blob in blobs]
    assert 2 in forms or view.name == "conditions"  # whose measures count different events
    assert 1 in forms or view is not COUNTED
    read = ways(view)
    for t in times:
        expected = outcome(read["alone"], whole, t)
        assert isinstance(expected, list)
        for name, way in read.items():
            assert outcome(way, keys, t) == outcome(way, mixed, t) == expected, (name, t)
            assert outcome(way, mixed[::-1], t) == expected[::-1], (name, t)
    for feature in view.layout.features:
        number = place_of(view.layout, feature)[0].number
        for short, long in zip(keys, whole, strict=True):
            seen, wanted = (inspect_blob(view.layout, feature, blobs[number], t) for blobs in (short, long))
            assert repr((seen.used, seen.tail)) == repr((wanted.used, wanted.tail))
    for part in parts:
        of_part = [[blobs[part.number] for blobs in given] for given in (keys, whole, mixed)]
        assert fold(part, of_part[0]) == fold(part, of_part[1]) == fold(part, of_part[2])


def test_a_key_has_short_rows_as_long_as_all_measures_of_each_row_merged_the_same_events():
    (part,) = COUNTED.layout.parts
    store = Store(COUNTED)
    store.append([one(SECOND, card=card, offset=n, amount=1.5, points=2) for n, card in enumerate("abc")])
    store.append(
        [
            one(2 * SECOND, card="a", offset=4, amount=2.5, points=2),
            one(2 * SECOND, card="b", offset=5, amount=None, points=2),
            one(2 * SECOND, card="c", offset=6, amount=-1.0, points=2),
        ]
    )
    store.fold(list(store.blobs), 10 * SECOND)
    said = {key: (blob[2], parse_frame(blob, part).is_short) for key, (blob,) in store.blobs.items()}
    assert sorted(said.values()) == [(1, False), (1, False), (2, True)]
    # Once it is folded with an event that some measures leave out, a key's rows are whole.
    (key,) = (key for key, (form, _) in said.items() if form == 2)
    before = len(store.blobs[key][0])
    store.append([one(3 * SECOND, card="a", offset=7, amount=None, points=2)])
    store.fold([key], 10 * SECOND)
    (blob,) = store.blobs[key]
    assert blob[2] == 1
    assert len(blob) > before


def test_a_form_that_the_lengths_deny_is_refused_in_every_way():
    keys, _ = stored(COUNTED, 0)
    (blob,) = next(blobs for blobs in keys if blobs[0][2] == 2)
    for form in (0, 1, 3, 255):
        denied = blob[:2] + bytes([form]) + blob[3:]
        for name, way in ways(COUNTED).items():
            with pytest.raises(CodecError, match=r"add up|version"):
                way([(denied,)], 10**17)
            with pytest.raises(CodecError, match=r"add up|version"):
                way([(blob,), (denied,), (blob,)], 10**17)
            assert name
        with pytest.raises(CodecError):
            fold(COUNTED.layout.parts[0], [blob, denied])
