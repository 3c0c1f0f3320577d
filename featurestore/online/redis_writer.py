"""The fenced writer: applies shaped events to the online store exactly once. Runs inside Spark's workers.

For every (view, source partition, bucket of keys) the store holds a fence: the next Kafka offset to apply. To apply the
events [first, until) of one partition, a writer

    1. reads the partition's fences and drops the events below them
    2. merges what is left per (view, key, tile) into tail records
    3. sends one script call per bucket: if the fences are still what step 1 read, append the records and move the fences
       to ``until``, all at once; otherwise change nothing and report it
    4. records the partition's progress, once every bucket is done
    5. folds the tails that have grown too long (compare-and-set, so a fold that lost a race is simply not made)

A crash anywhere leaves buckets either wholly applied or untouched, and the next run, with any batch boundaries and with or
without the checkpoint, skips exactly what was applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import redis

from featurestore.engines.shape import tiles
from featurestore.errors import FenceError, OnlineError
from featurestore.online.codec import HEADER, base_length, empty_base, record_size
from featurestore.online.fold import drop_unreachable, fold
from featurestore.online.keys import BUCKETS, bucket_of
from featurestore.online.redis_store import RedisOnlineStore, mapped_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from featurestore.algebra.tiles import TileRows
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.timeline import Instant

# KEYS: fence hash, blobs. ARGV: number of fences F, F x (field, expected or "", until), number of views V,
# V x (number of blobs, empty base), then one string of records per blob. Returns the new length of every blob.
APPEND = """
local fences, at = tonumber(ARGV[1]), 2
for i = 1, fences do
  local current = redis.call('HGET', KEYS[1], ARGV[at]) or ''
  if current ~= ARGV[at + 1] then return redis.error_reply('FENCE ' .. ARGV[at] .. ' is at ' .. current) end
  at = at + 3
end
at = 2
for i = 1, fences do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  at = at + 3
end
local views = tonumber(ARGV[at])
local record, key, lengths = at + 1 + 2 * views, 2, {}
for v = 1, views do
  local base = ARGV[at + 2 * v]
  for i = 1, tonumber(ARGV[at + 2 * v - 1]) do
    local added = ARGV[record]
    local length = redis.call('APPEND', KEYS[key], added)
    if length == #added then
      redis.call('SET', KEYS[key], base .. added)
      length = #base + length
    end
    lengths[key - 1] = length
    record, key = record + 1, key + 1
  end
end
return lengths
"""

# KEYS: blobs. ARGV per blob: expected length, expected header, new blob. Returns how many were replaced.
FOLD = """
local done = 0
for i = 1, #KEYS do
  local a = 3 * i
  if redis.call('STRLEN', KEYS[i]) == tonumber(ARGV[a - 2])
     and redis.call('GETRANGE', KEYS[i], 0, 31) == ARGV[a - 1] then
    redis.call('SET', KEYS[i], ARGV[a])
    done = done + 1
  end
end
return done
"""

# KEYS: progress hash. ARGV: partition, next offset, newest arrival. Never goes back.
PROGRESS = """
local current = redis.call('HGET', KEYS[1], ARGV[1])
local offset, arrival = ARGV[2], ARGV[3]
if current then
  local o, a = string.match(current, '(%-?%d+),(%-?%d+)')
  if tonumber(o) > tonumber(offset) then offset = o end
  if tonumber(a) > tonumber(arrival) then arrival = a end
