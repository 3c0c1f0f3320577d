"""How the scoring service reads features: on its event loop, or on a thread where the client can only wait.

``fetch`` ends when the store has answered, and returns the call that decodes: so that reading and decoding are timed apart,
and a large answer can be decoded off the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from featurestore.online.async_client import AsyncFeatureClient
from featurestore.online.client import FeatureClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from featurestore.online.async_client import Outcome
    from featurestore.scoring.scorer import FeatureReader, FeatureRows
    from featurestore.timeline import Instant

    OnWorker = Callable[[Callable[[], Any]], Awaitable[Any]]


class Reads(Protocol):
    """Reads many entities in one round trip, without holding up the event loop."""

    async def fetch(
        self,
        service: str,
        keys: list[dict[str, Any]],
        *,
        now: Instant | None = None,
        request: Sequence[Mapping[str, Any]] | None = None,
        features: Sequence[str] | None = None,
    ) -> Callable[[], FeatureRows]:
        """Read, and return the call that decodes what was read; arguments and errors as of ``FeatureClient.get_many``."""

    async def fetch_numbers(
        self,
        service: str,
        keys: list[dict[str, Any]],
        *,
        now: Instant | None = None,
        request: Sequence[Mapping[str, Any]] | None = None,
    ) -> Callable[[], FeatureRows]:
        """Read likewise, for a caller who wants the numbers of all rows, and more only of some."""

    def begin_numbers(
        self,
        outcome: Outcome,
        service: str,
        keys: list[dict[str, Any]],
        *,
        now: Instant | None = None,
        request: Sequence[Mapping[str, Any]] | None = None,
    ) -> bool:
        """Do as ``fetch_numbers`` and tell the outcome, where that needs no task; else return False, and nothing has begun.

        The outcome is told on the event loop, and never before this call has returned. Errors of the arguments are raised.
        """

    async def close(self) -> None:
        """Close the connections of its own."""


class ThreadReads:
    """Reads by a client that waits, on the worker thread.

    Args:
        client: Reads and decodes in one call.
        on_worker: Runs a call on the worker thread.
    """

    def __init__(self, client: FeatureReader, on_worker: OnWorker) -> None:
        self._client = client
        self._on_worker = on_worker

    async def fetch(self, service: str, keys: list[dict[str, Any]], **options: Any) -> Callable[[], FeatureRows]:
        """Read and decode; what is returned only hands it over."""
        given = {name: value for name, value in options.items() if name != "features" or value is not None}
        table = await self._on_worker(lambda: self._client.get_many(service, keys, **given))
        return lambda: table

    fetch_numbers = fetch

    def begin_numbers(self, outcome: Outcome, service: str, keys: list[dict[str, Any]], **options: Any) -> bool:
        """Return False: the worker thread is waited for."""
        return False

    async def close(self) -> None:
        """Return; the client is not its own."""


def reads_of(client: FeatureReader, on_worker: OnWorker) -> Reads:
    """Return the reads beside a client: on the event loop over one pipelined connection, where its store is reached by URL."""
    twin = AsyncFeatureClient.beside(client) if isinstance(client, FeatureClient) else None
    return ThreadReads(client, on_worker) if twin is None else twin
