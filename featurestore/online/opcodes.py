"""The words in which ``compiled`` tells ``kernel`` what to read: an array of int64, the head first.

head       the seven words below
ladders    the words of a row, of each
windows    ladder, its hop, distance of the start from t, grid of the start (0: without beginning)
measures   kind, place of its partial in a record, where its cells begin and end, how far behind the first slot the second
           and the third are (0: it has none)
cells      window, place of its partial in a row of the ladder, where what reads it begins and ends
reads      what is made of the partial, place of the value among all
"""

from __future__ import annotations

EXPECTED, FINGERPRINT, FIXED_WORDS, RECORD_WORDS, LADDERS, WINDOWS, MEASURES = range(7)
PLAN_HEAD = 7
WINDOW, MEASURE, CELL, READ = 4, 6, 4, 2
MOST_RECORDS = 256
"""A longer tail is read in Python."""

# Kinds of partials: those whose first slot is a count; first and last, by event time and sequence; event times alone.
COUNT, SUM_INTEGER, SUM_DOUBLE, MIN_INTEGER, MAX_INTEGER, MIN_DOUBLE, MAX_DOUBLE = range(7)
FIRST_INTEGER, FIRST_DOUBLE, LAST_INTEGER, LAST_DOUBLE, OLDEST, NEWEST = range(7, 13)

# What is made of a partial: its integer or double as it is, a mean, or the seconds from it to t.
TO_INTEGER, TO_DOUBLE, MEAN_INTEGER, MEAN_DOUBLE, SECONDS = range(5)

OK, UNUSUAL, PAST = range(3)
