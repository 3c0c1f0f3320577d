"""Rows: partials as bytes, one form for the store, for Delta and for shuffles.

    row = one 8-byte little-endian word per slot, in order: an "i8" slot's integer, an "f8" slot's bits, the number of
          bytes of a "b" slot; then the bytes of the "b" slots, in order, each padded with zeros to a multiple of 8

Without "b" slots a row is its words, and n rows are a matrix: encoding and decoding are then views, not loops. Every
length is checked before it is used; bytes that are no rows raise ``CodecError``.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from featurestore.algebra.columns import SLOT_TYPES, to_columns
from featurestore.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.algebra.aggregate import Columns, Partial

_STRUCT = {"i8": "q", "f8": "d", "b": "q"}


class RowFormat:
    """The form of rows with given slots; make it with ``row_format``, which keeps one per tuple of slots.

    Attributes:
        slots: "i8", "f8" or "b" each.
        words: The words at the head of a row.
        is_fixed: Whether all rows have one size, that of the words.
    """

    def __init__(self, slots: tuple[str, ...]) -> None:
        self.slots = slots
        self.words = struct.Struct("<" + "".join(_STRUCT[slot] for slot in slots))
        self._wide = tuple(i for i, slot in enumerate(slots) if slot == "b")
        self.is_fixed = not self._wide

    # -------------------------------------------------------------------------------------------------- one row

    def pack(self, partial: Partial) -> bytes:
        """Return one row as bytes."""
        if self.is_fixed:
            return self.words.pack(*partial)
        payloads = [partial[slot] for slot in self._wide]
        head = self.words.pack(*(len(x) if slot == "b" else x for x, slot in zip(partial, self.slots, strict=True)))
        return head + b"".join(payload + bytes(-len(payload) % 8) for payload in payloads)

    def unpack(self, data: bytes, begin: int, end: int) -> tuple[Partial, int]:
        """Return the row that begins at byte ``begin`` and where the next one does, not after ``end``.

        Raises:
            CodecError: The row reaches beyond ``end``.
        """
        at = begin + self.words.size
        if begin < 0 or at > end:
            raise CodecError(f"a row of {self.words.size} bytes or more does not fit into {end - begin}.")
        row = self.words.unpack_from(data, begin)
        if self.is_fixed:
            return row, at
        filled = list(row)
        for slot in self._wide:
            length = row[slot]
            if not 0 <= length <= end - at:
                raise CodecError(f"a row states {length} bytes where {end - at} are left.")
            filled[slot] = bytes(data[at : at + length])
            at += (length + 7) // 8 * 8
        if at > end:
            raise CodecError("the padding of a row is cut off.")
        return tuple(filled), at

    def scan(self, data: bytes, begin: int, end: int) -> list[Partial]:
        """Return the rows that lie one after the other in [begin, end).

        Raises:
            CodecError: The bytes are not whole rows.
        """
        if self.is_fixed:
            if (end - begin) % self.words.size:
                raise CodecError(f"{end - begin} bytes are no rows of {self.words.size}.")
            return list(self.words.iter_unpack(memoryview(data)[begin:end]))
        rows = []
        while begin < end:
            row, begin = self.unpack(data, begin, end)
            rows.append(row)
        return rows

    # ------------------------------------------------------------------------------------------------ many rows

    def encode(self, columns: Columns) -> tuple[bytes, np.ndarray]:
        """Return all rows as bytes, and n + 1 offsets: row i lies at [offsets[i], offsets[i + 1])."""
        count = len(columns[0])
        words = np.empty((count, len(columns)), dtype="<i8")
        for i, (column, slot) in enumerate(zip(columns, self.slots, strict=True)):
            if slot == "b":
                words[:, i] = [len(value) for value in column]
            else:
                words[:, i] = np.ascontiguousarray(column, dtype=SLOT_TYPES[slot]).view(np.int64)
        sizes = np.full(count, self.words.size, dtype=np.int64)
        if self.is_fixed:
            return words.tobytes(), np.arange(count + 1) * self.words.size
        heads = words.tobytes()
        pieces: list[bytes] = []
        payloads = [columns[wide] for wide in self._wide]
        for row in range(count):
            pieces.append(heads[row * self.words.size : (row + 1) * self.words.size])
            for payload in payloads:
                value: bytes = payload[row]
                pieces += [value, bytes(-len(value) % 8)]
        for wide in self._wide:
            sizes += (words[:, wide] + 7) // 8 * 8
        return b"".join(pieces), np.concatenate(([0], np.cumsum(sizes)))

    def decode(self, parts: Sequence[bytes]) -> Columns:
        """Return the rows of all parts as columns; every part holds whole rows.

        Raises:
            CodecError: A part does not.
        """
        if not self.is_fixed:
            return to_columns(self.slots, [row for part in parts for row in self.scan(part, 0, len(part))])
        data = b"".join(parts)
        if not self.slots or len(data) % self.words.size:
            raise CodecError(f"{len(data)} bytes are no rows of {self.words.size}.")
        words = np.frombuffer(data, "<i8").reshape(-1, len(self.slots))
        return tuple(
            np.ascontiguousarray(words[:, i], dtype=np.int64).view(SLOT_TYPES[slot])
            for i, slot in enumerate(self.slots)
        )


@lru_cache(maxsize=1024)
def row_format(slots: tuple[str, ...]) -> RowFormat:
    """Return the form of rows with these slots.

    >>> data, _ = row_format(("i8", "b")).encode((np.array([7]), np.array([b"abc"], dtype=object)))
    >>> data.hex(" ", 8)
    '0700000000000000 0300000000000000 6162630000000000'
    >>> row_format(("i8", "b")).scan(data, 0, len(data))
    [(7, b'abc')]
    """
    return RowFormat(slots)
