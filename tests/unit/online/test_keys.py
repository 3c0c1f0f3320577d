from __future__ import annotations

from collections import Counter

from featurestore.online.keys import BUCKETS, KeySpace, bucket_of

SPACE = KeySpace("p")


def slot_tag(name):
    """Return what Redis Cluster hashes: the text in the first braces."""
    return name.split(b"{", 1)[1].split(b"}", 1)[0]


def test_names_never_change():
    """A store written by an older version is found by them."""
    key = b"s\x02\0\0\0c1"
    assert BUCKETS == 16
    assert SPACE.blob("card_spend", "00c0ffee00c0ffee", key) == b"fs:{p.0d}:v:card_spend@00c0ffee00c0ffee:" + key
    assert SPACE.fence(11) == b"fs:{p.0b}:fence"
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
