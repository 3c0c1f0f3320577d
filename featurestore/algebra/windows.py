"""Windows: which events of a key count at time t. Every interval is [lo(t), t): the event at t itself is out.

    kind        lo(t)                    what it means
    sawtooth    floor(t - w, hop)        at least w, by less than one hop too much; the default
    lifetime    minus infinity           everything so far

A sawtooth window covers between w and w + hop. Its hop is the coarsest of a fixed, nested list that divides w and keeps
hop / w within ``max_error`` (1/12 unless stated), so that windows of one feature share tiles.
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


@dataclass(frozen=True, slots=True)
class Window:
    """A window over event time. Use ``Sawtooth`` or ``Lifetime`` to make one, or the text "1h" or "lifetime".

    Attributes:
        kind: "sawtooth" or "lifetime".
        length: w in microseconds; None for lifetime.
        hop: The grid on which the far edge moves, in microseconds; None for lifetime.
    """

    kind: str
    length: Duration | None
    hop: Duration | None
    label: str = field(compare=False)
    """How the window appears in a feature's name: "1h"; as the user wrote it."""

    def start(self, t: Instant) -> Instant | None:
        """Return lo(t), or None for minus infinity."""
        if self.length is None or self.hop is None:
            return None
        edge = t - self.length
        return edge - edge % self.hop

    def interval(self, t: Instant) -> Interval:
        """Return [lo(t), t)."""
        return Interval(self.start(t), t)

    def to_dict(self) -> dict[str, Any]:
        """Return the window as data."""
        return {"kind": self.kind, "length_us": self.length, "hop_us": self.hop, "label": self.label}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Window:
        """Return the window that ``to_dict`` wrote."""
        return Window(data["kind"], data["length_us"], data["hop_us"], data["label"])


def Sawtooth(  # noqa: N802 - a window kind reads as a type where it is used
    length: str | timedelta,
    *,
    hop: str | timedelta | None = None,
    max_error: float | Fraction = DEFAULT_MAX_ERROR,
) -> Window:
    """Return a window of at least ``length`` whose far edge moves in hops.

    Args:
        length: How far back at the least, for example "1h".
        hop: The step of the far edge; must divide ``length``. Derived from ``max_error`` when not given.
        max_error: The largest hop / length allowed when the hop is derived.

    Raises:
        WindowError: The hop does not divide the length, or no hop is fine enough.

    >>> Sawtooth("1h").hop == 5 * MINUTE, Sawtooth("24h").hop == 2 * HOUR
    (True, True)
    """
    width = parse_duration(length)
    if hop is not None:
        step = parse_duration(hop)
        if width % step:
            choices = ", ".join(format_duration(h) for h in _HOPS if width % h == 0 and h <= width)
            raise WindowError(f"hop {hop!r} does not divide window {length!r}.", hint=f"use one of {choices}.")
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
    label = length.strip() if isinstance(length, str) else format_duration(width)
    return Window("sawtooth", width, step, label)


def Lifetime() -> Window:  # noqa: N802
    """Return the window of all events so far."""
    return Window("lifetime", None, None, "lifetime")


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
        labels = [window.label for window in self.windows]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise WindowError(f"{self.aggregate!r} names window {min(twice)!r} twice.")
