"""FeatureClient: the lookup in a request path. A thin shell over ``lookup`` and the store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from featurestore.definitions.entity import check_name
from featurestore.errors import DefinitionError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.cache import CACHE_ENTRIES, ReadCache
from featurestore.online.lookup import ServiceLookup
from featurestore.online.planned import PlannedRead, planned
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.timeline import Clock, SystemClock, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from featurestore.datatypes import DataType
    from featurestore.online.store import OnlineStore
    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.timeline import Instant

MAX_ENTITIES = 10_000


def check_entities(keys: Sequence[Mapping[str, Any]]) -> None:
    """Raise DefinitionError for no entities, or too many for one lookup."""
    if not 1 <= len(keys) <= MAX_ENTITIES:
        raise DefinitionError(f"get_many takes 1 to {MAX_ENTITIES:,} entities, got {len(keys):,}.")


def cache_of(cache: str | None, entries: int = CACHE_ENTRIES) -> ReadCache | None:
    """Return the cache that a client's options ask for.

    Raises:
        DefinitionError: It keeps nothing: no entries.
    """
    if cache is None:
        return None
    if entries < 2:
        raise DefinitionError(f"cache_entries is {entries}.", hint="keep at least 2 entities; cache=None keeps none.")
    return ReadCache(parse_duration(cache) / 1_000_000, most=entries)


class FeatureClient:
    """Reads feature vectors from the online store. Thread-safe; needs a URL and nothing else.

    Args:
        url: URL of the online store: redis://, rediss://, redis+cluster://, redis+sentinel:// or unix:// (see the guide to
            operations).
        project: The project whose features to read.
        timeout: Longest wait for the store in one lookup; a stuck server costs no more.
        clock: Tells what "now" is; replaced in tests and replays.
        cache: Longest age of values kept in this process, like "200ms"; None keeps none. A lookup with ``now`` neither uses
            nor fills it.
        cache_entries: Entities kept, at most.

    Example:
        client = FeatureClient("redis://localhost:6379")
        vector = client.get("fraud_v1", {"card_id": "c1"})
        vector["card_spend.spend_1h"]
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
        store = RedisOnlineStore(url, check_name(project, "project"), timeout_s=parse_duration(timeout) / 1_000_000)
        self._open(store, clock or SystemClock(), cache_of(cache, cache_entries))

    @classmethod
    def over(cls, store: OnlineStore, *, clock: Clock | None = None, cache: str | None = None) -> Self:
        """Return a client of a store that is already open, such as ``MemoryOnlineStore``.

        Args:
            store: The store; ``close`` closes it.
            clock: Tells what "now" is.
            cache: As of the constructor.
        """
        client = cls.__new__(cls)
        client._open(store, clock or SystemClock(), cache_of(cache))  # noqa: SLF001 - its own
        return client

    def _open(self, store: OnlineStore, clock: Clock, cache: ReadCache | None) -> None:
        self._store = store
        self._clock = clock
        self._cache = cache
        self._services: dict[str, ServiceLookup] = {}
        self._lock = threading.Lock()

    def get(
        self,
        service: str,
        keys: Mapping[str, Any],
        *,
        now: Instant | str | datetime | None = None,
        request: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> FeatureVector:
        """Return the features of one entity: one round trip.

        Args:
            service: Name of the feature service.
            keys: Key columns and their values, for all entities of the service.
            now: Time of the lookup; events at or after it do not count. The clock's when None.
            request: Request values by name, for the service's request features; None as a value is null. What the service does
                not take is ignored.
            features: The features to return, in this order; only the views that they need are read. All when None.

        Raises:
            UnknownNameError: No such service or feature, or a key column or request value is missing.
            DefinitionError: A key or request value is of another type.
            PastLookupError: ``now`` is given and lies before events that are already merged.
            StaleFeatureError: A view is older than its ``max_staleness``, and its policy is to fail.
            OnlineStoreUnavailableError: The store cannot be reached.
            OnlineStoreTimeoutError: It did not answer in time.
        """
        read = planned(self.service(service), [keys], now, request, features, self._clock, single=True)
        try:
            replies = self._replies(read)
        except (OnlineStoreUnavailableError, OnlineStoreTimeoutError) as error:
            return read.unread(error)[0]
        return read.vector(replies)

    def get_many(
        self,
        service: str,
        keys: Sequence[Mapping[str, Any]],
        *,
        now: Instant | str | datetime | None = None,
        request: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> FeatureTable:
        """Return the features of 1 to 10,000 entities in the given order: one round trip.

        Args:
            service: As for ``get``.
            keys: Keys of every entity.
            now: As for ``get``.
            request: Request values of every entity, or columns of them by name: lists, or numpy, Arrow or pandas columns.
            features: As for ``get``.

        Raises:
            DefinitionError: There are no entities, or too many.
            Others: As ``get``.
        """
        check_entities(keys)
        read = planned(self.service(service), keys, now, request, features, self._clock, single=False)
        try:
            replies = self._replies(read)
        except (OnlineStoreUnavailableError, OnlineStoreTimeoutError) as error:
            return read.unread_table(error)
        return read.table(replies)

    def _replies(self, read: PlannedRead) -> Sequence[bytes | None]:
        if self._cache is None or read.is_exact:
            return self._store.read(read.names)
        return self._cache.read(read.names, read.entities, self._store.read, stamps=len(read.lookup.sources))

    def service(self, name: str) -> ServiceLookup:
        """Return the compiled lookup of a service; read from the store once, then kept."""
        lookup = self._services.get(name)
        if lookup is None:
            with self._lock:
                lookup = self._services[name] = ServiceLookup(self._store.project, self._store.load_plan(name))
        return lookup

    def refresh(self) -> None:
        """Forget the plans, so that the next lookup reads what has been applied since, and the values that are kept."""
        with self._lock:
            self._services.clear()
        if self._cache is not None:
            self._cache.clear()

    def service_fingerprint(self, service: str) -> str:
        """Return the fingerprint of a service as it is published."""
        return self.service(service).plan.fingerprint

    def request_values(self, service: str) -> dict[str, DataType]:
        """Return name to type of the request values a service takes, as it is published."""
        return self.service(service).plan.request_values

    def ping(self) -> None:
        """Raise unless the online store answers."""
        self._store.ping()

    def close(self) -> None:
        """Close all connections."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
