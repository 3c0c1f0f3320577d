"""Which keys a lookup of some entities reads from the store. Pure; what does not depend on the entities is made once."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key, key_values
from featurestore.errors import DefinitionError
from featurestore.online.keys import BUCKETS, bucket_of
from featurestore.online.packed import NamePacker, PackedNames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.plan import LookupPlan

_TEXT = struct.Struct("<cI").pack
_PACKED = 8
"""Entities from which on compiled code is quicker."""
_LONGEST = 256
"""Of longer texts nothing is kept."""
_ONE_PER_BUCKET = [
    next(key for key in (number.to_bytes(2) for number in range(1 << 16)) if bucket_of(key) == bucket)
    for bucket in range(BUCKETS)
]


class StoreNames:
    """The keys of entities: for each one blob per view and part, then one ``complete_through`` per source.

    Args:
        space: The project's names.
        plan: The service's plan.
        sources: The sources, in order.
    """

    def __init__(self, space: KeySpace, plan: LookupPlan, sources: Sequence[str]) -> None:
        self._plan = plan
        self._width = sum(len(view.parts) for view in plan.views)
        self._complete = [space.complete(source) for source in sources]
        self._prefixes = [
            [
                [space.blob(view.view, view.fingerprint, key, part.number)[: -len(key)] for part in view.parts]
                for key in _ONE_PER_BUCKET
            ]
            for view in plan.views
        ]
        self._command = b"*%d\r\n$4\r\nMGET\r\n$" % (len(self._complete) + 2)
        heads = [[one for each in self._prefixes for one in each[bucket]] for bucket in range(BUCKETS)]
        self._begins, self._packer = _Begins(heads), NamePacker(heads, self._complete)
        keyed = {view.keys for view in plan.views}
        text = next(iter(keyed)) if len(keyed) == 1 else ()
        self._text_key = text[0][0] if len(text) == 1 and text[0][1] == DataType.STRING else None

    def of(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[bytes]:
        """Return the keys to read; errors as of ``ServiceLookup.store_keys``."""
        if self._text_key is not None:
            quick = self._of_text(entities, self._text_key)
            if quick is not None:
                return quick
        keys = []
        for entity in entities:
            for view, prefixes in zip(self._plan.views, self._prefixes, strict=True):
                values = key_values(entity, view.keys, where=f"service {self._plan.service}, view {view.view}")
                try:
                    encoded = encode_key(values, [kind for _, kind in view.keys])
                except DefinitionError as error:
                    names = ", ".join(name for name, _ in view.keys)
                    raise DefinitionError(f"view {view.view}, key ({names}): {error.message}") from None
                keys += [prefix + encoded for prefix in prefixes[bucket_of(encoded)]]
        return keys + self._complete

    def _of_text(self, entities: Sequence[Mapping[str, Any]], name: str) -> Sequence[bytes] | None:
        """Return the keys where all views have the same text as key, as most do; None if an entity has no such key."""
        if len(entities) == 1 and self._width == 1:
            only = entities[0].get(name)
            return self._alone(only.encode()) if type(only) is str and only.isascii() else None
        values: list[Any] = [entity.get(name) for entity in entities]
        try:
            text = "\0".join(values)
        except TypeError:
            return None
        if not text.isascii():
            return None
        encoded, count = text.encode(), len(values)
        if count < _PACKED:
            return self._listed(encoded) if encoded.count(0) == count - 1 else None
        packed = self._packer.pack(encoded, count, partial(self._listed, encoded))
        if packed is None and encoded.count(0) == count - 1:
            return self._listed(encoded)
        return packed

    def _alone(self, text: bytes) -> PackedNames:
        """Return the keys of one short text as they are sent, which is quicker than any list of them."""
        start, heads = self._begins[len(text)]
        head = heads[crc32(text, start) % BUCKETS]
        size = len(head) + len(text)
        command = b"%b%d\r\n%b%b\r\n%b" % (self._command, size, head, text, self._packer.end)
        return PackedNames(command, 1 + len(self._complete), lambda: [head + text, *self._complete])

    def _listed(self, texts: bytes) -> list[bytes]:
        """Return the keys of texts that have zero bytes between them."""
        encoded, begins = texts.split(b"\0"), self._begins
        if self._width == 1:
            keys = [heads[crc32(key, start) % BUCKETS] + key for key in encoded for start, heads in (begins[len(key)],)]
        else:
            keys = [
                head + key
                for key in encoded
                for start, heads in (begins[len(key)],)
                for head in heads[crc32(key, start) % BUCKETS]
            ]
        return keys + self._complete


class _Begins(dict[int, tuple[int, list[Any]]]):
    """By length of a text: the CRC-32 of what stands before it in a key, and, per bucket, what the names begin with up to it.

    That is one piece of bytes where an entity has one name, else a list of them.
    """

    def __init__(self, heads: list[list[bytes]]) -> None:
        super().__init__()
        self._heads = heads

    def __missing__(self, length: int) -> tuple[int, list[Any]]:
        tag = _TEXT(b"s", length)
        heads = [[head + tag for head in each] for each in self._heads]
        made = crc32(tag), [each[0] for each in heads] if len(heads[0]) == 1 else heads
        if length < _LONGEST:
            self[length] = made
        return made
