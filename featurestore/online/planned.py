"""One lookup, ready to be read: what the store is asked for, and what its answer means. Pure; both clients are shells over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import FeatureStoreError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.table import FeatureTable
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from featurestore.errors import OnlineError
    from featurestore.online.lookup import ServiceLookup
    from featurestore.online.numbers import FeatureNumbers
    from featurestore.online.request import RequestRows
    from featurestore.online.vector import FeatureVector
    from featurestore.timeline import Clock, Instant


class PlannedRead(NamedTuple):
    """A lookup of some entities at one time.

    Attributes:
        lookup: The compiled lookup, of the chosen features alone.
        names: What the store is asked for.
        entities: How many entities.
        at: The time.
        is_exact: Whether the caller gave the time; else it is the clock's.
        inputs: What features of read time take, per entity.
    """

    lookup: ServiceLookup
    names: Sequence[bytes]
    entities: int
    at: Instant
    is_exact: bool
    inputs: Any

    def vector(self, replies: Sequence[bytes | None]) -> FeatureVector:
        """Return what was read of the only entity."""
        return self.lookup.vector(replies, self.at, exact_time=self.is_exact, inputs=self.inputs)

    def table(self, replies: Sequence[bytes | None]) -> FeatureTable:
        """Return what was read of all entities."""
        return self.lookup.table(replies, self.entities, self.at, exact_time=self.is_exact, inputs=self.inputs)

    def numbers(self, replies: Sequence[bytes | None]) -> FeatureNumbers | FeatureTable:
        """Return what was read of all entities for one who wants its numbers, and the rest only now and then."""
        found = self.lookup.numbers(replies, self.entities, self.at, exact_time=self.is_exact)
        return self.table(replies) if found is None else found

    def unread(self, error: OnlineError) -> list[FeatureVector]:
        """Return what the policies give where the store could not be read; raise the error where they give nothing."""
        return self.lookup.unread(error, self.entities, self.at, inputs=self.inputs)

    def unread_table(self, error: OnlineError) -> FeatureTable:
        """Return the same as a table."""
        return FeatureTable(self.lookup.names, self.lookup.types, self.unread(error))


class Together(NamedTuple):
    """Lookups of single entities of a plain service that are one read: the names of all, and those of the sources once.

    Attributes:
        lookup: The service.
        names: What the store is asked for.
        entities: How many entities.
        at: The time of all, the clock's.
    """

    lookup: ServiceLookup
    names: Sequence[bytes]
    entities: int
    at: Instant

    def vectors(self, replies: Sequence[bytes | None]) -> list[FeatureVector | Exception]:
        """Return what was read of each, or why not."""
        lookup, count, at = self.lookup, self.entities, self.at
        if count == 1:
            return [_alone(lookup, replies, at)]
        if count >= lookup.many:
            try:
                found = lookup.vectors_together(replies, count, at)
            except FeatureStoreError:
                found = None  # of one of them: each is read alone and says it
            if found is not None:
                return [*found]
        width = (len(replies) - len(lookup.sources)) // count
        stamps = replies[count * width :]
        return [
            _alone(lookup, [*replies[number * width : (number + 1) * width], *stamps], at) for number in range(count)
        ]


def plans_of(
    lookup: ServiceLookup, keys: Sequence[Mapping[str, Any]], at: Instant
) -> list[PlannedRead | FeatureStoreError]:
    """Return lookups of single entities of a plain service as reads of their own, or why one cannot be planned."""
    found: list[PlannedRead | FeatureStoreError] = []
    for entity in keys:
        try:
            found.append(PlannedRead(lookup, lookup.store_keys([entity]), 1, at, is_exact=False, inputs=[{}]))
        except FeatureStoreError as error:
            found.append(error)
    return found


def planned(
    lookup: ServiceLookup,
    keys: Sequence[Mapping[str, Any]],
    now: Instant | str | datetime | None,
    request: RequestRows,
    features: Sequence[str] | None,
    clock: Clock,
    *,
    single: bool,
) -> PlannedRead:
    """Return the read of a lookup; arguments as of ``FeatureClient.get_many``, ``single`` for one mapping of request values."""
    t = clock.now() if now is None else to_instant(now, name="now")
    if features is not None:
        lookup = lookup.chosen(features)
    names = lookup.store_keys(keys)
    return PlannedRead(lookup, names, len(keys), t, now is not None, lookup.inputs(keys, request, single=single))


def vectors_of(
    reads: Sequence[PlannedRead], replies: Sequence[Sequence[bytes | None]]
) -> list[FeatureVector | Exception]:
    """Return what was read of several single entities, or why not, each on its own; decoded at once where that is quicker."""
    found: dict[int, FeatureVector | Exception] = {}
    by_lookup: dict[ServiceLookup, list[int]] = {}
    for place, read in enumerate(reads):
        if read.lookup.shares and not read.is_exact:
            by_lookup.setdefault(read.lookup, []).append(place)
    for lookup, places in by_lookup.items():
        if len(places) < lookup.many:
            continue
        chosen = [reads[place] for place in places]
        try:
            vectors = lookup.vectors_apart(
                [replies[place] for place in places], [read.at for read in chosen], [read.inputs for read in chosen]
            )
        except FeatureStoreError:
            continue  # of one of them: each is read alone and says it
        found |= zip(places, vectors, strict=True)
    return [
        found[place]
        if place in found
        else _alone(one.lookup, given, one.at, exact_time=one.is_exact, inputs=one.inputs)
        for place, (one, given) in enumerate(zip(reads, replies, strict=True))
    ]


def _alone(
    lookup: ServiceLookup, replies: Sequence[bytes | None], at: Instant, *, exact_time: bool = False, inputs: Any = ()
) -> FeatureVector | FeatureStoreError:
    try:
        return lookup.vector(replies, at, exact_time=exact_time, inputs=inputs)
    except FeatureStoreError as error:
        return error


def unread(read: PlannedRead, error: Exception) -> FeatureVector | Exception:
    """Return what the policies give of a single entity that could not be read, or why they give nothing."""
    if not isinstance(error, OnlineStoreUnavailableError | OnlineStoreTimeoutError):
        return error
    try:
        return read.unread(error)[0]
    except FeatureStoreError as refusal:
        return refusal
