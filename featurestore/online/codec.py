"""The bytes of one (part of a view, entity key) in the online store: base and tail. Pure; no I/O.

All numbers are little-endian; everything after the header's first 8 bytes is a multiple of 8 long.

    header   magic "FB" · version u8, 2 with short rows, else 1 · part u8 · base length u32 · view fingerprint u64 ·
             newest event time folded into the base i64 (the smallest int64: none) · fold counter u64        32 bytes
    counts   rows of every ladder, u32 each, padded to 8 bytes
    ladders  for each: hop ids i64[rows], ascending; in a wide part the end of every row i64[rows], in bytes from the
             first row; then the rows
    tail     records: tile start i64 · oldest event time i64 · newest event time i64 · all measures' slots

Rows and records are rows of ``algebra.rows``; in a part without "b" slots all rows of a ladder have one size, and so have
all records. A row of a suffix ladder holds the partials of *its hop and everything newer in the base*: a window that ends
at t is one row, found by bisecting for start(t), merged with the tail records whose tile starts at or after start(t). A
row of a plain ladder holds its hop alone: the reader merges the rows and records in [start(t), end(t)). The base length
covers header, counts and ladders; the tail begins there, and appending to it needs no read.

Measures that are counted have the number of events in their first slot, and where nothing is null or left out by a condition
it is the same for all. Of a part without "b" slots, a blob in which that holds for every row has *short* rows: they keep the
first of these numbers alone (``Part.short_places``). Records are never short: who appends reads nothing.

Any bytes decode to a value or raise CodecError: every length is checked before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from featurestore.algebra.rows import row_format
from featurestore.algebra.tiles import RECORD_SLOTS
from featurestore.errors import CodecError
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from featurestore.algebra.rows import RowFormat
    from featurestore.definitions.parts import Ladder, Part
    from featurestore.timeline import Instant

MAGIC = b"FB"
VERSION, SHORT_VERSION = 1, 2
SHORT = (SHORT_VERSION - VERSION) << 16
"""What the first word of a header is more by, where rows are short."""
HEADER = struct.Struct("<2sBBIQqQ")
_MOST_FOLDS = (1 << 64) - 1
"""The fold counter wraps; that it changed is all that counts."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the pieces of a blob lie; checked against its length."""

    base_length: int
    newest: Instant
    folds: int
    ladders: tuple[tuple[int, int], ...]
    """For every ladder: byte offset of its hop ids, number of rows."""
    is_short: bool = False
    """Whether rows are short."""


def counts_size(ladders: int) -> int:
    """Return the bytes of the row counts, padded to 8."""
    return (4 * ladders + 7) // 8 * 8


def record_format(part: Part) -> RowFormat:
    """Return the form of a part's tail records."""
    return row_format(RECORD_SLOTS + part.slots)


def ladder_format(part: Part, ladder: Ladder) -> RowFormat:
    """Return the form of a ladder's rows."""
    return row_format(part.ladder_slots(ladder))


def row_forms(part: Part, *, is_short: bool) -> list[tuple[RowFormat, Callable[[Sequence[Any]], Any] | None]]:
    """Return for every ladder the form of its rows as they are stored, and what makes a whole row of one; None for whole ones."""
    forms = [ladder_format(part, ladder) for ladder in part.ladders]
    if not is_short:
        return [(form, None) for form in forms]
    return [
        (row_format(tuple(form.slots[places.index(place)] for place in sorted({*places}))), _whole(places))
        for form, places in zip(forms, part.short_places, strict=True)
    ]


def _whole(places: tuple[int, ...]) -> Callable[[Sequence[Any]], Any] | None:
    """Return what picks a whole row out of a short one; None where they are the same."""
    return itemgetter(*places) if max(places) + 1 < len(places) else None


def record_size(part: Part) -> int:
    """Return the bytes of one tail record, of the smallest one in a wide part."""
    return 8 * (len(RECORD_SLOTS) + part.slot_offsets[-1])


def base_length(blob: bytes) -> int:
    """Return where the tail of a blob begins, as its header says."""
    return int(HEADER.unpack_from(blob)[3])


def records_in_tail(part: Part, blob: bytes, base: int) -> int:
    """Return the number of records behind a base of ``base`` bytes; in a wide part they are counted one by one.

    Raises:
        CodecError: The bytes are not records.
    """
    if part.is_fixed:
        return (len(blob) - base) // record_size(part)
    return len(record_format(part).scan(blob, base, len(blob)))


def head_word(part: Part) -> int:
    """Return the first word of a header without short rows, but for the base length, which stands 32 bits up."""
    return int.from_bytes(MAGIC + bytes((VERSION, part.number)), "little")


