"""Definitions: everything a project has defined, by name, and how two such sets differ. Pure.

Rules:
    1. A name means one thing: two different definitions of one kind and name are refused.
    2. What a service or view refers to belongs to the set, whether it was named or not.
    3. Definitions are data: ``from_dict(to_dict())`` gives an equal set, without any user module.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.definitions.cost import ViewCost, cost_of
from featurestore.definitions.entity import Entity
from featurestore.definitions.policy import LookupPolicy
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.versions import refuse_break
from featurestore.definitions.view import FeatureView
from featurestore.errors import (
    BreakingChangeError,
    DefinitionError,
    DuplicateNameError,
    UnknownNameError,
    did_you_mean,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Definition: TypeAlias = Entity | EventSource | FeatureView | FeatureService
KINDS: dict[str, type[Any]] = {
    "entity": Entity,
    "source": EventSource,
    "view": FeatureView,
    "service": FeatureService,
}
"""Kinds in the order in which they build on each other."""
PLURAL = {"entity": "entities", "source": "sources", "view": "views", "service": "services"}


def kind_of(definition: Any) -> str | None:
    """Return "entity", "source", "view" or "service"; None for anything else."""
    return next((kind for kind, cls in KINDS.items() if isinstance(definition, cls)), None)


def definition_text(definition: Definition) -> str:
    """Return a definition as JSON; the order of keys and features is part of it."""
    return json.dumps(definition.to_dict(), separators=(",", ":"))


def fingerprint_of(definition: Definition) -> str:
    """Return 16 hex digits that change when the meaning does; for an entity or source: anything but its description."""
    if isinstance(definition, FeatureView | FeatureService):
        return definition.fingerprint
    meaning = {name: value for name, value in definition.to_dict().items() if name != "description"}
    return hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Definitions:
    """Entities, sources, views and services by name."""

    entities: Mapping[str, Entity] = field(default_factory=dict)
    sources: Mapping[str, EventSource] = field(default_factory=dict)
    views: Mapping[str, FeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)

    @staticmethod
    def of(definitions: Iterable[Definition]) -> Definitions:
        """Return the set of these definitions and of all they refer to.

        Raises:
            DefinitionError: One of them is no definition.
            DuplicateNameError: Two different definitions of one kind share a name.
        """
        found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}

        def add(definition: Any) -> None:
            kind = kind_of(definition)
            if kind is None:
                raise DefinitionError(
                    f"{definition!r} is no definition.", hint="pass entities, sources, views, services or a module."
                )
            if isinstance(definition, FeatureService):
                for view in definition.views:
                    add(view)
            elif isinstance(definition, FeatureView):
                add(definition.entity)
                add(definition.source)
            present = found[kind].setdefault(definition.name, definition)
            if present is not definition and definition_text(present) != definition_text(definition):
                raise DuplicateNameError(
                    f"two different {PLURAL[kind]} are called {definition.name!r}.", hint="rename one of them."
                )

        for definition in definitions:
            add(definition)
        return Definitions(*(found[kind] for kind in KINDS))

    def __iter__(self) -> Iterator[Definition]:
        """Iterate over all definitions, those that others build on first."""
        for kind in KINDS:
            yield from self.of_kind(kind).values()

    def __len__(self) -> int:
        return sum(len(self.of_kind(kind)) for kind in KINDS)

    def of_kind(self, kind: str) -> Mapping[str, Any]:
        """Return the definitions of one kind by name."""
        found: Mapping[str, Any] = getattr(self, PLURAL[kind])
        return found

    def service(self, name: str) -> FeatureService:
        """Return a service.

        Raises:
            UnknownNameError: There is none of this name.
        """
        return self._named("service", name)  # type: ignore[no-any-return]

    def view(self, name: str) -> FeatureView:
        """Return a view.

        Raises:
            UnknownNameError: There is none of this name.
        """
        return self._named("view", name)  # type: ignore[no-any-return]

    def _named(self, kind: str, name: str) -> Any:
        known = self.of_kind(kind)
        if name not in known:
            hint = did_you_mean(name, known, what=PLURAL[kind]) if known else "run featurestore apply first."
            raise UnknownNameError(f"no {kind} {name!r} is defined.", hint=hint)
        return known[name]

    def updated(self, other: Definitions) -> Definitions:
        """Return this set with the definitions of another over it; what refers to a replaced one gets the new one."""
        data = self.to_dict()
        for kind, entries in other.to_dict().items():
            data[kind].update(entries)
        return Definitions.from_dict(data)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return kind -> name -> definition, as data."""
        return {kind: {name: each.to_dict() for name, each in self.of_kind(kind).items()} for kind in KINDS}

    @staticmethod
    def from_dict(data: Mapping[str, Mapping[str, Any]]) -> Definitions:
        """Return the definitions that ``to_dict`` wrote.

        Raises:
            UnknownNameError: A definition refers to one that is not in the set.
        """
        entities = {name: Entity.from_dict(each) for name, each in data.get("entity", {}).items()}
        sources = {name: EventSource.from_dict(each) for name, each in data.get("source", {}).items()}
        views = {}
        for name, each in data.get("view", {}).items():
            _require("view", name, "entity", [each["entity"]], entities)
            _require("view", name, "source", [each["source"]], sources)
            views[name] = FeatureView.from_dict(each, entities, sources)
        services = {}
        for name, each in data.get("service", {}).items():
            _require("service", name, "view", each["views"], views)
            services[name] = FeatureService.from_dict(each, views)
        return Definitions(entities, sources, views, services)


