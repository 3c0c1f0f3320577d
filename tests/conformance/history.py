"""A history of lookups under concurrent writes, and what has to hold of it. Pure.

Batches are applied one after the other, and a read begins and ends somewhere in between. A read of a key is right if what
it says (values of all views, ``as_of``) is what the oracle says of *some* prefix of the batches that touch the key: one
that is no older than what was applied when the read began, and no newer than what had begun when it ended. Per key, and per
reader, the prefix never goes back, and neither does ``as_of``. What ``complete_through`` claims is in the values, and it never
goes back where the same keys are asked for: a cluster has a copy per slot, and an answer has the oldest of those it was read with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Read:
    """One answer: who read which key, together with which others, the batches done before and begun by its end, what it said."""

    reader: str
    key: str
    asked: tuple[str, ...]
    done_before: int
    begun_after: int
    said: tuple
    as_of: int | None
    complete_through: int | None


def faults(reads, expected, arrivals):
    """Return what is wrong with a history, one text per fault.

    Args:
        reads: In the order in which each reader made them.
        expected: Per key, what the oracle says after 0, 1, 2, ... batches.
        arrivals: Per number of batches, the newest arrival applied.
    """
    found = []
    last, claims = {}, {}
    for number, read in enumerate(reads):
        where = f"read {number} of {read.key} by {read.reader}"
        fits = [count for count, said in enumerate(expected[read.key]) if said == read.said]
        if not fits:
            found.append(f"{where}: {read.said} is the oracle's answer after no number of batches")
            continue
        fits = [count for count in fits if read.done_before <= count <= read.begun_after]
        if not fits:
            found.append(f"{where}: {read.said} is not that of {read.done_before} to {read.begun_after} batches")
            continue
        low, as_of = last.get((read.reader, read.key), (0, None))
        complete = claims.get((read.reader, read.asked))
        fits = [count for count in fits if count >= low]
        if not fits:
            found.append(f"{where}: {read.said} is older than what it read before")
            continue
        if older(read.as_of, as_of):
            found.append(f"{where}: as_of went back from {as_of} to {read.as_of}")
        if older(read.complete_through, complete):
            found.append(f"{where}: complete_through went back from {complete} to {read.complete_through}")
        claimed = [count for count in range(len(arrivals)) if not older(read.complete_through, arrivals[count])]
        if read.complete_through is not None and max(fits) < max(claimed):
            found.append(
                f"{where}: complete_through {read.complete_through} claims {max(claimed)} batches, {max(fits)} are in"
            )
        last[read.reader, read.key] = (fits[0], read.as_of)
        claims[read.reader, read.asked] = read.complete_through
    return found


def older(one, other):
    return other is not None and (one is None or one < other)
