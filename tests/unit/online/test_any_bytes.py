"""Whatever bytes a store holds, a lookup gives a value or says CodecError: alone, in a batch, compiled, for every kind of part.

The bytes come from real blobs of every aggregate there is, sketches included, folded and with a tail, and are flipped, cut,
spliced, grown and exchanged. All ways of reading refuse the same bytes, in bounded memory.
"""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions.service import FeatureService
from featurestore.engines.oracle import Event
from featurestore.errors import CodecError, PastLookupError
from featurestore.online.client import FeatureClient
from featurestore.online.compiled import SWITCH, serves
from featurestore.online.fold import fold
from featurestore.online.inspect import inspect_blob
from featurestore.online.lookup import LookupPlan
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.streams import shape_events
from featurestore.timeline import VirtualClock
from tests.conformance.cases import SOURCE
from tests.conformance.cases import VIEWS as CASES
from tests.effort import tries

pytestmark = pytest.mark.thorough

SECOND = 1_000_000
# Aggregates that only tests have are in no plan; test_parts_codec has theirs.
VIEWS = [view for view in CASES if list(view.entity.keys) == ["card_id"] and view.name not in {"wide", "texts"}]
NOW = 200 * SECOND
OTHERS = 20
MOST_BYTES = 8_000_000
"""What a lookup of some twenty small blobs may take at its peak; a length that lies claims gigabytes."""


def event(number, card):
    row = {
        "card_id": card,
        "shop": number,
        "online": bool(number % 2),
        "amount": 0.5 * number,
        "points": number,
        "status": "ab"[number % 2],
        "shipped": number * SECOND,
    }
    at = number * SECOND
    return Event({**row, "event_time": at}, at, at, 0, number)


class Place:
    """A store of one view: the blobs of a card to spoil, and healthy ones of other cards to read it with."""

    def __init__(self, view):
        self.view = view
        self.store = MemoryOnlineStore()
        self.store.publish_plan(LookupPlan.of(FeatureService("s", (view,))))
        writer = FencedWriter(self.store, SOURCE.name, (view,), tail_cap=3)
        cards = [f"c{number}" for number in range(OTHERS)]
        for begin in range(0, 100, 20):
            events = [event(begin + number, cards[(begin // 20 + number) % OTHERS]) for number in range(20)]
            writer.apply(0, begin + 20, (begin + 20) * SECOND, [shape_events(view, events)])
            if begin == 60:
                names = [name for name in self.store.values if b":v:" in name]
                for part in view.layout.parts:
                    mine = [name for name in names if _part_of(name) == part.number]
                    folded = fold(part, [self.store.values[name] for name in mine], clock=begin * SECOND)
                    self.store.values.update(zip(mine, folded, strict=True))
        self.client = FeatureClient.over(self.store, clock=VirtualClock(NOW))
        self.plain = FeatureClient.over(self.store, clock=VirtualClock(NOW))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, "0")
            (reader,) = self.plain.service("s").readers
        assert reader.compiled is None
        (reader,) = self.client.service("s").readers
        assert (reader.compiled is not None) == serves(view.layout)
        self.names = sorted(name for name in self.store.values if name.endswith(b"c0") and b":v:" in name)
        assert len(self.names) == len(view.layout.parts)
        self.whole = dict(self.store.values)

    def outcome(self, ask):
        """Return what was said: values, or the kind of refusal; anything else is a crash, and ends the test."""
        try:
            return repr(ask().to_dict())
        except (CodecError, PastLookupError) as error:
            return type(error).__name__

    def check(self, name, spoiled, now):
        self.store.values = {**self.whole, name: spoiled}
        options = {} if now is None else {"now": now}
        cards = [{"card_id": f"c{number}"} for number in range(OTHERS)]
        tracemalloc.start()
        try:
            alone = self.outcome(lambda: self.client.get("s", cards[0], **options))
            batch = self.outcome(lambda: self.client.get_many("s", cards, **options)[0])
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()
        assert alone == batch
        if serves(self.view.layout):
            assert alone == self.outcome(lambda: self.plain.get("s", cards[0], **options))
            assert alone == self.outcome(lambda: self.plain.get_many("s", cards, **options)[0])
        self.inspect(name, spoiled)
        with contextlib.suppress(CodecError):
            fold(self.view.layout.parts[_part_of(name)], [spoiled], clock=NOW)
        return alone

    def inspect(self, name, spoiled):
        """Show a blob to people, feature by feature."""
        part = self.view.layout.parts[_part_of(name)]
        for feature in (self.view.layout.features[read.feature] for read in part.reads):
            self.outcome(lambda feature=feature: _Shown(inspect_blob(self.view.layout, feature, spoiled, NOW)))


class _Shown:
    def __init__(self, blob):
        self._blob = blob

    def to_dict(self):
        return self._blob


def _part_of(name):
    suffix = name.split(b":")[3].partition(b"/")[2]
    return int(suffix or 0)


def test_all_kinds_of_part_and_row_are_among_the_views():
    parts = [part for view in VIEWS for part in view.layout.parts]
    assert {(part.is_fixed, part.is_event_grained) for part in parts} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    kinds = {measure.partial_kind for part in parts for measure in part.measures}
    assert len(kinds) >= 12


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: view.name)
def place(request):
    return Place(request.param)


WORDS = st.sampled_from([0, 1, 7, 8, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)


@st.composite
def spoilt(draw, blob, other):
    """Return a blob that something happened to."""
    kind = draw(st.sampled_from(["flip", "word", "cut", "splice", "grow", "exchange", "random"]))
    data = bytearray(blob)
    if kind == "flip":
        for bit in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=6)):
            data[bit // 8] ^= 1 << bit % 8
    elif kind == "word":
        for place in draw(st.lists(st.integers(0, len(data) // 8 - 1), min_size=1, max_size=4)):
            data[8 * place : 8 * place + 8] = draw(WORDS).to_bytes(8, "little")
    elif kind == "cut":
        del data[draw(st.integers(0, len(data))) :]
    elif kind == "splice":
        begin, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        data[begin:end] = draw(st.binary(max_size=48))
    elif kind == "grow":
        data += draw(st.binary(max_size=200))
    elif kind == "exchange":
        at = draw(st.integers(0, len(data)))
        data[at:] = other[at:]
    else:
        data = bytearray(draw(st.binary(max_size=300)))
    return bytes(data)


def test_healthy_bytes_are_values(place):
    for name in place.names:
        for now in (None, NOW):
            assert place.check(name, place.whole[name], now).startswith("{")


def test_a_word_that_is_the_least_number_is_shown_or_refused(place):
    """As a count it is less than none, as part of a sum of squares no root can be taken of it."""
    for name in place.names:
        whole = place.whole[name]
        for at in range(0, len(whole) - 7, 8):
            place.inspect(name, whole[:at] + (2**63).to_bytes(8, "little") + whole[at + 8 :])


def test_any_bytes_are_a_value_or_a_refusal(place):
    others = [value for name, value in sorted(place.whole.items()) if b":v:" in name]

    @settings(max_examples=tries(120), deadline=None)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(place.names))
        spoiled = data.draw(spoilt(place.whole[name], data.draw(st.sampled_from(others))))
        place.check(name, spoiled, data.draw(st.sampled_from([None, NOW, 2**60])))

    check()