def _require(kind: str, name: str, wanted: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for each in names:
        if each not in known:
            raise UnknownNameError(
                f"{kind} {name} refers to {wanted} {each!r}, which is not defined.",
                hint=did_you_mean(each, known, what=PLURAL[wanted]),
            )


def refuse_breaks(old: Definitions, new: Definitions) -> None:
    """Raise unless every source that both sets have still accepts the events it has accepted so far.

    Raises:
        BreakingChangeError: A contract does not only add to the one before; the message names the field.
    """
    for name in sorted({*old.sources} & {*new.sources}):
        before, after = old.sources[name].contract, new.sources[name].contract
        if before.to_dict() == after.to_dict():
            continue
        try:
            refuse_break(before, after)
        except BreakingChangeError as error:
            raise BreakingChangeError(f"source {name}: {error.message}", hint=error.hint) from None
        forgotten = {before.version, *(each.version for each in before.earlier)}
        forgotten -= {after.version, *(each.version for each in after.earlier)}
        if forgotten and new.sources[name].wire == "confluent":
            raise BreakingChangeError(
                f"source {name}: contract {after.name} has version {after.version} and no longer accepts version "
                f"{', '.join(map(str, sorted(forgotten)))}.",
                hint="keep the files of earlier versions beside the newest.",
            )


def collect(module: Any) -> Definitions:
    """Return the definitions among a module's globals, and all they refer to.

    Raises:
        DefinitionError: There are none.
        DuplicateNameError: Two different definitions of one kind share a name.
    """
    found = [value for value in vars(module).values() if kind_of(value) is not None]
    if not found:
        raise DefinitionError(
            f"module {getattr(module, '__name__', module)!r} defines no entity, source, view or service.",
            hint='for example fraud_v1 = FeatureService("fraud_v1", [card_spend]).',
        )
    return Definitions.of(found)


@dataclass(frozen=True)
class Change:
    """One difference between two sets of definitions.

    Attributes:
        action: "added", "changed" or "removed".
        kind: "entity", "source", "view" or "service".
        name: Its name.
        before: The old fingerprint; None when added.
        after: The new one; None when removed.
        policy: Of a view, what lookups will do with old features, when that is new or changes: "OLD -> NEW" or "NEW".
        cost: Of a view whose meaning is new, the most that it keeps per key in the online store.
    """

    action: str
    kind: str
    name: str
    before: str | None
    after: str | None
    policy: str | None = None
    cost: ViewCost | None = None

    @property
    def is_meaning_changed(self) -> bool:
        """Whether more than notes (description, owner) differ."""
        return self.before != self.after

    def to_dict(self) -> dict[str, Any]:
        """Return the change as data."""
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "before": self.before,
            "after": self.after,
            **({} if self.policy is None else {"policy": self.policy}),
            **({} if self.cost is None else {"cost": self.cost.to_dict()}),
        }

    def __str__(self) -> str:
        sign = {"added": "+", "changed": "~", "removed": "-"}[self.action]
        prints = " -> ".join(text for text in (self.before, self.after) if text is not None)
        parts = [prints] if self.is_meaning_changed else []
        parts += [] if self.policy is None else [f"lookups: {self.policy}"]
        parts += [] if self.cost is None else [str(self.cost)]
        return f"{sign} {self.kind} {self.name} ({'; '.join(parts) or 'notes only'})"


@dataclass(frozen=True)
class ApplyResult:
    """What an apply did.

    Attributes:
        changes: What changed in the registry; empty when it was applied already.
        published: Services whose lookup plan the online store now holds.
        topics: Kafka topics that were created.
    """

    changes: tuple[Change, ...]
    published: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return {
            "changes": [change.to_dict() for change in self.changes],
            "published": list(self.published),
            "topics": list(self.topics),
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes)) or "no changes"


def diff(old: Definitions, new: Definitions) -> tuple[Change, ...]:
    """Return what leads from one set to the other: by kind, then by name."""
    changes = []
    for kind in KINDS:
        before, after = old.of_kind(kind), new.of_kind(kind)
        for name in sorted({*before, *after}):
            left, right = before.get(name), after.get(name)
            prints = [None if each is None else fingerprint_of(each) for each in (left, right)]
            texts = [None if each is None else definition_text(each) for each in (left, right)]
            if texts[0] != texts[1] or prints[0] != prints[1]:
                action = "added" if left is None else "removed" if right is None else "changed"
                cost = cost_of(right.layout) if isinstance(right, FeatureView) and prints[0] != prints[1] else None
                changes.append(Change(action, kind, name, prints[0], prints[1], _policy_change(left, right), cost))
    return tuple(changes)


def _policy_change(left: Any, right: Any) -> str | None:
    """Return what changes in what lookups do with a view's old features; None if nothing does."""
    if not isinstance(right, FeatureView):
        return None
    old, new = _serving(left) if isinstance(left, FeatureView) else str(LookupPolicy()), _serving(right)
    if old == new:
        return None
    return f"{old} -> {new}" if isinstance(left, FeatureView) else new


def _serving(view: FeatureView) -> str:
    return f"{view.policy}{'' if view.ttl is None else f'; a key is forgotten {view.ttl} after its last event'}"
