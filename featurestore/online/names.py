"""Which keys a lookup of some entities reads from the store. Pure; what does not depend on the entities is made once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any
from zlib import crc32

from featurestore.datatypes import DataType
from featurestore.definitions.keys import encode_key, key_values
from featurestore.errors import DefinitionError
from featurestore.online.keys import BUCKETS, bucket_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.plan import LookupPlan

_TEXT = struct.Struct("<cI").pack
_SHORT = [_TEXT(b"s", length) for length in range(64)]
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
        self._heads = [[one for each in self._prefixes for one in each[bucket]] for bucket in range(BUCKETS)]
        keyed = {view.keys for view in plan.views}
        text = next(iter(keyed)) if len(keyed) == 1 else ()
        self._text_key = text[0][0] if len(text) == 1 and text[0][1] == DataType.STRING else None

    def of(self, entities: Sequence[Mapping[str, Any]]) -> list[bytes]:
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

    def _of_text(self, entities: Sequence[Mapping[str, Any]], name: str) -> list[bytes] | None:
        """Return the keys where all views have the same text as key, as most do; None if an entity has no such key."""
        values: list[Any] = [entity.get(name) for entity in entities]
        if len(values) == 1:
            value = values[0]
            if type(value) is not str or not value.isascii():
                return None
            key = _TEXT(b"s", len(value)) + value.encode()
            return [head + key for head in self._heads[crc32(key) % BUCKETS]] + self._complete
        if {*map(type, values)} != {str} or not "".join(values).isascii():
            return None
        if max(map(len, values)) < len(_SHORT):
            encoded = [_SHORT[len(value)] + value.encode() for value in values]
        else:
            encoded = [_TEXT(b"s", len(value)) + value.encode() for value in values]
        heads = self._heads
        if self._width == 1:
            keys = [heads[crc32(key) % BUCKETS][0] + key for key in encoded]
        else:
            keys = [head + key for key in encoded for head in heads[crc32(key) % BUCKETS]]
        return keys + self._complete
