"""The names of many entities as the command that reads them, where compiled code can write it. Pure.

Most lookups send the command and never look at a name; who does, a cluster or a cache, gets them made then.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np

from featurestore.online.keys import BUCKETS
from featurestore.online.loading import LOADING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLYNOMIAL = 0xEDB88320
_AROUND = 16
"""Bytes that an argument takes besides its head and text, at most: its length twice, and ends of lines."""


def _table() -> np.ndarray:
    found = np.arange(256)
    for _ in range(8):
        found = np.where(found & 1, found >> 1 ^ _POLYNOMIAL, found >> 1)
    return found


_CRC = _table()


class PackedNames(Sequence[bytes]):
    """Names that are sent.

    Args:
        command: An MGET of them.
        count: How many they are.
        names: Returns them.
    """

    def __init__(self, command: bytes, count: int, names: Callable[[], list[bytes]]) -> None:
        self.command = command
        self._count = count
        self._made = names

    @cached_property
    def _names(self) -> list[bytes]:
        return self._made()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        return self._names[place]


class NamePacker:
    """Writes the command that reads entities whose keys are one text.

    Args:
        heads: Per bucket, what the names of an entity begin with, up to the key.
        more: Names that follow those of the entities.

    Attributes:
        end: Those, as they are sent.
    """

    def __init__(self, heads: Sequence[Sequence[bytes]], more: Sequence[bytes]) -> None:
        flat = [head + b"s" for each in heads for head in each]
        self._width, self._more = len(heads[0]), len(more)
        self._heads = np.frombuffer(b"".join(flat), np.uint8)
        self._ends = np.cumsum([0, *map(len, flat)])
        self._longest = max(map(len, flat)) + _AROUND
        self._crc = int(_CRC[(0xFFFFFFFF ^ ord("s")) & 0xFF]) ^ (0xFFFFFFFF >> 8)
        self.end = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in more)

    def pack(self, texts: bytes, count: int, names: Callable[[], list[bytes]]) -> PackedNames | None:
        """Return the names of ``count`` texts with zero bytes between them; None if one has some, or without compiled code."""
        code = LOADING.code
        if code is None:
            return None
        all_names = count * self._width
        out = np.empty(all_names * self._longest + self._width * len(texts), dtype=np.uint8)
        where = np.frombuffer(texts, np.uint8)
        size = code.write_names(where, count, self._heads, self._ends, BUCKETS, self._crc, _CRC, out)
        if size < 0:
            return None
        all_names += self._more
        return PackedNames(
            b"*%d\r\n$4\r\nMGET\r\n%b%b" % (all_names + 1, out[:size].tobytes(), self.end), all_names, names
        )
