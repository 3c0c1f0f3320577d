"""Views of several parts on every store: exact, closed and delayed windows, bytes slots, strings and lists."""

from __future__ import annotations

import random

import pytest

from featurestore.algebra import AGGREGATES
from featurestore.errors import CodecError, DefinitionError
from featurestore.testing.streams import hostile_stream
from tests.conformance.cases import PARTS, TEXTS, WIDE, WINDOWS
from tests.conformance.support import Online, batches, one
from tests.effort import tries
from tests.laws.wide import Longest, Texts
from tests.raw import raw

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _wide_aggregates_are_known(monkeypatch):
    """A client finds aggregates by name."""
    for kind in (Texts, Longest):
        monkeypatch.setitem(AGGREGATES, kind.__name__, kind)


def part_suffixes(online):
    """Return what follows the fingerprint in the names of all blobs."""
    return {name.split(b":v:")[1].partition(b"@")[2][16:].partition(b":")[0] for name in online.blobs()}


@pytest.mark.parametrize("seed", range(tries(4)))
def test_every_part_of_every_view_is_the_oracle_and_survives_replays(open_store, seed):
    """Several blobs per key, written, folded and read together."""
    dice = random.Random(200 + seed)
    online = Online(open_store(), views=PARTS, tail_cap=dice.choice([0, 1, 4, 8]))
    stream = hostile_stream(WINDOWS, seed=seed, events=80, probes=8)
    counts = [online.apply(batch) for batch in batches(stream.events, dice)]
    assert sum(count["folded"] for count in counts) > 0
    assert part_suffixes(online) == {b"", b"/1", b"/2", b"/3"}
    before = online.dump()
    counts = online.apply(stream.events, writer=online.new_writer())
    assert counts["applied"] == counts["records"] == counts["folded"] == 0
    assert online.dump() == before
    online.assert_oracle(stream.events, stream.probes)


def test_a_view_of_one_part_keeps_its_short_names(online):
    online.apply([one(0)])
    assert part_suffixes(online) == {b""}


def test_a_part_that_is_gone_is_an_error_not_zeros(open_store):
    online = Online(open_store(), views=(WIDE,))
    online.apply([one(0, card="c")])
    (gone,) = [name for name in online.blobs() if b"/2:" in name]
    store = online.store
    store.values.pop(gone) if hasattr(store, "values") else raw(store).delete(gone)
    with pytest.raises(CodecError, match="wide: part 2 of a key is gone"):
        online.client.get("cards", {"card_id": "c"}, now=1)


def test_strings_and_lists_come_back_as_themselves(open_store):
    online = Online(open_store(), views=(WIDE, TEXTS))
    online.apply([one(0, card="c", status="b", shop=7), one(1, card="c", status="ü", shop=3, offset=1)])
    vector = online.client.get("cards", {"card_id": "c"}, now=2)
    assert vector["wide.texts_10m"] == vector["wide.few_10m"] == ["b", "ü"]
    assert vector["wide.shops_10m_exact"] == [3, 7]
    assert (vector["wide.longest_10m"], vector["wide.texts_10m_tumbling"]) == ("ü", None)
    assert vector.to_dict()["values"]["texts.all_lifetime"] == ["b", "ü"]
    assert "wide.texts_10m" in repr(vector)
    table = online.client.get_many("cards", [{"card_id": "c"}, {"card_id": "nobody"}], now=2)
    arrow = table.to_arrow()
    assert arrow.column("wide.texts_10m").to_pylist() == [["b", "ü"], None]
    assert arrow.column("wide.longest_10m").to_pylist() == ["ü", None]
    names = ("wide.texts_10m", "wide.shops_10m", "wide.longest_10m")
    types = [arrow.schema.field(name).type for name in names]
    assert [str(kind) for kind in types] == ["list<item: string>", "list<item: int64>", "string"]
    assert table.to_pandas()["wide.shops_10m"][0].tolist() == [3, 7]
    with pytest.raises(DefinitionError, match=r"wide\.texts_10m.*list<string>.*to_arrow"):
        table.to_numpy()
