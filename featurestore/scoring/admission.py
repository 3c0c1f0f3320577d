"""Who is let in when more is asked than can be answered. Pure: time is given.

A request waits for what is in flight before it, each of which takes about as long as the last ones did while there was
something to do. So the wait of the next one is known before it is let in:

    expected wait = requests in flight x seconds per request

Rules:
    1. More than ``most`` in flight: shed, whatever they cost.
    2. An expected wait beyond ``queue_seconds``: shed, but only where the oldest in flight has already waited a fraction of
       that. A burst that batching swallows is no overload, and neither is a store that answers slowly.
    3. A few are let in always. Refusing takes time too, and that time counts among what a request takes: with
       nothing to stop it, the more is refused the longer the wait would seem, until next to nothing is let in.
"""

from __future__ import annotations

import math
from collections import OrderedDict

_WEIGHT = 1 / 64
"""Of the newest measurement in the moving average."""
_ALWAYS = 32
"""Requests in flight up to which rule 2 does not hold."""
_EVIDENCE = 0.25
"""Part of ``queue_seconds`` that the oldest has to have waited."""


class Admission:
    """Counts what is in flight and foretells the wait.

    Args:
        most: Requests in flight at once.
        queue_seconds: The longest expected wait of a request that is let in.

    >>> door = Admission(most=2, queue_seconds=0.1)
    >>> door.enter(0.0), door.enter(0.0), door.enter(0.0)
    (1, 2, None)
    >>> door.leave(1, 0.3); door.leave(2, 0.3)
    >>> door.enter(1.0)
    3
    >>> door.expected_wait < 0.1
    True
    """

    def __init__(self, *, most: int, queue_seconds: float) -> None:
        self._most = most
        self._queue_seconds = queue_seconds
        self._entered: OrderedDict[int, float] = OrderedDict()
        self._tickets = 0
        self._seconds_each = 0.0
        self._mark = 0.0
        """When the last one left, or the first one came after none."""

    @property
    def in_flight(self) -> int:
        """How many are in."""
        return len(self._entered)

    @property
    def expected_wait(self) -> float:
        """Seconds that the next one would wait."""
        return len(self._entered) * self._seconds_each

    @property
    def retry_after(self) -> int:
        """Whole seconds after which another try makes sense; at least 1."""
        return max(1, math.ceil(self.expected_wait))

    def enter(self, now: float) -> int | None:
        """Let one in: return its ticket, or None if it is shed."""
        entered = self._entered
        if not entered:
            self._mark = now
        elif self.is_full(now):
            return None
        self._tickets += 1
        entered[self._tickets] = now
        return self._tickets

    def is_full(self, now: float) -> bool:
        """Return whether one more would be shed."""
        entered = self._entered
        return len(entered) >= self._most or (
            len(entered) >= _ALWAYS
            and self.expected_wait > self._queue_seconds
            and now - next(iter(entered.values())) > self._queue_seconds * _EVIDENCE
        )

    def leave(self, ticket: int, now: float) -> None:
        """Count one as answered."""
        del self._entered[ticket]
        if self._entered:  # else there was nothing more to do, and the time says nothing of how much can be done
            self._seconds_each += (now - self._mark - self._seconds_each) * _WEIGHT
        self._mark = now
