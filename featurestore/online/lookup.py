"""The lookup without I/O: which keys to read, and what the replies mean. Clients are thin shells around it.

Contract of ``ServiceLookup``:
    1. ``store_keys(entities)`` -> the keys of one MGET: for every entity one blob per view and part, then one
       ``complete_through`` per source. All of one reply, so the values and their completeness were read together.
    2. ``vectors(replies, ...)`` takes the replies in that order. It reads, merges and finalizes, and never blocks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.definitions.keys import encode_key, key_values
from featurestore.definitions.layout import ViewLayout, service_fingerprint
from featurestore.errors import CodecError, DefinitionError
from featurestore.online.keys import KeySpace
from featurestore.online.reader import ViewReader
from featurestore.online.vector import FeatureTable, FeatureVector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.datatypes import DataType
    from featurestore.timeline import Instant

PLAN_FORMAT = 1


@dataclass(frozen=True)
class LookupPlan:
    """What a client needs to know of a service: published to the online store by ``apply``, as JSON."""

    service: str
    views: tuple[ViewLayout, ...]

    def to_json(self) -> bytes:
        """Return the plan as bytes."""
        data = {"format": PLAN_FORMAT, "service": self.service, "views": [view.to_dict() for view in self.views]}
        return json.dumps(data, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> LookupPlan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            CodecError: The bytes are not a plan of this version.
        """
        try:
            plan = json.loads(data)
            if plan["format"] != PLAN_FORMAT:
                raise CodecError(f"lookup plan has format {plan['format']!r}, this client reads {PLAN_FORMAT}.")
            return LookupPlan(plan["service"], tuple(ViewLayout.from_dict(view) for view in plan["views"]))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CodecError):
                raise
            raise CodecError(f"the published lookup plan is unreadable: {error}", hint="run apply again.") from error

    @property
    def fingerprint(self) -> str:
        """The service's fingerprint."""
        return service_fingerprint([(view.view, view.fingerprint) for view in self.views])


class ServiceLookup:
    """Lookup of one service; immutable, shared by threads."""

    def __init__(self, project: str, plan: LookupPlan) -> None:
        self.plan = plan
        self.space = KeySpace(project)
        self.readers = tuple(ViewReader(view) for view in plan.views)
        self._width = sum(len(view.parts) for view in plan.views)
        self.sources = tuple(dict.fromkeys(view.source for view in plan.views))
        self._complete_keys = [self.space.complete(source) for source in self.sources]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Feature ids in order."""
        return tuple(name for view in self.plan.views for name in view.feature_ids)

    @cached_property
    def types(self) -> tuple[DataType, ...]:
        """Feature types in order."""
        return tuple(feature.aggregate.result_type for view in self.plan.views for feature in view.features)

    def store_keys(self, entities: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the keys to read, in the order ``vectors`` expects the replies.

        Raises:
            UnknownNameError: An entity lacks a key column.
            DefinitionError: A key value has another type than its column.
        """
        keys = []
        for entity in entities:
            for view in self.plan.views:
                values = key_values(entity, view.keys, where=f"service {self.plan.service}, view {view.view}")
                try:
                    encoded = encode_key(values, [kind for _, kind in view.keys])
                except DefinitionError as error:
                    names = ", ".join(name for name, _ in view.keys)
                    raise DefinitionError(f"view {view.view}, key ({names}): {error.message}") from None
                keys += [self.space.blob(view.view, view.fingerprint, encoded, part.number) for part in view.parts]
        return keys + self._complete_keys

    def vectors(
        self, replies: Sequence[bytes | None], count: int, t: Instant, *, exact_time: bool
    ) -> list[FeatureVector]:
        """Return one vector per entity.

        Args:
            replies: The values of ``store_keys``, None where there is none.
            count: Number of entities.
            t: Time of the lookup.
            exact_time: See ``ViewReader.read``.
        """
        at = 0
        stamps = replies[count * self._width :]
        complete = None if None in stamps or not stamps else min(int(stamp) for stamp in stamps if stamp is not None)
        vectors = []
        for _ in range(count):
            values: list[Any] = []
            known: dict[str, bool] = {}
            as_of: dict[str, Instant | None] = {}
            for reader in self.readers:
                end = at + len(reader.parts)
                read = reader.read(replies[at:end], t, exact_time=exact_time)
                at = end
                name = reader.layout.view
                # An empty store is not an empty window: without any sign of progress, an unknown key has no values.
                values += read.values if read.known or complete is not None else [None] * len(read.values)
                known[name], as_of[name] = read.known, read.as_of
            vectors.append(FeatureVector(self.names, tuple(values), known, as_of, complete, t))
        return vectors

    def table(self, vectors: list[FeatureVector]) -> FeatureTable:
        """Return the vectors as a table."""
        return FeatureTable(self.names, self.types, vectors)
