"""Windows: which events of a key count at time t.

Every interval is half-open [start(t), end(t)), and end(t) <= t: the event at t itself never counts.

    kind        start(t)              end(t)           what it means                                    label
    sawtooth    floor(t - w, hop)     t                at least w, by less than one hop too much        1h
    exact       t - w                 t                exactly w                                        1h_exact
    hopping     floor(t, hop) - w     floor(t, hop)    w, ending at the last hop edge                   1h_hop5m
    tumbling    floor(t, w) - w       floor(t, w)      the last closed w: hopping with hop = w          1d_tumbling
    lifetime    minus infinity        t                everything so far                                lifetime
    delay=d     t becomes t - d in all of the above: the window as it stood d ago                       ..._delay7d

Edges are floored from the epoch, also before 1970. Sawtooth is the default: it covers between w and w + hop. Its hop is the
coarsest of a fixed, nested list that divides w and keeps hop / w within ``max_error`` (1/12 unless stated), so that windows
of one feature share tiles. What a kind costs online is told by ``definitions.parts``.

The label is how a window appears in a feature's name: lower-case letters, digits and _. Series label theirs by position:
"1d_0" is the newest day, "1d_6" the oldest of ``Series("7d", every="1d")``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from featurestore.errors import WindowError
from featurestore.timeline import (
    DAY,
    HOUR,
    MICROSECOND,
    MINUTE,
    SECOND,
    Duration,
    Instant,
    Interval,
    format_duration,
    parse_duration,
)

if TYPE_CHECKING:
    from datetime import timedelta

    from featurestore.algebra.aggregate import Aggregate

DEFAULT_MAX_ERROR = Fraction(1, 12)
_HOPS: tuple[Duration, ...] = (
    1_000, 10_000, 100_000, SECOND, 5 * SECOND, 15 * SECOND, 30 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE,
    HOUR, 2 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 7 * DAY, 28 * DAY,
)  # fmt: skip

_CLOSED = frozenset({"hopping", "tumbling"})
_LONGEST_SERIES = 1_000


@dataclass(frozen=True, slots=True)
class Window:
    """A window over event time. Made by ``Sawtooth``, ``Exact``, ``Hopping``, ``Tumbling`` or ``Lifetime``, or by a text.

    Attributes:
        kind: "sawtooth", "exact", "hopping", "tumbling" or "lifetime".
        length: w in microseconds; None for lifetime.
        hop: The grid of its edges, in microseconds: 1 for exact, w for tumbling; None for lifetime.
        delay: How far the whole window lies back, in microseconds.
    """

    kind: str
    length: Duration | None
    hop: Duration | None
    label: str = field(compare=False)
    """How the window appears in a feature's name, for example "1h"; as the user wrote it."""
    delay: Duration = 0

    def start(self, t: Instant) -> Instant | None:
        """Return the oldest instant that counts at ``t``, or None for minus infinity."""
        if self.length is None or self.hop is None:
            return None
        # floor(t, hop) - w is the same: hop divides w.
        edge = t - self.delay - self.length
        return edge - edge % self.hop

    def end(self, t: Instant) -> Instant:
        """Return the first instant that no longer counts at ``t``; never after ``t``."""
        edge = t - self.delay
        return edge - edge % self.hop if self.is_closed and self.hop is not None else edge

    def interval(self, t: Instant) -> Interval:
        """Return [start(t), end(t))."""
        return Interval(self.start(t), self.end(t))

    @property
    def is_closed(self) -> bool:
        """Whether it ends at a hop edge: hopping and tumbling."""
        return self.kind in _CLOSED

    @property
    def ends_at_t(self) -> bool:
        """Whether end(t) is t itself, so that the newest event always counts."""
        return not self.delay and not self.is_closed

    def to_dict(self) -> dict[str, Any]:
        """Return the window as data."""
        data = {"kind": self.kind, "length_us": self.length, "hop_us": self.hop, "label": self.label}
        return {**data, "delay_us": self.delay} if self.delay else data

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Window:
        """Return the window that ``to_dict`` wrote."""
        return Window(data["kind"], data["length_us"], data["hop_us"], data["label"], data.get("delay_us", 0))


def Sawtooth(  # noqa: N802 - a window kind reads as a type where it is used
    length: str | timedelta,
    *,
    hop: str | timedelta | None = None,
    max_error: float | Fraction = DEFAULT_MAX_ERROR,
    delay: str | timedelta | None = None,
) -> Window:
    """Return a window of at least ``length`` whose far edge moves in hops.

    Args:
        length: How far back at the least, for example "1h".
        hop: The step of the far edge; must divide ``length``. Derived from ``max_error`` when not given.
        max_error: The largest hop / length allowed when the hop is derived.
        delay: How far back the window ends, instead of at t.

    Raises:
        WindowError: The hop does not divide the length, or no hop is fine enough.

    >>> Sawtooth("1h").hop == 5 * MINUTE, Sawtooth("24h").hop == 2 * HOUR
    (True, True)
    """
    width = parse_duration(length)
    if hop is not None:
        step = _dividing(hop, length, width)
    else:
        if not 0 < max_error < math.inf:
            raise WindowError(f"window {length!r}: max_error={max_error!r} is not a positive number.")
        limit = width * Fraction(max_error).limit_denominator(1_000_000)
        fitting = [h for h in _HOPS if width % h == 0 and h <= limit]
        if not fitting:
            raise WindowError(
                f"window {length!r}: no hop keeps the over-coverage within max_error={float(max_error):.4g}.",
                hint="state a hop that divides the window, or a larger max_error.",
            )
        step = fitting[-1]
    return _window("sawtooth", width, step, _spelled(length, width), delay)


