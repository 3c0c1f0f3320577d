# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types
# mypy: disallow-untyped-defs=False
"""The compiled reading of blobs: what ``reader.ViewReader`` computes of plain numbers, to the bit. Needs numba.

Imported by ``compiled`` alone, when a view is first opened; the machine code is kept beside this file, or where numba keeps it.
``AT_ONCE`` keys are read together, where they are in memory:

    frames     of each key: header, counts and lengths have to add up; the records that count at t, newest tile first; of every
               window the row in its ladder, and how many of the newest records it covers
    lists      of each window: which keys have a row; which have records to merge it with; whose first record, and which other
               records, are to be merged before, beyond those of the window before
    measures   window by window: the records are merged one after the other, then each row with them, and every feature that
               reads it is finalized

Whatever is not plain is left to the readers in Python: the kernel says ``UNUSUAL`` (or ``PAST``) and what it has written means
nothing. So it knows no errors, and bytes that were spoiled get the refusal, or the value, that they always got.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from featurestore.online import opcodes as op
from featurestore.online.kernel_names import write_names
from featurestore.online.kernel_partials import finish, gather, gather_rows, merge
from featurestore.online.words import as_double, load, store

__all__ = ["read_many", "read_numbers", "read_one", "write_names"]

# CRC-32 of kernel_partials.py, opcodes.py and words.py: machine code is kept for as long as this file is the same
MADE_OF = 0x0C23F0EB
_I8, _YES = types.int64, types.boolean
_I8S, _F4S, _FLAGS = types.int64[::1], types.float32[::1], types.boolean[::1]
_HOW: Any = {"error_model": "numpy", "cache": True}
_jit = numba.njit(**_HOW)


@_jit
def _row(hops, rows, wanted):
    """Return the first row whose hop id is not less than ``wanted``: where ``bisect_left`` looks, without a branch to guess."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) >> 1
        is_less = load(hops + middle) < wanted
        low = middle + 1 if is_less else low
        high = high if is_less else middle
    return low


@_jit
def _newest_first(first, records, size, t, order):
    """Put the places of the records that count at ``t`` in order; return how many."""
    count = 0
    for record in range(records - 1, -1, -1):
        at = first + record * size
        if load(at + 1) < t:
            place = order + count
            while place > order and load(load(place - 1)) < load(at):
                store(place, load(place - 1))
                place -= 1
            store(place, at)
            count += 1
    return count


@_jit
def _frame(begin, size, t, exact, plan, ladders):
    """Put (hops, rows) of every ladder of a blob of ``size`` words; return what that tells.

    That is (status, t, newest event, tail, records, whether rows are short).
    """
    fixed, width = plan[op.FIXED_WORDS], plan[op.RECORD_WORDS]
    if size < fixed:
        return op.UNUSUAL, t, op.MIN, 0, 0, 0
    at = begin + fixed
    is_short = (load(begin) >> 17) & 1
    widths = op.PLAN_HEAD + is_short * plan[op.LADDERS]
    for ladder in range(plan[op.LADDERS]):
        word = load(begin + 4 + (ladder >> 1))
        rows = (word >> 32 if ladder & 1 else word) & op.LOW
        store(ladders + 2 * ladder, at)
        store(ladders + 2 * ladder + 1, rows)
        at += rows * (1 + plan[widths + ladder])
    tail = size - (at - begin)
    if (
        tail < 0
        or tail % width != 0
        or tail > width * op.MOST_RECORDS
        or load(begin) != ((at - begin) << 35) + plan[op.EXPECTED] + is_short * op.SHORT
        or load(begin + 1) != plan[op.FINGERPRINT]
    ):
        return op.UNUSUAL, t, op.MIN, 0, 0, 0
    while True:
        as_of = load(begin + 2)
        for record in range(at, at + tail, width):
            if load(record + 1) < t:
                as_of = max(as_of, load(record + 2))
        if as_of < t:
            break
        if exact:
            return op.PAST, t, as_of, 0, 0, 0
        if as_of >= op.FAR:
            return op.UNUSUAL, t, as_of, 0, 0, 0
        t = as_of + 1
    return op.OK if -op.FAR < t < op.FAR else op.UNUSUAL, t, as_of, at, tail // width, is_short