def fingerprint_word(part: Part) -> int:
    """Return the second word of a header, as the signed number that an array of words has there."""
    return int.from_bytes(part.fingerprint_word.to_bytes(8, "little"), "little", signed=True)


def pack_header(part: Part, length: int, newest: Instant, folds: int) -> bytes:
    """Return the header of a base of ``length`` bytes."""
    return HEADER.pack(MAGIC, VERSION, part.number, length, int(part.fingerprint, 16), newest, folds & _MOST_FOLDS)


def empty_base(part: Part) -> bytes:
    """Return the base of a key that has only a tail yet."""
    length = HEADER.size + counts_size(len(part.ladders))
    return pack_header(part, length, MIN_INSTANT, 0) + bytes(length - HEADER.size)


def empty_rows(part: Part) -> Iterator[bytes]:
    """Yield an empty row of every ladder, then all of them short."""
    for is_short in (False, True):
        forms = row_forms(part, is_short=is_short)
        for ladder, places, (form, _) in zip(part.ladders, part.short_places, forms, strict=True):
            row = [value for measure in ladder.measures for value in part.measures[measure].empty()]
            yield form.pack(tuple(dict(zip(places, row, strict=True)).values() if is_short else row))


@lru_cache
def _head(ladders: int) -> struct.Struct:
    """Header and counts."""
    return struct.Struct(f"{HEADER.format}{ladders}I")


def parse_frame(blob: bytes, part: Part) -> Frame:
    """Return where the pieces of a blob lie. The tail of a wide part, and its rows, are checked when they are read.

    Raises:
        CodecError: The bytes are not a blob of this version, view and part.
    """
    ladders, is_fixed = part.ladders, part.is_fixed
    fixed = HEADER.size + counts_size(len(ladders))
    if len(blob) < fixed:
        raise CodecError(f"view {part.view}: {len(blob)} bytes are too short for a blob, at least {fixed}.")
    magic, version, number, base_length, fingerprint, newest, folds, *counts = _head(len(ladders)).unpack_from(blob)
    is_short = version == SHORT_VERSION
    if magic != MAGIC or not (version == VERSION or (is_short and is_fixed)):
        raise CodecError(
            f"view {part.view}: format {magic!r} version {version} is not {MAGIC!r} version {VERSION}"
            f"{f' or {SHORT_VERSION}' if is_fixed else ''}.",
            hint="rebuild the online store from Delta.",
        )
    if fingerprint != part.fingerprint_word:
        raise CodecError(f"view {part.view}: blob of definition {fingerprint:016x}, expected {part.fingerprint}.")
    if number != part.number:
        raise CodecError(f"view {part.view}: blob of part {number}, expected {part.number}.")
    offset = fixed
    placed = []
    for size, rows in zip(part.short_sizes if is_short else part.row_sizes, counts, strict=True):
        placed.append((offset, rows))
        offset += 8 * rows
        if is_fixed:
            offset += rows * size
        elif rows:
            first = offset + 8 * rows
            last = struct.unpack_from("<q", blob, first - 8)[0] if first <= len(blob) else -1
            offset = first + last if 0 <= last <= len(blob) else len(blob) + 1
    if offset != base_length or base_length > len(blob) or (is_fixed and (len(blob) - base_length) % record_size(part)):
        raise CodecError(
            f"view {part.view}: lengths do not add up (rows {tuple(counts)}, base {base_length}, blob {len(blob)} bytes)."
        )
    return Frame(base_length, newest, folds, tuple(placed), is_short)


def ends_of_rows(blob: bytes, offset: int, rows: int) -> memoryview:
    """Return the ends of the rows of a wide part's ladder whose hop ids begin at ``offset``."""
    return memoryview(blob)[offset + 8 * rows : offset + 16 * rows].cast("q")


def wide_row(form: RowFormat, blob: bytes, offset: int, rows: int, index: int) -> tuple[Any, ...]:
    """Return one row of a wide part's ladder.

    Raises:
        CodecError: The row is not where the ladder says.
    """
    ends = ends_of_rows(blob, offset, rows)
    begin, end = (ends[index - 1] if index else 0), ends[index]
    if not 0 <= begin <= end <= ends[rows - 1]:
        raise CodecError(f"row {index} of {rows} lies at [{begin}, {end}).")
    first = offset + 16 * rows
    row, after = form.unpack(blob, first + begin, first + end)
    if after != first + end:
        raise CodecError(f"row {index} of {rows} takes {after - first - begin} bytes, not {end - begin}.")
    return row
