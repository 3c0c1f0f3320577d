"""Errors of Redis and of its connections as ours, in one table."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis

from featurestore.errors import OnlineError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.online.redis_url import safe_url

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: tuple[tuple[type[Exception], type[OnlineError], str], ...] = (
    (redis.exceptions.TimeoutError, OnlineStoreTimeoutError, "did not answer in time"),
    (redis.exceptions.AuthenticationError, OnlineStoreUnavailableError, "refused the credentials"),
    (redis.exceptions.NoPermissionError, OnlineError, "does not allow this user a command"),
    (redis.exceptions.BusyLoadingError, OnlineStoreUnavailableError, "is still loading its data"),
    (redis.exceptions.MasterDownError, OnlineStoreUnavailableError, "has lost its primary"),
    (redis.exceptions.ClusterDownError, OnlineStoreUnavailableError, "is failing over"),
    (redis.exceptions.TryAgainError, OnlineStoreUnavailableError, "is moving keys to another node"),
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
    "NOPERM": redis.exceptions.NoPermissionError,
    "NOSCRIPT": redis.exceptions.NoScriptError,
    "TRYAGAIN": redis.exceptions.TryAgainError,
}

_REDIRECTIONS: dict[str, type[redis.exceptions.AskError]] = {
    "MOVED": redis.exceptions.MovedError,
    "ASK": redis.exceptions.AskError,
}


def reply_error(message: str) -> redis.exceptions.RedisError:
    """Return the exception of an error reply, told by its first word."""
    word, _, rest = message.partition(" ")
    redirection = _REDIRECTIONS.get(word)
    if redirection is not None:
        try:
            return redirection(rest)
        except (ValueError, IndexError):
            return redis.exceptions.ResponseError(message)
    return _REPLIES.get(word, redis.exceptions.ResponseError)(message)


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
