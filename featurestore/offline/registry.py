"""The registry: what has been applied, when, as data in a Delta table; read and written without a JVM.

The table ``registry`` only grows. Each apply adds one row per changed definition:

    version   1, 2, 3, ...: the apply                 kind, name    what was applied
    applied_at  when                                  fingerprint   of its meaning
                                                      definition    JSON; null says that it was removed

The newest row of a (kind, name) is its state. Of two applies at once the one that commits second
fails, and changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from featurestore.definitions.registry import KINDS, Change, Definitions, definition_text, diff
from featurestore.errors import DefinitionError, OfflineError, OfflineStoreUnavailableError
from featurestore.offline.tables import ensure_table
from featurestore.timeline import Clock, SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featurestore.timeline import Instant

_SCHEMA = pa.schema(
    [
        pa.field("version", pa.int64(), nullable=False),
        pa.field("applied_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string()),
        pa.field("definition", pa.string()),
    ]
)


@dataclass(frozen=True)
class RegistryRecord:
    """One definition in one apply; ``definition`` is None where it was removed."""

    version: int
    applied_at: Instant
    kind: str
    name: str
    fingerprint: str | None
    definition: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as data, the time as ISO 8601."""
        return {**self.__dict__, "applied_at": format_instant(self.applied_at)}


class DeltaRegistry:
    """The applied definitions under an offline root.

    Args:
        root: Folder or URI of the offline store; the table is ``root/registry``.
        storage_options: Credentials and such, as ``deltalake`` takes them.
        clock: Tells when something is applied.
    """

    def __init__(
        self, root: str | Path, *, storage_options: dict[str, str] | None = None, clock: Clock | None = None
    ) -> None:
        self.path = f"{str(root).rstrip('/')}/registry"
        self._storage_options = storage_options
        self._clock = clock or SystemClock()

    def load(self) -> Definitions:
        """Return what is applied now; nothing, where nothing ever was.

        Raises:
            OfflineStoreUnavailableError: The table cannot be read.
        """
        return self._state(self._records(self._open()))

    def history(self) -> list[RegistryRecord]:
        """Return every change ever applied, oldest first."""
        return self._records(self._open())

    def apply(self, definitions: Definitions) -> tuple[Change, ...]:
        """Make these definitions the applied ones; return what changed. Applying the same changes nothing.

        Raises:
            OfflineError: Somebody else applied in between; nothing was changed.
            OfflineStoreUnavailableError: The table cannot be read or written.
        """
        table = self._open()
        records = self._records(table)
        changes = diff(self._state(records), definitions)
        if not changes:
            return ()
        version = 1 + max((record.version for record in records), default=0)
        at = self._clock.now()
        rows = [
            {
                "version": version,
                "applied_at": at,
                "kind": change.kind,
                "name": change.name,
                "fingerprint": change.after,
                "definition": None
                if change.after is None
                else definition_text(definitions.of_kind(change.kind)[change.name]),
            }
            for change in changes
        ]
        self._append(table, pa.Table.from_pylist(rows, schema=_SCHEMA), version)
        return changes

    def _append(self, table: DeltaTable | None, rows: pa.Table, version: int) -> None:
        """Commit on top of exactly what was read: without retries, a commit in between makes this one fail."""
        try:
            write_deltalake(
                table or self._create(),
                rows,
                mode="append",
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except CommitFailedError as error:
            raise OfflineError(
                f"registry {self.path}: somebody else applied version {version} just now; nothing was changed.",
                hint="run plan to see what they changed, then apply again.",
            ) from error
        except (DeltaError, OSError) as error:
            raise self._unavailable("written", error) from error

    def _create(self) -> DeltaTable:
        """Return the empty table as it was created, by this or by somebody else: whatever came after it is a conflict.

        Creating and writing in one step would not do: of two that do so at once, the second is appended to the first.
        """
        ensure_table(self.path, _SCHEMA, storage_options=self._storage_options)
        return DeltaTable(self.path, version=0, storage_options=self._storage_options)

    def _open(self) -> DeltaTable | None:
        try:
            return DeltaTable(self.path, storage_options=self._storage_options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self._unavailable("read", error) from error

    def _records(self, table: DeltaTable | None) -> list[RegistryRecord]:
        if table is None:
            return []
        try:
            rows = table.to_pyarrow_table(columns=_SCHEMA.names)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise self._unavailable("read", error) from error
        rows = rows.set_column(1, "applied_at", rows.column("applied_at").cast(pa.int64())).to_pylist()
        records = [
            RegistryRecord(**{**row, "definition": row["definition"] and json.loads(row["definition"])}) for row in rows
        ]
        order = {kind: index for index, kind in enumerate(KINDS)}
        return sorted(records, key=lambda record: (record.version, order[record.kind], record.name))

    def _state(self, records: list[RegistryRecord]) -> Definitions:
        newest = {(record.kind, record.name): record for record in records}
        data: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for record in _applied(newest):
            data[record.kind][record.name] = record.definition
        try:
            return Definitions.from_dict(data)
        except DefinitionError as error:
            raise OfflineError(f"registry {self.path} holds a definition that is refused: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise OfflineError(
                f"registry {self.path} holds a definition of another format: {type(error).__name__} {error}.",
                hint="it was written by another version of featurestore; upgrade this one.",
            ) from error

    def _unavailable(self, what: str, error: Exception) -> OfflineStoreUnavailableError:
        reason = " ".join(str(error).split())[:300]
        return OfflineStoreUnavailableError(
            f"registry {self.path} cannot be {what}: {reason}.", hint="check offline in featurestore.toml."
        )


def _applied(newest: dict[tuple[str, str], RegistryRecord]) -> Iterator[RegistryRecord]:
    for record in newest.values():
        if record.definition is not None:
            yield record
