# ruff: noqa: ANN001, ANN201, ANN202, PLR0124 - numba infers the types; NaN is unequal to itself
# mypy: disallow-untyped-defs=False
"""The compiled reading of blobs: what ``reader.ViewReader`` computes of plain numbers, to the bit. Needs numba.

Imported by ``compiled`` alone, when a view is first opened; the machine code is kept beside this file, or where numba keeps it.
One pass per key, on the words of its blob:

    frame      header, counts and lengths have to add up
    tail       records that count at t, newest tile first
    windows    of each, the row in its ladder and how many of the newest records it covers
    measures   the records are merged one after the other; a window that covers as many as are merged takes its row, merges
               it with them, and finalizes every feature that reads it

Whatever is not plain is left to the readers in Python: the kernel says ``UNUSUAL`` (or ``PAST``) and what it has written means
nothing. So it knows no errors, and bytes that were spoiled get the refusal, or the value, that they always got.

A partial is a tuple (n, i, j, x, y): its first slot, the second and third one as integers, and both as doubles. What a kind
has no slots for means nothing, and is not looked at.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from featurestore.online.opcodes import (
    CELL,
    COUNT,
    EXPECTED,
    FINGERPRINT,
    FIRST_DOUBLE,
    FIRST_INTEGER,
    FIXED_WORDS,
    LADDERS,
    LAST_DOUBLE,
    LAST_INTEGER,
    MAX_DOUBLE,
    MAX_INTEGER,
    MEAN_DOUBLE,
    MEAN_INTEGER,
    MEASURE,
    MEASURES,
    MIN_DOUBLE,
    MIN_INTEGER,
    MOST_RECORDS,
    NEWEST,
    OK,
    OLDEST,
    PAST,
    PLAN_HEAD,
    READ,
    RECORD_WORDS,
    SUM_DOUBLE,
    SUM_INTEGER,
    TO_DOUBLE,
    TO_INTEGER,
    UNUSUAL,
    WINDOW,
    WINDOWS,
)

_MIN, _MAX = -(2**63), 2**63 - 1
_LOW, _HALF = 0xFFFFFFFF, 2**31
_FAR = 2**61
"""Instants and distances below it add up within int64."""
_LARGE = 2**53
"""So many added integers, and ``MOST_RECORDS`` of them, add up within int64; a total below it is exact as a double."""
_jit: Any = numba.njit(error_model="numpy", cache=True)


_inline: Any = numba.njit(error_model="numpy", inline="always")
_WORDS = types.Array(types.int64, 1, "C", readonly=True)
_INTEGERS, _DOUBLES, _FLAGS = types.int64[::1], types.float64[::1], types.boolean[::1]


def _compiled(signature: Any) -> Any:
    return numba.njit(signature, error_model="numpy", cache=True)


@_inline
def _empty(kind):
    n = 0
    if kind in (FIRST_INTEGER, FIRST_DOUBLE, OLDEST):
        n = _MAX
    elif kind in (LAST_INTEGER, LAST_DOUBLE, NEWEST):
        n = _MIN
    return n, 0, 0, 0.0, 0.0


@_inline
def _is_plain(kind, partial):
    """Return whether the numbers of a partial that are added up stay within int64."""
    n, i, j, _, _ = partial
    if kind > MAX_DOUBLE:
        return True
    if kind != SUM_INTEGER:
        return 0 <= n < _LARGE
    return 0 <= n < _LARGE and -_LARGE <= i < _LARGE and -_LARGE <= j < _LARGE


@_inline
def _merge(kind, a, b):
    """Return the merge of two partials, as the aggregates' ``merge`` does it."""
    if kind == COUNT:
        return a[0] + b[0], 0, 0, 0.0, 0.0
    if kind == SUM_INTEGER:
        return a[0] + b[0], a[1] + b[1], a[2] + b[2], 0.0, 0.0
    if kind == SUM_DOUBLE:
        x, y = a[3], b[3]
        total = x + y
        if total - total != 0.0:
            return a[0] + b[0], 0, 0, total, 0.0
        back = total - x
        return a[0] + b[0], 0, 0, total, a[4] + b[4] + ((x - (total - back)) + (y - back))
    if kind <= MAX_DOUBLE:
        if a[0] == 0:
            return b
        if b[0] == 0:
            return a
        if kind == MIN_INTEGER:
            return a[0] + b[0], min(a[1], b[1]), 0, 0.0, 0.0
        if kind == MAX_INTEGER:
            return a[0] + b[0], max(a[1], b[1]), 0, 0.0, 0.0
        x, y = a[3], b[3]
        if kind == MIN_DOUBLE:
            return a[0] + b[0], 0, 0, x if x <= y or y != y else y, 0.0
        return a[0] + b[0], 0, 0, x if x >= y or x != x else y, 0.0
    if kind <= FIRST_DOUBLE:
        return a if a[0] < b[0] or (a[0] == b[0] and a[1] <= b[1]) else b
    if kind <= LAST_DOUBLE:
        return a if a[0] > b[0] or (a[0] == b[0] and a[1] >= b[1]) else b
    if kind == OLDEST:
        return min(a[0], b[0]), 0, 0, 0.0, 0.0
    return max(a[0], b[0]), 0, 0, 0.0, 0.0


