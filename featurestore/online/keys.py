"""Names in the online store. Pure.

    fs:{PROJECT.BB.N}:v:VIEW@FINGERPRINT:KEYBYTES   the blob of one entity key: base and tail (see ``codec``)
    fs:{PROJECT.BB.N}:v:VIEW@FINGERPRINT/P:KEYBYTES the same of part P of the view, from 1 on; most views have one part
    fs:{PROJECT.BB.N}:fence                         hash: "VIEW@FINGERPRINT/SOURCE/PARTITION" -> next offset to apply;
                                                    "epoch" (see ``epoch``)
    fs:{PROJECT.BB.N}:complete:SOURCE               in a cluster: a copy of fs:{PROJECT}:complete:SOURCE
    fs:{PROJECT.BB.N}:ids:VIEW@FINGERPRINT/SOURCE/PARTITION  hashes of the ids of events (see ``ids``)
    fs:{PROJECT}:progress:SOURCE                    hash: partition -> "next offset,newest arrival in us"
    fs:{PROJECT}:complete:SOURCE                    instant (us) up to which every partition has been applied
    fs:{PROJECT}:plan:SERVICE                       the compiled lookup plan, JSON
    fs:{PROJECT}:services                           set: the services that have a plan
    fs:{PROJECT}:topics                             hash: topic -> the id of that topic whose offsets are known here
    fs:{PROJECT}:lease:VIEW@FINGERPRINT             the job that writes it (see ``jobs.lease``)

BB is the bucket of the entity key, two hex digits. The braces are Redis Cluster's hash tag: all views of a key, and the
fence that guards them, live in one slot. N is the smallest number with which the slot of bucket BB lies in the middle eighth
of the BBth sixteenth of all slots: the buckets spread evenly over any cluster whose nodes serve equal ranges. A project name
cannot contain the separators, so two projects in one Redis never meet. A view's fingerprint is part of the name: a changed
definition starts on keys of its own and never reads an old layout.
"""

from __future__ import annotations

import binascii
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKETS = 16
_SLOTS = 16384


def bucket_of(key: bytes) -> int:
    """Return the bucket of an encoded key: CRC-32 modulo the number of buckets."""
    return zlib.crc32(key) % BUCKETS


def buckets_of(keys: Sequence[bytes]) -> np.ndarray:
    """Return the buckets of many encoded keys, int64."""
    return np.fromiter(map(zlib.crc32, keys), np.int64, len(keys)) % BUCKETS


