"""The spine of a training set: keys and times to be enriched. Checked before any job starts, then numbered in its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.errors import SpineError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame, SparkSession

    from featurestore.definitions.service import FeatureService

ROW = "__row"
"""Name of the column of row numbers while a training set is made."""


@dataclass(frozen=True)
class Spine:
    """A spine that has been checked, as a Spark frame.

    Attributes:
        frame: The spine's columns, then its row numbers from 0.
        rows: How many.
        first: Its earliest time in microseconds; None without rows.
        last: Its latest.
        kept: Whatever Spark keeps in memory for it; to be released.
    """

    frame: DataFrame
    rows: int
    first: int | None
    last: int | None
    kept: tuple[DataFrame, ...] = ()


def read_spine(
    session: SparkSession, spine: Any, service: FeatureService, event_time: str, visible_at: str | None
) -> Spine:
    """Return a spine of any kind, checked and numbered.

    Raises:
        SpineError: It is of no kind that is understood, or cannot be answered; names the column and, of a null, the row.
    """
    if isinstance(spine, (str, Path)) and str(spine).endswith(".csv"):
        spine = _read_csv(str(spine))
    if not isinstance(spine, (str, Path)) and not is_spark(spine):
        table = as_arrow(spine)
        check_spine(table.schema, service, event_time, visible_at)
        times = [name for name in dict.fromkeys((event_time, visible_at)) if name is not None]
        for name in times:
            column = table.column(name)
            if column.null_count:
                _refuse_nulls(name, column.null_count, pc.index(pc.is_null(column), True).as_py())
        at = table.column(event_time)
        at = at.cast(pa.timestamp("us", at.type.tz), safe=False) if pa.types.is_timestamp(at.type) else at
        span = pc.min_max(at.cast(pa.int64())).as_py()
        numbered = table.append_column(ROW, pa.array(np.arange(table.num_rows)))
        return Spine(session.createDataFrame(numbered), table.num_rows, span["min"], span["max"])
    return _number(session, spine, service, event_time, visible_at)


def _read_csv(path: str) -> pa.Table:
    from pyarrow import csv

    try:
        return csv.read_csv(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SpineError(f"spine {path} cannot be read: {error}.", hint="write Parquet; it has types.") from error


def _number(
    session: SparkSession, spine: Any, service: FeatureService, event_time: str, visible_at: str | None
) -> Spine:
    """Return a Spark frame, or Parquet files or a Delta table at a path, with row numbers; one small job, no sort.

    A frame's order is that of its partitions and of the rows in them, and so is a Delta table's. The order of Parquet files is
    that of their names.
    """
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
    from pyspark.sql.pandas.types import to_arrow_schema

    kept: tuple[DataFrame, ...] = ()
    if isinstance(spine, (str, Path)):
        from delta.tables import DeltaTable

        path = str(spine)
        if "://" not in path:
            path = str(Path(path).absolute())  # a session started elsewhere has a working directory of its own
        kind = "delta" if DeltaTable.isDeltaTable(session, path) else "parquet"
        try:
            frame = session.read.format(kind).load(path)
        except AnalysisException as error:
            raise SpineError(
                f"spine {path} cannot be read as {kind}: {error.getCondition()}.",
                hint="pass Parquet files, a Delta table or a .csv.",
            ) from error
    else:
        kind, frame = "frame", spine
    if kind == "parquet":
        place, index = F.col("_metadata.file_path"), F.col("_metadata.row_index")
    else:
        number = F.monotonically_increasing_id()
        place, index = F.shiftright(number, 33), number.bitwiseAND(F.lit((1 << 33) - 1))
    check_spine(to_arrow_schema(frame.schema, timezone="UTC"), service, event_time, visible_at)
    columns = [F.col(f"`{name}`") for name in frame.columns]
    marked = frame.select(*columns, place.alias("__place"), index.alias("__index"))
    if kind != "parquet":
        # Numbers and rows must come from one evaluation of whatever the frame is.
        kept = (marked.persist(),)
    kinds = dict(frame.dtypes)
    times = [name for name in dict.fromkeys((event_time, visible_at)) if name is not None]
    found = (
        marked.groupBy("__place")
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.min(F.expr(micros(event_time, kinds))).alias("first"),
            F.max(F.expr(micros(event_time, kinds))).alias("last"),
            *(F.count(F.when(F.col(f"`{name}`").isNull(), 1)).alias(f"nulls{i}") for i, name in enumerate(times)),
            *(
                F.min(F.when(F.col(f"`{name}`").isNull(), F.col("__index"))).alias(f"null{i}")
                for i, name in enumerate(times)
            ),
        )
        .orderBy("__place")
        .collect()
    )
    begins, rows = [], 0
    for part in found:
        for i, name in enumerate(times):
            if part[f"nulls{i}"]:
                _refuse_nulls(name, sum(each[f"nulls{i}"] for each in found), rows + part[f"null{i}"])
        begins.append((part["__place"], rows))
        rows += part["rows"]
    offsets = session.createDataFrame(
        begins, f"__at_place {marked.schema['__place'].dataType.simpleString()}, __begin long"
    )
    numbered = marked.join(F.broadcast(offsets), F.col("__place") == F.col("__at_place")).select(
        *columns, (F.col("__begin") + F.col("__index")).alias(ROW)
    )
    first = min((part["first"] for part in found), default=None)
    return Spine(numbered, rows, first, max((part["last"] for part in found), default=None), kept)


def micros(name: str, kinds: dict[str, str]) -> str:
    """Return the Spark expression of a time column as microseconds."""
    return f"unix_micros(`{name}`)" if kinds[name] == "timestamp" else f"`{name}`"


def _refuse_nulls(name: str, count: int, row: int) -> None:
    raise SpineError(f"spine column {name!r} has {count} nulls, the first in row {row}.")


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
        hint="pass a pandas, Polars or Spark frame, an Arrow table, or the path of Parquet files, a Delta table or a .csv.",
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
    needed += [(name, "request value") for name in service.request_values]
    for name, what in [*needed, *([(visible_at, "visibility column")] if visible_at else [])]:
        if name not in columns:
            raise SpineError(
                f"the spine has no {what} {name!r}; service {service.name} needs it.",
                hint=did_you_mean(name, columns, what="columns"),
            )
    twice = sorted({name for name in columns if list(columns).count(name) > 1})
    if twice:
        raise SpineError(f"the spine has two columns {twice[0]!r}.", hint="rename one of them.")
    if ROW in columns:
        raise SpineError(f"the spine already has a column {ROW!r}.", hint="rename it; row numbers take that name.")
    for name in service.feature_ids:
        if name in columns:
            raise SpineError(
                f"the spine already has a column {name!r}.", hint="rename it; the feature takes that name."
            )


def check_spine(schema: pa.Schema, service: FeatureService, event_time: str, visible_at: str | None) -> None:
    """Refuse a spine whose columns are missing, twice there or of the wrong type, or whose times are naive.

    Raises:
        SpineError: Names the column.
    """
    check_columns(schema.names, service, event_time, visible_at)
    for name in {event_time, *([visible_at] if visible_at else [])}:
        kind = schema.field(name).type
        if pa.types.is_timestamp(kind) and kind.tz is None:
            raise SpineError(
                f"spine column {name!r} is a naive timestamp.",
                hint="localize it: a naive time means a different instant on every machine.",
            )
        if not (pa.types.is_timestamp(kind) or pa.types.is_int64(kind)):
            raise SpineError(
                f"spine column {name!r} is {kind}, not a time.",
                hint="use aware timestamps, or int64 microseconds UTC.",
            )
    wanted = [*((name, kind, "key column") for name, kind in service.keys.items())]
    wanted += [(name, kind, "request value") for name, kind in service.request_values.items()]
    for name, kind, what in wanted:
        found = schema.field(name).type
        fits = {
            DataType.STRING: pa.types.is_string(found) or pa.types.is_large_string(found) or _is_dictionary(found),
            DataType.INT64: pa.types.is_integer(found) if what == "key column" else pa.types.is_signed_integer(found),
            DataType.FLOAT64: pa.types.is_integer(found) or pa.types.is_floating(found),
            DataType.BOOL: pa.types.is_boolean(found),
            DataType.TIMESTAMP: pa.types.is_timestamp(found)
            if what == "key column"
            else pa.types.is_int64(found) or (pa.types.is_timestamp(found) and found.tz is not None),
        }
        if not fits[kind] and not pa.types.is_null(found):
            whose = "the entity's key" if what == "key column" else f"the request value of service {service.name}"
            raise SpineError(f"spine {what} {name!r} is {found}, {whose} is {kind}.")


def _is_dictionary(found: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
