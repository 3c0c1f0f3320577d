"""Entity: the thing features describe, and the typed columns that identify it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
KEY_TYPES = (DataType.STRING, DataType.INT64, DataType.BOOL, DataType.TIMESTAMP)


def check_name(name: Any, what: str) -> str:
    """Return the name, or refuse one that cannot stand in a key, a column or a path.

    Raises:
        DefinitionError: The name is not a lower-case letter followed by at most 62 of a-z, 0-9 and _.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{what} name {name!r} is not usable.",
            hint="use a lower-case letter followed by lower-case letters, digits or _, at most 63 in all.",
        )
    return name


@dataclass(frozen=True)
class Entity:
    """What features are about: a card, a user, an aircraft.

    Args:
        name: Its name.
        keys: Column name to type, in order; more than one makes a composite key. Types: string, int64, bool, timestamp.
            A null is a key value of its own, and integer 1 is not text "1".
        description: For people.
    """

    name: str
    keys: Mapping[str, str]
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "entity")
        if not isinstance(self.keys, Mapping) or not self.keys:
            raise DefinitionError(
                f"entity {self.name}: keys={self.keys!r} names no key column.", hint='write keys={"card_id": "string"}.'
            )
        typed = {}
        for column, kind in self.keys.items():
            check_name(column, f"entity {self.name}: key column")
            if kind not in KEY_TYPES:
                allowed = ", ".join(KEY_TYPES)
                raise DefinitionError(f"entity {self.name}: key {column} has type {kind!r}; allowed are {allowed}.")
            typed[column] = DataType(kind)
        object.__setattr__(self, "keys", typed)

    def to_dict(self) -> dict[str, Any]:
        """Return the entity as data."""
        return {"name": self.name, "keys": {c: str(t) for c, t in self.keys.items()}, "description": self.description}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Entity:
        """Return the entity that ``to_dict`` wrote."""
        return Entity(data["name"], data["keys"], data["description"])
