"""Errors of Redis and of its connections as ours, in one table."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis

from featurestore.errors import OnlineError, OnlineStoreTimeoutError, OnlineStoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: tuple[tuple[type[Exception], type[OnlineError], str], ...] = (
    (redis.exceptions.TimeoutError, OnlineStoreTimeoutError, "did not answer in time"),
    (redis.exceptions.AuthenticationError, OnlineStoreUnavailableError, "refused the credentials"),
    (redis.exceptions.BusyLoadingError, OnlineStoreUnavailableError, "is still loading its data"),
    (redis.exceptions.MasterDownError, OnlineStoreUnavailableError, "has lost its primary"),
    (redis.exceptions.ClusterDownError, OnlineStoreUnavailableError, "is failing over"),
    (redis.exceptions.ReadOnlyError, OnlineStoreUnavailableError, "is a read-only replica"),
    (redis.exceptions.OutOfMemoryError, OnlineStoreUnavailableError, "is out of memory"),
    (redis.exceptions.ConnectionError, OnlineStoreUnavailableError, "cannot be reached"),
    (redis.exceptions.RedisError, OnlineError, "refused a command"),
)
"""Foreign error -> ours, the most specific first; tests hold it complete."""

_REPLIES: dict[str, type[redis.exceptions.RedisError]] = {
    "LOADING": redis.exceptions.BusyLoadingError,
    "MASTERDOWN": redis.exceptions.MasterDownError,
    "CLUSTERDOWN": redis.exceptions.ClusterDownError,
    "READONLY": redis.exceptions.ReadOnlyError,
    "OOM": redis.exceptions.OutOfMemoryError,
    "NOAUTH": redis.exceptions.AuthenticationError,
    "WRONGPASS": redis.exceptions.AuthenticationError,
}


def reply_error(message: str) -> redis.exceptions.RedisError:
    """Return the exception of an error reply, told by its first word."""
    return _REPLIES.get(message.partition(" ")[0], redis.exceptions.ResponseError)(message)


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Raise redis errors as ours; the address appears without credentials."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        raise as_ours(error, url) from error


def as_ours(error: redis.exceptions.RedisError, url: str) -> Exception:
    """Return our error for one of redis."""
    for foreign, ours, what in ERRORS:
        if isinstance(error, foreign):
            hint = "is the server running? check the online url." if ours is OnlineStoreUnavailableError else None
            return ours(f"online store {safe_url(url)} {what}: {str(error).rstrip('.')}.", hint=hint)
    return error


def safe_url(url: str) -> str:
    """Return a URL without user, password and options, which can hold a password too."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"
