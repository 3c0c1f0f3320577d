"""FeatureVector: what a lookup of one entity returns."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.errors import UnknownNameError, did_you_mean
from featurestore.timeline import Instant, format_instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.algebra import Window

PRESENT, NULL, MISSING, STALE, DEGRADED = "present", "null", "missing", "stale", "degraded"


@dataclass(slots=True, repr=False)  # not frozen: that triples what one costs
class FeatureVector(Mapping[str, Any]):
    """The features of one entity at one time, by name, in the service's order.

    Attributes:
        names: Feature ids, ``view.feature_window``; request features by their names.
        row: The values in that order; None is null.
        known: Per view, whether the key has a record in the store.
        as_of: Per view, the newest event time inside its values; None without events.
        complete_through: Arrival instant up to which all events of all its sources have been applied; None when the store
            does not say (nothing applied yet, or an emptied store).
        at: The time of the lookup, microseconds UTC.
        reads: Per request feature, the views it is computed from.
        conditions: Per view whose policy had to act, "stale" or "degraded".
        spans: Per windowed feature, its window.
    """

    names: tuple[str, ...]
    row: tuple[Any, ...]
    known: Mapping[str, bool]
    as_of: Mapping[str, Instant | None]
    complete_through: Instant | None
    at: Instant
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    spans: Mapping[str, Window] = field(default_factory=dict)
    _cut: Callable[[], tuple[Any, ...]] | None = field(default=None, init=False, compare=False)
    """What returns the row, where it is made when the first value is asked for; ``row`` is not set until then."""

    def __getattr__(self, name: str) -> Any:  # of what is not there: a row that was not cut yet
        cut = self._cut if name == "row" else None
        if cut is not None:
            self.row = cut()
            self._cut = None  # after that, for another thread that comes here meanwhile
        return object.__getattribute__(self, name)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.row[self.names.index(name)]
        except ValueError:
            raise UnknownNameError(
                f"no feature {name!r} in this vector.", hint=did_you_mean(name, self.names, what="features")
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def values_by_name(self) -> dict[str, Any]:
        """Values by feature id."""
        return dict(zip(self.names, self.row, strict=True))

    @property
    def status(self) -> dict[str, str]:
        """Per feature: "present", "null", "missing", "stale" or "degraded".

        Null: the key is known, nothing counted. Missing: the key has no record. Stale: the stored value, older than its view
        allows. Degraded: the view's default, for the stored value is too old or could not be read.

        A request feature has the worst status of the views it reads, missing being the best of the three.
        """
        if not self.conditions and all(self.known.values()):  # as mostly; told without asking of every feature
            found = dict.fromkeys(self.names, PRESENT)
            if None in self.row:
                found |= {name: NULL for name, value in zip(self.names, self.row, strict=True) if value is None}
            return found
        return {name: self._status(name, value) for name, value in zip(self.names, self.row, strict=True)}

    def _status(self, name: str, value: Any) -> str:
        views = self.reads.get(name, (name.partition(".")[0],))
        if self.conditions:
            found = {self.conditions.get(view) for view in views}
            for condition in (DEGRADED, STALE):
                if condition in found:
                    return condition
        if not all(self.known[view] for view in views):
            return MISSING
        return NULL if value is None else PRESENT

    @property
    def windows(self) -> dict[str, tuple[Instant | None, Instant]]:
        """Per windowed feature, the event times it covers: [first, second); the first is None without beginning.

        The end is the time of the lookup, or just past the newest event merged where the clock was behind it.
        """
        found = {}
        for name, window in self.spans.items():
            newest = self.as_of.get(name.partition(".")[0])
            t = self.at if newest is None else max(self.at, newest + 1)
            found[name] = (window.start(t), window.end(t))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, times as ISO 8601; the form the command line prints."""
        return {
            "values": self.values_by_name,
            "status": self.status,
            "as_of": {view: None if at is None else format_instant(at) for view, at in self.as_of.items()},
            "complete_through": None if self.complete_through is None else format_instant(self.complete_through),
            "at": format_instant(self.at),
        }

    def to_list(self) -> list[Any]:
        """Return the values in the service's order."""
        return list(self.row)

    def __repr__(self) -> str:
        lines = [f"FeatureVector at {format_instant(self.at)}"]
        width = max(map(len, self.names), default=0)
        status = self.status
        for name, value in zip(self.names, self.row, strict=True):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"  {name:<{width}}  {shown if value is not None else 'null':>12}  {status[name]}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td><td>{self.status[name]}</td></tr>"
            for name, value in zip(self.names, self.row, strict=True)
        )
        return f"<table><tr><th>feature</th><th>value</th><th>status</th></tr>{cells}</table>"


def present_and_null(present: int, count: int) -> dict[str, int]:
    """Return how many of ``count`` features of known keys have which status, where so many are present."""
    if present == count:
        return {PRESENT: count}
    return {PRESENT: present, NULL: count - present} if present else {NULL: count}
