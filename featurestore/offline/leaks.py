"""The leak report: where values by event time differ from what was there to be served, feature by feature.

A model trained by event time sees late events that a lookup at that moment could not have seen. How many rows that changes is
measured, not guessed: both values of every row are computed from the same events, in the same task, and compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.offline.blobs import gathered
from featurestore.offline.point_in_time import SPINE, Grouping, columns_of, evaluated
from featurestore.offline.spine import ROW
from featurestore.timeline import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import DataFrame

    from featurestore.definitions.view import FeatureView

LEAKS = "feature string, rows bigint, row bigint, example string"
TOLERANCE = 1e-9
"""Relative difference of doubles that is rounding, not an event."""


@dataclass(frozen=True)
class Leak:
    """How one feature's values by event time differ from those that could be served.

    Attributes:
        feature: The feature's id.
        rows: Rows of the training set where they differ.
        share: That, as a share of all rows.
        row: The first such row; None when there is none.
        example: Its key, its time, and both values: {"key", "t", "by_event_time", "as_served"}.
    """

    feature: str
    rows: int
    share: float
    row: int | None = None
    example: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.example is None:
            return f"{self.feature}: no difference"
        both = f"{self.example['by_event_time']!r} by event time, {self.example['as_served']!r} as served"
        return f"{self.feature}: {self.rows} rows ({self.share:.2%}); row {self.row}: {both}"


@dataclass(frozen=True)
class FindLeaks:
    """The pieces of some buckets -> for every feature how many points differ, and the first of them."""

    grouping: Grouping

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row for every feature that differs anywhere in a bucket."""
        for target, tables in gathered(batches):
            points = tables.pop(SPINE, None)
            if points is None:
                continue
            found: list[dict[str, Any]] = []
            for index, view in enumerate(self.grouping.views):
                if self.grouping.of(view) == target // self.grouping.buckets:
                    found += _differences(view, tables.pop(index, None), points)
            if found:
                names = (("feature", pa.string()), ("rows", pa.int64()), ("row", pa.int64()), ("example", pa.string()))
                yield pa.RecordBatch.from_pylist(found, pa.schema(list(names)))


def _differences(view: FeatureView, events: pa.Table | None, points: pa.Table) -> list[dict[str, Any]]:
    order, by_event_time = evaluated(view, events, points, as_served=False)
    _, as_served = evaluated(view, events, points, as_served=True)
    row, found = points.column(ROW).to_numpy()[order], []
    left, right = columns_of(view, by_event_time), columns_of(view, as_served)
    for name in left:
        differ = np.flatnonzero(~_same(left[name], right[name]))
        if not len(differ):
            continue
        first = differ[np.argmin(row[differ])]
        place = int(order[first])
        keys = [points.column(f"k{number}")[place].as_py() for number in range(len(view.entity.keys))]
        example = {
            "key": dict(zip(view.entity.keys, keys, strict=True)),
            "t": format_instant(points.column("__at")[place].as_py()),
            "by_event_time": left[name][first].as_py(),
            "as_served": right[name][first].as_py(),
        }
        found.append(
            {"feature": name, "rows": len(differ), "row": int(row[first]), "example": json.dumps(example, default=str)}
        )
    return found


def _same(left: pa.Array, right: pa.Array) -> np.ndarray:
    """Return where two columns of one type hold the same; nulls and NaN equal their like."""
    valid, other = (each.is_valid().to_numpy(zero_copy_only=False) for each in (left, right))
    if pa.types.is_floating(left.type):
        a, b = (each.fill_null(0.0).to_numpy(zero_copy_only=False) for each in (left, right))
        with np.errstate(invalid="ignore"):
            near = np.isfinite(a) & np.isfinite(b) & (np.abs(a - b) <= TOLERANCE * np.maximum(np.abs(a), np.abs(b)))
        equal = (a == b) | near | (np.isnan(a) & np.isnan(b))
    else:
        equal = np.array([x == y for x, y in zip(left.to_pylist(), right.to_pylist(), strict=True)], bool)
    same: np.ndarray = (valid == other) & (equal | ~valid)
    return same


def leaks_of(found: DataFrame, features: Sequence[str], rows: int) -> tuple[Leak, ...]:
    """Return the report, one entry per feature in order, from what ``FindLeaks`` found."""
    counts: dict[str, int] = {}
    first: dict[str, tuple[int, str]] = {}
    for part in found.collect():
        counts[part["feature"]] = counts.get(part["feature"], 0) + part["rows"]
        example = (part["row"], part["example"])
        first[part["feature"]] = min(first.get(part["feature"], example), example)
    return tuple(
        Leak(name, counts[name], counts[name] / rows, first[name][0], json.loads(first[name][1]))
        if name in counts
        else Leak(name, 0, 0.0)
        for name in features
    )
