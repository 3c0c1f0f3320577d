from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from string import ascii_lowercase, digits

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key
from featurestore.online.keys import BUCKETS, KeySpace, bucket_of
from featurestore.online.redis_slots import SLOTS, slot_of
from tests.effort import tries

SPACE = KeySpace("p")


def slot_tag(name):
    """Return what Redis Cluster hashes: the text in the first braces."""
    return name.split(b"{", 1)[1].split(b"}", 1)[0]


def test_names_never_change():
    """A store written by an older version is found by them."""
    key = b"s\x02\0\0\0c1"
    assert BUCKETS == 16
    assert SPACE.blob("card_spend", "00c0ffee00c0ffee", key) == b"fs:{p.0d.341}:v:card_spend@00c0ffee00c0ffee:" + key
    assert SPACE.fence(11) == b"fs:{p.0b.66}:fence"
    assert SPACE.fence_field("card_spend", "ff", "transactions", 3) == b"card_spend@ff/transactions/3"
    assert SPACE.progress("transactions") == b"fs:{p}:progress:transactions"
    assert SPACE.complete("transactions") == b"fs:{p}:complete:transactions"
    assert SPACE.plan("fraud_v1") == b"fs:{p}:plan:fraud_v1"


def test_a_changed_definition_starts_on_keys_of_its_own():
    assert SPACE.blob("v", "aa", b"k") != SPACE.blob("v", "bb", b"k")
    assert SPACE.fence_field("v", "aa", "s", 0) != SPACE.fence_field("v", "bb", "s", 0)


def test_all_views_of_a_key_and_their_fence_share_a_slot():
    for key in (b"k", b"}", b"{x}", b"\0\xff"):
        tags = {slot_tag(SPACE.blob(view, "aa", key)) for view in ("a", "b")} | {slot_tag(SPACE.fence(bucket_of(key)))}
        assert len(tags) == 1


def test_keys_spread_over_the_buckets():
    spread = Counter(bucket_of(f"c{i}".encode()) for i in range(1_600))
    assert set(spread) == set(range(BUCKETS))
    assert max(spread.values()) < 200


def test_no_project_is_a_prefix_of_another_ones_names():
    names = [SPACE.fence(0), SPACE.progress("s"), KeySpace("p_q").fence(0), KeySpace("pp").progress("s")]
    assert len({slot_tag(name).partition(b".")[0] for name in names}) == 3


NAMES = st.builds("{}{}".format, st.sampled_from(ascii_lowercase), st.text(ascii_lowercase + digits + "_", max_size=20))
VALUES = {
    DataType.STRING: st.text(max_size=8) | st.sampled_from(["", ":", "}", "{x}", "fs:{p}:", "/1:", "\0", "s\0\0\0\0"]),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.BOOL: st.booleans(),
    DataType.TIMESTAMP: st.integers(-(2**62), 2**62),
}
COLUMN = st.one_of([st.tuples(st.just(kind), st.none() | values) for kind, values in VALUES.items()])
FINGERPRINTS = st.integers(0, 2**64 - 1).map("{:016x}".format)
PLACES = st.tuples(NAMES, NAMES, FINGERPRINTS, st.integers(0, 3), st.lists(COLUMN, min_size=1, max_size=3).map(tuple))


def name_of(place):
    project, view, fingerprint, part, columns = place
    key = encode_key([value for _, value in columns], [kind for kind, _ in columns])
    return KeySpace(project).blob(view, fingerprint, key, part)


def told(place):
    """Return what tells a blob apart: its place, a null being the same in a column of any type."""
    *rest, columns = place
    return (*rest, *((None if value is None else kind, repr(value)) for kind, value in columns))


@settings(max_examples=tries(400), deadline=None)
@given(PLACES, PLACES, st.integers(0, 31))
def test_no_two_places_share_a_name(one, other, same):
    """Any of project, view, fingerprint, part and key may be equal, so that the others have to tell them apart."""
    other = tuple(
        mine if same >> index & 1 else yours for index, (mine, yours) in enumerate(zip(one, other, strict=True))
    )
    assert (name_of(one) == name_of(other)) == (told(one) == told(other))


@settings(max_examples=tries(150), deadline=None)
@given(PLACES, NAMES, NAMES)
def test_what_one_project_may_touch_is_nothing_of_another(place, other, source):
    """The patterns are those of the access lists and of ``forget_project``; braces and dots stand for themselves in them."""
    space = KeySpace(place[0])
    blob = name_of(place)
    mine = [blob, space.progress(source), space.complete(source), space.plan(source), space.services]
    mine += [space.fence(bucket) for bucket in range(BUCKETS)] + space.copies(space.complete(source))
    assert len(set(mine)) == len(mine)
    for project in {place[0], other}:
        patterns = (f"fs:{{{project}}}:*", f"fs:{{{project}.*}}:*")
        for name in mine:
            text = name.decode("latin-1")
            assert any(fnmatchcase(text, pattern) for pattern in patterns) == (project == place[0])


@settings(max_examples=tries(150), deadline=None)
@given(NAMES, st.integers(1, 8) | st.just(16))
def test_the_buckets_of_any_project_spread_evenly_over_nodes_with_equal_shares(project, nodes):
    space = KeySpace(project)
    slots = [slot_of(space.fence(bucket)) for bucket in range(BUCKETS)]
    on_node = Counter(slot * nodes // SLOTS for slot in slots)
    assert len(on_node) == nodes
    assert max(on_node.values()) - min(on_node.values()) <= 1
    assert [slot_of(copy) for copy in space.copies(space.complete("s"))] == slots


@pytest.mark.parametrize(
    "key", [b"{user1000}.following", b"foo{}{bar}", b"foo{{bar}}zap", b"foo{bar}{zap}", b"x{y", b""]
)
def test_slots_are_those_of_redis_py(key):
    from redis.crc import key_slot

    assert slot_of(key) == key_slot(key)
