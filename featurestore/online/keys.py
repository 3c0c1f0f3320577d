"""Names in the online store. Pure.

    fs:{PROJECT.BB}:v:VIEW@FINGERPRINT:KEYBYTES   the blob of one entity key: base and tail (see ``codec``)
    fs:{PROJECT.BB}:v:VIEW@FINGERPRINT/N:KEYBYTES the same of part N of the view, from 1 on; most views have one part
    fs:{PROJECT.BB}:fence                         hash: "VIEW@FINGERPRINT/SOURCE/PARTITION" -> next offset to apply; "epoch" (see ``epoch``)
    fs:{PROJECT}:progress:SOURCE                  hash: partition -> "next offset,newest arrival in us"
    fs:{PROJECT}:complete:SOURCE                  instant (us) up to which every partition has been applied
    fs:{PROJECT}:plan:SERVICE                     the compiled lookup plan, JSON

BB is the bucket of the entity key, two hex digits. The braces are Redis Cluster's hash tag: all views of a key, and the
fence that guards them, live in one slot, and the buckets spread over the cluster. A project name cannot contain the
separators, so two projects in one Redis never meet. A view's fingerprint is part of the name: a changed definition starts
on keys of its own and never reads an old layout.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

BUCKETS = 16


def bucket_of(key: bytes) -> int:
    """Return the bucket of an encoded key: CRC-32 modulo the number of buckets."""
    return zlib.crc32(key) % BUCKETS


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Builds the names of one project."""

    project: str

    def blob(self, view: str, fingerprint: str, key: bytes, part: int = 0) -> bytes:
        """Return the name of the blob of an entity key, of one part of the view."""
        suffix = f"/{part}" if part else ""
        return f"fs:{{{self.project}.{bucket_of(key):02x}}}:v:{view}@{fingerprint}{suffix}:".encode() + key

    def blobs(self, bucket: int, view: str, fingerprint: str) -> tuple[bytes, bytes]:
        """Return what the names of all blobs of a view in a bucket begin with: of its first part, and of the others."""
        start = f"fs:{{{self.project}.{bucket:02x}}}:v:{view}@{fingerprint}".encode()
        return start + b":", start + b"/"

    def fence(self, bucket: int) -> bytes:
        """Return the name of a bucket's fences."""
        return f"fs:{{{self.project}.{bucket:02x}}}:fence".encode()

    def fence_field(self, view: str, fingerprint: str, source: str, partition: int) -> bytes:
        """Return the field of one view and source partition."""
        return f"{view}@{fingerprint}/{source}/{partition}".encode()

    def progress(self, source: str) -> bytes:
        """Return the name of a source's applied offsets."""
        return f"fs:{{{self.project}}}:progress:{source}".encode()

    def complete(self, source: str) -> bytes:
        """Return the name of a source's ``complete_through``."""
        return f"fs:{{{self.project}}}:complete:{source}".encode()

    def plan(self, service: str) -> bytes:
        """Return the name of a service's lookup plan."""
        return f"fs:{{{self.project}}}:plan:{service}".encode()
