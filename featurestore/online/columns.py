"""What views say of a key, and of many keys by feature: arrays as they were decoded. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurestore.datatypes import DataType
from featurestore.timeline import MIN_INSTANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.timeline import Instant

_NUMPY = {DataType.BOOL: np.bool_, DataType.FLOAT64: np.float64, DataType.INT64: np.int64, DataType.TIMESTAMP: np.int64}


class ViewValues(NamedTuple):
    """What a view says about one key at one time.

    Attributes:
        values: One per feature; None is null.
        known: Whether the key has a record at all.
        as_of: The newest event time inside the values, or None without events.
    """

    values: tuple[Any, ...]
    known: bool
    as_of: Instant | None


class Block(NamedTuple):
    """Features that were finalized together.

    Attributes:
        features: Their places in the view.
        data: The values, shape (features, keys); what stands at a null means nothing.
        valid: Which of them are not null; same shape.
    """

    features: np.ndarray
    data: np.ndarray
    valid: np.ndarray


class ViewColumns(NamedTuple):
    """What a view says about many keys at one time, by feature.

    Attributes:
        blocks: Together they hold every feature once.
        known: Whether the key has a record at all, one per key.
        as_of: The newest event time inside the values, one per key; ``MIN_INSTANT`` without events.
    """

    blocks: list[Block]
    known: np.ndarray
    as_of: np.ndarray

    @property
    def width(self) -> int:
        """How many features they are."""
        return sum([len(block.features) for block in self.blocks])


def lists_of(blocks: Sequence[Block], features: int) -> list[list[Any]]:
    """Return one list of Python values per feature, None where null."""
    found: list[list[Any]] = [[]] * features
    for block in blocks:
        columns = block.data.tolist()
        for column, row in zip(*(axis.tolist() for axis in np.nonzero(~block.valid)), strict=True):
            columns[column][row] = None
        for feature, values in zip(block.features.tolist(), columns, strict=True):
            found[feature] = values
    return found


def newest_of(view: ViewColumns) -> list[Instant | None]:
    """Return the newest event time of every key, None without events."""
    return [None if at == MIN_INSTANT else at for at in view.as_of.tolist()]


def view_columns(values: Sequence[ViewValues], types: Sequence[DataType]) -> ViewColumns:
    """Return as columns what a view says of each key; ``types`` are those of its features."""
    blocks = []
    columns = zip(*(one.values for one in values), strict=True)
    for number, (kind, column) in enumerate(zip(types, columns, strict=True)):
        valid = np.array([[value is not None for value in column]])
        data: np.ndarray = np.zeros(valid.shape, dtype=_NUMPY.get(kind, object))
        for row, value in enumerate(column):
            if value is not None:
                data[0, row] = value
        blocks.append(Block(np.array([number]), data, valid))
    as_of = [MIN_INSTANT if one.as_of is None else one.as_of for one in values]
    return ViewColumns(blocks, np.array([one.known for one in values]), np.array(as_of, dtype=np.int64))
