"""The online store on Redis >= 7.0 or Valkey. redis is imported by this module and its neighbours ``redis_*`` alone."""

from __future__ import annotations

from hashlib import sha1
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurestore.errors import ConfigError, OnlineError, UnknownNameError, did_you_mean
from featurestore.online.codec import HEADER
from featurestore.online.keys import BUCKETS, KeySpace
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_connection import ReadConnections
from featurestore.online.redis_errors import mapped_errors, safe_url
from featurestore.online.redis_scripts import APPEND, PROGRESS, REPLACE
from featurestore.online.store import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.online.store import Append, Replacement
    from featurestore.timeline import Instant


def connect(url: str, *, timeout_s: float) -> redis.Redis:
    """Return a client that neither retries nor decodes; retries belong to whoever knows the deadline.

    Raises:
        ConfigError: The URL is not one of redis://, rediss:// or unix://.
    """
    try:
        database = urlsplit(url).path.strip("/")
        if not url.startswith("unix:") and database and not database.isdecimal():
            raise ValueError(f"database {database!r} is not a number")  # noqa: TRY301 - redis would silently take 0
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
    except ValueError as error:
        raise ConfigError(
            f"online url {safe_url(url)!r} is not usable: {error}", hint="write it like redis://localhost:6379."
        ) from error


_SHA = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (APPEND, REPLACE, PROGRESS)}


