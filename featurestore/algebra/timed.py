"""SecondsSinceFirst, SecondsSinceLast and Rate: values that depend on the time of the question, not on events alone.

A window that is delayed by d is the window as it stood d ago, and so are these values: they are those of t - d.

Their partials are those of plain aggregates; ``value`` and ``value_columns`` bring t and the window in. ``finalize`` has
neither: it gives the value that the partial would have at the epoch (seconds since), or over one unit of time (rate).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.algebra.additive import Count, Sum
from featurestore.algebra.aggregate import Aggregate
from featurestore.datatypes import DataType
from featurestore.errors import WindowError
from featurestore.timeline import MAX_INSTANT, MIN_INSTANT, SECOND, format_duration, parse_duration

if TYPE_CHECKING:
    from featurestore.algebra.aggregate import Columns, EventOrder, Partial
    from featurestore.algebra.windows import Window
    from featurestore.timeline import Instant


@dataclass(frozen=True, repr=False)
class _SecondsSince(Aggregate):
    accepts: ClassVar[frozenset[DataType]] = Count.accepts
    never: ClassVar[Instant]
    """The instant of no event."""

    @property
    def slots(self) -> tuple[str, ...]:
        """(event time,); ``never`` when empty."""
        return ("i8",)

    @property
    def result_type(self) -> DataType:
        """Always float64."""
        return DataType.FLOAT64

    def empty(self) -> Partial:
        """Return no events."""
        return (self.never,)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return the event's time, or no event when an input is given and null."""
        return self.empty() if self.input is not None and value is None else (at.event_time,)

    def finalize(self, partial: Partial) -> float | None:
        """Return the seconds from the event to the epoch, or None without events."""
        return self._seconds(partial, 0)

    def value(self, partial: Partial, t: Instant, window: Window) -> float | None:
        """Return the seconds from the event to t, or None without events."""
        return self._seconds(partial, t - window.delay)

    def _seconds(self, partial: Partial, t: Instant) -> float | None:
        return None if partial[0] == self.never else float(t - partial[0]) / SECOND

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return the event times of valid rows."""
        return (np.where(valid, event_time, self.never),)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds from the events to the epoch; null without events."""
        return self._seconds_columns(partial, np.zeros(len(partial[0]), dtype=np.int64))

    def value_columns(self, partial: Columns, t: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds from the events to t; null without events."""
        return self._seconds_columns(partial, t - window.delay)

    def _seconds_columns(self, partial: Columns, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        valid = partial[0] != self.never
        return (t - np.where(valid, partial[0], t)) / SECOND, valid


@dataclass(frozen=True, repr=False)
class SecondsSinceFirst(_SecondsSince):
    """Seconds from the oldest event of the window to t, float64; with an input, from the oldest where it is not null.

    Null when there is none. NaN is a value like any other: only the time of its event counts. Always above 0, as an event
    at t is out of every window.

    Partial: event time i8 (8 bytes). Exact to the microsecond.

    >>> from featurestore.algebra import EventOrder, Lifetime
    >>> age = SecondsSinceFirst()
    >>> both = age.merge(age.prepare(None, EventOrder(2_000_000, 0)), age.prepare(None, EventOrder(3_500_000, 0)))
    >>> age.value(both, 5_000_000, Lifetime())
    3.0
    """

    partial_kind: ClassVar[str] = "oldest"
    never: ClassVar[Instant] = MAX_INSTANT
    picks: ClassVar[int] = -1

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the older of both."""
        return (min(a[0], b[0]),)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the older of every pair."""
        return (np.minimum(a[0], b[0]),)


@dataclass(frozen=True, repr=False)
class SecondsSinceLast(_SecondsSince):
    """Seconds from the newest event of the window to t, float64; with an input, from the newest where it is not null.

    Null when there is none. NaN is a value like any other: only the time of its event counts. Always above 0, as an event
    at t is out of every window.

    Partial: event time i8 (8 bytes). Exact to the microsecond.

    >>> from featurestore.algebra import EventOrder, Lifetime
    >>> pause = SecondsSinceLast()
    >>> both = pause.merge(pause.prepare(None, EventOrder(2_000_000, 0)), pause.prepare(None, EventOrder(3_500_000, 0)))
    >>> pause.value(both, 5_000_000, Lifetime())
    1.5
    """

    partial_kind: ClassVar[str] = "newest"
    never: ClassVar[Instant] = MIN_INSTANT
    picks: ClassVar[int] = 1

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the newer of both."""
        return (max(a[0], b[0]),)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the newer of every pair."""
        return (np.maximum(a[0], b[0]),)


@dataclass(frozen=True, repr=False)
class Rate(Aggregate):
    """Events per unit of time, float64; with an input, its sum per unit of time.

    The total is divided by the time that the window covers at t, from its start to its end: of a sawtooth window of 1h that
    is between 1h and 1h plus its hop, so the rate does not swing with the hop as a count does. Lifetime windows have no
    start and are refused.

    Without events the rate is 0.0. With an input, null inputs are skipped, and without values the rate is null, like the
    sum. NaN and infinities follow IEEE 754.

    Partial: that of ``Count()`` (8 bytes) or of ``Sum`` of the input (24 bytes), and shared with them. Relative error below
    1e-9, for sums that cancel as in ``Sum``.

    Args:
        input: SQL row expression whose sum is divided; int64, float64 or bool. Events are counted when not given.
        where: SQL row condition; events for which it is not true do not count.
        value_type: Set when a view is defined.
        per: The unit of time: "1s", "1m", "24h".

    >>> from featurestore.algebra import Sawtooth
    >>> rate = Rate(per="1m")
    >>> rate.value((30,), 3_600_000_000, Sawtooth("1h"))
    0.5
    """

    per: str = "1s"

    partial_kind: ClassVar[str] = "rate"
    is_counted: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-9
    finalize_only: ClassVar[frozenset[str]] = frozenset({"per"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "per", format_duration(parse_duration(self.per)))  # one spelling per meaning

    @cached_property
    def _total(self) -> Count | Sum:
        """The aggregate whose partial this is."""
        if self.input is None:
            return Count(where=self.where)
        return Sum(self.input, where=self.where, value_type=self.value_type)

    @property
    def partial_identity(self) -> tuple[Any, ...]:
        """That of the count or sum."""
        return self._total.partial_identity

    def check_window(self, window: Window) -> None:
        """Refuse windows without a start.

        Raises:
            WindowError: The window is of a lifetime.
        """
        if window.length is None:
            raise WindowError(
                f"{self!r} over {window.label!r}: a lifetime has no length to divide by.",
                hint="use a window with a length, such as '30d', or Count or Sum over 'lifetime'.",
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """Those of the count or sum."""
        return self._total.slots

    @property
    def added_slots(self) -> tuple[int, ...]:
        """Those of the count or sum."""
        return self._total.added_slots

    @property
    def result_type(self) -> DataType:
        """Always float64."""
        return DataType.FLOAT64

    def empty(self) -> Partial:
        """Return no events."""
        return self._total.empty()

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one event or value."""
        return self._total.prepare(value, at)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return both totals added."""
        return self._total.merge(a, b)

    def finalize(self, partial: Partial) -> float | None:
        """Return the total as a double, or None for a sum without values."""
        if isinstance(self._total, Count):
            return float(partial[0])
        return float(self._total.total(partial)) if partial[0] else None

    def value(self, partial: Partial, t: Instant, window: Window) -> float | None:
        """Return the total divided by the units of time between the window's start and end at t."""
        total = self.finalize(partial)
        return None if total is None else total / self._units(t, window)

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return one event or value per valid row."""
        return self._total.prepare_columns(values, valid, event_time, sequence)

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the totals added."""
        return self._total.merge_columns(a, b)

    def running_columns(self, columns: Columns) -> Columns:
        """Return the running totals."""
        return self._total.running_columns(columns)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the totals as doubles; null for sums without values."""
        if isinstance(self._total, Count):
            return partial[0].astype(np.float64), np.ones(len(partial[0]), dtype=bool)
        return self._total.total_columns(partial), partial[0] > 0

    def value_columns(self, partial: Columns, t: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return the totals divided by the units of time between the window's start and end at t."""
        total, valid = self.finalize_columns(partial)
        return total / self._units(t, window), valid

    def _units(self, t: Any, window: Window) -> Any:
        # start and end are arithmetic: they take an array of times as well as one
        start = window.start(t)
        assert start is not None  # noqa: S101 - refused by check_window
        return (window.end(t) - start) / parse_duration(self.per)
