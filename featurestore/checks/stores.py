"""Empty online stores for verify: in memory, and on a real server of its own or under a project name nobody else has."""

from __future__ import annotations

import secrets
import tempfile
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from featurestore.errors import StackError
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.valkey import OnlineServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from featurestore.online.store import OnlineStore


@contextmanager
def memory_store() -> Iterator[OnlineStore]:
    """Give an empty store in memory."""
    yield MemoryOnlineStore("verify")


@contextmanager
def redis_stores(url: str | None = None) -> Iterator[Callable[[], AbstractContextManager[OnlineStore]] | None]:
    """Give a function that opens empty stores on a server; None where no server can be had.

    Args:
        url: A server to use; one is started on loopback, from the PATH or the embedded package, when None. Whatever was
            written is removed again, store by store.
    """
    numbers = count()
    run = f"verify_{secrets.token_hex(6)}"

    @contextmanager
    def open_store(at: str) -> Iterator[OnlineStore]:
        store = RedisOnlineStore(at, f"{run}_{next(numbers)}")
        try:
            yield store
        finally:
            store.forget_project()
            store.close()

    if url is not None:
        yield lambda: open_store(url)
        return
    with tempfile.TemporaryDirectory(prefix="featurestore-verify-") as folder:
        server = OnlineServer(folder)
        try:
            server.start()
        except StackError:
            yield None
            return
        try:
            yield lambda: open_store(server.url)
        finally:
            server.stop()