class RedisOnlineStore:
    """Plans, values, fences and progress of one project. Thread-safe: every call takes a pooled connection.

    Args:
        url: redis://, rediss:// or unix:// URL.
        project: Namespace of all keys.
        timeout_s: Longest wait for one reply, in seconds.
    """

    def __init__(self, url: str, project: str, *, timeout_s: float = 5.0) -> None:
        self.url = url
        self.project = project
        self.space = KeySpace(project)
        self.redis: Any = connect(url, timeout_s=timeout_s)
        pool = self.redis.connection_pool
        self._reads = ReadConnections(pool.connection_class, pool.connection_kwargs, timeout_s=timeout_s)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the keys in one round trip, None where there is none."""
        with mapped_errors(self.url):
            values: list[bytes | None] = self._reads.call(b"MGET", *keys)
            return values

    def prepare(self) -> None:
        """Load the scripts that writing needs."""
        with mapped_errors(self.url):
            for script in _SHA:
                self.redis.script_load(script)

    def fences(self, names: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return, per bucket, the values of the named fences in one round trip; None where there is none."""
        with mapped_errors(self.url):
            pipe = self.redis.pipeline(transaction=False)
            for bucket in range(BUCKETS):
                pipe.hmget(self.space.fence(bucket), names)
            return list(pipe.execute())

    def append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Make the appends, one script call each, in one round trip; return per append the new lengths of its blobs.

        Raises:
            OnlineError: The store failed, or restarted and lost its scripts; any of the appends may have been made.
        """
        if not appends:
            return []
        with mapped_errors(self.url):
            pipe = self.redis.pipeline(transaction=False)
            for append in appends:
                keys = [self.space.fence(append.bucket)]
                args: list[Any] = [len(append.fences)]
                for fence in append.fences:
                    args += [fence.name, fence.expected or b"", fence.until]
                args.append(len(append.blobs))
                for blobs in append.blobs:
                    args += [len(blobs.names), blobs.base]
                for blobs in append.blobs:
                    keys += blobs.names
                    args += blobs.records
                pipe.evalsha(_SHA[APPEND], len(keys), *keys, *args)
            replies = pipe.execute(raise_on_error=False)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                self.prepare()
                raise OnlineError(
                    "the online store lost its scripts during a write.", hint="it restarted; the task is retried."
                )
            return [_lengths_or_refusal(reply) for reply in replies]

    def replace(self, replacements: Sequence[Replacement]) -> int:
        """Make the replacements whose comparison holds, one script call per bucket; return how many were made."""
        if not replacements:
            return 0
        by_slot: dict[bytes, list[Replacement]] = {}
        for each in replacements:
            by_slot.setdefault(each.name[: each.name.index(b"}")], []).append(each)
        done = 0
        with mapped_errors(self.url):
            pipe = self.redis.pipeline(transaction=False)
            for group in by_slot.values():
                args = [part for each in group for part in (len(each.old), each.old[: HEADER.size], each.new)]
                pipe.evalsha(_SHA[REPLACE], len(group), *[each.name for each in group], *args)
            for reply in pipe.execute(raise_on_error=False):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    self.prepare()  # nothing was replaced; the next write finds these tails again
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    done += reply
        return done

    def ping(self) -> None:
        """Raise unless the store answers."""
        with mapped_errors(self.url):
            self.redis.ping()

    def publish_plan(self, plan: LookupPlan) -> None:
        """Store the lookup plan of a service, replacing an older one."""
        with mapped_errors(self.url):
            self.redis.set(self.space.plan(plan.service), plan.to_json())

    def remove_plan(self, service: str) -> None:
        """Forget the plan of a service that is no longer defined; harmless when there is none."""
        with mapped_errors(self.url):
            self.redis.delete(self.space.plan(service))

    def load_plan(self, service: str) -> LookupPlan:
        """Return the published plan of a service.

        Raises:
            UnknownNameError: No such service has been applied to this store.
        """
        with mapped_errors(self.url):
            data = self.redis.get(self.space.plan(service))
            if data is None:
                known = [key.rpartition(b":")[2].decode() for key in self.redis.scan_iter(self.space.plan("*"), 1000)]
                raise UnknownNameError(
                    f"no service {service!r} in project {self.project!r} on {safe_url(self.url)}.",
                    hint=did_you_mean(service, known, what="services") if known else "run featurestore apply first.",
                )
        return LookupPlan.from_json(data)

    def progress(self, source: str) -> dict[int, tuple[int, Instant]]:
        """Return per source partition: the next offset to apply, and the newest arrival applied (microseconds)."""
        with mapped_errors(self.url):
            entries = self.redis.hgetall(self.space.progress(source))
        parsed = {}
        for partition, entry in entries.items():
            offset, _, arrival = entry.partition(b",")
            parsed[int(partition)] = (int(offset), int(arrival))
        return parsed

    def record_progress(self, source: str, partition: int, until: int, arrival: Instant) -> None:
        """Move the progress of a partition forward; neither number ever goes back."""
        call = (_SHA[PROGRESS], 1, self.space.progress(source), partition, until, arrival)
        with mapped_errors(self.url):
            try:
                self.redis.evalsha(*call)
            except redis.exceptions.NoScriptError:
                self.prepare()
                self.redis.evalsha(*call)

    def publish_complete(self, source: str, instant: Instant) -> None:
        """Say that everything of a source that arrived up to ``instant`` has been applied."""
        with mapped_errors(self.url):
            self.redis.set(self.space.complete(source), instant)

    def blobs(self, bucket: int, view: str, fingerprint: str) -> list[bytes]:
        """Return the names of all blobs of a view in a bucket, by a scan of the store's keys."""
        starts = self.space.blobs(bucket, view, fingerprint)
        with mapped_errors(self.url):
            pattern = starts[0][:-1].decode() + "[:/]*"
            return [name for name in self.redis.scan_iter(pattern, 1000) if name.startswith(starts)]

    def remove(self, names: Sequence[bytes]) -> None:
        """Remove values; harmless where there are none."""
        with mapped_errors(self.url):
            for name in names:  # each in its own slot; the memory is freed behind the scenes
                self.redis.unlink(name)

    def forget_project(self) -> None:
        """Remove everything the project has in the store: for stores made for a check, never for one that serves."""
        with mapped_errors(self.url):
            for pattern in (f"fs:{{{self.project}}}:*", f"fs:{{{self.project}.??}}:*"):
                names = list(self.redis.scan_iter(pattern, 1000))
                if names:
                    self.redis.unlink(*names)

    def close(self) -> None:
        """Close all connections."""
        self._reads.close()
        self.redis.close()


def _lengths_or_refusal(reply: Any) -> list[int] | Refusal:
    if isinstance(reply, redis.exceptions.ResponseError) and "FENCE" in str(reply):
        fence, _, current = str(reply).partition("FENCE ")[2].partition(" is at ")
        return Refusal(fence.encode(), current.encode())
    if isinstance(reply, Exception):
        raise reply
    return list(reply)
