"""FeatureService: the ordered features one model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.entity import check_name
from featurestore.definitions.layout import service_fingerprint
from featurestore.definitions.view import FeatureView
from featurestore.errors import DefinitionError, DuplicateNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.definitions.source import EventSource


@dataclass(frozen=True)
class FeatureService:
    """The input vector of one model: all features of its views, in order.

    Args:
        name: Its name.
        views: The feature views; a key column that two of them share has one type.
        description: For people.
    """

    name: str
    views: Sequence[FeatureView]
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "service")
        given = self.views if isinstance(self.views, Sequence) else ()
        if not given or not all(isinstance(view, FeatureView) for view in given):
            raise DefinitionError(f"service {self.name}: {self.views!r} is not a list of feature views.")
        object.__setattr__(self, "views", tuple(self.views))
        names = [view.name for view in self.views]
        for name in names:
            if names.count(name) > 1:
                raise DuplicateNameError(f"service {self.name} names view {name} twice.")
        for kind in ("source", "entity"):
            seen: dict[str, Any] = {}
            for view in self.views:
                part = getattr(view, kind)
                if seen.setdefault(part.name, part) != part:
                    raise DuplicateNameError(
                        f"service {self.name}: two different {kind} definitions called {part.name}."
                    )
        _ = self.keys

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
        """All features, ``view.feature_window``, in order."""
        return tuple(name for view in self.views for name in view.layout.feature_ids)

    @property
    def sources(self) -> tuple[EventSource, ...]:
        """The sources of its views, each once, in order of first use."""
        return tuple({view.source.name: view.source for view in self.views}.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change exactly when the vector's meaning or order does."""
        return service_fingerprint([(view.name, view.fingerprint) for view in self.views])

    def to_dict(self) -> dict[str, Any]:
        """Return the service as data; views by name."""
        return {"name": self.name, "views": [view.name for view in self.views], "description": self.description}

    @staticmethod
    def from_dict(data: Mapping[str, Any], views: Mapping[str, FeatureView]) -> FeatureService:
        """Return the service that ``to_dict`` wrote."""
        return FeatureService(data["name"], [views[name] for name in data["views"]], data["description"])
