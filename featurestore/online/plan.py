"""LookupPlan: what a client needs to know of a service, published to the online store by ``apply``. Pure data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.definitions.derived import DerivedLayout, request_values_of
from featurestore.definitions.layout import ViewLayout, service_fingerprint
from featurestore.definitions.policy import LookupPolicy
from featurestore.errors import CodecError, DefinitionError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.datatypes import DataType
    from featurestore.definitions.service import FeatureService
    from featurestore.timeline import Instant

PLAN_FORMATS = (1, 2, 3)
"""1: windowed features alone. 2: with features derived from them. 3: with policies. An older client would ignore what is new."""


@dataclass(frozen=True)
class LookupPlan:
    """What a client needs to know of a service: published to the online store by ``apply``, as JSON."""

    service: str
    views: tuple[ViewLayout, ...]
    request: tuple[DerivedLayout, ...] = ()
    policies: Mapping[str, LookupPolicy] = field(default_factory=dict)
    """By view; of those that have another than the usual one: any age, fail."""

    @staticmethod
    def of(service: FeatureService) -> LookupPlan:
        """Return the plan of a service."""
        policies = {view.name: view.policy for view in service.views if view.policy != LookupPolicy()}
        return LookupPlan(service.name, tuple(view.layout for view in service.views), service.request_layouts, policies)

    @cached_property
    def keys(self) -> dict[str, DataType]:
        """Name to type of the key columns of all views."""
        return {name: kind for view in self.views for name, kind in view.keys}

    @cached_property
    def request_values(self) -> dict[str, DataType]:
        """Name to type of what a lookup has to send besides keys."""
        return request_values_of(self.request, {name: 0 for view in self.views for name in view.types} | self.keys)

    @cached_property
    def defaults(self) -> dict[str, list[Any]]:
        """Per view with a policy, the defaults of its windowed features in order."""
        stated = {view: dict(policy.defaults) for view, policy in self.policies.items()}
        return {
            view.view: [stated[view.view].get(feature.name) for feature in view.features]
            for view in self.views
            if view.view in stated
        }

    def conditions(self, stamps: Mapping[str, bytes | None], t: Instant) -> dict[str, str]:
        """Return by view what policies make of how far the sources were applied, ``stamps``, at ``t``.

        Raises:
            StaleFeatureError: A view is too old and its policy is "fail".
        """
        found: dict[str, str] = {}
        for view in self.views:
            stamp, policy = stamps[view.source], self.policies.get(view.view)
            through = None if stamp is None else int(stamp)
            if policy is not None and (condition := policy.condition(view.view, through, t)):
                found[view.view] = condition
        return found

    def to_json(self) -> bytes:
        """Return the plan as bytes."""
        derives = self.request or any(view.derived for view in self.views)
        data = {
            "format": 3 if self.policies else 2 if derives else 1,
            "service": self.service,
            "views": [view.to_dict() for view in self.views],
            **({"request": [each.to_dict() for each in self.request]} if self.request else {}),
            **({"policies": {view: each.to_dict() for view, each in self.policies.items()}} if self.policies else {}),
        }
        return json.dumps(data, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> LookupPlan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            CodecError: The bytes are not a plan of this version.
        """
        try:
            plan = json.loads(data)
            if plan["format"] not in PLAN_FORMATS:
                raise CodecError(f"lookup plan has format {plan['format']!r}, this client reads {PLAN_FORMATS[-1]}.")
            return LookupPlan(
                plan["service"],
                tuple(ViewLayout.from_dict(view) for view in plan["views"]),
                tuple(DerivedLayout.from_dict(each) for each in plan.get("request", ())),
                {view: LookupPolicy.from_dict(each) for view, each in plan.get("policies", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CodecError):
                raise
            raise CodecError(f"the published lookup plan is unreadable: {error}", hint="run apply again.") from error

    @cached_property
    def fingerprint(self) -> str:
        """The service's fingerprint."""
        return service_fingerprint(self.views, self.request)


def narrowed(plan: LookupPlan, features: Sequence[str]) -> LookupPlan:
    """Return the plan of what these features need: their views whole, and the request features they are computed from.

    Raises:
        UnknownNameError: The service has no such feature.
        DefinitionError: There is none, or one twice.
    """
    request = {each.id: each for each in plan.request}
    known = {name: view.view for view in plan.views for name in view.types}
    if not features or len(set(features)) != len(features):
        raise DefinitionError(
            f"service {plan.service}: features is {list(features)!r}; name each one once, at least one."
        )
    views: set[str] = set()
    needed: set[str] = set()
    open_ = list(features)
    while open_:
        name = open_.pop()
        if name in request:
            if name not in needed:
                needed.add(name)
                open_ += [each for each in request[name].reads if each in known or each in request]
        elif name in known:
            views.add(known[name])
        else:
            raise UnknownNameError(
                f"service {plan.service} has no feature {name!r}.",
                hint=did_you_mean(str(name), [*known, *request], what="features"),
            )
    return LookupPlan(
        plan.service,
        tuple(view for view in plan.views if view.view in views),
        tuple(each for each in plan.request if each.id in needed),
        {view: policy for view, policy in plan.policies.items() if view in views},
    )
