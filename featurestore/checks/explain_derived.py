"""explain for features of read time: what they are computed from, each explained by itself, and their value on both sides.

A ``Ratio``, ``Derived`` or ``RequestFeature`` has no events of its own. Its inputs are explained one by one; then the same
expression is evaluated over the values of each side (``engines.derive``), as a training set and a lookup do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.checks.explain import SHOWN, explain
from featurestore.checks.explanation import DIFFERENT, EQUAL, NOT_COMPARED, Cause, plain
from featurestore.checks.names import Named, find_feature
from featurestore.definitions.derived import Derived, Ratio
from featurestore.engines.derive import derive_row
from featurestore.errors import UnknownNameError
from featurestore.testing.compare import values_agree
from featurestore.timeline import format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.checks.explanation import Explanation
    from featurestore.datatypes import DataType
    from featurestore.definitions.derived import DerivedLayout
    from featurestore.definitions.registry import Definitions
    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Instant

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class NamedDerived:
    """A feature of read time that is applied.

    Attributes:
        id: Its full name.
        service: The service it was named with, or that it is a request feature of.
        expression: What it computes, as it is written.
        layouts: It and the features of read time that it needs, in the order they are computed; it is the last.
        inputs: The windowed features that these read.
        keys: Key columns of all views that these are of, with their types.
        request: The request values that these read, with their types.
    """

    id: str
    service: str | None
    expression: str
    layouts: tuple[DerivedLayout, ...]
    inputs: tuple[Named, ...]
    keys: Mapping[str, DataType]
    request: Mapping[str, DataType]


@dataclass(frozen=True)
class DerivedExplanation:
    """One value that was computed from others, and whether both sides agree on it.

    Attributes:
        feature: Its full name.
        service: The service it was named with.
        expression: What it computes.
        keys: The entity's key values.
        request: The request values.
        at: The time asked about.
        value: The value at that time, by the event log.
        expected: The value by the event log, of the times for which the inputs were compared.
        online: The value by the online store.
        steps: Features of read time it needs, by name: the value by the event log and by the online store.
        inputs: The windowed features it is computed from, each explained.
        verdict: "equal", "different" or "not compared".
        causes: Those of the inputs that are not equal, the decisive one first.
    """

    feature: str
    service: str | None
    expression: str
    keys: Mapping[str, Any]
    request: Mapping[str, Any]
    at: Instant
    value: Any
    expected: Any
    online: Any
    steps: Mapping[str, tuple[Any, Any]]
    inputs: tuple[Explanation, ...]
    verdict: str
    causes: tuple[Cause, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both sides were compared and agree."""
        return self.verdict == EQUAL

    @property
    def is_reachable(self) -> bool:
        """Whether the online store answered."""
        return all(each.is_reachable for each in self.inputs)

    @property
    def cause(self) -> str | None:
        """The kind of the decisive cause; None where there is none."""
        return self.causes[0].kind if self.causes else None

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as data for JSON: times as ISO 8601, doubles that JSON cannot write as texts."""
        found: dict[str, Any] = plain(
            {
                "feature": self.feature,
                "service": self.service,
                "expression": self.expression,
                "keys": dict(self.keys),
                "request": dict(self.request),
                "at": format_instant(self.at),
                "verdict": self.verdict,
                "value": self.value,
                "expected": self.expected,
                "online": self.online,
                "steps": {
                    name: {"offline": offline, "online": online} for name, (offline, online) in self.steps.items()
                },
                "causes": [{"kind": each.kind, "text": each.text, "hint": each.hint} for each in self.causes],
            }
        )
        return {**found, "inputs": [each.to_dict() for each in self.inputs]}


def find(applied: Definitions, name: str) -> Named | NamedDerived:
    """Return the feature that a text names: ``VIEW.FEATURE``, ``SERVICE.VIEW.FEATURE`` or ``SERVICE.REQUEST_FEATURE``.

    Raises:
        UnknownNameError: There is none, or more than one.
    """
    first, _, rest = name.partition(".")
    for view in applied.views.values():
        for layout in view.layout.derived:
            if layout.id in (name, rest):
                feature = view.features[layout.id.partition(".")[2]]
                assert isinstance(feature, Derived | Ratio)  # noqa: S101 - it has a layout of that kind
                return _closed(
                    applied, layout, view.layout.derived, feature.expression, first if layout.id == rest else None
                )
    for service in applied.services.values():
        for layout, taken in zip(service.request_layouts, service.request_features, strict=True):
            if layout.id == rest and first == service.name:
                known = (*(each for view in service.views for each in view.layout.derived), *service.request_layouts)
                return _closed(applied, layout, known, taken.expression, first)
    return find_feature(applied, name)


def _closed(
    applied: Definitions, layout: DerivedLayout, known: tuple[DerivedLayout, ...], expression: str, service: str | None
) -> NamedDerived:
    """Return a feature with all that it needs."""
    by_id = {each.id: each for each in known}
    needed, todo = {layout.id}, [layout]
    reads: dict[str, DataType] = {}
    while todo:
        for name, kind in todo.pop().reads.items():
            reads[name] = kind
            if name in by_id and name not in needed:
                needed.add(name)
                todo.append(by_id[name])
    windowed = {f"{view.name}.{each.name}" for view in applied.views.values() for each in view.layout.features}
    inputs = tuple(find_feature(applied, name) for name in reads if name in windowed and name not in by_id)
    views = {each.view.name: each.view for each in inputs}
    keys = {name: kind for view in views.values() for name, kind in view.layout.keys}
    own = {*by_id, *windowed, *keys}
    return NamedDerived(
        layout.id,
        service,
        expression,
        tuple(each for each in known if each.id in needed),
        inputs,
        keys,
        {name: kind for name, kind in reads.items() if name not in own},
    )


def explain_derived(
    named: NamedDerived,
    keys: Mapping[str, Any],
    t: Instant,
    *,
    offline: str,
    store: OnlineStore,
    request: Mapping[str, Any] | None = None,
    as_served: bool = False,
    shown: int = SHOWN,
) -> DerivedExplanation:
    """Return what a feature of read time is computed from, and its value on both sides.

    Args:
        named: The feature.
        keys: Key columns and values of all views it is computed from.
        t: The time; events at or after it do not count.
        offline: Root of the Delta tables.
        store: The online store.
        request: Request values by name; None as a value is null.
        as_served: Whether events that arrived after ``t`` are left out of the offline side.
        shown: How many events and tiles to keep of every input, the newest.

    Raises:
        UnknownNameError: A request value is missing.
        OfflineStoreUnavailableError: A source has no event log yet.
    """
    given = dict(request or {})
    missing = [name for name in named.request if name not in given]
    if missing:
        raise UnknownNameError(
            f"feature {named.id} takes request value {missing[0]!r}.", hint=f"add --request {missing[0]}=VALUE."
        )
    inputs = tuple(
        explain(each, keys, t, offline=offline, store=store, as_served=as_served, shown=shown) for each in named.inputs
    )
    common = {**{name: keys[name] for name in named.keys}, **{name: given[name] for name in named.request}}
    sides = [
        derive_row(named.layouts, common | {each.feature: value for each, value in zip(inputs, values, strict=True)})
        for values in (
            [each.value for each in inputs],
            [each.expected for each in inputs],
            [each.online.value for each in inputs],
        )
    ]
    value, expected, online = (side[-1] for side in sides)
    causes = tuple(cause for each in inputs if not each.is_equal for cause in each.causes)
    verdict = NOT_COMPARED
    if all(each.is_reachable for each in inputs):
        agree = values_agree(expected, online, tolerance=_TOLERANCE, slack=0.0)
        verdict = EQUAL if agree and all(each.is_equal for each in inputs) else DIFFERENT
    steps = {
        layout.id: (left, right)
        for layout, left, right in zip(named.layouts[:-1], sides[1][:-1], sides[2][:-1], strict=True)
    }
    return DerivedExplanation(
        feature=named.id,
        service=named.service,
        expression=named.expression,
        keys={name: keys[name] for name in named.keys},
        request={name: given[name] for name in named.request},
        at=t,
        value=value,
        expected=expected,
        online=online,
        steps=steps,
        inputs=inputs,
        verdict=verdict,
        causes=causes or tuple(cause for each in inputs for cause in each.causes),
    )
