"""Reading from a Redis Cluster in asyncio: one pipelined connection per node, one deadline for all of a call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import redis

from featurestore.online.redis_async import PipelinedConnection, connect, dialer
from featurestore.online.redis_cluster import ASKING, SLOTS_QUESTION, no_map
from featurestore.online.redis_errors import as_ours, mapped_errors
from featurestore.online.redis_slots import Errand, Scatter, SlotMap, slot_of
from featurestore.online.redis_socket import pack
from featurestore.online.redis_url import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.online.keys import KeySpace
    from featurestore.online.redis_async import Replies
    from featurestore.online.redis_url import Address, Endpoint


class AsyncReads:
    """The read side of an online store on Redis, for asyncio.

    Args:
        url: See ``redis_url``.
        space: The names of the project.
        timeout_s: Deadline of a call, in seconds.
    """

    def __init__(self, url: str, space: KeySpace, *, timeout_s: float) -> None:
        self.url = url
        address = parse_url(url)
        self._link: PipelinedConnection | AsyncCluster
        if address.kind == "cluster":
            self._link = AsyncCluster(address, space, timeout_s=timeout_s)
        else:
            self._link = PipelinedConnection(dialer(address), timeout_s=timeout_s)
        self._one = self._link if isinstance(self._link, PipelinedConnection) else None
        self.joins = address.kind != "cluster"
        """Whether reads of several entities are better one: in a cluster each goes to its own node, and fails with it alone."""

    async def read(self, keys: Sequence[bytes], deadline: float | None = None) -> list[bytes | None]:
        """Return the values of the keys, None where there is none: one round trip, in a cluster one per node.

        Args:
            keys: The keys.
            deadline: Where the reads of several entities are one: in the loop's time; a whole timeout from now when None.
        """
        try:
            return await (self._link.read(keys) if self._one is None else self._one.read(keys, deadline))
        except redis.exceptions.RedisError as error:
            raise as_ours(error, self.url) from error

    def begin(self, keys: Sequence[bytes], told: Callable[[Any, float], None]) -> bool:
        """Do as ``PipelinedConnection.begin``; never in a cluster."""
        return self._one is not None and self._one.begin(keys, told)

    async def ping(self) -> None:
        """Raise unless the store answers: in a cluster, every primary."""
        with mapped_errors(self.url):
            await self._link.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()


class AsyncCluster:
    """Connections to the nodes of a cluster. Belongs to the event loop that first used it; another one starts anew.

    Args:
        address: Where some of the nodes are; credentials and TLS for all.
        space: The names of the project.
        timeout_s: Deadline of a call.
    """

    def __init__(self, address: Address, space: KeySpace, *, timeout_s: float) -> None:
        self._address, self._space, self._timeout_s = address, space, timeout_s
        self._nodes: dict[Endpoint, PipelinedConnection] = {}
        self._slots: SlotMap | None = None
        self._is_stale = True
        self._asking_map: asyncio.Task[SlotMap] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the names, None where there is none: one MGET per slot, all nodes at once."""
        scatter = Scatter(self._space, names)
        deadline = self._begin()
        groups = scatter.reads
        if len(groups) == 1:  # one entity: no tasks
            return scatter.gather([await self._group(groups[0], scatter.firsts, deadline)])
        return scatter.gather(await _all([self._group(group, scatter.firsts, deadline) for group in groups]))

    def _begin(self) -> float:
        """Return the deadline of a call that begins now."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what belongs to another event loop is left to it
            self._loop, self._asking_map, self._nodes = loop, None, {}
        return loop.time() + self._timeout_s

    async def _group(self, names: list[bytes], firsts: int, deadline: float) -> list[bytes | None]:
        try:
            reply: list[bytes | None] = await self._run(names[0], pack((b"MGET", *names)), deadline)
        except redis.exceptions.TryAgainError:
            # The slot is being moved key by key; ``complete_through`` is read before what it speaks of.
            reply = []
            for part in (names[:firsts], names[firsts:]):
                reply += await _all([self._run(name, pack((b"GET", name)), deadline) for name in part])
        return reply

    async def _run(self, key: bytes, packed: bytes, deadline: float) -> Any:
        """Return the reply to a command that only reads, wherever the cluster sends it."""
        errand = Errand(slot_of(key), is_read=True)
        while True:
            slots = self._slots
            if slots is None or self._is_stale:
                slots = await self._map(deadline)
            endpoint = errand.target(slots)
            before = ASKING if errand.asking else b""
            try:
                return await self._node(endpoint).send(packed, before=before, deadline=deadline)
            except redis.exceptions.ResponseError as error:
                if errand.took(error, endpoint):
                    self._is_stale |= isinstance(error, redis.exceptions.ClusterDownError)
                    raise
                self._is_stale |= errand.says_moved
            except redis.exceptions.RedisError as error:
                self._is_stale = True
                if errand.lost(error):
                    raise

    def _node(self, endpoint: Endpoint) -> PipelinedConnection:
        node = self._nodes.get(endpoint)
        if node is None:
            address = self._address

            async def dial(timeout_s: float) -> Replies:
                return await connect(endpoint, address.login, address.tls, timeout_s)

            node = self._nodes[endpoint] = PipelinedConnection(dial, timeout_s=self._timeout_s)
        return node

    async def _map(self, deadline: float) -> SlotMap:
        """Return a new map; all who need one wait for the same."""
        if self._asking_map is None or self._asking_map.done():
            self._is_stale = False
            self._asking_map = asyncio.ensure_future(self._ask_map())
            self._asking_map.add_done_callback(self._mapped)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._asking_map)
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("no map of the cluster in time") from error

    def _mapped(self, task: asyncio.Task[SlotMap]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._is_stale = True
        else:
            self._slots = task.result()

    async def _ask_map(self) -> SlotMap:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        known = self._slots.primaries if self._slots is not None else ()
        # Those that answered last first: a node that is away costs time.
        nodes = sorted(
            dict.fromkeys((*known, *self._address.hosts)), key=lambda each: self._node(each).breaker.failures
        )
        failure: redis.exceptions.RedisError | None = None
        for number, endpoint in enumerate(nodes):
            now = loop.time()
            until = now + (deadline - now) / (2 if number < len(nodes) - 1 else 1)
            try:
                slots = SlotMap.parse(await self._node(endpoint).send(SLOTS_QUESTION, deadline=until), endpoint)
            except redis.exceptions.RedisError as error:
                failure = error
                continue
            for gone in set(self._nodes) - {*slots.primaries, *self._address.hosts}:
                await self._nodes.pop(gone).close()
            return slots
        raise no_map(failure, len(nodes))

    async def ping(self) -> None:
        """Raise unless every primary answers."""
        deadline = self._begin()
        slots = await self._map(deadline)
        await _all([self._node(endpoint).send(pack((b"PING",)), deadline=deadline) for endpoint in slots.primaries])

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        if self._asking_map is not None and self._loop is asyncio.get_running_loop():
            self._asking_map.cancel()
        nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            await node.close()


async def _all(calls: Sequence[Any]) -> list[Any]:
    """Return the results of coroutines that run together; when one fails, the others have ended before it is raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
