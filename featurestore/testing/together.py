"""Many small event logs of one view as one: their keys are told apart by one more key column, the number of the log.

What costs most of a job is to start it; so a training set of many cases is made at once, as of one view:

    log i of the view               ->  rows of one event log, with the number i
    question (key, t) to log i      ->  spine row (i, key, t)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.definitions.contract import ContractField
from featurestore.definitions.entity import Entity
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.testing.log import plain_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.definitions.view import FeatureView
    from featurestore.testing.log import EventLog
    from featurestore.timeline import Instant

AT, VISIBLE_AT = "asked_at", "asked_visible_at"


def number_column(view: FeatureView) -> str:
    """Return a name for the column of numbers that no column of the source has."""
    name = "log_number"
    while name in view.source.contract.columns:
        name += "_"
    return name


def numbered(view: FeatureView) -> FeatureView:
    """Return the view with the number of the log as one more key column."""
    name = number_column(view)
    contract = view.source.contract
    field = ContractField(name, DataType.INT64, nullable=False)
    return replace(
        view,
        entity=Entity(view.entity.name, {**view.entity.keys, name: DataType.INT64}),
        source=replace(view.source, schema=replace(contract, fields=(*contract.fields, field))),
    )


def one_log(view: FeatureView, logs: Sequence[EventLog]) -> pa.Table:
    """Return the events of all logs as the event log of the numbered view's source."""
    name = number_column(view)
    tables = [log.archived() for log in logs]
    numbers = [pa.array([number] * table.num_rows, pa.int64()) for number, table in enumerate(tables)]
    return pa.concat_tables(
        [table.append_column(name, number) for table, number in zip(tables, numbers, strict=True)]
    ).combine_chunks()


def one_spine(view: FeatureView, asked: Iterable[tuple[int, Sequence[Any], Instant, Instant | None]]) -> pa.Table:
    """Return a spine of (number of the log, key values, time, visible at) rows; times are microseconds."""
    rows = list(asked)
    columns = {
        column: pa.array([keys[place] for _, keys, _, _ in rows], ARROW_TYPES[kind])
        for place, (column, kind) in enumerate(view.layout.keys)
    }
    columns[number_column(view)] = pa.array([number for number, _, _, _ in rows], pa.int64())
    columns[AT] = pa.array([t for _, _, t, _ in rows], pa.int64())
    columns[VISIBLE_AT] = pa.array([t if seen is None else seen for _, _, t, seen in rows], pa.int64())
    return pa.table(columns)


def answers(view: FeatureView, made: pa.Table) -> list[list[Any]]:
    """Return the features of a view out of a training set, row by row, instants as microseconds."""
    names = view.layout.feature_ids
    return [[row[name] for name in names] for row in plain_rows(made.select(list(names)))]
