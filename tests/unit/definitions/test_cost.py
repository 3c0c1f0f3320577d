"""What a view keeps per key at most: real blobs of keys with an event in every hop take exactly that, and never more."""

from __future__ import annotations

import pytest

from featurestore import ApproxDistinct, Count, Entity, Exact, FeatureView, Hopping, Lifetime, Sawtooth, Sum, Tumbling
from featurestore.definitions.cost import CATCH_UP_TAIL_CAP, WIDE_BYTES, cost_of
from featurestore.errors import DefinitionError
from featurestore.online.codec import base_length, parse_frame, record_size
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.streams import shape_events
from featurestore.timeline import HOUR, MINUTE, SECOND
from tests.conformance.cases import SOURCE
from tests.conformance.support import one
from tests.short_rows import whole_rows

pytestmark = pytest.mark.thorough

CARD = Entity("card", keys={"card_id": "string"})


def view(*windows, name="v", **features):
    return FeatureView(name, CARD, SOURCE, features or {"n": Count().over(*windows), "s": Sum("amount").over(*windows)})


def filled(view, step, events):
    """Return the blobs of one key with an event every ``step``, all folded, by part."""
    store = MemoryOnlineStore("default")
    writer = FencedWriter(store, SOURCE.name, [view], tail_cap=0)
    found = [one(number * step, offset=number) for number in range(events)]
    for begin in range(0, events, 50):
        some = found[begin : begin + 50]
        writer.apply(0, some[-1].offset + 1, some[-1].arrival, [shape_events(view, some)])
    names = [
        store.space.blob(view.name, view.layout.fingerprint, b"s\1\0\0\0c", part.number) for part in view.layout.parts
    ]
    return [store.values[name] for name in names]


@pytest.mark.parametrize(
    "windows",
    [
        ("5m", "1h"),
        ("1h", "lifetime"),
        (Sawtooth("1h", hop="15m"), Hopping("2h", hop="30m"), Tumbling("1h", delay="1h")),
        (Sawtooth("1h", hop="1m"), Lifetime()),
    ],
    ids=str,
)
def test_a_key_with_an_event_in_every_hop_takes_exactly_that(windows):
    made = view(*windows)
    cost = cost_of(made.layout)
    assert not cost.by_event
    (blob,) = filled(made, 5 * SECOND, 6 * HOUR // (5 * SECOND))
    (part,) = made.layout.parts
    rows = [rows for _, rows in parse_frame(blob, part).ladders]
    assert [ladder.rows for ladder in cost.ladders] == rows
    tail = CATCH_UP_TAIL_CAP * record_size(part)
    assert cost.short_bytes == base_length(blob) + tail
    assert cost.bytes == base_length(whole_rows(part, blob)) + tail
    assert cost.short_bytes < cost.bytes


def test_what_is_kept_event_by_event_has_no_cap_and_says_what_an_event_takes():
    made = view(Exact("10m"), "1h")
    cost = cost_of(made.layout)
    (ladder,) = cost.by_event
    assert (ladder.rows, ladder.reach, ladder.windows) == (None, 10 * MINUTE, ("10m_exact",))
    blobs = [filled(made, SECOND, events)[1] for events in (100, 101)]
    assert base_length(blobs[1]) - base_length(blobs[0]) == ladder.short_row_bytes == ladder.row_bytes - 8
    assert str(cost).endswith("40 bytes per event time within 10m")
    assert not cost.to_dict()["is_bounded"]


def test_sketches_add_theirs():
    cost = cost_of(view(d=ApproxDistinct("status").over("1h")).layout)
    assert str(cost).endswith("sketches, lists and texts add theirs")
    assert not cost.to_dict()["is_bounded"]


def test_a_coarser_hop_lowers_the_cap():
    fine, coarse = (cost_of(view(Sawtooth("7d", hop=hop)).layout) for hop in ("1m", "6h"))
    assert (fine.rows, coarse.rows) == (7 * 24 * 60 + 1, 7 * 4 + 1)
    assert fine.bytes > WIDE_BYTES > coarse.bytes
    (warning,) = fine.warnings
    assert "10,081 rows for 7d on a hop of 1m" in warning
    assert coarse.warnings == []


def test_what_nobody_could_read_is_refused():
    with pytest.raises(DefinitionError, match=r"2,592,001 rows.*per key; at most 64.0 MB") as refused:
        view(Sawtooth("30d", hop="1s"))
    assert "coarser hop" in refused.value.hint
