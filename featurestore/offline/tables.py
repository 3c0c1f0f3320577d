"""How a Delta table comes to be: of several writers that begin at once one creates it, and the others find it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa


def ensure_table(path: str, schema: pa.Schema, *, storage_options: Mapping[str, str] | None = None) -> DeltaTable:
    """Return a table as it stands; one that is not there is created, without rows.

    A creation is a commit like others, which is made again behind one that came first: the table would be created twice,
    with another id, and a writer that opened it in between be told of a conflict with nobody. So it is tried once.

    Args:
        path: Folder or URI of the table.
        schema: Of the table, where it has to be created.
        storage_options: Credentials and such, as ``deltalake`` takes them.

    Raises:
        DeltaError: It cannot be read, or not be created.
        OSError: Likewise.
    """
    options = dict(storage_options) if storage_options else None
    if not DeltaTable.is_deltatable(path, options):
        if "://" not in path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        once = CommitProperties(max_commit_retries=0)
        try:
            DeltaTable.create(path, schema, mode="ignore", storage_options=options, commit_properties=once)
        except CommitFailedError:
            if not DeltaTable.is_deltatable(path, options):
                raise
    return DeltaTable(path, storage_options=options)
