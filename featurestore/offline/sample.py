"""Rows of a file as an Arrow table: Parquet files, a folder of them as ``training-set`` writes it, or a .csv."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as ds

from featurestore.errors import SpineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_sample(path: Path, columns: Sequence[str], *, rows: int) -> pa.Table:
    """Return the first rows of a file, with the columns asked for.

    Raises:
        SpineError: The file cannot be read, or has no such column.
    """
    try:
        if path.suffix == ".csv":
            return pc.read_csv(path).select(list(columns)).slice(0, rows)
        return ds.dataset(path, format="parquet").head(rows, columns=list(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SpineError(
            f"sample {path} cannot be read: {' '.join(str(error).split())[:200]}.",
            hint="pass Parquet or .csv with a column for every input; training-set writes such a folder.",
        ) from error
