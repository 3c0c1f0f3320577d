"""The spine of a training set: keys and times to be enriched. Checked before any job starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.errors import SpineError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.service import FeatureService


def as_arrow(spine: Any) -> pa.Table:
    """Return a pandas or Polars frame or an Arrow table as an Arrow table.

    Raises:
        SpineError: It is none of them.
    """
    if isinstance(spine, pa.Table):
        return spine
    if hasattr(spine, "to_arrow"):
        return spine.to_arrow()
    if hasattr(spine, "iloc"):
        return pa.Table.from_pandas(spine, preserve_index=False)
    raise SpineError(
        f"a spine of type {type(spine).__name__} is not understood.",
        hint="pass a pandas, Polars or Spark frame, an Arrow table, or the path of Parquet files.",
    )


def is_spark(spine: Any) -> bool:
    """Whether the spine is a Spark frame; tells without importing Spark."""
    return type(spine).__module__.startswith("pyspark.")


def check_columns(columns: Sequence[str], service: FeatureService, event_time: str, visible_at: str | None) -> None:
    """Refuse a spine without a key or time column, or with a column that a feature needs for itself.

    Raises:
        SpineError: Names the column.
    """
    needed = [(name, "key column") for name in service.keys] + [(event_time, "time column")]
    for name, what in [*needed, *([(visible_at, "visibility column")] if visible_at else [])]:
        if name not in columns:
            raise SpineError(
                f"the spine has no {what} {name!r}; service {service.name} needs it.",
                hint=did_you_mean(name, columns, what="columns"),
            )
    for name in service.feature_ids:
        if name in columns:
            raise SpineError(
                f"the spine already has a column {name!r}.", hint="rename it; the feature takes that name."
            )


def check_spine(table: pa.Table, service: FeatureService, event_time: str, visible_at: str | None) -> None:
    """Refuse an Arrow spine whose columns are missing or of the wrong type, or whose times are naive or null.

    Raises:
        SpineError: Names the column.
    """
    check_columns(table.column_names, service, event_time, visible_at)
    for name in {event_time, *([visible_at] if visible_at else [])}:
        column = table.column(name)
        if pa.types.is_timestamp(column.type) and column.type.tz is None:
            raise SpineError(
                f"spine column {name!r} is a naive timestamp.",
                hint="localize it: a naive time means a different instant on every machine.",
            )
        if not (pa.types.is_timestamp(column.type) or pa.types.is_int64(column.type)):
            raise SpineError(
                f"spine column {name!r} is {column.type}, not a time.",
                hint="use aware timestamps, or int64 microseconds UTC.",
            )
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise SpineError(f"spine column {name!r} has {column.null_count} nulls, the first in row {row}.")
    for name, kind in service.keys.items():
        found = table.column(name).type
        fits = {
            DataType.STRING: pa.types.is_string(found) or pa.types.is_large_string(found) or _is_dictionary(found),
            DataType.INT64: pa.types.is_integer(found),
            DataType.BOOL: pa.types.is_boolean(found),
            DataType.TIMESTAMP: pa.types.is_timestamp(found),
        }
        if not fits[kind] and not pa.types.is_null(found):
            raise SpineError(f"spine key column {name!r} is {found}, the entity's key is {kind}.")


def _is_dictionary(found: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
