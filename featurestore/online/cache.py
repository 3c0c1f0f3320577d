"""Values of lookups kept in this process for a stated time. Pure; thread-safe without a lock, so fork-safe too.

What is kept per entity is what one read of the store gave: the raw values of its views and, with them, the
``complete_through`` of their sources, which therefore never claims more than the values hold. Windows still slide: a
lookup evaluates raw values at its own time. Of several entities the oldest ``complete_through`` counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CACHE_ENTRIES = 10_000


class _Entry(NamedTuple):
    """When the read began, in the clock's seconds; the values of the entity's names; the instants read with them."""

    at: float
    values: Sequence[bytes | None]
    stamps: Sequence[bytes | None]


@dataclass(slots=True)
class Wanted:
    """A lookup of which some entities are known.

    Attributes:
        names: What has to be read: names of the entities that are not known, then those of the instants. Empty when all are.
        groups: The names of every entity.
        found: Per entity its entry, or None.
        at: When the lookup began.
    """

    names: list[bytes]
    groups: list[tuple[bytes, ...]]
    found: list[_Entry | None]
    at: float


class ReadCache:
    """What was read of entities, for at most ``max_age_s`` seconds since the read began.

    There are two generations: when the young one holds half of the entries, it becomes the old one, and the old one is gone.

    Args:
        max_age_s: Age beyond which nothing is used.
        most: Entities kept, at most.
        clock: Seconds that never go back.

    >>> now, asked = [0.0], []
    >>> cache = ReadCache(0.2, clock=lambda: now[0])
    >>> def read(names):
    ...     asked.append(names)
    ...     return [b"value", b"7"]
    >>> cache.read([b"k", b"complete"], 1, read), cache.read([b"k", b"complete"], 1, read), len(asked)
    ([b'value', b'7'], [b'value', b'7'], 1)
    >>> now[0] = 0.21
    >>> cache.read([b"k", b"complete"], 1, read), len(asked)
    ([b'value', b'7'], 2)
    """

    def __init__(
        self, max_age_s: float, *, most: int = CACHE_ENTRIES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_age_s, self._clock = max_age_s, clock
        self._half = max(1, most // 2)
        self._young: dict[tuple[bytes, ...], _Entry] = {}
        self._old: dict[tuple[bytes, ...], _Entry] = {}

    def read(
        self, names: Sequence[bytes], count: int, fetch: Callable[[list[bytes]], list[bytes | None]], *, stamps: int = 1
    ) -> list[bytes | None]:
        """Return the values of names, by ``fetch`` where they are not known; arguments as of ``begin``."""
        wanted = self.begin(names, count, stamps=stamps)
        return self.end(wanted, fetch(wanted.names) if wanted.names else [])

    def begin(self, names: Sequence[bytes], count: int, *, stamps: int) -> Wanted:
        """Return what of a lookup is known, and what has to be read.

        Args:
            names: For every entity its names, the same number for all; then the names of the instants.
            count: Number of entities.
            stamps: Number of instants.
        """
        at = self._clock()
        width = (len(names) - stamps) // count
        groups = [tuple(names[place : place + width]) for place in range(0, count * width, width)]
        young, old, oldest = self._young, self._old, at - self._max_age_s
        found: list[_Entry | None] = []
        missing: list[bytes] = []
        for group in groups:
            entry = young.get(group) or old.get(group)
            if entry is None or entry.at < oldest or len(entry.stamps) != stamps:
                entry = None
                missing += group
            found.append(entry)
        return Wanted([*missing, *names[count * width :]] if missing else [], groups, found, at)

    def end(self, wanted: Wanted, replies: Sequence[bytes | None]) -> list[bytes | None]:
        """Return the values of all names of a lookup, given those that had to be read, and keep these."""
        values: list[bytes | None] = []
        width = len(wanted.groups[0])
        taken = sum(entry is None for entry in wanted.found) * width
        stamps = replies[taken:]
        instants = [stamps] if wanted.names else []
        place = 0
        for group, entry in zip(wanted.groups, wanted.found, strict=True):
            if entry is None:
                new = _Entry(wanted.at, replies[place : place + width], stamps)
                place += width
                values += new.values
                self._keep(group, new)
            else:
                values += entry.values
                instants.append(entry.stamps)
        return values + [oldest_instant(each) for each in zip(*instants, strict=True)]

    def _keep(self, group: tuple[bytes, ...], entry: _Entry) -> None:
        young = self._young
        if len(young) >= self._half:
            self._old, self._young = young, {}
            young = self._young
        young[group] = entry

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old = {}, {}


def oldest_instant(instants: Sequence[bytes | None]) -> bytes | None:
    """Return the smallest of instants in decimal digits; None where one is missing. What is none is left to who decodes it."""
    found = [instant for instant in instants if instant is not None]
    if len(found) < len(instants):
        return None
    try:
        return min(found, key=int)
    except ValueError:
        return found[0]
