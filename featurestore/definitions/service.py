"""FeatureService: the ordered features one model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.derived import DerivedLayout, RequestFeature, request_values_of
from featurestore.definitions.entity import check_name
from featurestore.definitions.expression import Expression
from featurestore.definitions.layout import service_fingerprint
from featurestore.definitions.view import FeatureView
from featurestore.errors import DefinitionError, DuplicateNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.definitions.expression_nodes import Node
    from featurestore.definitions.source import EventSource


@dataclass(frozen=True)
class FeatureService:
    """The input vector of one model: all features of its views, in order, then its request features.

    Args:
        name: Its name.
        views: The feature views; a key column that two of them share has one type. Request features may stand among them.
        description: For people.
        request_features: More request features.

    Raises:
        DefinitionError: Names clash, or a request feature's expression is not usable; the message tells the character.
    """

    name: str
    views: Sequence[FeatureView]
    description: str = ""
    request_features: Sequence[RequestFeature] = ()

    def __init__(
        self,
        name: str,
        views: Sequence[FeatureView | RequestFeature],
        description: str = "",
        request_features: Sequence[RequestFeature] = (),
    ) -> None:
        given = tuple(views) if isinstance(views, Sequence) else ()
        asked = (*(each for each in given if isinstance(each, RequestFeature)), *request_features)
        found = tuple(each for each in given if isinstance(each, FeatureView))
        for field, value in (
            ("name", name), ("views", found), ("description", description), ("request_features", asked),
        ):  # fmt: skip
            object.__setattr__(self, field, value)
        check_name(self.name, "service")
        if not found or not all(isinstance(each, FeatureView | RequestFeature) for each in (*given, *asked)):
            raise DefinitionError(f"service {self.name}: {views!r} is not a list of feature views.")
        names = [view.name for view in self.views]
        for one in names:
            if names.count(one) > 1:
                raise DuplicateNameError(f"service {self.name} names view {one} twice.")
        for kind in ("source", "entity"):
            seen: dict[str, Any] = {}
            for view in self.views:
                part = getattr(view, kind)
                if seen.setdefault(part.name, part) != part:
                    raise DuplicateNameError(
                        f"service {self.name}: two different {kind} definitions called {part.name}."
                    )
        _ = self.request_layouts

    @property
    def keys(self) -> dict[str, DataType]:
        """Every key column the service needs, with its type."""
        keys: dict[str, DataType] = {}
        for view in self.views:
            for name, kind in view.entity.keys.items():
                if keys.setdefault(name, DataType(kind)) != kind:
                    raise DefinitionError(f"service {self.name}: key {name!r} is both {keys[name]} and {kind}.")
        return keys

    @property
    def feature_ids(self) -> tuple[str, ...]:
        """All features, ``view.feature_window``, in order; request features last, by their names."""
        return (*self._view_types, *(each.id for each in self.request_layouts))

    @property
    def _view_types(self) -> dict[str, DataType]:
        return {name: kind for view in self.views for name, kind in view.layout.types.items()}

    @cached_property
    def request_layouts(self) -> tuple[DerivedLayout, ...]:
        """The compiled request features; each may use those before it."""
        features, keys = self._view_types, self.keys
        fields: dict[str, set[DataType]] = {}
        for source in self.sources:
            for name, kind in source.contract.columns.items():
                fields.setdefault(name, set()).add(kind)
        declared: dict[str, DataType] = {}
        for each in self.request_features:
            for name, given in each.request.items():
                kind = DataType(given)
                if name in keys:
                    raise DuplicateNameError(
                        f"service {self.name}: request value {name!r} of {each.name} is a key column.",
                        hint="leave it out: keys can be used as they are.",
                    )
                if declared.setdefault(name, kind) != kind:
                    raise DefinitionError(
                        f"service {self.name}: request value {name!r} is both {declared[name]} and {kind}."
                    )
        inferred = {name: next(iter(kinds)) for name, kinds in fields.items() if len(kinds) == 1}
        known: dict[str, DataType | Node] = {**inferred, **declared, **keys, **features}
        found: list[DerivedLayout] = []
        read: set[str] = set()
        for each in self.request_features:
            where = f"service {self.name}: request feature {each.name}"
            if each.name in (declared.keys() | keys.keys() | {one.id for one in found}):
                raise DuplicateNameError(f"{where}: a key, a request value or another request feature is called that.")
            advice = "a request value is declared: request={'amount': 'float64'}."
            node = Expression.parse(each.expression, known, where=where, unknown=advice).node
            layout = DerivedLayout(each.name, node)
            unread = sorted(set(each.request) - set(layout.reads))
            if unread:
                raise DefinitionError(f"{where}: request value {unread[0]!r} is declared, and its expression lacks it.")
            read |= set(layout.reads) - {one.id for one in found}
            if each.name in read:
                raise DuplicateNameError(f"{where}: a request value is called that.", hint="rename the feature.")
            found.append(layout)
            known[each.name] = node.type
        return tuple(found)

    @property
    def request_values(self) -> dict[str, DataType]:
        """Name to type of what a lookup has to send and a spine has to have, besides keys."""
        return request_values_of(self.request_layouts, {**self._view_types, **self.keys})

    @property
    def sources(self) -> tuple[EventSource, ...]:
        """The sources of its views, each once, in order of first use."""
        return tuple({view.source.name: view.source for view in self.views}.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change exactly when the vector's meaning or order does."""
        return service_fingerprint([view.layout for view in self.views], self.request_layouts)

    def to_dict(self) -> dict[str, Any]:
        """Return the service as data; views by name."""
        request = [each.to_dict() for each in self.request_features]
        return {
            "name": self.name,
            "views": [view.name for view in self.views],
            "description": self.description,
            **({"request_features": request} if request else {}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], views: Mapping[str, FeatureView]) -> FeatureService:
        """Return the service that ``to_dict`` wrote."""
        request = [RequestFeature.from_dict(each) for each in data.get("request_features", ())]
        return FeatureService(data["name"], [views[name] for name in data["views"]], data["description"], request)
