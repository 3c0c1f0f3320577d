"""What the online store still holds of views that nothing defines any more: blobs, ids of events and fences.

A changed view is another one there, so what was before its last change is among them. While a job still writes such a view,
which its lease says, it is left alone. Fences go last: one that is left says that a removal was not finished.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from featurestore.errors import LeaseError
from featurestore.jobs.lease import Lease, stored_names
from featurestore.online.epoch import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featurestore.definitions.view import FeatureView
    from featurestore.online.redis_store import RedisOnlineStore

_CHUNK = 1_000
_KEEP_MS = 600_000


@dataclass
class Pruned:
    """What the store held of one view.

    Attributes:
        view: Its name and fingerprint.
        blobs: How many entities.
        ids: How many hashes of ids.
        held: Why it was left alone; None where it was not.
    """

    view: str
    blobs: int = 0
    ids: int = 0
    held: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return dict(self.__dict__)


def prune_online(store: RedisOnlineStore, views: Iterable[FeatureView], *, dry_run: bool = False) -> list[Pruned]:
    """Remove what the store holds of other views than these; an interrupted one is run again.

    Args:
        store: The store.
        views: The views that are defined.
        dry_run: Whether it is only counted.

    Raises:
        OnlineStoreUnavailableError: The store cannot be reached.
    """
    defined = set(stored_names(views))
    found: dict[str, Pruned] = {}
    for name in store.belongings():
        _count(found, defined, store.space.view_in(name), name)
    fields: dict[str, list[bytes]] = {}
    for each in store.fence_fields() - {EPOCH}:
        view = each.partition(b"/")[0].decode()
        if view not in defined:
            fields.setdefault(view, []).append(each)
            found.setdefault(view, Pruned(view))
    run = uuid.uuid4().hex
    leases = []
    try:
        for view, result in found.items():
            lease = Lease(store, [view], run, "prune-online", keep_ms=_KEEP_MS)
            try:
                lease.take()
            except LeaseError as error:
                result.held = error.message
            else:
                leases.append(lease)
        free = {view for view, result in found.items() if result.held is None}
        if free and not dry_run:
            doomed = (name for name in store.belongings() if store.space.view_in(name) in free)
            while chunk := list(islice(doomed, _CHUNK)):
                store.remove(chunk)
            store.remove_fences([field for view in free for field in fields.get(view, ())])
    finally:
        for lease in leases:
            lease.release()
    return [found[view] for view in sorted(found)]


def _count(found: dict[str, Pruned], defined: set[str], view: str | None, name: bytes) -> None:
    if view is None or view in defined:
        return
    result = found.setdefault(view, Pruned(view))
    if b"}:v:" in name:
        result.blobs += 1
    else:
        result.ids += 1