@_inline
def _finish(kind, read, partial, t):
    """Return (value as an integer, as a double, whether it is not null, whether it is plain)."""
    n, i, j, x, y = partial
    if read == TO_INTEGER:
        if kind == COUNT:
            return n, 0.0, True, True
        if kind == SUM_INTEGER:
            high = i + (j >> 32)
            total = _MAX if high >= _HALF else _MIN if high < -_HALF else (high << 32) | (j & _LOW)
            return total, 0.0, n != 0, True
        if kind <= MAX_DOUBLE:
            return i, 0.0, n != 0, True
        return j, 0.0, n != (_MAX if kind <= FIRST_DOUBLE else _MIN), True
    if read == TO_DOUBLE:
        if kind == SUM_DOUBLE:
            return 0, x + y, n != 0, True
        if kind <= MAX_DOUBLE:
            return 0, x, n != 0, True
        return 0, y, n != (_MAX if kind <= FIRST_DOUBLE else _MIN), True
    if read == MEAN_DOUBLE:
        return 0, (x + y) / n if n != 0 else 0.0, n != 0, True
    if read == MEAN_INTEGER:
        high = i + (j >> 32)
        total = (high << 32) | (j & _LOW)
        return 0, float(total) / n if n != 0 else 0.0, n != 0, n < _LARGE and -(2**21) <= high < 2**21
    valid = n != (_MAX if kind == OLDEST else _MIN)
    return 0, float(t - n) / 1e6 if valid else 0.0, valid, not valid or -_FAR < n < _FAR