def Exact(length: str | timedelta, *, delay: str | timedelta | None = None) -> Window:  # noqa: N802
    """Return the window of exactly ``length``: [t - length, t). It is stored event by event; prefer ``Sawtooth``.

    >>> Exact("1h").interval(10 * HOUR) == Interval(9 * HOUR, 10 * HOUR), Exact("1h").label
    (True, '1h_exact')
    """
    width = parse_duration(length)
    return _window("exact", width, MICROSECOND, f"{_spelled(length, width)}_exact", delay)


def Hopping(  # noqa: N802
    length: str | timedelta, *, hop: str | timedelta, delay: str | timedelta | None = None
) -> Window:
    """Return the window of ``length`` that ends at the last edge of ``hop``: it changes only there.

    Raises:
        WindowError: The hop does not divide the length.

    >>> Hopping("1h", hop="5m").interval(10 * HOUR + 7 * MINUTE) == Interval(9 * HOUR + 5 * MINUTE, 10 * HOUR + 5 * MINUTE)
    True
    """
    width = parse_duration(length)
    step = _dividing(hop, length, width)
    return _window("hopping", width, step, f"{_spelled(length, width)}_hop{_spelled(hop, step)}", delay)


def Tumbling(length: str | timedelta, *, delay: str | timedelta | None = None) -> Window:  # noqa: N802
    """Return the last closed window of ``length``, cut at multiples of it since the epoch: yesterday, for "1d".

    >>> Tumbling("1d").interval(10 * DAY + 1) == Tumbling("1d").interval(11 * DAY - 1) == Interval(9 * DAY, 10 * DAY)
    True
    """
    width = parse_duration(length)
    return _window("tumbling", width, width, f"{_spelled(length, width)}_tumbling", delay)


def Lifetime(*, delay: str | timedelta | None = None) -> Window:  # noqa: N802
    """Return the window of all events so far, or of all up to ``delay`` ago.

    >>> Lifetime().interval(10 * HOUR) == Interval(None, 10 * HOUR), Lifetime(delay="1h").end(10 * HOUR) == 9 * HOUR
    (True, True)
    """
    return _window("lifetime", None, None, "lifetime", delay)


def Series(  # noqa: N802
    length: str | timedelta, *, every: str | timedelta, delay: str | timedelta | None = None
) -> tuple[Window, ...]:
    """Return the closed windows of ``every`` that make up ``length``, the newest first: one feature each.

    Args:
        length: How far back in all; a multiple of ``every``.
        every: Length of each window.
        delay: How far back the newest one lies.

    Raises:
        WindowError: ``every`` does not divide ``length``, or makes more than 1,000 windows.

    >>> [window.label for window in Series("3d", every="1d")]
    ['1d_0', '1d_1', '1d_2']
    >>> Series("3d", every="1d")[2] == Tumbling("1d", delay="2d")
    True
    """
    width = parse_duration(length)
    step = _dividing(every, length, width, what="every")
    if width // step > _LONGEST_SERIES:
        raise WindowError(
            f"series {length!r} of every={every!r} has {width // step} windows, at most {_LONGEST_SERIES} are allowed."
        )
    back = 0 if delay is None else parse_duration(delay)
    late = "" if delay is None else f"_delay{_spelled(delay, back)}"
    return tuple(
        Window("tumbling", step, step, f"{_spelled(every, step)}_{i}{late}", back + i * step)
        for i in range(width // step)
    )


def _window(
    kind: str, length: Duration | None, hop: Duration | None, label: str, delay: str | timedelta | None
) -> Window:
    if delay is None:
        return Window(kind, length, hop, label)
    back = parse_duration(delay)
    return Window(kind, length, hop, f"{label}_delay{_spelled(delay, back)}", back)


def _spelled(given: str | timedelta, duration: Duration) -> str:
    return given.strip() if isinstance(given, str) else format_duration(duration)


def _dividing(hop: str | timedelta, length: str | timedelta, width: Duration, *, what: str = "hop") -> Duration:
    """Return the microseconds of a hop that divides the window."""
    step = parse_duration(hop)
    if width % step:
        choices = ", ".join(format_duration(h) for h in _HOPS if width % h == 0 and h <= width)
        hint = f"use one of {choices}." if choices else f"use {format_duration(width)}."
        raise WindowError(f"{what} {hop!r} does not divide window {length!r}.", hint=hint)
    return step


def as_window(window: str | Window) -> Window:
    """Return a window from its short form: a duration is a sawtooth, "lifetime" is everything."""
    if isinstance(window, Window):
        return window
    if not isinstance(window, str):
        raise WindowError(
            f"window {window!r} is not a window.", hint="write '1h', 'lifetime' or Sawtooth('1h', hop='1m')."
        )
    return Lifetime() if window.strip() == "lifetime" else Sawtooth(window)


@dataclass(frozen=True, slots=True)
class Windowed:
    """An aggregate over one or more windows: what ``Count().over("1h", "24h")`` returns."""

    aggregate: Aggregate
    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        for window in self.windows:
            self.aggregate.check_window(window)
        labels = [window.label for window in self.windows]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise WindowError(f"{self.aggregate!r} names window {min(twice)!r} twice.")
