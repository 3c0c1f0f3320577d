"""Every store, one after the other."""

from __future__ import annotations

import pytest

from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.redis_store import RedisOnlineStore
from tests.conformance.support import Online


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.server),
        pytest.param("cluster", marks=pytest.mark.server),
    ]
)
def open_store(request):
    """Return a function that opens the store of a project; every call with one project sees the same data."""
    if request.param != "memory":
        url = request.getfixturevalue("online_url" if request.param == "redis" else "cluster_url")
        opened = []

        def connect(project="default"):
            opened.append(RedisOnlineStore(url, project))
            return opened[-1]

        yield connect
        for store in opened:
            store.close()
    else:
        stores = {}
        yield lambda project="default": stores.setdefault(project, MemoryOnlineStore(project))


@pytest.fixture
def online(open_store):
    """A store with a published service and a writer."""
    return Online(open_store())
