"""The epoch of an online store: which life of its contents this is. Pure, over the store's own protocol.

Every bucket's fences hold one more field, ``epoch``: a number that each append compares, as it compares the offsets, and in the
same step. A store that was emptied, or replaced by another, has no epoch; one that a rebuild is filling has the negative of
the epoch to come. A writer knows the epoch its job began with, so it can write to no other life of the store: nobody serves
windows that began after a loss as if they had always been there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.errors import OnlineError, OnlineStoreLostError
from featurestore.online.keys import BUCKETS
from featurestore.online.store import Append, Fence, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.online.store import OnlineStore

EPOCH = b"epoch"
"""Its field among a bucket's fences."""


def read_epochs(store: OnlineStore) -> list[int | None]:
    """Return what every bucket says."""
    return [None if row[0] is None else int(row[0]) for row in store.fences([EPOCH])]


def one_epoch(epochs: Sequence[int | None]) -> int | None:
    """Return the epoch that all buckets agree on; None where one has none, they differ, or a rebuild is under way."""
    found = epochs[0]
    return found if found is not None and found > 0 and set(epochs) == {found} else None


def move_epoch(store: OnlineStore, epoch: int) -> None:
    """Give every bucket an epoch; a negative one lets no writer in.

    Raises:
        OnlineError: Somebody else moved it at the same moment.
    """
    store.prepare()
    appends = [
        Append(bucket, [Fence(EPOCH, current[0], epoch)], []) for bucket, current in enumerate(store.fences([EPOCH]))
    ]
    for reply in store.append(appends):
        if isinstance(reply, Refusal):
            raise OnlineError(
                "somebody else gave the online store an epoch at the same moment.", hint="let one of them finish."
            )


def lost(epochs: Sequence[int | None], expected: int) -> OnlineStoreLostError:
    """Return the error that says what has become of a store that should have the expected epoch."""
    known = {each for each in epochs if each is not None}
    if any(each < 0 for each in known):
        what = "is being rebuilt, or its rebuild was interrupted"
    elif not known:
        what = "was emptied"
    elif len(known) == 1 and None not in epochs:
        newer = max(known) > expected
        what = f"was rebuilt (epoch {max(known)})" if newer else f"is an older one (epoch {max(known)})"
    else:
        what = f"lost a part of its contents: {sum(each is None for each in epochs)} of {BUCKETS} buckets have no epoch"
    return OnlineStoreLostError(
        f"the online store {what}; this job writes to epoch {expected}.",
        hint="nothing was written. Run featurestore rebuild-online, then submit the job again: it goes on from there.",
    )
