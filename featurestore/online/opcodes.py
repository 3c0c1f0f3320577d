"""The words in which ``compiled`` tells ``kernel`` what to read: an array of int64, the head first.

head       the nine words below; the last two are where the type of bytes, and None, are in this process
ladders    the words of a row, of each; then of a short row
windows    ladder, its hop, distance of the start from t, grid of the start (0: without beginning)
measures   how partials are merged, place of the partial in a record, where its cells begin and end, how far behind the first
           slot the second and the third are (0: it has none), the first slot of the empty partial
cells      window, place of its partial in a row of the ladder, where what reads it begins and ends, place of its first slot in a
           short row, and what the other slots are behind there; in order of windows
reads      what is made of the partial, place of the value among all, the first slot where it is null, the slot that is copied
"""

from __future__ import annotations

EXPECTED, FINGERPRINT, FIXED_WORDS, RECORD_WORDS, LADDERS, WINDOWS, MEASURES, BYTES, NONE = range(9)
PLAN_HEAD = 9
WINDOW, MEASURE, CELL, READ = 4, 7, 6, 4
SHORT = 1 << 16
"""What the first word of a blob with short rows is more by."""
MOST_RECORDS = 256
"""A longer tail is read in Python."""
AT_ONCE = 32
"""Keys that are read together, so that what is the same for all is decided once."""

# How partials are merged. Those before ``EARLIEST`` have a count in their first slot.
ADD_INTEGERS, ADD_DOUBLES, MIN_INTEGER, MAX_INTEGER, MIN_DOUBLE, MAX_DOUBLE, EARLIEST, LATEST = range(8)

# What is made of a partial: a slot as it is, sums, means, or the seconds from it to t.
COPY, TOTAL_INTEGER, TOTAL_DOUBLE, MEAN_INTEGER, MEAN_DOUBLE, SECONDS = range(6)

OK, UNUSUAL, PAST = range(3)

MIN, MAX = -(2**63), 2**63 - 1
LOW, HALF = 0xFFFFFFFF, 2**31
FAR = 2**61
"""Instants and distances below it add up within int64."""
LARGE = 2**53
"""So many added integers, and ``MOST_RECORDS`` of them, add up within int64; a total below it is exact as a double."""


def scratch_words(ladders: int, windows: int) -> int:
    """Return how many words the kernel works in."""
    records, lists = AT_ONCE * MOST_RECORDS, 2 * (3 * windows * AT_ONCE + AT_ONCE * MOST_RECORDS + 1)
    return 4 * records + (8 + 2 * windows) * AT_ONCE + 6 * windows + 2 * ladders + lists
