"""The prediction log straight into a Delta table, for a project without a broker. It starts no JVM."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.compact import retried
from featurestore.offline.tables import ensure_table
from featurestore.scoring.prediction_log import to_arrow

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.scoring.prediction_log import PredictionRecord

TABLE = "predictions"


class DeltaSink:
    """Appends records to ``predictions`` of the offline store, one commit per write.

    Several processes may write at once: appends do not conflict. With many of them, or many commits a second, log to a topic.

    Args:
        offline: Root of the Delta tables.
    """

    def __init__(self, offline: str) -> None:
        self.path = f"{offline.rstrip('/')}/{TABLE}"

    def write(self, records: list[PredictionRecord]) -> int:
        """Append records, all or none."""
        try:
            retried(TABLE, partial(self._append, to_arrow(records)))
        except (DeltaError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OfflineStoreUnavailableError(f"{self.path} cannot be written: {reason}.") from error
        return len(records)

    def _append(self, rows: pa.Table) -> int:
        """Append rows; an erasure that commits meanwhile makes it fail, and it is tried again."""
        write_deltalake(ensure_table(self.path, rows.schema), rows, mode="append")
        return len(rows)

    def close(self) -> None:
        """Return; nothing is held open."""
