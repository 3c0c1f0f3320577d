"""The lookup without I/O: which keys to read, and what the replies mean. Clients are thin shells around it.

Contract of ``ServiceLookup``:
    1. ``store_keys(entities)`` -> the keys of one MGET: for every entity one blob per view and part, then one
       ``complete_through`` per source. All of one reply, so the values and their completeness were read together.
    2. ``vectors(replies, ...)`` takes the replies in that order. It reads, merges, finalizes and derives, and never blocks.
    3. A service with request features is asked with ``inputs(entities, request)`` besides: what they take that is not stored.
"""

from __future__ import annotations

from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from featurestore.engines.derive import derive_rows
from featurestore.errors import OnlineError, StaleFeatureError
from featurestore.online.batch import BatchReader
from featurestore.online.compiled import compiled
from featurestore.online.keys import KeySpace
from featurestore.online.names import StoreNames
from featurestore.online.numbers import FeatureNumbers, read_numbers
from featurestore.online.plan import LookupPlan, narrowed
from featurestore.online.reader import ViewReader
from featurestore.online.request import read_time_inputs
from featurestore.online.rows import uncut
from featurestore.online.table import FeatureTable
from featurestore.online.vector import DEGRADED, FeatureVector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.algebra import Window
    from featurestore.datatypes import DataType
    from featurestore.definitions.derived import DerivedLayout
    from featurestore.online.columns import ViewColumns, ViewValues
    from featurestore.online.request import RequestRows
    from featurestore.timeline import Instant

__all__ = ["LookupPlan", "ServiceLookup"]

_MOST_CHOSEN = 256
MANY, _MANY_COMPILED = 10, 3
"""Entities from which on reading them at once is quicker than one by one, with numpy and with compiled code."""


