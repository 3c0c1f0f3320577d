"""Where the fast paths differ from the specification: the comparison behind ``Replay.assert_equal`` and ``verify``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.definitions.keys import key_values
from featurestore.engines.fates import inputs_at
from featurestore.engines.oracle import values_at
from featurestore.engines.rows import rows_of
from featurestore.engines.scalar import evaluate_row
from featurestore.errors import FeatureStoreError, PastLookupError
from featurestore.online.lookup import LookupPlan, ServiceLookup
from featurestore.testing.compare import values_agree, values_match
from featurestore.testing.log import values_of
from featurestore.timeline import Instant, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.engines.oracle import Event
    from featurestore.engines.shape import Shaped
    from featurestore.online.store import OnlineStore
    from featurestore.online.vector import FeatureVector
    from featurestore.testing.log import EventLog

Keys = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what the specification says.

    Attributes:
        view: The view.
        keys: The entity's key values.
        at: The time of the lookup.
        engine: "training set" or "online".
        feature: The feature's full name; or "known", "as_of" or "refusal": what a lookup says about its values.
        expected: What the specification says.
        actual: What the engine says.
        visible_at: The instant of ``as_served``, where one was asked for.
    """

    view: str
    keys: Mapping[str, Any]
    at: Instant
    engine: str
    feature: str
    expected: Any
    actual: Any
    visible_at: Instant | None = None

    def __str__(self) -> str:
        seen = "" if self.visible_at is None else f" seen at {format_instant(self.visible_at)}"
        return (
            f"{self.feature} for {dict(self.keys)!r} at {format_instant(self.at)}{seen}: "
            f"specification {self.expected!r}, {self.engine} {self.actual!r}"
        )


def report(found: Sequence[Difference], *, most: int = 20) -> str:
    """Return differences as lines of text."""
    lines = [str(difference) for difference in found[:most]]
    if len(found) > most:
        lines.append(f"... and {len(found) - most} more")
    return "\n".join([f"{len(found)} values differ:", *lines])


def entering(view: FeatureView, events: Sequence[Event], keys: Keys) -> list[Event]:
    """Return the events of a key that enter the view."""
    return [
        event
        for event in rows_of(view, events)
        if tuple(event.row[column] for column in view.entity.keys) == keys
        and (view.condition is None or evaluate_row(view.condition, event.row) is True)
    ]


def differences(
    view: FeatureView,
    log: EventLog,
    store: OnlineStore,
    keys: Mapping[str, Any] | None,
    t: Instant,
    now: Instant,
    *,
    visible_at: Instant | None = None,
) -> list[Difference]:
    """Return where training set and online store differ from the specification, for one key or all of a view's."""
    events = log.events()
    if keys is None:
        rows = rows_of(view, events)
        wanted = list(dict.fromkeys(tuple(event.row[column] for column in view.entity.keys) for event in rows))
    else:
        wanted = [tuple(key_values(keys, view.layout.keys, where=f"view {view.name}"))]
    judge = Judge(view, events, log.shaped(view), store, now)
    found = []
    for one in wanted:
        found += judge.training(one, t, visible_at)
        if visible_at is None:
            found += judge.online(one, t)
    return found


@dataclass(frozen=True)
class Judge:
    """Compares the paths of one view over one set of events.

    Attributes:
        view: The view.
        events: All events of its source.
        shaped: The same, as the batch kernel takes them.
        store: The online store they have been applied to.
        now: The time; events from ahead of it may not be the reason of a refusal, since readers skip them.
    """

    view: FeatureView
    events: Sequence[Event]
    shaped: Shaped
    store: OnlineStore
    now: Instant
    _specified: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    """What the specification said, by question: most are asked of both paths, and it takes longest to answer."""

    def training(self, keys: Keys, t: Instant, visible_at: Instant | None = None) -> list[Difference]:
        """Return where the batch kernel differs."""
        try:
            ((*values,),) = values_of(self.view, self.shaped, [(keys, t, visible_at)])
        except FeatureStoreError as error:
            return [self._difference("training set", keys, t, "refusal", None, str(error), visible_at)]
        return self.compare("training set", keys, t, values, visible_at)

    def online(self, keys: Keys, t: Instant) -> list[Difference]:
        """Return where the online store differs; the past may be refused, and is then asked as "now" would be."""
        mine = entering(self.view, self.events, keys)
        at = t
        try:
            try:
                vector = self._lookup(keys, t, exact_time=True)
            except PastLookupError as error:
                if not any(t <= event.event_time <= self.now for event in mine):
                    return [self._difference("online", keys, t, "refusal", None, str(error))]
                vector = self._lookup(keys, t, exact_time=False)
                as_of = vector.as_of[self.view.name]
                at = t if as_of is None else max(t, as_of + 1)
        except FeatureStoreError as error:
            return [self._difference("online", keys, t, "refusal", None, str(error))]
        name = self.view.name
        found = self.compare("online", keys, at, vector.to_list())
        if vector.known[name] != bool(mine):
            found.append(self._difference("online", keys, at, "known", bool(mine), vector.known[name]))
        newest = max((event.event_time for event in mine if event.event_time < at), default=None)
        if vector.as_of[name] != newest:
            found.append(self._difference("online", keys, at, "as_of", newest, vector.as_of[name]))
        return found

    def _lookup(self, keys: Keys, t: Instant, *, exact_time: bool) -> FeatureVector:
        lookup = ServiceLookup(self.store.project, LookupPlan(self.view.name, (self.view.layout,)))
        replies = self.store.read(lookup.store_keys([self._named(keys)]))
        return lookup.vectors(replies, 1, t, exact_time=exact_time)[0]

    def _named(self, keys: Keys) -> dict[str, Any]:
        return dict(zip(self.view.entity.keys, keys, strict=True))

    def compare(
        self, engine: str, keys: Keys, t: Instant, values: Sequence[Any], visible_at: Instant | None = None
    ) -> list[Difference]:
        """Return where an engine's values of all features differ from the specification's."""
        question = (keys, t, visible_at)
        if question not in self._specified:
            self._specified[question] = values_at(self.view, self.events, keys, t, visible_at=visible_at)
        expected = self._specified[question]
        answered = dict(zip(self.view.layout.feature_ids, values, strict=True))
        found = [
            self._difference(engine, keys, t, name, wanted, answered[name], visible_at)
            for feature, (name, wanted) in zip(self.view.layout.features, expected.items(), strict=False)
            if not values_match(
                feature,
                wanted,
                answered[name],
                partial(inputs_at, self.view, feature, self.events, keys, t, visible_at=visible_at),
            )
        ]
        for derived in self.view.layout.derived:
            # Of the path's own values, and exactly: what they are derived from may differ within a tolerance.
            wanted = evaluate_row(derived, answered)
            if not values_agree(wanted, answered[derived.id]):
                found.append(self._difference(engine, keys, t, derived.id, wanted, answered[derived.id], visible_at))
        return found

    def _difference(
        self,
        engine: str,
        keys: Keys,
        t: Instant,
        feature: str,
        expected: Any,
        actual: Any,
        visible_at: Instant | None = None,
    ) -> Difference:
        return Difference(self.view.name, self._named(keys), t, engine, feature, expected, actual, visible_at)
