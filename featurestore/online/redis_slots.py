"""Redis Cluster without I/O: which node a key belongs to, and where commands go next after what nodes said. Pure.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any

import redis

from featurestore.online.cache import oldest_instant
from featurestore.online.redis_url import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.online.keys import KeySpace

SLOTS = 16384
ROUNDS = 6
"""How often a command may be sent, in all, before a call gives up."""
OPEN = object()
"""Stands for a reply that is not there yet."""


def slot_of(key: bytes) -> int:
    """Return the slot of a key: CRC-16 of the text in its first braces, of the whole key where there is none.

    >>> slot_of(b"123456789"), slot_of(b"a{123456789}b"), slot_of(b"foo{}{bar}") == slot_of(b"foo{}{baz}")
    (12739, 12739, False)
    """
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


class SlotMap:
    """Which node serves which slot, as a node said. Immutable.

    Args:
        ranges: First and last slot, and the primary that serves them.
    """

    def __init__(self, ranges: Iterable[tuple[int, int, Endpoint]]) -> None:
        self._primary: list[Endpoint | None] = [None] * SLOTS
        for first, last, primary in ranges:
            self._primary[first : last + 1] = [primary] * (last + 1 - first)
        self.primaries = tuple(dict.fromkeys(each for each in self._primary if each is not None))

    @staticmethod
    def parse(reply: Any, asked: Endpoint) -> SlotMap:
        """Return the map that a reply to CLUSTER SLOTS describes. A node that does not know its own host is where it was asked.

        Raises:
            redis.exceptions.InvalidResponse: It is not such a reply.
        """
        try:
            ranges = []
            for first, last, primary, *_ in reply:
                host = primary[0].decode() if primary[0] else asked.host
                if not 0 <= first <= last < SLOTS:
                    raise ValueError("a slot is out of range")  # noqa: TRY301 - mapped below with the others
                ranges.append((first, last, Endpoint(asked.host if host == "?" else host, int(primary[1]))))
            return SlotMap(ranges)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise redis.exceptions.InvalidResponse(f"CLUSTER SLOTS cannot be read: {error}") from error

    def primary(self, slot: int) -> Endpoint:
        """Return the node that serves a slot.

        Raises:
            redis.exceptions.ClusterDownError: None does.
        """
        node = self._primary[slot]
        if node is None:
            raise redis.exceptions.ClusterDownError(f"no node serves slot {slot}")
        return node


class Errand:
    """One command on its way through a cluster: where it goes next, and whether its reply is final.

    MOVED and ASK send it on. A node that is lost is asked once more, where the map then says, if the command only reads.

    Attributes:
        asking: Whether ASKING has to go before it.
        says_moved: Whether a reply showed that the map is old.
        reply: The final reply; an error may be one. OPEN until then.
    """

    __slots__ = ("_is_read", "_rounds", "_slot", "_target", "asking", "reply", "says_moved")

    def __init__(self, slot: int, *, is_read: bool) -> None:
        self._slot, self._is_read = slot, is_read
        self._target: Endpoint | None = None
        self._rounds = 0
        self.asking = self.says_moved = False
        self.reply: Any = OPEN

    def target(self, slots: SlotMap) -> Endpoint:
        """Return the node to ask next."""
        self._rounds += 1
        return slots.primary(self._slot) if self._target is None else self._target

    def took(self, reply: Any, asked: Endpoint) -> bool:
        """Take the reply of the node that was asked; return whether it is final."""
        if isinstance(reply, redis.exceptions.AskError) and self._rounds < ROUNDS:
            self._target = Endpoint(reply.host or asked.host, reply.port)
            self.asking = not isinstance(reply, redis.exceptions.MovedError)
            self.says_moved = not self.asking
            return False
        self.reply = reply
        return True

    def lost(self, error: redis.exceptions.RedisError) -> bool:
        """Take that the node was lost before it replied; return whether that is final."""
        self._target, self.asking = None, False
        if not self._is_read or isinstance(error, redis.exceptions.TimeoutError) or self._rounds > 1:
            self.reply = error
            return True
        return False


class Scatter:
    """Keys to read, cut into one MGET per slot, and their replies put back in order.

    A name that all of a project share (``complete_through``) is read as the copy that lies in the slot of the values it is
    read with: one command is atomic, so an instant is never newer than the values. Of several copies the oldest counts.
    """

    def __init__(self, space: KeySpace, names: Sequence[bytes]) -> None:
        self._names, self._space = names, space
        shared = space.shared
        self._shared = [place for place, name in enumerate(names) if name.startswith(shared)]
        found: dict[bytes, list[int]] = {}
        for place, name in enumerate(names):
            if not name.startswith(shared):
                found.setdefault(name[: name.find(b"}") + 1], []).append(place)
        self._groups = [
            (places, [*(space.copy(names[place], tag) for place in self._shared), *(names[place] for place in places)])
            for tag, places in found.items()
        ]
        if not found and self._shared:
            self._groups = [([], [names[place] for place in self._shared])]

    @property
    def reads(self) -> list[list[bytes]]:
        """The names of every MGET."""
        return [names for _, names in self._groups]

    @property
    def firsts(self) -> int:
        """How many of every MGET's names are copies of shared ones."""
        return len(self._shared)

    def gather(self, replies: Sequence[Sequence[bytes | None]]) -> list[bytes | None]:
        """Return the values of the names, in order."""
        values: list[bytes | None] = [None] * len(self._names)
        copies = len(self._shared)
        for (places, _), reply in zip(self._groups, replies, strict=True):
            for place, value in zip(places, reply[copies:], strict=True):
                values[place] = value
        for number, place in enumerate(self._shared):
            values[place] = oldest_instant([reply[number] for reply in replies])
        return values
