# ruff: noqa: ANN001, ANN201 - numba infers the types
# mypy: disallow-untyped-defs=False
"""The compiled writing of an MGET: what ``names`` and ``redis_socket.pack_read`` make of texts, in one pass. Needs numba."""

from __future__ import annotations

from typing import Any

import numba
from numba import types

_HOW: Any = {"error_model": "numpy", "cache": True}
_BYTES, _OUT, _I8S = types.Array(types.uint8, 1, "C", readonly=True), types.uint8[::1], types.int64[::1]
_DOLLAR, _RETURN, _NEWLINE, _ZERO = b"$\r\n0"


@numba.njit(types.int64(_BYTES, types.int64, _BYTES, _I8S, types.int64, types.int64, _I8S, _OUT), **_HOW)
def write_names(texts, count, heads, ends, buckets, crc, table, out):
    """Write the names of texts as arguments of a command; return how many bytes they are, -1 where the texts are not ``count``.

    Args:
        texts: UTF-8, with a zero byte between one and the next.
        count: How many there are.
        heads: What names begin with, up to the length of the text: of every bucket all that an entity has.
        ends: Where each begins, and the end of the last.
        buckets: How many there are.
        crc: State of the CRC-32 before the length of the text.
        table: Its table.
        out: Gets the arguments; it has room for them.
    """
    width = (len(ends) - 1) // buckets
    begin = at = 0
    for _ in range(count):
        if begin > len(texts):
            return -1
        end = begin
        while end < len(texts) and texts[end] != 0:
            end += 1
        length, state = end - begin, crc
        for shift in range(0, 32, 8):
            state = table[(state ^ (length >> shift)) & 0xFF] ^ (state >> 8)
        for place in range(begin, end):
            state = table[(state ^ texts[place]) & 0xFF] ^ (state >> 8)
        first = ((state ^ 0xFFFFFFFF) % buckets) * width
        for head in range(first, first + width):
            size = ends[head + 1] - ends[head] + 4 + length
            digits, limit = 1, 10
            while limit <= size:
                digits, limit = digits + 1, limit * 10
            out[at] = _DOLLAR
            rest = size
            for place in range(at + digits, at, -1):
                out[place] = _ZERO + rest % 10
                rest //= 10
            at += digits + 1
            out[at], out[at + 1] = _RETURN, _NEWLINE
            at += 2
            for place in range(ends[head], ends[head + 1]):
                out[at] = heads[place]
                at += 1
            for shift in range(0, 32, 8):
                out[at] = (length >> shift) & 0xFF
                at += 1
            for place in range(begin, end):
                out[at] = texts[place]
                at += 1
            out[at], out[at + 1] = _RETURN, _NEWLINE
            at += 2
        begin = end + 1
    return at if begin == len(texts) + 1 else -1
