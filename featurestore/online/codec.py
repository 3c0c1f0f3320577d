"""The bytes of one (view, entity key) in the online store: suffix base and tail. Pure; no I/O.

All numbers are little-endian; everything after the header's first 8 bytes is a multiple of 8 long.

    header   magic "FB" · version u8 · flags u8 · base length u32 · view fingerprint u64 ·
             newest event time folded into the base i64 (the smallest int64: none) · fold counter u64        32 bytes
    counts   rows of every ladder, u32 each, padded to 8 bytes
    ladders  for each: hop ids i64[rows], ascending; then rows x the slots of the ladder's measures
    tail     records of one size: tile start i64 · oldest event time i64 · newest event time i64 · all measures' slots

A ladder row holds the partials of *its hop and everything newer in the base*. So the value of a sawtooth window is one
row, found by bisecting for lo(t), merged with the tail records whose tile starts at or after lo(t). The base length covers
header, counts and ladders; the tail begins there, and appending to it needs no read.

Any bytes decode to a value or raise CodecError: every length is checked before it is used.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import CodecError, PastLookupError
from featurestore.timeline import MIN_INSTANT, format_instant

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Aggregate, Partial
    from featurestore.definitions.layout import ViewLayout
    from featurestore.timeline import Instant

MAGIC = b"FB"
VERSION = 1
HEADER = struct.Struct("<2sBBIQqQ")
RECORD_HEAD = struct.Struct("<qqq")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the parts of a blob lie; checked against its length."""

    base_length: int
    newest: Instant
    folds: int
    ladders: tuple[tuple[int, int], ...]
    """For every ladder: byte offset of its hop ids, number of rows."""


def counts_size(ladders: int) -> int:
    """Return the bytes of the row counts, padded to 8."""
    return (4 * ladders + 7) // 8 * 8


def record_size(layout: ViewLayout) -> int:
    """Return the bytes of one tail record."""
    return RECORD_HEAD.size + 8 * len(layout.slots)


def base_length(blob: bytes) -> int:
    """Return where the tail of a blob begins, as its header says."""
    return int(HEADER.unpack_from(blob)[3])


def empty_base(layout: ViewLayout) -> bytes:
    """Return the base of a key that has only a tail yet."""
    length = HEADER.size + counts_size(len(layout.ladders))
    header = HEADER.pack(MAGIC, VERSION, 0, length, int(layout.fingerprint, 16), MIN_INSTANT, 0)
    return header + bytes(length - HEADER.size)


def parse_frame(blob: bytes, layout: ViewLayout) -> Frame:
    """Return where the parts of a blob lie.

    Raises:
        CodecError: The bytes are not a blob of this version and view.
    """
    ladders = layout.ladders
    fixed = HEADER.size + counts_size(len(ladders))
    if len(blob) < fixed:
        raise CodecError(f"view {layout.view}: {len(blob)} bytes are too short for a blob, at least {fixed}.")
    magic, version, _, base_length, fingerprint, newest, folds = HEADER.unpack_from(blob)
    if magic != MAGIC or version != VERSION:
        raise CodecError(
            f"view {layout.view}: format {magic!r} version {version} is not {MAGIC!r} version {VERSION}.",
            hint="rebuild the online store from Delta.",
        )
    if fingerprint != int(layout.fingerprint, 16):
        raise CodecError(f"view {layout.view}: blob of definition {fingerprint:016x}, expected {layout.fingerprint}.")
    counts = struct.unpack_from(f"<{len(ladders)}I", blob, HEADER.size)
    offset = fixed
    placed = []
    for ladder, rows in zip(ladders, counts, strict=True):
        placed.append((offset, rows))
        offset += 8 * rows * (1 + sum(len(layout.measures[measure].slots) for measure in ladder.measures))
    if offset != base_length or base_length > len(blob) or (len(blob) - base_length) % record_size(layout):
        raise CodecError(
            f"view {layout.view}: lengths do not add up (rows {counts}, base {base_length}, blob {len(blob)} bytes)."
        )
    return Frame(base_length, newest, folds, tuple(placed))


