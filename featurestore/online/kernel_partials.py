# ruff: noqa: ANN001, ANN201, ANN202, PLR0124 - numba infers the types; NaN is unequal to itself
# mypy: disallow-untyped-defs=False
"""Partials in compiled code: gathered from rows and records, merged, and made into values. What ``kernel`` says holds here.

A partial is three words, one per slot, doubles as the integers of the same bits; what it has no slots for means nothing.
"""

from __future__ import annotations

from typing import Any

import numba

from featurestore.online import opcodes as op
from featurestore.online.words import as_double, as_word, load, store

_jit: Any = numba.njit(error_model="numpy", cache=True)


@_jit
def _is_plain(kind, counts, numbers):
    """Return whether numbers that are added up stay within int64: the bits of all counts, and of all other slots and LARGE."""
    if kind >= op.EARLIEST:
        return True
    return 0 <= counts < op.LARGE and (kind != op.ADD_INTEGERS or 0 <= numbers < 2 * op.LARGE)


@_jit
def _take(to, first, second, third):
    """Load one partial from where its slots are; return the bits of its count, and those of its other slots and LARGE."""
    n, i, j = load(first), load(second), load(third)
    store(to, n)
    store(to + 1, i)
    store(to + 2, j)
    return n, (i + op.LARGE) | (j + op.LARGE)


@_jit
def gather(kind, into, lane, begin, end, place, slot, second, third):
    """Load partials; return whether numbers that are added up stay within int64. Without ``lane`` one behind the other."""
    counts = numbers = 0
    for each in range(begin, end):
        at, to = load(place + each) + slot, into + 3 * (load(lane + each) if lane else each - begin)
        count, number = _take(to, at, at + second, at + third)
        counts |= count
        numbers |= number
    return _is_plain(kind, counts, numbers)


@_jit
def gather_rows(kind, into, lane, begin, end, place, shorts, cell, plan, second, third):
    """Do the same with the partials of a cell in rows, of those keys short ones (1) and of the others whole ones (0)."""
    first, first_short, rest_short = plan[cell + 1], plan[cell + 4], plan[cell + 5]
    counts = numbers = 0
    for each in range(begin, end):
        key, row = load(lane + each), load(place + each)
        is_short = load(shorts + key) != 0
        rest = row + (rest_short if is_short else first)
        at = row + (first_short if is_short else first)
        count, number = _take(into + 3 * key, at, rest + second, rest + third)
        counts |= count
        numbers |= number
    return _is_plain(kind, counts, numbers)


@_jit
def merge(kind, into, lane, begin, end, other, is_packed):
    """Merge other partials into those of keys, one after the other, as the aggregates' ``merge`` does it."""
    for each in range(begin, end):
        key = load(lane + each)
        a, b = into + 3 * key, other + 3 * (each - begin if is_packed else key)
        n, i, j, m, k, last = load(a), load(a + 1), load(a + 2), load(b), load(b + 1), load(b + 2)
        if kind == op.ADD_INTEGERS:
            n, i, j = n + m, i + k, j + last
        elif kind == op.ADD_DOUBLES:
            x, y = as_double(i), as_double(k)
            total = x + y
            back = total - x
            error = as_double(j) + as_double(last) + ((x - (total - back)) + (y - back))
            n, i, j = n + m, as_word(total), as_word(0.0 if total - total != 0.0 else error)
        elif kind >= op.EARLIEST:
            later = m > n or (m == n and k > i)
            stays = not later if kind == op.LATEST else later or (m == n and k == i)
            n, i, j = n if stays else m, i if stays else k, j if stays else last
        else:
            if kind <= op.MAX_INTEGER:
                stays = i <= k if kind == op.MIN_INTEGER else i >= k
            else:
                x, y = as_double(i), as_double(k)
                stays = (x <= y or y != y) if kind == op.MIN_DOUBLE else (x >= y or x != x)
            n, i = n + m, i if m == 0 or (n != 0 and stays) else k
        store(a, n)
        store(a + 1, i)
        store(a + 2, j)


@_jit
def finish(read, null, slot, partials, times, keys, out):
    """Put what is made of the partials of all keys, doubles as their bits; return whether all is plain."""
    plain = True
    for key in range(keys):
        at = partials + 3 * key
        n, i, j = load(at), load(at + 1), load(at + 2)
        if read == op.COPY:
            made = n if slot == 0 else i if slot == 1 else j
        elif read == op.TOTAL_DOUBLE:
            made = as_word(as_double(i) + as_double(j))
        elif read == op.MEAN_DOUBLE:
            made = as_word((as_double(i) + as_double(j)) / n)
        elif read == op.SECONDS:
            plain &= n == null or -op.FAR < n < op.FAR
            made = as_word(float(load(times + key) - n) / 1e6)
        else:
            high = i + (j >> 32)
            made = (high << 32) | (j & op.LOW)
            if read == op.MEAN_INTEGER:
                plain &= n < op.LARGE and -(2**21) <= high < 2**21
                made = as_word(float(made) / n)
            else:
                made = op.MAX if high >= op.HALF else op.MIN if high < -op.HALF else made
        store(out + key, made)
    return plain