@_jit
def _row(words, hops, rows, wanted):
    """Return the first row whose hop id is not less than ``wanted``: where ``bisect_left`` looks."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) >> 1
        if words[hops + middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _newest_first(words, first, records, size, t, order):
    """Put the first words of the records that count at ``t`` in order; return how many."""
    count = 0
    for record in range(records - 1, -1, -1):
        at = first + record * size
        if words[at + 1] < t:
            place = count
            while place > 0 and words[order[place - 1]] < words[at]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = at
            count += 1
    return count


@_jit
def _read(words, doubles, begin, size, t, exact, plan, scratch, out, integers, valid, key, keys):
    """Read the key whose blob is ``size`` words from ``begin`` on; return its status, newest event time and nulls."""
    ladders, windows, measures = plan[LADDERS], plan[WINDOWS], plan[MEASURES]
    ladder_at = PLAN_HEAD
    window_at = ladder_at + ladders
    measure_at = window_at + windows * WINDOW
    order = scratch[:MOST_RECORDS]
    place = scratch[MOST_RECORDS:]  # (hops, rows) of every ladder, then (row, records covered) of every window
    fixed, width = plan[FIXED_WORDS], plan[RECORD_WORDS]
    as_of, count, nulls = _MIN, 0, 0
    if size >= 0:
        if size < fixed:
            return UNUSUAL, as_of, nulls
        at = begin + fixed
        for ladder in range(ladders):
            word = words[begin + 4 + (ladder >> 1)]
            rows = (word >> 32 if ladder & 1 else word) & _LOW
            place[2 * ladder] = at
            place[2 * ladder + 1] = rows
            at += rows * (1 + plan[ladder_at + ladder])
        tail = size - (at - begin)
        if (
            tail < 0
            or tail % width != 0
            or tail > width * MOST_RECORDS
            or words[begin] != ((at - begin) << 35) + plan[EXPECTED]
            or words[begin + 1] != plan[FINGERPRINT]
        ):
            return UNUSUAL, as_of, nulls
        records = tail // width
        while True:
            as_of = words[begin + 2]
            for record in range(records):
                if words[at + record * width + 1] < t:
                    as_of = max(as_of, words[at + record * width + 2])
            if as_of < t:
                break
            if exact:
                return PAST, as_of, nulls
            if as_of >= _FAR:
                return UNUSUAL, as_of, nulls
            t = as_of + 1
        if not -_FAR < t < _FAR:
            return UNUSUAL, as_of, nulls
        count = _newest_first(words, at, records, width, t, order)
    for window in range(windows):
        mine = window_at + window * WINDOW
        ladder, hop, back, step = plan[mine], plan[mine + 1], plan[mine + 2], plan[mine + 3]
        row, covered = -1, 0
        if size >= 0:
            hops, rows = place[2 * ladder], place[2 * ladder + 1]
            if step == 0:  # without beginning
                index, covered = 0, count
            else:
                low = t - back
                low -= low % step
                index = _row(words, hops, rows, low // hop)
                while covered < count and words[order[covered]] >= low:
                    covered += 1
            if index < rows:
                row = hops + rows + index * plan[ladder_at + ladder]
        place[2 * (ladders + window)] = row
        place[2 * (ladders + window) + 1] = covered
    plain = True
    for measure in range(measures):
        mine = measure_at + measure * MEASURE
        kind, slot, second, third = plan[mine], plan[mine + 1], plan[mine + 4], plan[mine + 5]
        empty = _empty(kind)
        merged = empty
        left = (plan[mine + 3] - plan[mine + 2]) // CELL
        covered = 0
        while True:
            for cell in range(plan[mine + 2], plan[mine + 3], CELL):
                here = 2 * (ladders + plan[cell])
                if place[here + 1] != covered:
                    continue
                left -= 1
                partial = empty
                if place[here] >= 0:
                    at = place[here] + plan[cell + 1]
                    b, c = at + second, at + third
                    partial = (words[at], words[b], words[c], doubles[b], doubles[c])
                    plain &= _is_plain(kind, partial)
                if covered:
                    partial = _merge(kind, partial, merged)
                for read in range(plan[cell + 2], plan[cell + 3], READ):
                    integer, double, there, is_plain = _finish(kind, plan[read], partial, t)
                    plain &= is_plain
                    target = plan[read + 1] * keys + key
                    valid[target] = there
                    nulls += not there
                    if plan[read] == TO_INTEGER:
                        integers[target] = integer
                    else:
                        out[target] = double
            if not left:
                break
            at = order[covered] + slot
            b, c = at + second, at + third
            older = (words[at], words[b], words[c], doubles[b], doubles[c])
            plain &= _is_plain(kind, older)
            merged = _merge(kind, merged, older) if covered else older
            covered += 1
    return OK if plain else UNUSUAL, as_of, nulls


@_compiled(types.int64(_WORDS, _INTEGERS, _INTEGERS, types.boolean, _INTEGERS, _DOUBLES, _FLAGS, _INTEGERS, _INTEGERS))
def read_many(words, sizes, times, exact, plan, out, valid, as_of, nulls):
    """Read many keys; return the first status that is not ``OK``.

    Args:
        words: Their blobs, one after the other.
        sizes: Their sizes in words; -1 for a key without one.
        times: The time of all, or one of each.
        exact: Whether a time may not be moved past events that were merged.
        plan: The view, as ``compiled`` puts it.
        out: The values, integers as the doubles of the same bits; of shape (features, keys).
        valid: Which of them are not null.
        as_of: The newest event time of every key; the smallest int64 without.
        nulls: How many values of every key are null.
    """
    doubles, integers, keys = words.view(np.float64), out.view(np.int64), len(sizes)
    scratch = np.empty(MOST_RECORDS + 2 * (plan[LADDERS] + plan[WINDOWS]), dtype=np.int64)
    begin = 0
    for key in range(keys):
        t = times[key if len(times) > 1 else 0]
        status, as_of[key], nulls[key] = _read(
            words, doubles, begin, sizes[key], t, exact, plan, scratch, out, integers, valid, key, keys
        )
        if status != OK:
            return status
        begin += max(sizes[key], 0)
    return OK


@_compiled(types.UniTuple(types.int64, 3)(_WORDS, types.int64, types.boolean, _INTEGERS, _DOUBLES, _FLAGS))
def read_one(words, t, exact, plan, out, valid):
    """Read one key; return its status, newest event time and number of nulls. Arguments as of ``read_many``."""
    numbers = np.empty(4, dtype=np.int64)
    size, time, as_of, nulls = numbers[:1], numbers[1:2], numbers[2:3], numbers[3:]
    size[0], time[0] = len(words), t
    status = read_many(words, size, time, exact, plan, out, valid, as_of, nulls)
    return status, as_of[0], nulls[0]


@_compiled(
    types.int64(
        _WORDS, _INTEGERS, types.int64, types.boolean, _INTEGERS, _INTEGERS, _INTEGERS, types.int64, _DOUBLES, _INTEGERS
    )
)
def read_numbers(words, sizes, t, exact, plan, targets, ends, width, numbers, nulls):
    """Read many keys at one time as doubles; return the first status that is not ``OK``. More is told at ``read_many``.

    Args:
        words: Their blobs.
        sizes: Their sizes.
        t: The time of all.
        exact: Whether it may not be moved.
        plan: The view.
        targets: Where in a row of the numbers each value goes: doubles, then integers, then bools.
        ends: How many of them are doubles, and how many are no bools.
        width: Numbers in a row.
        numbers: The values, NaN where null; of shape (keys, width).
        nulls: How many values of every key are null is added to it.
    """
    doubles, count = words.view(np.float64), len(targets)
    scratch = np.empty(MOST_RECORDS + 2 * (plan[LADDERS] + plan[WINDOWS]), dtype=np.int64)
    out, valid = np.empty(count), np.empty(count, dtype=np.bool_)
    integers = out.view(np.int64)
    begin = 0
    for key in range(len(sizes)):
        size = sizes[key]
        status, _, missing = _read(words, doubles, begin, size, t, exact, plan, scratch, out, integers, valid, 0, 1)
        if status != OK:
            return status
        nulls[key] += missing
        begin += max(size, 0)
        row = key * width
        for place in range(count):
            if not valid[place]:
                number = np.nan
            elif place < ends[0]:
                number = out[place]
            elif place < ends[1]:
                number = float(integers[place])
            else:
                number = 1.0 if integers[place] != 0 else 0.0
            numbers[row + targets[place]] = number
    return OK
