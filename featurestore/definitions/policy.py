"""LookupPolicy: what a lookup does when a view's features are old, or cannot be read at all. Pure data.

It belongs to serving: it enters no fingerprint, changes no stored byte, and a training set does not apply it.

    on_stale        older than max_staleness                     store not readable
    fail            StaleFeatureError                            the store's error
    default         the defaults, status "degraded"              the defaults, status "degraded"
    serve_stale     the stored values, status "stale"            the store's error: there is nothing to serve

A view's age is the time of the lookup minus the ``complete_through`` of its source. A store that does not say it (nothing
applied yet, or emptied) is older than any bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError, StaleFeatureError, UnknownNameError, did_you_mean
from featurestore.timeline import format_duration, format_instant, parse_duration

if TYPE_CHECKING:
    from featurestore.timeline import Duration, Instant

ACTIONS = ("fail", "default", "serve_stale")


@dataclass(frozen=True)
class LookupPolicy:
    """What a lookup does with one view.

    Attributes:
        max_staleness: How old ``complete_through`` may be, in microseconds; None for any age.
        on_stale: "fail", "default" or "serve_stale".
        defaults: Value by feature name without the view; what has none is null.
    """

    max_staleness: Duration | None = None
    on_stale: str = "fail"
    defaults: tuple[tuple[str, Any], ...] = ()

    def condition(self, view: str, complete_through: Instant | None, t: Instant) -> str | None:
        """Return "stale" or "degraded" for values complete through then that are too old at ``t``; None for others.

        Raises:
            StaleFeatureError: They are too old, and nothing else may be served.
        """
        if self.max_staleness is None:
            return None
        if complete_through is not None and t - complete_through <= self.max_staleness:
            return None
        if self.on_stale == "fail":
            raise StaleFeatureError(
                f"view {view}: complete through {'nothing' if complete_through is None else format_instant(complete_through)}, "
                f"asked at {format_instant(t)}, which is more than {format_duration(self.max_staleness)} later.",
                hint="is its job running? on_stale='serve_stale' or 'default' would answer.",
            )
        return "stale" if self.on_stale == "serve_stale" else "degraded"

    def __str__(self) -> str:
        age = "any age" if self.max_staleness is None else f"at most {format_duration(self.max_staleness)} old"
        defaults = ", ".join(f"{name}={value!r}" for name, value in self.defaults)
        return f"{age}, else {self.on_stale}{f' ({defaults})' if defaults else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as data."""
        return {"max_staleness": self.max_staleness, "on_stale": self.on_stale, "defaults": dict(self.defaults)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> LookupPolicy:
        """Return the policy that ``to_dict`` wrote.

        Raises:
            ValueError: It is not one.
        """
        if data["on_stale"] not in ACTIONS or not isinstance(data["max_staleness"], int | None):
            raise ValueError(f"policy {data!r}")
        return LookupPolicy(data["max_staleness"], data["on_stale"], tuple(data["defaults"].items()))


def make_policy(
    view: str,
    types: Mapping[str, DataType],
    *,
    max_staleness: str | None,
    on_stale: str,
    defaults: Mapping[str, Any],
) -> LookupPolicy:
    """Return the policy of a view, checked.

    Args:
        view: Its name, for messages.
        types: Type by name of its windowed features, without the view.
        max_staleness: Such as "10m"; None for any age.
        on_stale: See the module.
        defaults: Value by feature name.

    Raises:
        DefinitionError: A value is not allowed, of the wrong type, or would never be used.
        UnknownNameError: A default is for no windowed feature of the view.
    """
    if on_stale not in ACTIONS:
        raise DefinitionError(f"view {view}: on_stale is {on_stale!r}, allowed are {', '.join(ACTIONS)}.")
    longest = None if max_staleness is None else parse_duration(max_staleness)
    if longest is not None and longest <= 0:
        raise DefinitionError(f"view {view}: max_staleness is {max_staleness!r}, it must be longer than 0.")
    if on_stale == "serve_stale" and longest is None:
        raise DefinitionError(
            f"view {view}: on_stale is 'serve_stale' without max_staleness.", hint="for example max_staleness='10m'."
        )
    if not isinstance(defaults, Mapping) or (defaults and on_stale != "default"):
        raise DefinitionError(f"view {view}: defaults need on_stale='default', not {on_stale!r}.")
    checked = []
    for name, value in defaults.items():
        if name not in types:
            raise UnknownNameError(
                f"view {view}: default for {name!r}, which is no windowed feature of it.",
                hint=did_you_mean(str(name), types, what="features"),
            )
        checked.append((name, _typed(value, types[name], f"view {view}: default of {name}")))
    return LookupPolicy(longest, on_stale, tuple(checked))


def _typed(value: Any, kind: DataType, where: str) -> Any:
    is_whole = type(value) is int and -(2**63) <= value < 2**63
    if (
        value is None
        or (type(value) is bool and kind == DataType.BOOL)
        or (type(value) is str and kind == DataType.STRING)
    ):
        return value
    if kind == DataType.FLOAT64 and (is_whole or (type(value) is float and abs(value) < float("inf"))):
        return float(value)
    if kind in (DataType.INT64, DataType.TIMESTAMP) and is_whole:
        return value
    raise DefinitionError(
        f"{where} is {value!r}, not of type {kind}.",
        hint="a finite number, text, bool, microseconds for an instant, or None; lists have no default but None.",
    )
