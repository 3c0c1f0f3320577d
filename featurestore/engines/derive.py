"""Features of read time: ``Derived``, ``Ratio`` and ``RequestFeature``, from finalized features, request values and keys.

A few rows go through the evaluator of single rows, many through the Arrow one, whose fixed cost per expression is that of some
forty rows. The two agree bit for bit, which the conformance suite proves on every function, so which one ran never shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.engines.scalar import evaluate_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from featurestore.definitions.derived import DerivedLayout

FEW_ROWS = 32
"""Rows up to which one by one is quicker."""


def derive_row(layouts: Sequence[DerivedLayout], values: Mapping[str, Any]) -> list[Any]:
    """Return the value of each layout for one row; each may read those before it.

    Args:
        layouts: What to compute.
        values: What they read, by name; None is null, instants are microseconds.
    """
    known = dict(values)
    found = []
    for layout in layouts:
        value = known[layout.id] = evaluate_row(layout, known)
        found.append(value)
    return found


def derive_columns(
    layouts: Sequence[DerivedLayout], columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int
) -> dict[str, pa.Array]:
    """Return the column of each layout, by its id; each may read those before it.

    Args:
        layouts: What to compute.
        columns: What they read, by name, ``rows`` values each.
        rows: How many.
    """
    from featurestore.engines.arrow import evaluate  # not before it is needed: a client may do without Arrow

    known = dict(columns)
    found: dict[str, pa.Array] = {}
    for layout in layouts:
        found[layout.id] = known[layout.id] = evaluate(layout, known, rows)
    return found


def derive_rows(layouts: Sequence[DerivedLayout], rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return what ``derive_row`` does for each of many rows."""
    if len(rows) <= FEW_ROWS or not layouts:
        return [derive_row(layouts, row) for row in rows]
    import pyarrow as pa

    from featurestore.events.arrow_types import ARROW_TYPES

    own = {layout.id for layout in layouts}
    reads = {name: kind for layout in layouts for name, kind in layout.reads.items() if name not in own}
    columns = {name: pa.array([row.get(name) for row in rows], ARROW_TYPES[kind]) for name, kind in reads.items()}
    made = []
    for column in derive_columns(layouts, columns, len(rows)).values():
        plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        made.append(plain.to_pylist())
    return [list(values) for values in zip(*made, strict=True)]