end
redis.call('HSET', KEYS[1], ARGV[1], offset .. ',' .. arrival)
return offset
"""

TAIL_CAP = 8
"""Records in a tail before it is folded."""
_KNOWN_BASES = 200_000
_OFFSET_MASK = (1 << 47) - 1


class FencedWriter:
    """Applies the events of one source to the online store.

    Args:
        store: Where to.
        source: Name of the source.
        views: The feature views on that source.
        tail_cap: Records in a key's tail before it is folded into the base.
    """

    def __init__(
        self, store: RedisOnlineStore, source: str, views: Sequence[FeatureView], *, tail_cap: int = TAIL_CAP
    ) -> None:
        self.store = store
        self.source = source
        self.views = tuple(views)
        self.tail_cap = tail_cap
        self._bases: dict[bytes, int] = {}
        with mapped_errors(store.url):
            self._append = store.redis.script_load(APPEND)
            self._fold = store.redis.script_load(FOLD)
            self._progress = store.redis.script_load(PROGRESS)

    def apply(self, partition: int, until: int, arrival: Instant, shaped: Sequence[Shaped]) -> dict[str, int]:
        """Apply the events of one partition up to, not including, offset ``until``; what the fences cover is skipped.

        Args:
            partition: Kafka partition all events come from.
            until: The offset after the newest consumed record, whether it entered a view or not.
            arrival: Newest arrival instant among the consumed records.
            shaped: Per view, its shaped events.

        Returns:
            Counts: "applied" and "fenced" events (per view and event), "records" appended, "folded" blobs.

        Raises:
            FenceError: Another writer moved a fence meanwhile; nothing of that bucket was changed.
        """
        counts = {"applied": 0, "fenced": 0, "records": 0, "folded": 0}
        fields = [
            self.store.space.fence_field(view.name, view.fingerprint, self.source, partition) for view in self.views
        ]
        with mapped_errors(self.store.url):
            pipe = self.store.redis.pipeline(transaction=False)
            for bucket in range(BUCKETS):
                pipe.hmget(self.store.space.fence(bucket), fields)
            fences = pipe.execute()
        buckets: list[list[tuple[int, list[bytes], list[bytes]]]] = [[] for _ in range(BUCKETS)]
        for index, (view, events) in enumerate(zip(self.views, shaped, strict=True)):
            if not len(events):
                continue
            of_key = np.array([bucket_of(key) for key in events.keys], dtype=np.int64)
            fence = np.array([int(row[index] or 0) for row in fences], dtype=np.int64)
            fresh = (events.sequence & _OFFSET_MASK) >= fence[of_key[events.key]]
            counts["fenced"] += int(np.count_nonzero(~fresh))
            counts["applied"] += int(np.count_nonzero(fresh))
            kept = events.take(np.flatnonzero(fresh))
            rows = drop_unreachable(view.layout, kept, tiles(view, kept))
            counts["records"] += len(rows)
            self._distribute(index, view, events.keys, of_key, rows, buckets)
        touched = self._send(fields, fences, until, buckets)
        counts["folded"] = self.fold(touched, clock=arrival)
        self._record_progress(partition, until, arrival)
        return counts

    def _distribute(
        self,
        index: int,
        view: FeatureView,
        keys: Sequence[bytes],
        of_key: np.ndarray,
        rows: TileRows,
        buckets: list[list[tuple[int, list[bytes], list[bytes]]]],
    ) -> None:
        """Cut the records into one string per key and hand them to the keys' buckets."""
        codes, first = np.unique(rows.key, return_index=True)
        size = record_size(view.layout)
        data = rows.table().astype("<i8", copy=False).tobytes()
        edges = [*(first * size).tolist(), len(data)]
        parts: dict[int, tuple[list[bytes], list[bytes]]] = {}
        for position, code in enumerate(codes.tolist()):
            names, records = parts.setdefault(int(of_key[code]), ([], []))
            names.append(self.store.space.blob(view.name, view.fingerprint, keys[code]))
            records.append(data[edges[position] : edges[position + 1]])
        for bucket, (names, records) in parts.items():
            buckets[bucket].append((index, names, records))

    def _send(
        self,
        fields: Sequence[bytes],
        fences: Sequence[Sequence[bytes | None]],
        until: int,
        buckets: Sequence[Sequence[tuple[int, list[bytes], list[bytes]]]],
    ) -> dict[int, list[tuple[bytes, int]]]:
        """Append bucket by bucket; return, per view, the blobs that may need folding with their lengths."""
        calls = []
        for bucket, parts in enumerate(buckets):
            if not parts:
                continue
            keys = [self.store.space.fence(bucket)]
            args: list[Any] = [len(parts)]
            for index, _, _ in parts:
                args += [fields[index], fences[bucket][index] or b"", until]
            args.append(len(parts))
            for index, names, _ in parts:
                args += [len(names), empty_base(self.views[index].layout)]
            for _, names, records in parts:
                keys += names
                args += records
            calls.append((parts, keys, args))
        grown: dict[int, list[tuple[bytes, int]]] = {}
        if not calls:
            return grown
        with mapped_errors(self.store.url):
            pipe = self.store.redis.pipeline(transaction=False)
            for _, keys, args in calls:
                pipe.evalsha(self._append, len(keys), *keys, *args)
            replies = pipe.execute(raise_on_error=False)
            if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
                self._reload()
                raise OnlineError(
                    "the online store lost its scripts during a write.", hint="it restarted; the task is retried."
                )
            for reply in replies:
                if isinstance(reply, redis.exceptions.ResponseError) and "FENCE" in str(reply):
                    raise FenceError(
                        f"source {self.source}: {reply}; another writer is active.",
                        hint="stop the other driver of this job; this one changed nothing in that bucket.",
                    )
                if isinstance(reply, Exception):
                    raise reply
        for (parts, _, _), reply in zip(calls, replies, strict=True):
            position = 0
            for index, names, _ in parts:
                size = record_size(self.views[index].layout)
                fixed = len(empty_base(self.views[index].layout))
                for name in names:
                    length = reply[position]
                    position += 1
                    if length - self._bases.get(name, fixed) > self.tail_cap * size:
                        grown.setdefault(index, []).append((name, length))
        return grown

    def fold(self, grown: dict[int, list[tuple[bytes, int]]], *, clock: Instant) -> int:
        """Fold the tails of the given blobs; return how many were folded."""
        done = 0
        for index, entries in grown.items():
            layout = self.views[index].layout
            size = record_size(layout)
            blobs = self.store.read([name for name, _ in entries])
            due = []
            for (name, _), blob in zip(entries, blobs, strict=True):
                if blob is None:
                    continue
                base = base_length(blob)
                self._remember(name, base)
                if len(blob) - base > self.tail_cap * size:
                    due.append((name, blob))
            folded = fold(layout, [blob for _, blob in due], clock=clock)
            by_bucket: dict[bytes, list[tuple[bytes, bytes, bytes]]] = {}
            for (name, old), new in zip(due, folded, strict=True):
                by_bucket.setdefault(name[: name.index(b"}")], []).append((name, old, new))
            with mapped_errors(self.store.url):
                pipe = self.store.redis.pipeline(transaction=False)
                for group in by_bucket.values():
                    args = [part for _, old, new in group for part in (len(old), old[: HEADER.size], new)]
                    pipe.evalsha(self._fold, len(group), *[name for name, _, _ in group], *args)
                replies = pipe.execute(raise_on_error=False)
                for reply in replies:
                    if isinstance(reply, redis.exceptions.NoScriptError):
                        self._reload()  # nothing was folded; the next write finds these tails again
                    elif isinstance(reply, Exception):
                        raise reply
                    else:
                        done += reply
            for (name, _), new in zip(due, folded, strict=True):
                self._remember(name, base_length(new))
        return done

    def _remember(self, name: bytes, base: int) -> None:
        if len(self._bases) >= _KNOWN_BASES:
            self._bases.clear()
        self._bases[name] = base

    def _record_progress(self, partition: int, until: int, arrival: Instant) -> None:
        call = (self._progress, 1, self.store.space.progress(self.source), partition, until, arrival)
        with mapped_errors(self.store.url):
            try:
                self.store.redis.evalsha(*call)
            except redis.exceptions.NoScriptError:
                self._reload()
                self.store.redis.evalsha(*call)

    def _reload(self) -> None:
        for script in (APPEND, FOLD, PROGRESS):
            self.store.redis.script_load(script)
