"""Records that were accepted as lost, as the offline store remembers them: a Delta table that only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.tables import ensure_table
from featurestore.timeline import SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.timeline import Clock

_SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("at", pa.int64()),
    ]
)


class Losses:
    """The table ``losses`` under an offline root: offsets [begin, end) of a partition that a query never read.

    Args:
        root: Folder or URI of the Delta tables.
        clock: Tells when a loss is written down.
    """

    def __init__(self, root: str, *, clock: Clock | None = None) -> None:
        self._path, self._clock = f"{root.rstrip('/')}/losses", clock or SystemClock()

    def record(self, query: str, ranges: Sequence[tuple[str, int, int, int]]) -> None:
        """Write down (topic, partition, begin, end) ranges.

        Raises:
            OfflineStoreUnavailableError: The table cannot be written.
        """
        now = self._clock.now()
        rows = [dict(zip(_SCHEMA.names, (query, *each, now), strict=True)) for each in ranges]
        try:
            write_deltalake(
                ensure_table(self._path, _SCHEMA), pa.Table.from_pylist(rows, schema=_SCHEMA), mode="append"
            )
        except (DeltaError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(f"{self._path} cannot be written: {reason}.") from error

    def rows(self) -> list[dict[str, Any]]:
        """Return all of them, oldest first."""
        if not DeltaTable.is_deltatable(self._path):
            return []
        return sorted(DeltaTable(self._path).to_pyarrow_table().to_pylist(), key=lambda row: row["at"])
