"""The online store in this process's memory: what Redis does, without a server. For tests, replays and small tools."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from featurestore.errors import UnknownNameError, did_you_mean
from featurestore.online.codec import HEADER
from featurestore.online.keys import BUCKETS, KeySpace
from featurestore.online.lookup import LookupPlan
from featurestore.online.store import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.online.store import Append, KeptIds, Replacement
    from featurestore.timeline import Instant


class MemoryOnlineStore:
    """Plans, values, fences and progress of one project, in dicts under one lock. Thread-safe; forgets with the process.

    Blobs do not expire here, whatever the ``ttl`` of their view: that never changes a value, and needs a clock.

    Args:
        project: Namespace of all keys.

    Attributes:
        values: Name to bytes; names and bytes are those that Redis would hold.
        bucket_fences: Per bucket, its fences: field to offset.
        hashes: Name to hash: ids of events.
    """

    def __init__(self, project: str = "default") -> None:
        self.project = project
        self.space = KeySpace(project)
        self.values: dict[bytes, bytes] = {}
        self.bucket_fences: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._progress: dict[str, dict[int, tuple[int, Instant]]] = {}
        self._plans: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of the keys, all of one moment; None where there is none."""
        with self._lock:
            return [self.values.get(key) for key in keys]

    def prepare(self) -> None:
        """Nothing needs to be made ready."""

    def fences(self, names: Sequence[bytes]) -> list[list[bytes | None]]:
        """Return, per bucket, the values of the named fences; None where there is none."""
        with self._lock:
            return [[fences.get(name) for name in names] for fences in self.bucket_fences]

    def append(self, appends: Sequence[Append]) -> list[list[int] | Refusal]:
        """Make the appends, each atomically; return per append the new lengths of its blobs."""
        return [self.append_one(append) for append in appends]

    def append_one(self, append: Append) -> list[int] | Refusal:
        """Make the append of one bucket: all of it, or nothing when a fence is not where it was read."""
        with self._lock:
            fences = self.bucket_fences[append.bucket]
            for fence in append.fences:
                current = fences.get(fence.name)
                if (current or b"") != (fence.expected or b""):
                    return Refusal(fence.name, current or b"")
            for fence in append.fences:
                fences[fence.name] = str(fence.until).encode()
            lengths = []
            for blobs in append.blobs:
                for name, records in zip(blobs.names, blobs.records, strict=True):
                    value = self.values.get(name, blobs.base) + records
                    self.values[name] = value
                    lengths.append(len(value))
            return lengths

    def read_hashes(self, asked: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> list[dict[bytes, bytes]]:
        """Return the chosen fields of hashes, all of them for None."""
        with self._lock:
            found = [(self.hashes.get(name, {}), fields) for name, fields in asked]
            return [
                dict(have) if fields is None else {field: have[field] for field in fields if field in have}
                for have, fields in found
            ]

    def keep_ids(self, kept: Sequence[KeptIds], until: bytes, epoch: int | None) -> list[bool]:
        """Keep ids bucket by bucket; return which were where they had been read, and of the epoch."""
        return [self._keep(each, until, epoch) for each in kept]

    def _keep(self, kept: KeptIds, until: bytes, epoch: int | None) -> bool:
        with self._lock:
            catalog = self.hashes.setdefault(kept.catalog, {})
            life = self.bucket_fences[kept.bucket].get(b"epoch")
            if catalog.get(b"until") != kept.expected or (epoch is not None and life != str(epoch).encode()):
                return False
            for name, number in kept.stale:
                self.hashes.pop(name, None)
                catalog.pop(str(number).encode(), None)
            for (name, number), times in kept.times.items():
                catalog[str(number).encode()] = b""
                self.hashes.setdefault(name, {}).update({field: str(time).encode() for field, time in times.items()})
            catalog[b"until"] = until
            return True

    def replace(self, replacements: Sequence[Replacement]) -> int:
        """Make the replacements whose blob still has the length and header of ``old``; return how many were made."""
        done = 0
        with self._lock:
            for each in replacements:
                current = self.values.get(each.name, b"")
                if len(current) == len(each.old) and current[: HEADER.size] == each.old[: HEADER.size]:
                    self.values[each.name] = each.new
                    done += 1
        return done

    def progress(self, source: str) -> dict[int, tuple[int, Instant]]:
        """Return per source partition: the next offset to apply, and the newest arrival applied (microseconds)."""
        with self._lock:
            return dict(self._progress.get(source, {}))

    def record_progress(self, source: str, partition: int, until: int, arrival: Instant) -> None:
        """Move the progress of a partition forward; neither number ever goes back."""
        with self._lock:
            progress = self._progress.setdefault(source, {})
            offset, newest = progress.get(partition, (until, arrival))
            progress[partition] = max(offset, until), max(newest, arrival)

    def remember_topics(self, ids: Mapping[str, str]) -> None:
        """Keep the ids of topics."""
        with self._lock:
            kept = self.hashes.setdefault(self.space.topics, {})
            kept.update({topic.encode(): made.encode() for topic, made in ids.items()})

    def publish_complete(self, source: str, instant: Instant) -> None:
        """Say that everything of a source that arrived up to ``instant`` has been applied."""
        with self._lock:
            self.values[self.space.complete(source)] = str(instant).encode()

    def blobs(self, view: str, fingerprint: str) -> list[bytes]:
        """Return the names of all blobs of a view."""
        with self._lock:
            return [name for name in self.values if self.space.is_blob(name, view, fingerprint)]

    def remove(self, names: Sequence[bytes]) -> None:
        """Remove values; harmless where there are none."""
        with self._lock:
            for name in names:
                self.values.pop(name, None)

    def publish_plan(self, plan: LookupPlan) -> None:
        """Store the lookup plan of a service, replacing an older one."""
        with self._lock:
            self._plans[plan.service] = plan.to_json()

    def remove_plan(self, service: str) -> None:
        """Forget the plan of a service that is no longer defined; harmless when there is none."""
        with self._lock:
            self._plans.pop(service, None)

    def load_plan(self, service: str) -> LookupPlan:
        """Return the published plan of a service.

        Raises:
            UnknownNameError: No such service has been applied to this store.
        """
        with self._lock:
            data = self._plans.get(service)
            known = list(self._plans)
        if data is None:
            raise UnknownNameError(
                f"no service {service!r} in project {self.project!r} in memory.",
                hint=did_you_mean(service, known, what="services") if known else "run featurestore apply first.",
            )
        return LookupPlan.from_json(data)

    def clear(self) -> None:
        """Forget everything but the plans, as a restarted cache would: values, fences and progress."""
        with self._lock:
            self.values.clear()
            self.hashes.clear()
            self._progress.clear()
            for fences in self.bucket_fences:
                fences.clear()

    def ping(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing is held on this side."""
