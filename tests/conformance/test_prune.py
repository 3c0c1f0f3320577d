"""What the online store holds of views that are gone is removed, all of it and nothing else."""

from __future__ import annotations

import pytest

from featurestore.engines.oracle import without_repetitions
from featurestore.jobs.lease import Lease, stored_names
from featurestore.jobs.prune import prune_online
from featurestore.online.redis_store import RedisOnlineStore
from tests.faults.feeding import Feeder, ShopWithIds, with_ids, wrong_values
from tests.raw import raw
from tests.streaming.support import simple_events

pytestmark = pytest.mark.server

SHOP = ShopWithIds("prune")
VISIT, CARD = SHOP.views
EVENTS = with_ids(simple_events(200, keys=10))
KEPT = without_repetitions(SHOP.source, EVENTS)


@pytest.fixture(params=["server", "cluster"])
def url(request):
    return request.getfixturevalue("online_url" if request.param == "server" else "cluster_url")


@pytest.fixture
def store(url):
    made = RedisOnlineStore(url, SHOP.name)
    yield made
    made.close()


def left_of(store, view):
    """Return what there is of a view: names of values and ids, and fields of fences."""
    (name,) = stored_names([view])
    names = {each for each in store.belongings() if store.space.view_in(each) == name}
    return names, {field for field in store.fence_fields() if field.startswith(f"{name}/".encode())}


def test_values_ids_and_fences_of_a_view_that_is_gone_are_removed_and_it_can_begin_again(url, store):
    Feeder(SHOP, url).apply(EVENTS)
    (others, other_fences), (mine, my_fences) = left_of(store, CARD), left_of(store, VISIT)
    assert {b"}:v:" in each for each in mine} == {True, False}, "values and ids"
    assert my_fences
    counted = prune_online(store, [CARD], dry_run=True)
    assert [(each.view, each.blobs + each.ids) for each in counted] == [(stored_names([VISIT])[0], len(mine))]
    assert left_of(store, VISIT) == (mine, my_fences)

    assert prune_online(store, [CARD]) == counted
    assert left_of(store, VISIT) == (set(), set())
    assert left_of(store, CARD) == (others, other_fences)
    assert prune_online(store, [CARD]) == []
    missing = wrong_values(SHOP, url, KEPT)
    assert missing
    assert not [each for each in missing if " card." in each], "the other view has all it had"

    # It comes back: nothing is fenced and no id is known, so it has every event again.
    counts = Feeder(SHOP, url).apply(EVENTS)
    assert counts["consumed"] == len(EVENTS)
    assert wrong_values(SHOP, url, KEPT) == []


def test_a_view_that_a_job_still_writes_is_left_alone(url, store):
    Feeder(SHOP, url).apply(EVENTS)
    before = left_of(store, VISIT)
    lease = Lease(store, stored_names([VISIT]), "old", "old (pid 1 on here)")
    lease.take()
    (found,) = prune_online(store, [CARD])
    assert "another job writes it, old (pid 1 on here)" in found.held
    assert left_of(store, VISIT) == before
    lease.release()
    (found,) = prune_online(store, [CARD])
    assert found.held is None
    assert left_of(store, VISIT) == (set(), set())
    assert not raw(store).exists(store.space.lease(*stored_names([VISIT])))
