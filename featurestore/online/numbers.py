"""What was read of many entities, as a model takes it: numbers at once, and everything else when somebody asks. Pure."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from featurestore.online.vector import present_and_null

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.online.reader import ViewReader
    from featurestore.online.table import FeatureTable
    from featurestore.online.vector import FeatureVector
    from featurestore.timeline import Instant


class FeatureNumbers:
    """The features of many entities that all have a record, decoded once more where more than their numbers is asked for.

    Args:
        names: Feature ids in order.
        numbers: float32 of shape (rows, features); null is NaN.
        nulls: How many values of every row are null.
        at: The time of the lookup.
        complete_through: As of ``FeatureVector``.
        decode: Returns the same as a table.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        numbers: np.ndarray,
        nulls: np.ndarray,
        *,
        at: Instant,
        complete_through: Instant | None,
        decode: Callable[[], FeatureTable],
    ) -> None:
        self.names, self.at, self.complete_through = names, at, complete_through
        self._numbers, self._decode = numbers, decode
        self._nulls: list[int] = nulls.tolist()

    @cached_property
    def table(self) -> FeatureTable:
        """All of it."""
        return self._decode()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> FeatureVector:
        return self.table[row]

    def to_numpy(self) -> np.ndarray:
        """Return float32 of shape (rows, features); NaN is null (or a NaN), true is 1, an instant its microseconds.

        The doubles of a table's ``to_numpy``, rounded; beyond float32 they are infinite.
        """
        return self._numbers

    def tally(self, row: int) -> Mapping[str, int]:
        """Return how many features of a row have which status."""
        count = len(self.names)
        return present_and_null(count - self._nulls[row], count)


def read_numbers(
    readers: Sequence[ViewReader], blobs: Sequence[bytes | None], t: Instant, *, width: int, exact_time: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the numbers and nulls of entities, as of ``FeatureNumbers``; None unless compiled code reads all of it.

    Args:
        readers: Of all views, each of one part.
        blobs: Those of every entity, one after the other.
        t: The time of the lookup.
        width: How many features they have in all.
        exact_time: As of ``ViewReader.read``.
    """
    count = len(blobs) // len(readers)
    numbers, nulls = np.empty((count, width), dtype=np.float32), np.zeros(count, dtype=np.int64)
    first = 0
    for at, reader in enumerate(readers):
        mine, code = blobs[at :: len(readers)], reader.compiled
        if code is None or not code.numbers(mine, t, numbers, nulls, first=first, exact_time=exact_time):
            return None
        first += len(reader.layout.features)
    return numbers, nulls
