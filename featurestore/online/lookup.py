"""The lookup without I/O: which keys to read, and what the replies mean. Clients are thin shells around it.

Contract of ``ServiceLookup``:
    1. ``store_keys(entities)`` -> the keys of one MGET: for every entity one blob per view and part, then one
       ``complete_through`` per source. All of one reply, so the values and their completeness were read together.
    2. ``vectors(replies, ...)`` takes the replies in that order. It reads, merges, finalizes and derives, and never blocks.
    3. A service with request features is asked with ``inputs(entities, request)`` besides: what they take that is not stored.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.derived import DerivedLayout, request_values_of
from featurestore.definitions.keys import encode_key, key_values
from featurestore.definitions.layout import ViewLayout, service_fingerprint
from featurestore.engines.derive import derive_rows
from featurestore.errors import CodecError, DefinitionError
from featurestore.online.batch import BatchReader
from featurestore.online.keys import BUCKETS, KeySpace, bucket_of
from featurestore.online.reader import ViewReader
from featurestore.online.request import request_rows, typed_value
from featurestore.online.table import FeatureTable
from featurestore.online.vector import FeatureVector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.definitions.service import FeatureService
    from featurestore.online.reader import ViewValues
    from featurestore.online.request import RequestRows
    from featurestore.timeline import Instant

_TEXT = struct.Struct("<cI").pack
_ONE_PER_BUCKET = [
    next(key for key in (number.to_bytes(2) for number in range(1 << 16)) if bucket_of(key) == bucket)
    for bucket in range(BUCKETS)
]
MANY = 16
"""Entities from which on reading them at once is quicker than one by one."""
PLAN_FORMATS = (1, 2)
"""1: windowed features alone. 2: with features derived from them, of which a client of 1 would know nothing."""


@dataclass(frozen=True)
class LookupPlan:
    """What a client needs to know of a service: published to the online store by ``apply``, as JSON."""

    service: str
    views: tuple[ViewLayout, ...]
    request: tuple[DerivedLayout, ...] = ()

    @staticmethod
    def of(service: FeatureService) -> LookupPlan:
        """Return the plan of a service."""
        return LookupPlan(service.name, tuple(view.layout for view in service.views), service.request_layouts)

    @cached_property
    def keys(self) -> dict[str, DataType]:
        """Name to type of the key columns of all views."""
        return {name: kind for view in self.views for name, kind in view.keys}

    @cached_property
    def request_values(self) -> dict[str, DataType]:
        """Name to type of what a lookup has to send besides keys."""
        return request_values_of(self.request, {name: 0 for view in self.views for name in view.types} | self.keys)

    def to_json(self) -> bytes:
        """Return the plan as bytes."""
        derives = self.request or any(view.derived for view in self.views)
        data = {
            "format": PLAN_FORMATS[1 if derives else 0],
            "service": self.service,
            "views": [view.to_dict() for view in self.views],
            **({"request": [each.to_dict() for each in self.request]} if self.request else {}),
        }
        return json.dumps(data, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> LookupPlan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            CodecError: The bytes are not a plan of this version.
        """
        try:
            plan = json.loads(data)
            if plan["format"] not in PLAN_FORMATS:
                raise CodecError(f"lookup plan has format {plan['format']!r}, this client reads {PLAN_FORMATS[-1]}.")
            return LookupPlan(
                plan["service"],
                tuple(ViewLayout.from_dict(view) for view in plan["views"]),
                tuple(DerivedLayout.from_dict(each) for each in plan.get("request", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CodecError):
                raise
            raise CodecError(f"the published lookup plan is unreadable: {error}", hint="run apply again.") from error

    @property
    def fingerprint(self) -> str:
        """The service's fingerprint."""
        return service_fingerprint(self.views, self.request)


class ServiceLookup:
    """Lookup of one service; immutable, shared by threads."""

    def __init__(self, project: str, plan: LookupPlan) -> None:
        self.plan = plan
        self.space = KeySpace(project)
        self.readers = tuple(ViewReader(view) for view in plan.views)
        self._batches = [BatchReader(each) if BatchReader.serves(each.layout) else None for each in self.readers]
        self._width = sum(len(view.parts) for view in plan.views)
        self.sources = tuple(dict.fromkeys(view.source for view in plan.views))
        self._complete_keys = [self.space.complete(source) for source in self.sources]
        self._prefixes = [
            [
                [self.space.blob(view.view, view.fingerprint, key, part.number)[: -len(key)] for part in view.parts]
                for key in _ONE_PER_BUCKET
            ]
            for view in plan.views
        ]
        self._heads = [[one for each in self._prefixes for one in each[bucket]] for bucket in range(BUCKETS)]
        keyed = {view.keys for view in plan.views}
        text = next(iter(keyed)) if len(keyed) == 1 else ()
        self._text_key = text[0][0] if len(text) == 1 and text[0][1] == DataType.STRING else None
        self._windowed = [f"{view.view}.{feature.name}" for view in plan.views for feature in view.features]
        self._derived = [each for view in plan.views for each in view.derived]
        self._reads = {each.id: self._views_of(each) for each in plan.request}

    def _views_of(self, layout: DerivedLayout) -> tuple[str, ...]:
        """Return the views that a request feature reads, by way of others too."""
        found: dict[str, None] = {}
        earlier = {each.id: each for each in self.plan.request}
        for name in layout.reads:
            view, dot, _ = name.partition(".")
            found |= dict.fromkeys([view] if dot else self._views_of(earlier[name]) if name in earlier else ())
        return tuple(found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Feature ids in order: those of the views, then request features."""
        return (*(name for view in self.plan.views for name in view.types), *(each.id for each in self.plan.request))

    @cached_property
    def types(self) -> tuple[DataType, ...]:
        """Feature types in order."""
        views = (kind for view in self.plan.views for kind in view.types.values())
        return (*views, *(each.type for each in self.plan.request))

    def inputs(
        self, entities: Sequence[Mapping[str, Any]], request: RequestRows, *, single: bool = False
    ) -> list[dict[str, Any]]:
        """Return what request features take of every entity besides features: keys and request values, typed.

        Raises:
            UnknownNameError: A request value is missing.
            DefinitionError: One has another type, or there are not as many as entities.
        """
        if not self.plan.request:
            return [{}] * len(entities)
        service = self.plan.service
        rows = request_rows(service, self.plan.request_values, request, len(entities), single=single)
        keys = {
            name: kind for name, kind in self.plan.keys.items() if any(name in each.reads for each in self.plan.request)
        }
        return [
            {
                **row,
                **{n: typed_value(entity[n], kind, where=f"service {service}: key {n!r}") for n, kind in keys.items()},
            }
            for entity, row in zip(entities, rows, strict=True)
        ]

    def store_keys(self, entities: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the keys to read, in the order ``vectors`` expects the replies.

        Raises:
            UnknownNameError: An entity lacks a key column.
            DefinitionError: A key value has another type than its column.
        """
        if self._text_key is not None:
            quick = self._of_text(entities, self._text_key)
            if quick is not None:
                return quick
        keys = []
        for entity in entities:
            for view, prefixes in zip(self.plan.views, self._prefixes, strict=True):
                values = key_values(entity, view.keys, where=f"service {self.plan.service}, view {view.view}")
                try:
                    encoded = encode_key(values, [kind for _, kind in view.keys])
                except DefinitionError as error:
                    names = ", ".join(name for name, _ in view.keys)
                    raise DefinitionError(f"view {view.view}, key ({names}): {error.message}") from None
                keys += [prefix + encoded for prefix in prefixes[bucket_of(encoded)]]
        return keys + self._complete_keys

    def _of_text(self, entities: Sequence[Mapping[str, Any]], name: str) -> list[bytes] | None:
        """Return ``store_keys`` where all views have the same text as key, as most do; None if an entity has no such key."""
        encoded = []
        for entity in entities:
            value = entity.get(name)
            if type(value) is not str or not value.isascii():
                return None
            encoded.append(_TEXT(b"s", len(value)) + value.encode())
        heads = self._heads
        keys = [head + key for key in encoded for head in heads[bucket_of(key)]]
        return keys + self._complete_keys

    def vectors(
        self,
        replies: Sequence[bytes | None],
        count: int,
        t: Instant,
        *,
        exact_time: bool,
        inputs: Sequence[Mapping[str, Any]] = (),
    ) -> list[FeatureVector]:
        """Return one vector per entity.

        A feature that is derived from those of a view without values has none either: no sign of progress is not an empty window.

        Args:
            replies: The values of ``store_keys``, None where there is none.
            count: Number of entities.
            t: Time of the lookup.
            exact_time: See ``ViewReader.read``.
            inputs: Of every entity, what ``inputs`` gave; needed where there are request features.
        """
        complete = self._complete(replies[count * self._width :])
        rows: list[list[Any]] = []
        said: list[tuple[dict[str, bool], dict[str, Instant | None]]] = []
        for reads in zip(*self._read_views(replies, count, t, exact_time=exact_time), strict=True):
            values: list[Any] = []
            known: dict[str, bool] = {}
            as_of: dict[str, Instant | None] = {}
            for view, read in zip(self.plan.views, reads, strict=True):
                # An empty store is not an empty window: without any sign of progress, an unknown key has no values.
                values += read.values if read.known or complete is not None else [None] * len(read.values)
                known[view.view], as_of[view.view] = read.known, read.as_of
            rows.append(values)
            said.append((known, as_of))
        if self._derived or self.plan.request:
            rows = self._with_derived(rows, [known for known, _ in said], inputs, served=complete is not None)
        return [
            FeatureVector(self.names, tuple(values), known, as_of, complete, t, self._reads)
            for values, (known, as_of) in zip(rows, said, strict=True)
        ]

    def _read_views(
        self, replies: Sequence[bytes | None], count: int, t: Instant, *, exact_time: bool
    ) -> Iterator[list[ViewValues]]:
        """Yield per view what it says of every entity."""
        width, at = self._width, 0
        for reader, batch in zip(self.readers, self._batches, strict=True):
            if batch is not None and count >= MANY:
                yield batch.read(replies[at : count * width : width], t, exact_time=exact_time)
            else:
                parts = len(reader.parts)
                yield [
                    reader.read(replies[first : first + parts], t, exact_time=exact_time)
                    for first in range(at, count * width, width)
                ]
            at += len(reader.parts)

    def _with_derived(
        self,
        rows: list[list[Any]],
        known: list[dict[str, bool]],
        inputs: Sequence[Mapping[str, Any]],
        *,
        served: bool,
    ) -> list[list[Any]]:
        """Return the values of all features in order: windowed ones of views, those derived from them, request features."""
        found = [dict(zip(self._windowed, values, strict=True)) for values in rows]
        for layouts in (self._derived, self.plan.request):
            is_request = layouts is self.plan.request
            given = (
                [{**row, **more} for row, more in zip(found, inputs, strict=True)] if is_request and layouts else found
            )
            for row, is_known, made in zip(found, known, derive_rows(layouts, given), strict=True):
                for layout, value in zip(layouts, made, strict=True):
                    views = self._reads.get(layout.id, (layout.id.partition(".")[0],))
                    row[layout.id] = value if served or all(is_known[view] for view in views) else None
        return [[row[name] for name in self.names] for row in found]

    def table(
        self,
        replies: Sequence[bytes | None],
        count: int,
        t: Instant,
        *,
        exact_time: bool,
        inputs: Sequence[Mapping[str, Any]] = (),
    ) -> FeatureTable:
        """Return all entities as a table; arguments as of ``vectors``."""
        if count < MANY or None in self._batches or self._derived or self.plan.request:
            vectors = self.vectors(replies, count, t, exact_time=exact_time, inputs=inputs)
            return FeatureTable(self.names, self.types, vectors)
        width, views = self._width, {}
        for at, batch in enumerate(self._batches):  # each of one part
            assert batch is not None  # noqa: S101 - or it would not be here
            view = self.plan.views[at].view
            views[view] = batch.columns(replies[at : count * width : width], t, exact_time=exact_time)
        complete = self._complete(replies[count * width :])
        return FeatureTable.of_columns(self.names, self.types, views, complete_through=complete, at=t)

    def _complete(self, stamps: Sequence[bytes | None]) -> Instant | None:
        return None if None in stamps or not stamps else min(int(stamp) for stamp in stamps if stamp is not None)