@_jit
def _starts(t, plan, starts):
    """Put (start, its hop id) of every window at ``t``."""
    at = op.PLAN_HEAD + 2 * plan[op.LADDERS]
    for window in range(plan[op.WINDOWS]):
        hop, back, step = plan[at + 1], plan[at + 2], plan[at + 3]
        if step != 0:
            low = t - back
            low -= low % step
            store(starts + 2 * window, low)
            store(starts + 2 * window + 1, low // hop)
        at += op.WINDOW


@_jit
def _rows(plan, is_short, starts, ladders, order, count, row, covered):
    """Put, of every window, where its row is (0: it has none), and how many of the newest records it covers."""
    widths = op.PLAN_HEAD + is_short * plan[op.LADDERS]
    at = op.PLAN_HEAD + 2 * plan[op.LADDERS]
    for window in range(0, plan[op.WINDOWS] * op.AT_ONCE, op.AT_ONCE):
        ladder = plan[at]
        hops, rows = load(ladders + 2 * ladder), load(ladders + 2 * ladder + 1)
        index, many = 0, count
        if plan[at + 3] != 0:  # it has a beginning
            low, many = load(starts), 0
            index = _row(hops, rows, load(starts + 1))
            while many < count and load(load(order + many)) >= low:
                many += 1
        store(row + window, hops + rows + index * plan[widths + ladder] if index < rows else 0)
        store(covered + window, many)
        starts += 2
        at += op.WINDOW


@_jit
def _lists(windows, keys, order, row, covered, lane, place, ends):
    """Put the four lists of every window, one behind the other, and where each ends; return whether there was room."""
    at, end = 0, 3 * windows * op.AT_ONCE + op.AT_ONCE * op.MOST_RECORDS
    for window in range(windows):
        for key in range(keys):  # those that have a row
            store(lane + at, key)
            store(place + at, load(row + key))
            at += load(row + key) != 0
        store(ends, at)
        for key in range(keys):  # that have records to merge it with
            store(lane + at, key)
            at += load(covered + key) > 0
        store(ends + 1, at)
        for key in range(keys):  # whose first record is to be taken
            many, before = load(covered + key), load(covered + key - op.AT_ONCE) if window else 0
            store(lane + at, key)
            store(place + at, load(order + key * op.MOST_RECORDS))
            at += many > 0 and (before == 0 or many < before)
        store(ends + 2, at)
        for key in range(keys):  # and records to merge with it
            many, before = load(covered + key), load(covered + key - op.AT_ONCE) if window else 0
            begin = max(before, 1) if many >= before else 1
            if at + many - begin > end - 3 * (windows - window) * op.AT_ONCE:
                return False
            for number in range(begin, many):
                store(lane + at, key)
                store(place + at, load(order + key * op.MOST_RECORDS + number))
                at += 1
        store(ends + 3, at)
        row, covered, ends = row + op.AT_ONCE, covered + op.AT_ONCE, ends + 4
    return True


@_jit
def _values(plan, mine, lane, place, ends, times, shorts, first, keys, out, valid, about, partials, merged, others):
    """Put every value that is read of one measure, of ``keys`` keys from number ``first`` on; return whether all is plain."""
    kind, slot, second, third, empty = plan[mine], plan[mine + 1], plan[mine + 4], plan[mine + 5], plan[mine + 6]
    all_keys = len(about) >> 1
    cell, window, plain, end = plan[mine + 2], 0, True, 0
    while cell < plan[mine + 3]:
        begin, rows, covers, firsts, end = end, load(ends), load(ends + 1), load(ends + 2), load(ends + 3)
        if covers != end:
            plain &= gather(kind, merged, lane, covers, firsts, place, slot, second, third)
            plain &= gather(kind, others, 0, firsts, end, place, slot, second, third)
            merge(kind, merged, lane, firsts, end, others, True)
        if plan[cell] == window:
            if rows - begin < keys:
                for at in range(partials, partials + 3 * keys, 3):
                    store(at, empty)
                    store(at + 1, 0)
                    store(at + 2, 0)
            plain &= gather_rows(kind, partials, lane, begin, rows, place, shorts, cell, plan, second, third)
            merge(kind, partials, lane, rows, covers, merged, False)
            for read in range(plan[cell + 2], plan[cell + 3], op.READ):
                null, target = plan[read + 2], plan[read + 1] * all_keys + first
                plain &= finish(plan[read], null, plan[read + 3], partials, times, keys, out + target)
                for key in range(keys):
                    there = load(partials + 3 * key) != null
                    valid[target + key] = there
                    about[all_keys + first + key] += not there
            cell += op.CELL
        window += 1
        ends += 4
    return plain


@_jit
def _read(blobs, times, exact, plan, values, valid, about, scratch):
    """Do what ``read_many`` does, with the values from a place on."""
    keys, windows, started = len(blobs), plan[op.WINDOWS], op.MIN
    known, order = len(valid) - keys, np.int64(scratch.ctypes.data) >> 3
    row = order + op.AT_ONCE * op.MOST_RECORDS
    covered = row + windows * op.AT_ONCE
    moved = covered + windows * op.AT_ONCE
    shorts = moved + op.AT_ONCE
    partials = shorts + op.AT_ONCE
    merged = partials + 3 * op.AT_ONCE
    ends = merged + 3 * op.AT_ONCE
    starts = ends + 4 * windows
    ladders = starts + 2 * windows
    others = ladders + 2 * plan[op.LADDERS]
    lane = others + 3 * op.AT_ONCE * op.MOST_RECORDS
    place = lane + 3 * windows * op.AT_ONCE + op.AT_ONCE * op.MOST_RECORDS + 1
    for first in range(0, keys, op.AT_ONCE):
        some = min(keys - first, op.AT_ONCE)
        for key in range(some):
            number, blob, t = first + key, blobs[first + key], times[first + key if len(times) > 1 else 0]
            valid[known + number] = blob != plan[op.NONE]
            about[keys + number] = 0
            if blob == plan[op.NONE]:
                about[number] = op.MIN
                store(moved + key, t)
                for window in range(0, windows * op.AT_ONCE, op.AT_ONCE):
                    store(row + window + key, 0)
                    store(covered + window + key, 0)
                continue
            blob >>= 3  # memory is words
            size = load(blob + 2)
            if load(blob + 1) != plan[op.BYTES] or size & 7:
                return op.UNUSUAL
            status, t, newest, tail, records, is_short = _frame(blob + 4, size >> 3, t, exact, plan, ladders)
            if status != op.OK:
                return status
            about[number] = newest
            store(moved + key, t)
            store(shorts + key, is_short)
            mine = order + key * op.MOST_RECORDS
            count = _newest_first(tail, records, plan[op.RECORD_WORDS], t, mine)
            if t != started:
                _starts(t, plan, starts)
                started = t
            _rows(plan, is_short, starts, ladders, mine, count, row + key, covered + key)
        if not _lists(windows, some, order, row, covered, lane, place, ends):
            return op.UNUSUAL
        mine = op.PLAN_HEAD + 2 * plan[op.LADDERS] + windows * op.WINDOW
        for _ in range(plan[op.MEASURES]):
            if not _values(
                plan,
                mine,
                lane,
                place,
                ends,
                moved,
                shorts,
                first,
                some,
                values,
                valid,
                about,
                partials,
                merged,
                others,
            ):
                return op.UNUSUAL
            mine += op.MEASURE
    return op.OK


@numba.njit(_I8(_I8S, _I8S, _YES, _I8S, _I8S, _FLAGS, _I8S, _I8S), **_HOW)
def read_many(blobs, times, exact, plan, out, valid, about, scratch):
    """Read many keys; return the first status that is not ``OK``.

    Args:
        blobs: Where in memory the blob of every key is: a ``bytes``, or None. They must outlive the call.
        times: The time of all, or one of each.
        exact: Whether a time may not be moved past events that were merged.
        plan: The view, as ``compiled`` puts it.
        out: The values, doubles as the integers of the same bits; of shape (features, keys).
        valid: Which of them are not null; in one more row, the last, which keys have a blob.
        about: The newest event time of every key, the smallest int64 without; then of each how many values are null.
        scratch: ``scratch_words`` words to work in; what uses them holds the lock of the interpreter.
    """
    return _read(blobs, times, exact, plan, np.int64(out.ctypes.data) >> 3, valid, about, scratch)


@numba.njit(types.UniTuple(_I8, 3)(_I8, _I8, _YES, _I8S, _I8, _I8S), **_HOW)
def read_one(blob, t, exact, plan, made, scratch):
    """Read one key; return its status, newest event time and number of nulls. More is told at ``read_many``.

    Args as there, and:
        made: Where in memory two words per value are, in ``bytes`` that nobody else has seen: they get all values, then, where
            some are null, of each whether it is not.
    """
    made >>= 3
    count, values = load(made + 2) >> 4, made + 4
    numbers, valid = np.empty(4, dtype=np.int64), np.empty(count + 1, dtype=np.bool_)
    numbers[0], numbers[1] = blob, t
    status = _read(numbers[:1], numbers[1:2], exact, plan, values, valid, numbers[2:], scratch)
    if numbers[3] > 0:
        for value in range(count):
            store(values + count + value, 1 if valid[value] else 0)
    return status, numbers[2], numbers[3]


@numba.njit(_I8(_I8S, _I8, _YES, _I8S, _I8S, _I8S, _I8, _F4S, _I8S, _I8S), **_HOW)
def read_numbers(blobs, t, exact, plan, targets, ends, width, numbers, nulls, scratch):
    """Read many keys at one time as single floats; return the first status that is not ``OK``. More is told at ``read_many``.

    Args as there, and:
        t: The time of all. A key without a blob is not plain.
        targets: Where in a row of the numbers each value goes: doubles, integers, bools.
        ends: How many of them are doubles, and how many are no bools.
        width: Numbers in a row.
        numbers: The values, NaN where null; of shape (keys, width).
        nulls: How many values of every key are null is added to it.
    """
    count, keys = len(targets), len(blobs)
    out, valid = np.empty(count * keys, dtype=np.int64), np.empty((count + 1) * keys, dtype=np.bool_)
    about, times = np.empty(2 * keys, dtype=np.int64), np.empty(1, dtype=np.int64)
    times[0] = t
    status = _read(blobs, times, exact, plan, np.int64(out.ctypes.data) >> 3, valid, about, scratch)
    if status != op.OK:
        return status
    for key in range(keys):
        if not valid[count * keys + key]:
            return op.UNUSUAL
        nulls[key] += about[keys + key]
        row = key * width
        for value in range(count):
            place = value * keys + key
            if not valid[place]:
                number = np.nan
            elif value < ends[0]:
                number = as_double(out[place])
            elif value < ends[1]:
                number = float(out[place])
            else:
                number = 1.0 if out[place] != 0 else 0.0
            numbers[row + targets[value]] = number
    return op.OK
