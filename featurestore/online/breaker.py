"""A circuit breaker: after some failures in a row, calls fail at once for a while instead of each waiting. Pure."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CircuitBreaker:
    """Counts failures in a row. Closed: every call may try. Open: none may, until ``pause_s`` has passed; then one may.

    Thread-safe.

    Args:
        failures: How many in a row open it.
        pause_s: How long it stays open, in seconds.
        clock: Seconds that never go back.

    >>> now = [0.0]
    >>> breaker = CircuitBreaker(failures=2, pause_s=1.0, clock=lambda: now[0])
    >>> breaker.failed(); breaker.failed()
    >>> breaker.may_try()
    False
    >>> now[0] = 1.5
    >>> breaker.may_try(), breaker.may_try()  # one call finds out for all
    (True, False)
    >>> breaker.succeeded()
    >>> breaker.may_try()
    True
    """

    __slots__ = ("_clock", "_failures", "_limit", "_lock", "_open_until", "_pause_s")

    def __init__(self, *, failures: int = 5, pause_s: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause_s, self._clock = failures, pause_s, clock
        self._failures = 0
        self._open_until: float | None = None
        self._lock = threading.Lock()

    @property
    def failures(self) -> int:
        """How many calls in a row have failed."""
        return self._failures

    def may_try(self) -> bool:
        """Return whether a call may go to the server now."""
        if self._open_until is None:
            return True
        with self._lock:
            now = self._clock()
            if self._open_until is not None and now < self._open_until:
                return False
            self._open_until = now + self._pause_s  # whoever asks next waits for this one's outcome
            return True

    def succeeded(self) -> None:
        """Close it."""
        if self._failures:
            with self._lock:
                self._failures, self._open_until = 0, None

    def failed(self) -> None:
        """Count a failure; the last allowed one opens it."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self._open_until = self._clock() + self._pause_s