class ServiceLookup:
    """Lookup of one service; immutable, shared by threads."""

    def __init__(self, project: str, plan: LookupPlan, features: Sequence[str] | None = None) -> None:
        self.project = project
        self.whole = plan
        self.plan = plan = plan if features is None else narrowed(plan, features)
        self._features = None if features is None else tuple(features)
        self._chosen: dict[tuple[str, ...], ServiceLookup] = {}
        self.space = KeySpace(project)
        self.readers = tuple(ViewReader(view, compiled(view)) for view in plan.views)
        self._batches = [BatchReader(each) if BatchReader.serves(each.layout) else None for each in self.readers]
        self._view_names = [view.view for view in plan.views]
        *begins, self._width = accumulate((len(view.parts) for view in plan.views), initial=0)
        own = map(slice, begins, [*begins[1:], self._width])  # where a view's blobs are among those of an entity
        self._spread = [*zip(self._view_names, self.readers, own, strict=True)]
        self.sources = tuple(dict.fromkeys(view.source for view in plan.views))
        self._names = StoreNames(self.space, plan, self.sources)
        self._windowed = [f"{view.view}.{feature.name}" for view in plan.views for feature in view.features]
        self._derived = [each for view in plan.views for each in view.derived]
        self._reads = {each.id: self._views_of(each) for each in plan.request}
        self._is_stored = not (self._derived or plan.request)

    def _views_of(self, layout: DerivedLayout) -> tuple[str, ...]:
        """Return the views that a request feature reads, by way of others too."""
        found: dict[str, None] = {}
        earlier = {each.id: each for each in self.plan.request}
        for name in layout.reads:
            view, dot, _ = name.partition(".")
            found |= dict.fromkeys([view] if dot else self._views_of(earlier[name]) if name in earlier else ())
        return tuple(found)

    def chosen(self, features: Sequence[str] | None) -> ServiceLookup:
        """Return the lookup of these features alone, in this order: it reads the views that they need and no others.

        Raises:
            UnknownNameError: The service has no such feature.
            DefinitionError: There is none, or one twice.
        """
        if features is None:
            return self
        key = (features,) if isinstance(features, str) else tuple(features)
        found = self._chosen.get(key)
        if found is None:
            if len(self._chosen) >= _MOST_CHOSEN:
                self._chosen.clear()
            found = self._chosen[key] = ServiceLookup(self.project, self.whole, key)
        return found

    @cached_property
    def _all(self) -> dict[str, DataType]:
        """Every feature that is read: those of the views, then request features."""
        return {
            **{name: kind for view in self.plan.views for name, kind in view.types.items()},
            **{each.id: each.type for each in self.plan.request},
        }

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Feature ids in order: those of the views, then request features; or the chosen ones."""
        return self._features or tuple(self._all)

    @cached_property
    def types(self) -> tuple[DataType, ...]:
        """Feature types in order."""
        return tuple(self._all[name] for name in self.names)

    @cached_property
    def _pick(self) -> list[int] | None:
        place = {name: number for number, name in enumerate(self._all)}
        return None if self._features is None else [place[name] for name in self._features]

    @cached_property
    def _spans(self) -> dict[str, Window]:
        found = {f"{view.view}.{feature.name}": feature.window for view in self.plan.views for feature in view.features}
        return {name: found[name] for name in self.names if name in found}

    def inputs(
        self, entities: Sequence[Mapping[str, Any]], request: RequestRows, *, single: bool = False
    ) -> list[dict[str, Any]]:
        """Return what request features take of every entity besides features: keys and request values, typed.

        Raises:
            UnknownNameError: A request value is missing.
            DefinitionError: One has another type, or there are not as many as entities.
        """
        return (
            read_time_inputs(self.plan, entities, request, single=single) if self.plan.request else [{}] * len(entities)
        )

    def store_keys(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[bytes]:
        """Return the keys to read, in the order ``vectors`` expects the replies.

        Raises:
            UnknownNameError: An entity lacks a key column.
            DefinitionError: A key value has another type than its column.
        """
        return self._names.of(entities)

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
        stamps = replies[count * self._width :]
        complete, conditions = self._complete(stamps), self._conditions(stamps, t)
        reads = zip(*self._read_views(replies, count, t, exact_time=exact_time), strict=True)
        return self._made([self._said(each, complete, conditions) for each in reads], complete, t, conditions, inputs)

    def vector(
        self, replies: Sequence[bytes | None], t: Instant, *, exact_time: bool, inputs: Sequence[Mapping[str, Any]] = ()
    ) -> FeatureVector:
        """Return the vector of one entity; arguments as of ``vectors``. Of stored features it takes fewer objects on the way."""
        stamps = replies[self._width :]
        if not self._is_stored or (self.plan.policies and self._conditions(stamps, t)):
            return self.vectors(replies, 1, t, exact_time=exact_time, inputs=inputs)[0]
        complete = self._complete(stamps)
        row: tuple[Any, ...] = ()
        known: dict[str, bool] = {}
        as_of: dict[str, Instant | None] = {}
        for view, reader, own in self._spread:
            values, is_known, newest = reader.read(replies[own], t, exact_time=exact_time)
            if complete is None and not is_known:
                values = (None,) * len(values)
            row = row + values if row else values
            known[view], as_of[view] = is_known, newest
        if self._pick is not None:
            row = tuple(row[place] for place in self._pick)
        return FeatureVector(self.names, row, known, as_of, complete, t, self._reads, {}, self._spans)

    @cached_property
    def many(self) -> int:
        """Entities from which on reading them at once is quicker than one by one."""
        return _MANY_COMPILED if all(reader.compiled is not None for reader in self.readers) else MANY

    @cached_property
    def is_plain(self) -> bool:
        """Whether ``vectors_together`` serves: nothing is derived, no policy has a say, and entities share what is decoded."""
        return self._is_stored and not self.plan.policies and self.shares

    @cached_property
    def shares(self) -> bool:
        """Whether entities that were read apart can be read at once by ``vectors_apart``."""
        return None not in self._batches

    def vectors_together(self, replies: Sequence[bytes | None], count: int, t: Instant) -> list[FeatureVector] | None:
        """Return the vectors of plain entities asked together at one time (not exact); None if it cannot."""
        end = count * self._width
        if (complete := self._complete(replies[end:])) is None:
            return None  # values depend on what is known
        views = self._columns(replies[:end], t, exact_time=False)
        return uncut(self.names, views, [complete] * count, [t] * count, pick=self._pick, spans=self._spans)

    def _columns(
        self, values: Sequence[bytes | None], t: Instant | Sequence[Instant], *, exact_time: bool
    ) -> dict[str, ViewColumns]:
        """Return what each view says of all entities; every one can be read at once."""
        return {
            view: batch.columns(values[at :: self._width], t, exact_time=exact_time)
            for at, (view, batch) in enumerate(zip(self._view_names, self._batches, strict=True))  # each of one part
            if batch is not None
        }

    def vectors_apart(
        self,
        replies: Sequence[Sequence[bytes | None]],
        t: Sequence[Instant],
        inputs: Sequence[Sequence[Mapping[str, Any]]],
    ) -> list[FeatureVector | StaleFeatureError]:
        """Return the vectors of entities, each with replies, time (not exact) and inputs of its own; or its policy's error."""
        views = self._columns([value for each in replies for value in each[: self._width]], t, exact_time=False)
        if self._is_stored and not self.plan.policies:
            through = [self._complete(each[self._width :]) for each in replies]
            if None not in through:  # else values depend on what is known
                return [*uncut(self.names, views, through, t, pick=self._pick, spans=self._spans)]
        found: list[FeatureVector | StaleFeatureError] = []
        said = [
            batch.values(view) for batch, view in zip(self._batches, views.values(), strict=True) if batch is not None
        ]
        for reads, each, at, given in zip(zip(*said, strict=True), replies, t, inputs, strict=True):
            complete = self._complete(stamps := each[self._width :])
            try:
                conditions = self._conditions(stamps, at)
            except StaleFeatureError as error:
                found.append(error)
                continue
            found += self._made([self._said(reads, complete, conditions)], complete, at, conditions, given)
        return found

    def _said(
        self, reads: Sequence[ViewValues], complete: Instant | None, conditions: Mapping[str, str]
    ) -> tuple[list[Any], dict[str, bool], dict[str, Instant | None]]:
        """Return what the views say of one entity: values, and by view whether it is known and the newest event."""
        values: list[Any] = []
        known: dict[str, bool] = {}
        as_of: dict[str, Instant | None] = {}
        for view, read in zip(self.plan.views, reads, strict=True):
            if conditions and conditions.get(view.view) == DEGRADED:
                values += self.plan.defaults[view.view]
            else:
                # An empty store is not an empty window: without any sign of progress, an unknown key has no values.
                values += read.values if read.known or complete is not None else [None] * len(read.values)
            known[view.view], as_of[view.view] = read.known, read.as_of
        return values, known, as_of

    def _made(
        self,
        said: Sequence[tuple[list[Any], dict[str, bool], dict[str, Instant | None]]],
        complete: Instant | None,
        t: Instant,
        conditions: Mapping[str, str],
        inputs: Sequence[Mapping[str, Any]],
    ) -> list[FeatureVector]:
        """Return the vectors of what the views say."""
        rows = [values for values, _, _ in said]
        if self._derived or self.plan.request:
            known = [
                {view: is_known or conditions.get(view) == DEGRADED for view, is_known in one.items()}
                for _, one, _ in said
            ]
            rows = self._with_derived(rows, known, inputs, served=complete is not None)
        elif self._pick is not None:
            rows = [[row[place] for place in self._pick] for row in rows]
        return [
            FeatureVector(self.names, tuple(values), known, as_of, complete, t, self._reads, conditions, self._spans)
            for values, (_, known, as_of) in zip(rows, said, strict=True)
        ]

    def unread(
        self, error: OnlineError, count: int, t: Instant, *, inputs: Sequence[Mapping[str, Any]] = ()
    ) -> list[FeatureVector]:
        """Return the defaults of all views, for a store that could not be read.

        Raises:
            OnlineError: ``error`` itself, when one of the views has another policy than "default".
        """
        policies = self.plan.policies
        if not all(view.view in policies and policies[view.view].on_stale == "default" for view in self.plan.views):
            raise error
        values = [value for view in self.plan.views for value in self.plan.defaults[view.view]]
        names, nothing = self._view_names, dict.fromkeys(self._view_names)
        said = [(list(values), dict.fromkeys(names, False), dict(nothing)) for _ in range(count)]
        return self._made(said, None, t, dict.fromkeys(names, DEGRADED), inputs)

    def _conditions(self, stamps: Sequence[bytes | None], t: Instant) -> dict[str, str]:
        """Return what policies make of how old the sources are, or raise, as of ``LookupPlan.conditions``."""
        return self.plan.conditions(dict(zip(self.sources, stamps, strict=True)), t) if self.plan.policies else {}

    def _read_views(
        self, replies: Sequence[bytes | None], count: int, t: Instant, *, exact_time: bool
    ) -> Iterator[list[ViewValues]]:
        """Yield per view what it says of every entity."""
        width = self._width
        for (_, reader, own), batch in zip(self._spread, self._batches, strict=True):
            if batch is not None and count >= self.many:
                yield batch.read(replies[own.start : count * width : width], t, exact_time=exact_time)
            else:
                yield [
                    reader.read(replies[at + own.start : at + own.stop], t, exact_time=exact_time)
                    for at in range(0, count * width, width)
                ]

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
        conditions = self._conditions(replies[count * self._width :], t)
        if (
            count < self.many
            or None in self._batches
            or self._derived
            or self.plan.request
            or DEGRADED in conditions.values()
        ):
            vectors = self.vectors(replies, count, t, exact_time=exact_time, inputs=inputs)
            return FeatureTable(self.names, self.types, vectors)
        views = self._columns(replies[: count * self._width], t, exact_time=exact_time)
        complete = self._complete(replies[count * self._width :])
        return FeatureTable.of_columns(
            self.names,
            self.types,
            views,
            complete_through=complete,
            at=t,
            pick=self._pick,
            conditions=conditions,
            spans=self._spans,
        )

    def numbers(
        self, replies: Sequence[bytes | None], count: int, t: Instant, *, exact_time: bool
    ) -> FeatureNumbers | None:
        """Return all entities as numbers; None where that takes more than compiled code. Arguments as of ``vectors``.

        ``table`` has the same values where this has none, or the error.
        """
        if not self.is_plain or self._pick is not None:
            return None
        end = count * self._width
        if (
            found := read_numbers(self.readers, replies[:end], t, width=len(self.names), exact_time=exact_time)
        ) is None:
            return None
        decode = partial(self.table, replies, count, t, exact_time=exact_time)
        return FeatureNumbers(self.names, *found, at=t, complete_through=self._complete(replies[end:]), decode=decode)

    def _complete(self, stamps: Sequence[bytes | None]) -> Instant | None:
        if len(stamps) == 1:  # as mostly
            return None if stamps[0] is None else int(stamps[0])
        found = [int(stamp) for stamp in stamps if stamp is not None]
        return None if len(found) < len(stamps) or not found else min(found)
