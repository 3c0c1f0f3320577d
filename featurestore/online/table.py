"""FeatureTable: what a lookup of many entities returns, held by columns.

What was decoded as arrays stays arrays: ``to_numpy`` and ``to_arrow`` make no Python object per value, and the vectors are
made when they are first asked for.
"""

from __future__ import annotations

import html
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ConfigError, DefinitionError
from featurestore.online.columns import Block, lists_of, newest_of
from featurestore.online.vector import FeatureVector, present_and_null

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from featurestore.datatypes import DataType
    from featurestore.online.columns import ViewColumns
    from featurestore.timeline import Instant

_ROWS, _COLUMNS, _CELL = 10, 8, 24
"""What a table shows of itself: rows, columns, characters of a cell."""


class FeatureTable:
    """The features of many entities, one row each, in the order they were asked for."""

    def __init__(self, names: tuple[str, ...], types: tuple[DataType, ...], vectors: list[FeatureVector]) -> None:
        self.names = names
        self.types = types
        self._rows = len(vectors)
        self._made: list[FeatureVector] | None = vectors
        self._views: Mapping[str, ViewColumns] = {}
        self._blocks: list[Block] | None = None
        self._rest: dict[str, Any] = {}

    @classmethod
    def of_columns(
        cls,
        names: tuple[str, ...],
        types: tuple[DataType, ...],
        views: Mapping[str, ViewColumns],
        *,
        complete_through: Instant | None,
        at: Instant,
        pick: Sequence[int] | None = None,
        **rest: Any,
    ) -> FeatureTable:
        """Return the table of what every view says, all of the same keys.

        Args:
            names: Feature ids in order.
            types: Their types.
            views: By view.
            complete_through: As of ``FeatureVector``.
            at: Likewise.
            pick: Place of every feature of ``names`` among those of the views; None when they are all of them.
            rest: More of what vectors have in common.
        """
        table = cls(names, types, [])
        table._made, table._views = None, views
        table._rest = {"complete_through": complete_through, "at": at, **rest}
        table._blocks = blocks = []
        first = 0
        for view in views.values():
            table._rows = len(view.known)
            # An empty store is not an empty window: without any sign of progress, an unknown key has no values.
            hides = complete_through is None and not view.known.all()
            if not (hides or first):
                blocks += view.blocks
            else:
                for block in view.blocks:
                    valid = block.valid & view.known if hides else block.valid
                    blocks.append(Block(block.features + first, block.data, valid))
            first += view.width
        if pick is not None:
            place = {feature: number for number, feature in enumerate(pick)}
            table._blocks = []
            for block in blocks:
                kept = [column for column, feature in enumerate(block.features.tolist()) if feature in place]
                if kept:
                    features = np.array([place[block.features[column]] for column in kept])
                    table._blocks.append(Block(features, block.data[kept], block.valid[kept]))
        return table

    @property
    def _vectors(self) -> list[FeatureVector]:
        if self._made is None:
            assert self._blocks is not None  # noqa: S101 - one of the two is there
            rows = zip(*lists_of(self._blocks, len(self.names)), strict=True)
            known = [view.known.tolist() for view in self._views.values()]
            as_of = [newest_of(view) for view in self._views.values()]
            self._made = [
                FeatureVector(
                    self.names,
                    row,
                    dict(zip(self._views, is_known, strict=True)),
                    dict(zip(self._views, newest, strict=True)),
                    **self._rest,
                )
                for row, is_known, newest in zip(rows, zip(*known, strict=True), zip(*as_of, strict=True), strict=True)
            ]
        return self._made

    @property
    def at(self) -> Instant:
        """The time of the lookup, microseconds UTC."""
        at: Instant = self._said("at")
        return at

    @property
    def complete_through(self) -> Instant | None:
        """As of ``FeatureVector``."""
        through: Instant | None = self._said("complete_through")
        return through

    def _said(self, what: str) -> Any:
        return self._rest[what] if self._rest else getattr(self._vectors[0], what)

    def tally(self, row: int) -> Mapping[str, int]:
        """Return how many features of a row have which status."""
        return self._tallies[row]

    @cached_property
    def _tallies(self) -> list[Mapping[str, int]]:
        is_known = all(view.known.all() for view in self._views.values())
        if self._blocks is None or self._rest.get("conditions") or not is_known:
            return [_tally(vector) for vector in self._vectors]
        present: list[int] = np.sum([block.valid.sum(axis=0) for block in self._blocks], axis=0).tolist()
        return [present_and_null(one, len(self.names)) for one in present]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> FeatureVector:
        return self._vectors[row]

    def __iter__(self) -> Iterator[FeatureVector]:
        return iter(self._vectors)

    def to_numpy(self) -> np.ndarray:
        """Return float64 of shape (rows, features); NaN is null (or a NaN), true is 1, an instant its microseconds.

        Raises:
            DefinitionError: A feature is a string or a list, which is no number.
        """
        blocks = self._blocks
        if blocks is None or any(block.data.dtype == object for block in blocks):
            self._require_numbers()
        if blocks is None:
            rows = [vector.row for vector in self._vectors]
            return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.names))
        made = np.empty((len(self.names), len(self)), dtype=np.float64)
        for block in blocks:
            made[block.features] = np.where(block.valid, block.data, np.nan)
        return np.ascontiguousarray(made.T)

    def _require_numbers(self) -> None:
        for name, kind in zip(self.names, self.types, strict=True):
            if kind.is_object:
                raise DefinitionError(
                    f"feature {name} is {kind}; only numbers fit a numpy matrix.",
                    hint="use to_arrow() or to_pandas(), or ask for a service without it.",
                )

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table with the features' own types and real nulls; lists as Arrow lists."""
        import pyarrow as pa

        from featurestore.events.arrow_types import ARROW_TYPES

        columns: list[Any] = [()] * len(self.names)
        if self._blocks is None:
            columns = list(zip(*(vector.row for vector in self._vectors), strict=True)) or columns
        else:
            for block in self._blocks:
                whole = zip(block.features.tolist(), block.data, block.valid, strict=True)
                for feature, values, valid in whole:
                    columns[feature] = (values, ~valid)
        return pa.table(
            {
                name: _arrow_array(pa, column, ARROW_TYPES[kind], by_block=self._blocks is not None)
                for name, kind, column in zip(self.names, self.types, columns, strict=True)
            }
        )

    def to_arrow_stream(self) -> bytes:
        """Return an Arrow IPC stream of ``to_arrow``, with what else a lookup says.

        Columns after the features: ``status:FEATURE`` (string) and ``as_of:VIEW`` (timestamp, null without events).
        Metadata of the schema: ``complete_through``, if it is known, and ``at``, as text of microseconds since 1970, UTC.
        """
        import pyarrow as pa

        made = self.to_arrow()
        vectors = self._vectors
        statuses = [vector.status for vector in vectors]
        for name in self.names:
            made = made.append_column(f"status:{name}", pa.array([each[name] for each in statuses], pa.string()))
        for view in vectors[0].as_of if vectors else ():
            newest = pa.array([vector.as_of[view] for vector in vectors], pa.timestamp("us", "UTC"))
            made = made.append_column(f"as_of:{view}", newest)
        said = {"complete_through": vectors[0].complete_through, "at": vectors[0].at} if vectors else {}
        made = made.replace_schema_metadata({name: str(value) for name, value in said.items() if value is not None})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    def to_polars(self) -> pl.DataFrame:
        """Return a Polars frame, by way of Arrow.

        Raises:
            ConfigError: Polars is not installed.
        """
        try:
            import polars as pl
        except ImportError:
            raise ConfigError("to_polars needs polars, which is not installed.", hint="pip install polars.") from None
        frame: pl.DataFrame = pl.from_arrow(self.to_arrow())  # type: ignore[assignment]
        return frame

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the values by feature, one list per feature; None is null."""
        if self._blocks is not None:
            return dict(zip(self.names, lists_of(self._blocks, len(self.names)), strict=True))
        rows = [vector.row for vector in self._vectors]
        return {name: [row[place] for row in rows] for place, name in enumerate(self.names)}

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame, by way of Arrow."""
        return self.to_arrow().to_pandas()

    def _shown(self) -> list[list[str]]:
        """Return the header and the first rows as text, cut in both directions."""
        names = [*self.names[:_COLUMNS], *(["..."] if len(self.names) > _COLUMNS else [])]
        rows = [names]
        for vector in self._vectors[:_ROWS]:
            cells = ["null" if value is None else _text(value) for value in vector.row[:_COLUMNS]]
            rows.append([*cells, *(["..."] if len(self.names) > _COLUMNS else [])])
        return rows

    def __repr__(self) -> str:
        rows = self._shown()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        more = [f"... {len(self) - _ROWS:,} more rows"] if len(self) > _ROWS else []
        return "\n".join([f"FeatureTable({len(self)} rows x {len(self.names)} features)", *lines, *more])

    def _repr_html_(self) -> str:
        head, *rows = self._shown()
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        size = f"{len(self):,} rows x {len(self.names):,} features"
        return f"<table><caption>{size}</caption><tr>{cells}</tr>{body}</table>"


def _tally(vector: FeatureVector) -> Mapping[str, int]:
    if vector.conditions or not all(vector.known.values()):
        return Counter(vector.status.values())
    count = len(vector.row)
    return present_and_null(count - vector.row.count(None), count)


def _text(value: Any) -> str:
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= _CELL else shown[: _CELL - 3] + "..."


def _arrow_array(pa: Any, column: Sequence[Any], kind: Any, *, by_block: bool) -> Any:
    if not by_block:
        return pa.array(column, kind)
    values, is_null = column
    return pa.array(values, kind, mask=is_null, from_pandas=False)
