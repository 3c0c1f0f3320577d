"""Which epoch the online store of a project should have, as the offline store remembers it: a Delta table that only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.offline.tables import ensure_table
from featurestore.timeline import SystemClock

if TYPE_CHECKING:
    from featurestore.timeline import Clock

_SCHEMA = pa.schema([("project", pa.string()), ("epoch", pa.int64()), ("at", pa.int64()), ("why", pa.string())])


class OnlineEpochs:
    """The table ``online_epochs`` under an offline root.

    Args:
        root: Folder or URI of the Delta tables.
        project: The project.
        clock: Tells when an epoch begins.
    """

    def __init__(self, root: str, project: str, *, clock: Clock | None = None) -> None:
        self._path, self._project = f"{str(root).rstrip('/')}/online_epochs", project
        self._clock = clock or SystemClock()

    def newest(self) -> int | None:
        """Return the newest epoch that was recorded; None where there never was one.

        Raises:
            OfflineStoreUnavailableError: The table cannot be read.
        """
        try:
            if not DeltaTable.is_deltatable(self._path):
                return None
            dataset = DeltaTable(self._path).to_pyarrow_dataset()
            rows = dataset.to_table(columns=["epoch"], filter=ds.field("project") == self._project)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise self._unavailable("read", error) from error
        return max(rows.column("epoch").to_pylist(), default=None)

    def life(self) -> str | None:
        """Return what tells this table from any other that is, was or will be in its place; None where there is none yet.

        Raises:
            OfflineStoreUnavailableError: The table cannot be read.
        """
        try:
            return str(DeltaTable(self._path).metadata().id) if DeltaTable.is_deltatable(self._path) else None
        except (DeltaError, OSError) as error:
            raise self._unavailable("read", error) from error

    def record(self, epoch: int, why: str) -> None:
        """Record an epoch.

        Raises:
            OfflineStoreUnavailableError: The table cannot be written.
        """
        row = {"project": self._project, "epoch": epoch, "at": self._clock.now(), "why": why}
        try:
            write_deltalake(
                ensure_table(self._path, _SCHEMA), pa.Table.from_pylist([row], schema=_SCHEMA), mode="append"
            )
        except (DeltaError, OSError) as error:
            raise self._unavailable("written", error) from error

    def _unavailable(self, what: str, error: Exception) -> OfflineStoreUnavailableError:
        reason = " ".join(str(error).split())[:300]
        return OfflineStoreUnavailableError(
            f"{self._path} cannot be {what}: {reason}.", hint="check offline in featurestore.toml."
        )
