"""Which feature a text names: ``VIEW.FEATURE``, ``SERVICE.VIEW.FEATURE``, or ``SERVICE.FEATURE`` where one view has it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from featurestore.algebra import Windowed
from featurestore.errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from featurestore.definitions.layout import FeatureLayout
    from featurestore.definitions.registry import Definitions
    from featurestore.definitions.view import FeatureView


@dataclass(frozen=True, slots=True)
class Named:
    """A windowed feature, its view, and a service that has it (None: no service does)."""

    view: FeatureView
    feature: FeatureLayout
    service: str | None

    @property
    def id(self) -> str:
        """Its full name, ``view.feature_window``."""
        return f"{self.view.name}.{self.feature.name}"


def find_feature(applied: Definitions, name: str) -> Named:
    """Return the feature that a text names.

    Without a service, it is the first one that has the view.

    Raises:
        UnknownNameError: There is none, or more than one.
    """
    known = [
        Named(view, feature, _service_of(applied, view))
        for view in applied.views.values()
        for feature in view.layout.features
    ]
    if not known:
        raise UnknownNameError(f"no feature {name!r}: nothing is applied.", hint="run featurestore apply first.")
    found = [each for each in known if each.id == name]
    first, _, rest = name.partition(".")
    if not found and first in applied.services:
        views = {view.name for view in applied.services[first].views}
        inside = [Named(each.view, each.feature, first) for each in known if each.view.name in views]
        found = [each for each in inside if rest in (each.id, each.feature.name)]
        if not found:
            raise UnknownNameError(
                f"service {first} has no feature {rest!r}.",
                hint=did_you_mean(rest, [each.id for each in inside], what="features"),
            )
    if not found:
        alone = [each.id for each in known if each.feature.name == name]
        hint = (
            f"write {' or '.join(alone)}."
            if alone
            else did_you_mean(name, [each.id for each in known], what="features")
        )
        raise UnknownNameError(f"no feature {name!r} is applied.", hint=hint)
    if len(found) > 1:
        raise UnknownNameError(
            f"{len(found)} views of service {first} have a feature {rest!r}.",
            hint=f"write {' or '.join(each.id for each in found)}.",
        )
    return found[0]


def _service_of(applied: Definitions, view: FeatureView) -> str | None:
    return next((s.name for s in applied.services.values() if view.name in {each.name for each in s.views}), None)


def alone(named: Named) -> FeatureView:
    """Return the view with this one feature, under the same names and conditions."""
    for name, windowed in named.view.features.items():
        if not isinstance(windowed, Windowed):
            continue
        for window in windowed.windows:
            if f"{name}_{window.label}" == named.feature.name:
                return replace(named.view, features={name: Windowed(windowed.aggregate, (window,))})
    raise UnknownNameError(f"view {named.view.name} has no feature {named.feature.name!r}.")
