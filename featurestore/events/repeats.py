"""Repeated events: which records of a partition bring an event that was there already. Pure; the one rule of every path.

    Take the events of one partition that have an id, in the order of their offsets. The time of each is the newest arrival so
    far, of any of them, so it never goes back. An event is a *repetition* if the event of its id before it, itself a
    repetition or not, was there no longer ago than the horizon. Repetitions enter no value.

Time is that of records, not of clocks, so a slow replay finds the same repetitions as the stream did. An id is kept as 16 bytes
of BLAKE2b over its text.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from featurestore.timeline import Duration, Instant

DIGEST_BYTES = 16


def digests_of(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the digests of ids, an array of bytes objects; None where an id is null."""
    texts: list[Any] = ids.to_pylist()
    found = np.empty(len(texts), dtype=object)
    found[:] = [
        None if text is None else blake2b(str(text).encode(), digest_size=DIGEST_BYTES).digest() for text in texts
    ]
    return found


def times_of(arrival: np.ndarray, through: Instant = MIN_INSTANT) -> np.ndarray:
    """Return the time of each of some consecutive events with ids: the newest arrival so far.

    Args:
        arrival: When each arrived, microseconds, in the order of offsets.
        through: The newest arrival before these.
    """
    return np.maximum(np.maximum.accumulate(arrival), through) if len(arrival) else arrival


def repetitions(
    digests: np.ndarray, times: np.ndarray, horizon_us: Duration, before: Mapping[bytes, Instant]
) -> tuple[np.ndarray, dict[bytes, Instant]]:
    """Return which of some consecutive events with ids are repetitions, and the time of the last event of each id.

    Args:
        digests: Their ids (``digests_of``), none None, in the order of offsets.
        times: Of ``times_of``.
        horizon_us: The longest time between two events of an id of which the second is a repetition; it counts too.
        before: Of ids of events before these, the time of the last one; those out of the horizon may be missing.
    """
    repeats = np.zeros(len(digests), bool)
    newest: dict[bytes, int] = {}
    for row, (digest, time) in enumerate(zip(digests.tolist(), times.tolist(), strict=True)):
        last = newest.get(digest, before.get(digest))
        repeats[row] = last is not None and time - last <= horizon_us
        newest[digest] = time
    return repeats, newest