@lru_cache(maxsize=256)
def _tags(project: str) -> tuple[str, ...]:
    """Return the hash tag of every bucket; CRC-16 (XMODEM) is the cluster's own hash."""
    tags = []
    share = _SLOTS // BUCKETS
    for bucket in range(BUCKETS):
        wanted = range(bucket * share + share * 7 // 16, bucket * share + share * 9 // 16)
        tried = (f"{project}.{bucket:02x}.{number}" for number in count())
        tags.append(next(tag for tag in tried if binascii.crc_hqx(tag.encode(), 0) % _SLOTS in wanted))
    return tuple(tags)


@lru_cache(maxsize=256)
def _buckets(project: str) -> dict[bytes, int]:
    """Return what the names of every bucket begin with, up to the closing brace, and the bucket."""
    return {f"fs:{{{tag}".encode(): bucket for bucket, tag in enumerate(_tags(project))}


@lru_cache(maxsize=1024)
def _blob_prefixes(tags: tuple[str, ...], view: str, fingerprint: str, part: int) -> list[bytes]:
    """Return ``KeySpace.blob_prefixes``."""
    suffix = f"/{part}" if part else ""
    return [f"fs:{{{tag}}}:v:{view}@{fingerprint}{suffix}:".encode() for tag in tags]


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Builds the names of one project."""

    project: str
    tags: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Hash tag of every bucket."""
    shared: bytes = field(init=False, repr=False, compare=False)
    """What the names begin with that belong to no bucket."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", _tags(self.project))
        object.__setattr__(self, "shared", f"fs:{{{self.project}}}:".encode())

    def blob(self, view: str, fingerprint: str, key: bytes, part: int = 0) -> bytes:
        """Return the name of the blob of an entity key, of one part of the view."""
        return self.blob_prefixes(view, fingerprint, part)[bucket_of(key)] + key

    def blob_prefixes(self, view: str, fingerprint: str, part: int = 0) -> list[bytes]:
        """Return, per bucket, what the names of a part's blobs begin with; the bytes of the key follow."""
        return _blob_prefixes(self.tags, view, fingerprint, part)

    def is_blob(self, name: bytes, view: str, fingerprint: str) -> bool:
        """Whether a name is that of a blob of a view, of any of its parts."""
        tag, _, rest = name.partition(b"}")
        end = f":v:{view}@{fingerprint}".encode()
        return tag in _buckets(self.project) and rest.startswith(end) and rest[len(end) : len(end) + 1] in (b":", b"/")

    def view_in(self, name: bytes) -> str | None:
        """Return the view and fingerprint whose blob or ids a name is of; None for every other name."""
        tag, _, rest = name.partition(b"}:")
        kind, _, rest = rest.partition(b":")
        if tag not in _buckets(self.project) or kind not in (b"v", b"ids"):
            return None
        return rest.partition(b":")[0].partition(b"/")[0].decode()

    def bucket_in(self, name: bytes) -> int:
        """Return the bucket that the name of a blob names."""
        return _buckets(self.project)[name[: name.index(b"}")]]

    def fence(self, bucket: int) -> bytes:
        """Return the name of a bucket's fences."""
        return f"fs:{{{self.tags[bucket]}}}:fence".encode()

    def fence_field(self, view: str, fingerprint: str, source: str, partition: int) -> bytes:
        """Return the field of one view and source partition."""
        return f"{view}@{fingerprint}/{source}/{partition}".encode()

    def ids(self, bucket: int, view: str, partition: int, part: int | str = "") -> bytes:
        """Return the name of what a bucket knows of the ids that a view has seen in a partition, of one slice if one is given.

        Args:
            bucket: The bucket of the ids.
            view: View, fingerprint and source, as in a fence.
            partition: The source partition.
            part: A slice of time; or "all".
        """
        return f"fs:{{{self.tags[bucket]}}}:ids:{view}/{partition}{f'/{part}' if part != '' else ''}".encode()

    def progress(self, source: str) -> bytes:
        """Return the name of a source's applied offsets."""
        return f"fs:{{{self.project}}}:progress:{source}".encode()

    def complete(self, source: str) -> bytes:
        """Return the name of a source's ``complete_through``."""
        return f"fs:{{{self.project}}}:complete:{source}".encode()

    def copy(self, shared: bytes, tag: bytes) -> bytes:
        """Return the name of the copy of a shared name in the slot of ``tag``, which is a name up to its closing brace."""
        return tag + shared[len(self.shared) - 1 :]

    def copies(self, shared: bytes) -> list[bytes]:
        """Return the names of the copies of a shared name, one per bucket."""
        return [self.copy(shared, f"fs:{{{tag}}}".encode()) for tag in self.tags]

    def plan(self, service: str) -> bytes:
        """Return the name of a service's lookup plan."""
        return f"fs:{{{self.project}}}:plan:{service}".encode()

    @property
    def services(self) -> bytes:
        """The name of the set of services that have a plan."""
        return f"fs:{{{self.project}}}:services".encode()

    def lease(self, view: str) -> bytes:
        """Return the name of who writes a view, given with its fingerprint."""
        return f"fs:{{{self.project}}}:lease:{view}".encode()

    @property
    def topics(self) -> bytes:
        """The name of the hash of topics' ids."""
        return f"fs:{{{self.project}}}:topics".encode()
