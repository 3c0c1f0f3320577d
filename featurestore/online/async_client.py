"""AsyncFeatureClient: the lookup for asyncio. The same thin shell as ``client``, over one pipelined connection."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from featurestore.definitions.entity import check_name
from featurestore.errors import FeatureStoreError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.cache import CACHE_ENTRIES
from featurestore.online.client import cache_of, check_entities
from featurestore.online.lookup import ServiceLookup
from featurestore.online.planned import PlannedRead, Together, planned, plans_of, unread, vectors_of
from featurestore.online.redis_async_cluster import AsyncReads
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.timeline import Clock, SystemClock, parse_duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from featurestore.online.cache import ReadCache
    from featurestore.online.client import FeatureClient
    from featurestore.online.numbers import FeatureNumbers
    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.timeline import Instant

T = TypeVar("T")
_Answers = list["FeatureVector | Exception"]

_MOST_TOGETHER = 64
"""Lookups of one command; a longer one would keep its first answers back and other clients waiting."""


class Outcome(Protocol):
    """Who waits for a result: a future, or whoever goes on at once. Called on the event loop."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, result: Any, /) -> None:
        """Take the result."""

    def set_exception(self, error: Exception, /) -> None:
        """Take the reason why there is none."""


class _Batch:
    """Lookups of single entities that one turn of an event loop asks for.

    Attributes:
        loop: The event loop.
        futures: Who waits.
        asked: What for: the keys, where all are of one plain service; else the planned reads.
    """

    __slots__ = ("asked", "futures", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.futures: list[asyncio.Future[FeatureVector]] = []
        self.asked: list[Any] = []

    def tell(self, answers: Sequence[FeatureVector | Exception]) -> None:
        """Give everyone who still waits the answer."""
        for future, answer in zip(self.futures, answers, strict=True):
            if future.done():
                continue  # nobody waits for it any more
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class AsyncFeatureClient:
    """Reads feature vectors from the online store in asyncio. All tasks of one event loop share it and its connection.

    Args:
        url: As for ``FeatureClient``.
        project: The project whose features to read.
        timeout: Longest wait for the store in one lookup, connecting included; a stuck server costs no more.
        clock: Tells what "now" is.
        cache: As for ``FeatureClient``.
        cache_entries: As for ``FeatureClient``.

    Example:
        async with AsyncFeatureClient("redis://localhost:6379") as client:
            vector = await client.get("fraud_v1", {"card_id": "c1"})
    """

    def __init__(
        self,
        url: str,
        *,
        project: str = "default",
        timeout: str = "50ms",
        clock: Clock | None = None,
        cache: str | None = None,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        plans = RedisOnlineStore(url, check_name(project, "project"), timeout_s=parse_duration(timeout) / 1_000_000)
        self._open(plans, clock or SystemClock(), {}, cache_of(cache, cache_entries), owns_plans=True)

    @classmethod
    def beside(cls, client: FeatureClient) -> Self | None:
        """Return a client of the same store with the same plans and clock; None where that store has no URL.

        Both keep the plans in common, so what one of them has read the other need not read. Closing it leaves ``client`` open.
        """
        store = client._store  # noqa: SLF001 - its twin
        if not isinstance(store, RedisOnlineStore):
            return None
        twin = cls.__new__(cls)
        twin._open(store, client._clock, client._services, client._cache, owns_plans=False)  # noqa: SLF001
        return twin

    def _open(
        self,
        plans: RedisOnlineStore,
        clock: Clock,
        services: dict[str, ServiceLookup],
        cache: ReadCache | None,
        *,
        owns_plans: bool,
    ) -> None:
        self._plans, self._owns_plans = plans, owns_plans
        self._reads = AsyncReads(plans.url, plans.space, timeout_s=plans.timeout_s)
        self._clock, self._services, self._cache = clock, services, cache
        self._in_flight = 0
        self._batches: dict[ServiceLookup | None, _Batch] = {}
        self._joins_plain = cache is None and self._reads.joins
        self._answering: set[asyncio.Task[None]] = set()

    async def get(
        self,
        service: str,
        keys: Mapping[str, Any],
        *,
        now: Instant | str | datetime | None = None,
        request: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> FeatureVector:
        """Return the features of one entity; arguments and errors as of ``FeatureClient.get``."""
        lookup = self._services.get(service) or await self.service(service)
        is_plain = now is None and request is None and features is None and type(keys) is dict
        if is_plain and self._joins_plain and lookup.is_plain:
            # A copy of the keys: they are planned a turn later, and the caller's mapping may change meanwhile.
            return await self._joined(lookup, {**keys})
        read = planned(lookup, [keys], now, request, features, self._clock, single=True)
        if self._in_flight and self._reads.joins:
            return await self._joined(None, read)
        self._in_flight += 1
        try:
            replies = await self._replies([read])
        except (OnlineStoreUnavailableError, OnlineStoreTimeoutError) as error:
            return read.unread(error)[0]
        finally:
            self._in_flight -= 1
        return read.vector(replies[0])

    def _joined(self, lookup: ServiceLookup | None, asked: Any) -> asyncio.Future[FeatureVector]:
        """Return the vector to come: what one turn of the event loop asks for is one command, of one time, decoded at once.

        Args:
            lookup: The plain service whose keys are asked for; None for a planned read.
            asked: The keys, or the read.
        """
        loop = asyncio.get_running_loop()
        batch = self._batches.get(lookup)
        if batch is None or batch.loop is not loop or len(batch.asked) == _MOST_TOGETHER:
            batch = self._batches[lookup] = _Batch(loop)
            loop.call_soon(self._begin, lookup, batch)  # its turn comes after those that are ready now
        future: asyncio.Future[FeatureVector] = loop.create_future()
        batch.futures.append(future)
        batch.asked.append(asked)
        return future

    def _begin(self, lookup: ServiceLookup | None, batch: _Batch) -> None:
        """Ask for a batch: by a callback where it is of one plain service and the store is connected, else by a task."""
        if self._batches.get(lookup) is batch:
            del self._batches[lookup]
        if lookup is None:
            self._by_task(self._answer(batch, self._apart(batch.asked)))
            return
        at = self._clock.now()
        try:
            names = lookup.store_keys(batch.asked)
        except FeatureStoreError:  # of one of them: each is planned alone, and says it
            self._by_task(self._answer(batch, self._apart(plans_of(lookup, batch.asked, at))))
            return
        one = Together(lookup, names, len(batch.asked), at)
        if not self._reads.begin(names, partial(self._replied, batch, one)):
            self._by_task(self._answer(batch, self._together(one, None)))

    def _replied(self, batch: _Batch, one: Together, reply: list[bytes | None] | Exception, deadline: float) -> None:
        """Decode what came, or look once more, within the deadline, at what became of the connection."""
        if isinstance(reply, Exception):
            self._by_task(self._answer(batch, self._together(one, deadline)))
            return
        try:
            answers = one.vectors(reply)
        except Exception as error:  # noqa: BLE001 - whoever waits has to hear of it
            answers = [error] * len(batch.futures)
        batch.tell(answers)

    def _by_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, batch: _Batch, work: Coroutine[Any, Any, _Answers]) -> None:
        """Read and decode a batch, and tell everyone who waits for a part of it."""
        self._in_flight += 1
        try:
            answers = await work
        except Exception as error:  # noqa: BLE001 - whoever waits has to hear of it
            answers = [error] * len(batch.futures)
        finally:
            self._in_flight -= 1
        batch.tell(answers)

    async def _together(self, one: Together, deadline: float | None) -> _Answers:
        """Return the vector of every lookup of a plain service, or why it has none."""
        return one.vectors(await self._reads.read(one.names, deadline))

    async def _apart(self, plans: Sequence[PlannedRead | Exception]) -> _Answers:
        """Return the vector of every planned lookup, or why it has none: one command for all."""
        reads = [plan for plan in plans if isinstance(plan, PlannedRead)]
        try:
            found = iter(vectors_of(reads, await self._replies(reads)))
        except Exception as error:  # noqa: BLE001 - what the policies give without the store
            found = iter([unread(read, error) for read in reads])
        return [next(found) if isinstance(plan, PlannedRead) else plan for plan in plans]

    async def get_many(
        self,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> FeatureTable:
        """Return the features of 1 to 10,000 entities; arguments and errors as of ``FeatureClient.get_many``."""
        return (await self.fetch(service, keys, now=now, request=request, features=features))()

    async def fetch(
        self,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> Callable[[], FeatureTable]:
        """Read as ``get_many`` does, and return the call that decodes: the part that takes the processor and not the store."""
        return await self._fetch(PlannedRead.table, service, keys, now, request, features)

    async def fetch_numbers(
        self,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> Callable[[], FeatureNumbers | FeatureTable]:
        """Read as ``fetch`` does, and return the call that decodes the numbers alone, and the rest when it is asked for."""
        return await self._fetch(PlannedRead.numbers, service, keys, now, request, None)

    def begin_numbers(
        self,
        outcome: Outcome,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> bool:
        """Do as ``fetch_numbers`` and tell the outcome, where that needs no task; else return False, and nothing has begun.

        The outcome is told on the event loop, and never before this call has returned.
        """
        lookup = self._services.get(service)
        if lookup is None or self._cache is not None:
            return False
        check_entities(keys)
        read = planned(lookup, keys, now, request, None, self._clock, single=False)
        return self._reads.begin(read.names, partial(self._told_numbers, outcome, read))

    def _told_numbers(self, outcome: Outcome, read: PlannedRead, reply: Any, deadline: float) -> None:
        if isinstance(reply, Exception):
            self._by_task(self._read_numbers(outcome, read, deadline))
        else:
            outcome.set_result(partial(read.numbers, reply))

    async def _read_numbers(self, outcome: Outcome, read: PlannedRead, deadline: float) -> None:
        """Read what could not be read at once, in the time that is left of the deadline."""
        try:
            decode = await _decoding(PlannedRead.numbers, read, self._reads.read(read.names, deadline))
        except Exception as error:  # noqa: BLE001 - whoever waits has to hear of it
            outcome.set_exception(error)
        else:
            outcome.set_result(decode)

    async def _fetch(
        self,
        decode: Callable[[PlannedRead, Sequence[bytes | None]], T],
        service: str,
        keys: Sequence[Mapping[str, Any]],
        now: Instant | str | datetime | None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
        features: Sequence[str] | None,
    ) -> Callable[[], T | FeatureTable]:
        check_entities(keys)
        lookup = self._services.get(service) or await self.service(service)
        read = planned(lookup, keys, now, request, features, self._clock, single=False)
        return await _decoding(decode, read, self._replies_of(read))

    async def _replies_of(self, read: PlannedRead) -> Sequence[bytes | None]:
        (replies,) = await self._replies([read])
        return replies

    async def _replies(self, reads: Sequence[PlannedRead]) -> list[Sequence[bytes | None]]:
        """Return what the store, or the cache, holds for each of some reads: one command for all."""
        cache = self._cache
        wanted = [
            None
            if cache is None or read.is_exact
            else cache.begin(read.names, read.entities, stamps=len(read.lookup.sources))
            for read in reads
        ]
        asked = [read.names if known is None else known.names for read, known in zip(reads, wanted, strict=True)]
        names = asked[0] if len(asked) == 1 else [name for each in asked for name in each]
        values = await self._reads.read(names) if names else []
        found: list[Sequence[bytes | None]] = []
        at = 0
        for each, known in zip(asked, wanted, strict=True):
            some = values if len(asked) == 1 else values[at : at + len(each)]
            found.append(some if known is None or cache is None else cache.end(known, some))
            at += len(each)
        return found

    async def service(self, name: str) -> ServiceLookup:
        """Return the compiled lookup of a service; read from the store once, then kept."""
        if name not in self._services:
            plan = await asyncio.to_thread(self._plans.load_plan, name)
            self._services[name] = ServiceLookup(self._plans.project, plan)
        return self._services[name]

    def refresh(self) -> None:
        """Forget the plans, so that the next lookup reads what has been applied since, and the values that are kept."""
        self._services.clear()
        if self._cache is not None:
            self._cache.clear()

    async def ping(self) -> None:
        """Raise unless the online store answers."""
        await self._reads.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._reads.close()
        if self._owns_plans:
            self._plans.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def _decoding(
    decode: Callable[[PlannedRead, Sequence[bytes | None]], T],
    read: PlannedRead,
    replies: Awaitable[Sequence[bytes | None]],
) -> Callable[[], T | FeatureTable]:
    """Return the call that decodes the replies; where the store could not be read, what the policies give, or its error."""
    try:
        return partial(decode, read, await replies)
    except (OnlineStoreUnavailableError, OnlineStoreTimeoutError) as error:
        unread = read.unread_table(error)
        return lambda: unread