@dataclass(frozen=True, slots=True)
class ViewValues:
    """What a view says about one key at one time.

    Attributes:
        values: One per feature; None is null.
        known: Whether the key has a record at all.
        as_of: The newest event time inside the values, or None without events.
    """

    values: tuple[Any, ...]
    known: bool
    as_of: Instant | None


class ViewReader:
    """Reads the blobs of one view. Immutable after construction; safe to share between threads."""

    def __init__(self, layout: ViewLayout) -> None:
        self.layout = layout
        self._record = struct.Struct("<qqq" + "".join("q" if slot == "i8" else "d" for slot in layout.slots))
        self._rows = []
        self._windows: list[tuple[int, Any, list[tuple[int, Aggregate, int, slice, slice]]]] = []
        groups: dict[tuple[int, Any], list[tuple[int, Aggregate, int, slice, slice]]] = {}
        for ladder in layout.ladders:
            slots = [slot for measure in ladder.measures for slot in layout.measures[measure].slots]
            self._rows.append(struct.Struct("<" + "".join("q" if slot == "i8" else "d" for slot in slots)))
        for position, feature in enumerate(layout.features):
            ladder = layout.ladders[feature.ladder]
            begin = 0
            for measure in ladder.measures[: ladder.measures.index(feature.measure)]:
                begin += len(layout.measures[measure].slots)
            width = len(layout.measures[feature.measure].slots)
            full = layout.slot_offsets[feature.measure]
            groups.setdefault((feature.ladder, feature.window), []).append(
                (
                    position,
                    feature.aggregate,
                    feature.measure,
                    slice(begin, begin + width),
                    slice(3 + full, 3 + full + width),
                )
            )
        self._windows = [(ladder, window, members) for (ladder, window), members in groups.items()]
        self.empty_values = tuple(feature.aggregate.finalize(feature.aggregate.empty()) for feature in layout.features)

    def read(self, blob: bytes | None, t: Instant, *, exact_time: bool = True) -> ViewValues:
        """Return the features of a key at time ``t`` (events at ``t`` excluded).

        Args:
            blob: The stored bytes, or None when the key has none.
            t: The time of the lookup.
            exact_time: True refuses a ``t`` that merged events have passed; False moves ``t`` just after the newest of
                them instead, which is right for "now" on a clock that runs a little behind the producer's.

        Raises:
            CodecError: The bytes are not a blob of this view.
            PastLookupError: ``t`` is not after an event that can no longer be told apart.
        """
        if blob is None:
            return ViewValues(self.empty_values, known=False, as_of=None)
        layout = self.layout
        frame = parse_frame(blob, layout)
        records = list(self._record.iter_unpack(memoryview(blob)[frame.base_length :]))
        while True:
            tail = [record for record in records if record[1] < t]
            as_of = max([frame.newest, *(record[2] for record in tail)])
            if as_of < t:
                break
            if exact_time:
                raise self._past(t, as_of)
            t = as_of + 1
        values: list[Any] = [None] * len(layout.features)
        view = memoryview(blob)
        for ladder, window, members in self._windows:
            low = window.start(t)
            offset, rows = frame.ladders[ladder]
            row = None
            if rows:
                hops = view[offset : offset + 8 * rows].cast("q")
                index = 0 if low is None else bisect_left(hops, low // window.hop)
                if index < rows:
                    packed = self._rows[ladder]
                    row = packed.unpack_from(blob, offset + 8 * rows + index * packed.size)
            covered = tail if low is None else [record for record in tail if record[0] >= low]
            for position, aggregate, _, in_row, in_record in members:
                partial: Partial = aggregate.empty() if row is None else row[in_row]
                for record in covered:
                    partial = aggregate.merge(partial, record[in_record])
                values[position] = aggregate.finalize(partial)
        return ViewValues(tuple(values), known=True, as_of=None if as_of == MIN_INSTANT else as_of)

    def _past(self, t: Instant, newest: Instant) -> PastLookupError:
        return PastLookupError(
            f"view {self.layout.view}: time {format_instant(t)} is not after the newest applied event, "
            f"{format_instant(newest)}.",
            hint="the online store answers for now; ask a training set for the past.",
        )
