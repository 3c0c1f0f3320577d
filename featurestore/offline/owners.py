"""Which archive query writes an event log: a Delta table ``owners/SOURCE`` of one row, which the first query makes its own.

Two queries that begin on new tables at the same moment find neither a checkpoint nor an event that would refuse them. Of two
commits on top of the same empty table Delta takes one; the other query finds whose it is, and writes nothing.
"""

from __future__ import annotations

import pyarrow as pa
from deltalake import CommitProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from featurestore.errors import CheckpointMismatchError, OfflineStoreUnavailableError
from featurestore.offline.tables import ensure_table

_SCHEMA = pa.schema([("query", pa.string())])
_TRIES = 20


def own_log(root: str, source: str, query: str) -> None:
    """Make a query the one that writes a source's event log; harmless where it is.

    Args:
        root: Folder or URI of the Delta tables.
        source: Name of the source.
        query: Id of the query, as its checkpoint has it.

    Raises:
        CheckpointMismatchError: Another query is.
        OfflineStoreUnavailableError: The table cannot be read or written.
    """
    path = f"{root.rstrip('/')}/owners/{source}"
    try:
        owner = _owner_of(path, query)
    except (DeltaError, OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise OfflineStoreUnavailableError(f"{path} cannot be read or written: {reason}.") from error
    if owner != query:
        raise CheckpointMismatchError(
            f"source {source}: another archive query ({owner}) writes its event log under {root}; this one is {query}, "
            "and has written nothing.",
            hint=f"one archive query per source is enough: stop the other. To read the topics anew, move the offline tables "
            f"away, {path} with them.",
        )


def _owner_of(path: str, query: str) -> str:
    """Return whose the log is; of nobody, it becomes this query's.

    The row is committed on top of a version without one, and without retries: who comes second has to look again.
    """
    refused: CommitFailedError | None = None
    for _ in range(_TRIES):
        table = ensure_table(path, _SCHEMA)
        rows = table.to_pyarrow_table().to_pylist()
        if rows:
            return str(rows[0]["query"])
        row = pa.Table.from_pylist([{"query": query}], schema=_SCHEMA)
        try:
            write_deltalake(table, row, mode="append", commit_properties=CommitProperties(max_commit_retries=0))
        except CommitFailedError as error:
            refused = error
    raise refused or CommitFailedError("nothing that was written is there")
