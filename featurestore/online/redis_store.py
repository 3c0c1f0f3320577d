"""The online store on Redis >= 7.0 or Valkey. redis is imported by this module and its neighbours ``redis_*`` alone."""

from __future__ import annotations

from hashlib import sha1
from typing import TYPE_CHECKING, Any

import redis

from featurestore.errors import OnlineError, UnknownNameError, did_you_mean
from featurestore.online.codec import HEADER
from featurestore.online.keys import BUCKETS, KeySpace
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_cluster import ClusterConnections
from featurestore.online.redis_connection import Connections
from featurestore.online.redis_errors import as_ours, mapped_errors
from featurestore.online.redis_scripts import APPEND, KEEP_IDS, LEASE, PROGRESS, REPLACE
from featurestore.online.redis_socket import dialer
from featurestore.online.redis_url import parse_url, safe_url
from featurestore.online.store import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.online.redis_url import Address
    from featurestore.online.store import Append, KeptIds, Replacement
    from featurestore.timeline import Instant

Command = tuple[bytes, tuple[Any, ...]]
"""A key that tells the node, and what is sent."""


_SHA = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (APPEND, REPLACE, PROGRESS, KEEP_IDS, LEASE)
}


class RedisOnlineStore:
    """Plans, values, fences and progress of one project. Thread-safe and fork-safe.

    Args:
        url: See ``redis_url``: redis://, rediss://, redis+cluster://, redis+sentinel:// or unix://.
        project: Namespace of all keys.
        timeout_s: Deadline of a call: for connecting, sending and all replies together, in seconds.

    Raises:
        ConfigError: The URL is none of these.
    """

    def __init__(self, url: str, project: str, *, timeout_s: float = 5.0) -> None:
        self.url = url
        self.project = project
        self.timeout_s = timeout_s
        self.space = KeySpace(project)
        address = parse_url(url)
        self._is_cluster = address.kind == "cluster"
        self._link = open_link(address, self.space, timeout_s)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the keys, None where there is none: one round trip, in a cluster one per node."""
        try:  # every lookup comes by here, and a context manager costs as much as planning it
            return self._link.read(keys)
        except redis.exceptions.RedisError as error:
            raise as_ours(error, self.url) from error

    def prepare(self) -> None:
        """Load the scripts that writing needs, into every primary."""
        with mapped_errors(self.url):
            for script in _SHA:
                _first_error(self._link.everywhere(b"SCRIPT", b"LOAD", script.encode()))

    def fences(self, names: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return, per bucket, the values of the named fences in one round trip; None where there is none."""
        hashes = [self.space.fence(bucket) for bucket in range(BUCKETS)]
        if not names:
            return [[] for _ in hashes]
        with mapped_errors(self.url):
            return _first_error(self._link.each([(name, (b"HMGET", name, *names)) for name in hashes]))

    def append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Make the appends, one script call each, in one round trip; return per append the new lengths of its blobs.

        Raises:
            OnlineError: The store failed, or restarted and lost its scripts; any of the appends may have been made.
        """
        if not appends:
            return []
        commands: list[Command] = []
        for append in appends:
            keys = [self.space.fence(append.bucket)]
            args: list[Any] = [len(append.fences)]
            for fence in append.fences:
                args += [fence.name, fence.expected or b"", fence.until]
            args.append(len(append.blobs))
            for blobs in append.blobs:
                args += [len(blobs.names), blobs.base, blobs.keep_ms]
            for blobs in append.blobs:
                keys += blobs.names
                args += blobs.records
            commands.append((keys[0], (b"EVALSHA", _SHA[APPEND], len(keys), *keys, *args)))
        with mapped_errors(self.url):
            replies = self._link.each(commands, is_read=False)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                self.prepare()
                raise OnlineError(
                    "the online store lost its scripts during a write.", hint="it restarted; the task is retried."
                )
            return [_lengths_or_refusal(reply) for reply in replies]

    def read_hashes(self, asked: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> list[dict[bytes, bytes]]:
        """Return the chosen fields of hashes, all of them for None, in one round trip."""
        commands: list[Command] = [
            (name, (b"HGETALL", name) if fields is None else (b"HMGET", name, *fields)) for name, fields in asked
        ]
        if not commands:
            return []
        with mapped_errors(self.url):
            replies = _first_error(self._link.each(commands))
        return [
            dict(zip(reply[::2], reply[1::2], strict=True))
            if fields is None
            else {field: value for field, value in zip(fields, reply, strict=True) if value is not None}
            for (_, fields), reply in zip(asked, replies, strict=True)
        ]

    def keep_ids(self, kept: Sequence[KeptIds], until: bytes, epoch: int | None) -> list[bool]:
        """Keep ids, one script call per bucket, in one round trip; return which buckets were where they had been read.

        Raises:
            OnlineError: The store failed, or lost its scripts; any of the buckets may have been moved.
        """
        commands: list[Command] = []
        for each in kept:
            keys = [each.catalog, self.space.fence(each.bucket)]
            keys += [name for name, _ in (*each.stale, *each.times)]
            args: list[Any] = [
                each.expected or b"",
                until,
                "" if epoch is None else epoch,
                len(each.stale),
                len(each.times),
            ]
            args += [number for _, number in each.stale]
            for (_, number), times in each.times.items():
                args += [number, len(times)]
                args += [part for pair in times.items() for part in pair]
            commands.append((each.catalog, (b"EVALSHA", _SHA[KEEP_IDS], len(keys), *keys, *args)))
        with mapped_errors(self.url):
            replies = self._link.each(commands, is_read=False)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                self.prepare()
                raise OnlineError(
                    "the online store lost its scripts during a write.", hint="it restarted; the task is retried."
                )
            return [bool(reply) for reply in _first_error(replies)]

    def replace(self, replacements: Sequence[Replacement]) -> int:
        """Make the replacements whose comparison holds, one script call per bucket; return how many were made."""
        if not replacements:
            return 0
        by_slot: dict[bytes, list[Replacement]] = {}
        for each in replacements:
            by_slot.setdefault(each.name[: each.name.index(b"}")], []).append(each)
        commands: list[Command] = []
        for group in by_slot.values():
            args = [part for each in group for part in (len(each.old), each.old[: HEADER.size], each.new, each.keep_ms)]
            names = [each.name for each in group]
            commands.append((names[0], (b"EVALSHA", _SHA[REPLACE], len(group), *names, *args)))
        done = 0
        with mapped_errors(self.url):
            for reply in self._link.each(commands, is_read=False):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    self.prepare()  # nothing was replaced; the next write finds these tails again
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    done += reply
        return done

    def ping(self) -> None:
        """Raise unless the store answers: in a cluster, every primary."""
        with mapped_errors(self.url):
            _first_error(self._link.everywhere(b"PING"))

    def publish_plan(self, plan: LookupPlan) -> None:
        """Store the lookup plan of a service, replacing an older one."""
        name, services = self.space.plan(plan.service), self.space.services
        self._write(
            (name, (b"SET", name, plan.to_json())),
            (services, (b"SADD", services, plan.service)),
        )

    def remove_plan(self, service: str) -> None:
        """Forget the plan of a service that is no longer defined; harmless when there is none."""
        name, services = self.space.plan(service), self.space.services
        self._write((services, (b"SREM", services, service)), (name, (b"DEL", name)))

    def load_plan(self, service: str) -> LookupPlan:
        """Return the published plan of a service.

        Raises:
            UnknownNameError: No such service has been applied to this store.
        """
        name = self.space.plan(service)
        with mapped_errors(self.url):
            (data,) = _first_error(self._link.each([(name, (b"GET", name))]))
            if data is None:
                found = _first_error(self._link.each([(name, (b"SMEMBERS", self.space.services))]))[0]
                known = sorted(each.decode() for each in found)
                raise UnknownNameError(
                    f"no service {service!r} in project {self.project!r} on {safe_url(self.url)}.",
                    hint=did_you_mean(service, known, what="services") if known else "run featurestore apply first.",
                )
        return LookupPlan.from_json(data)

    def progress(self, source: str) -> dict[int, tuple[int, Instant]]:
        """Return per source partition: the next offset to apply, and the newest arrival applied (microseconds)."""
        name = self.space.progress(source)
        with mapped_errors(self.url):
            (flat,) = _first_error(self._link.each([(name, (b"HGETALL", name))]))
        parsed = {}
        for partition, entry in zip(flat[::2], flat[1::2], strict=True):
            offset, _, arrival = entry.partition(b",")
            parsed[int(partition)] = (int(offset), int(arrival))
        return parsed

    def record_progress(self, source: str, partition: int, until: int, arrival: Instant) -> None:
        """Move the progress of a partition forward; neither number ever goes back."""
        name = self.space.progress(source)
        command = (name, (b"EVALSHA", _SHA[PROGRESS], 1, name, partition, until, arrival))
        with mapped_errors(self.url):
            (reply,) = self._link.each([command])  # made twice, it changes nothing
            if isinstance(reply, redis.exceptions.NoScriptError):
                self.prepare()
                (reply,) = self._link.each([command])
            _first_error([reply])

    def remember_topics(self, ids: Mapping[str, str]) -> None:
        """Keep the ids of topics."""
        name = self.space.topics
        self._write(*((name, (b"HSET", name, topic, made)) for topic, made in ids.items()))

    def publish_complete(self, source: str, instant: Instant) -> None:
        """Say that everything of a source that arrived up to ``instant`` has been applied."""
        name = self.space.complete(source)
        names = [*self.space.copies(name), name] if self._is_cluster else [name]
        self._write(*((each, (b"SET", each, instant)) for each in names))

    def lease(self, names: Sequence[bytes], *args: Any) -> list[Any]:
        """Return what ``redis_scripts.LEASE`` returns; it may be run twice."""
        command = (names[0], (b"EVALSHA", _SHA[LEASE], len(names), *names, *args))
        with mapped_errors(self.url):
            replies = self._link.each([command])
            if isinstance(replies[0], redis.exceptions.NoScriptError):
                self.prepare()
                replies = self._link.each([command])
            return list(_first_error(replies)[0])

    def _write(self, *commands: Command) -> None:
        """Send commands that may be sent twice."""
        with mapped_errors(self.url):
            _first_error(self._link.each(commands))

    def blobs(self, view: str, fingerprint: str) -> Iterator[bytes]:
        """Yield the names of all blobs of a view, by one scan of the store's keys; a name can come twice while it grows."""
        with mapped_errors(self.url):
            for names in self._scan(f"fs:{{{self.project}.*}}:v:{view}@{fingerprint}[:/]*"):
                yield from (name for name in names if self.space.is_blob(name, view, fingerprint))

    def remove(self, names: Sequence[bytes]) -> None:
        """Remove values; harmless where there are none."""
        if names:  # their memory is freed behind the scenes
            self._write(*((name, (b"UNLINK", name)) for name in names))

    def belongings(self) -> Iterator[bytes]:
        """Yield the names of all blobs and ids of all views, by one scan; a name can come twice."""
        with mapped_errors(self.url):
            for names in self._scan(f"fs:{{{self.project}.*}}:*"):
                yield from (name for name in names if self.space.view_in(name) is not None)

    def fence_fields(self) -> set[bytes]:
        """Return the fields of all fences."""
        hashes = self.read_hashes([(self.space.fence(bucket), None) for bucket in range(BUCKETS)])
        return {field for fences in hashes for field in fences}

    def remove_fences(self, fields: Sequence[bytes]) -> None:
        """Remove fences, in every bucket: for views whose blobs are gone."""
        hashes = [self.space.fence(bucket) for bucket in range(BUCKETS)] if fields else []
        self._write(*((name, (b"HDEL", name, *fields)) for name in hashes))

    def forget_project(self) -> None:
        """Remove everything the project has in the store: for stores made for a check, never for one that serves."""
        with mapped_errors(self.url):
            for pattern in (f"fs:{{{self.project}}}:*", f"fs:{{{self.project}.*}}:*"):
                for names in self._scan(pattern):
                    _first_error(self._link.each([(name, (b"UNLINK", name)) for name in names]))

    def _scan(self, pattern: str) -> Iterator[list[bytes]]:
        """Yield the names that match, on every primary."""
        for node in self._link.primaries():
            cursor = b"0"
            while True:
                replies = node.each([(b"", (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", 1000))])
                cursor, names = _first_error(replies)[0]
                if names:
                    yield names
                if cursor == b"0":
                    break

    def close(self) -> None:
        """Close all connections."""
        self._link.close()


def open_link(address: Address, space: KeySpace, timeout_s: float) -> Connections | ClusterConnections:
    """Return connections to an address."""
    if address.kind == "cluster":
        return ClusterConnections(address, space, timeout_s=timeout_s)
    return Connections(dialer(address), timeout_s=timeout_s)


def _first_error(replies: list[Any]) -> list[Any]:
    """Return the replies, or raise the first that is an error."""
    for reply in replies:
        if isinstance(reply, redis.exceptions.RedisError):
            raise reply
    return replies


def _lengths_or_refusal(reply: Any) -> list[int] | Refusal:
    if isinstance(reply, redis.exceptions.ResponseError) and "FENCE" in str(reply):
        fence, _, current = str(reply).partition("FENCE ")[2].partition(" is at ")
        return Refusal(fence.encode(), current.encode())
    if isinstance(reply, Exception):
        raise reply
    return list(reply)
