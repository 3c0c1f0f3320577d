"""Aggregates with a bytes slot, for tests of everything that stores partials: small, exact and of any input type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from featurestore.algebra.aggregate import Aggregate
from featurestore.algebra.columns import to_columns
from featurestore.datatypes import SCALARS, DataType
from featurestore.errors import CodecError


@dataclass(frozen=True, repr=False)
class Texts(Aggregate):
    """The sorted distinct values, as a list; ``most`` cuts the list and is no part of the partial."""

    most: int = 1_000

    accepts: ClassVar[frozenset[DataType]] = SCALARS - {DataType.FLOAT64}
    partial_kind: ClassVar[str] = "texts"
    finalize_only: ClassVar[frozenset[str]] = frozenset({"most"})

    @property
    def slots(self) -> tuple[str, ...]:
        """(n, JSON of the sorted values)."""
        return ("i8", "b")

    @property
    def result_type(self) -> DataType:
        return DataType.list_of(self.value_type)

    def empty(self):
        return (0, b"")

    def prepare(self, value, at):
        return self.empty() if value is None else (1, self.pack([value]))

    def merge(self, a, b):
        return (a[0] + b[0], self.pack([*self.unpack(a[1]), *self.unpack(b[1])]))

    def finalize(self, partial):
        return self.unpack(partial[1])[: self.most] if partial[0] else None

    def prepare_columns(self, values, valid, event_time, sequence):
        cast: Any = {DataType.STRING: str, DataType.BOOL: bool}.get(self.value_type, int)
        rows = [self.prepare(cast(v) if ok else None, None) for v, ok in zip(values, valid, strict=True)]
        return to_columns(self.slots, rows)

    def merge_columns(self, a, b):
        rows = [self.merge((int(n), x), (int(m), y)) for n, x, m, y in zip(*a, *b, strict=True)]
        return to_columns(self.slots, rows)

    def finalize_columns(self, partial):
        values = np.empty(len(partial[0]), dtype=object)
        for row, packed in enumerate(partial[1]):
            values[row] = self.unpack(packed)[: self.most]
        return values, partial[0] > 0

    @staticmethod
    def pack(values):
        return json.dumps(sorted(set(values))).encode() if values else b""

    @staticmethod
    def unpack(packed):
        if not packed:
            return []
        try:
            values = json.loads(packed)
            sorted(values)
        except (ValueError, TypeError, RecursionError) as error:
            raise CodecError(f"Texts: {packed[:20]!r} is not what it writes.") from error
        if not isinstance(values, list) or not all(isinstance(one, str | int) for one in values):
            raise CodecError(f"Texts: {packed[:20]!r} is no list.")
        return values


@dataclass(frozen=True, repr=False)
class Longest(Texts):
    """The greatest value, as a scalar: a string where the input is one."""

    partial_kind: ClassVar[str] = "longest"

    @property
    def result_type(self) -> DataType:
        return self.value_type

    def finalize(self, partial):
        return self.unpack(partial[1])[-1] if partial[0] else None

    def finalize_columns(self, partial):
        found = [(self.unpack(packed) or [None])[-1] for packed in partial[1]]
        kind = object if self.value_type == DataType.STRING else np.int64
        values = np.array([("" if kind is object else 0) if one is None else one for one in found], dtype=kind)
        return values, partial[0] > 0
