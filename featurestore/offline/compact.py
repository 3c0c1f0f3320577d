"""Keeping Delta tables healthy: few large files, few tiles, and no file that nothing needs. No JVM; streams may go on.

    merge     tiles of one (view, part, key, tile), one per archive batch that met it, become one row; only what is older than a
              while, so that the archive query's appends are elsewhere
    optimize  small files of a table become large ones; no row changes
    vacuum    files that no version within the retention names are deleted, unless a training set's manifest still names them

Each is one commit that is made only if nothing it read has changed meanwhile: an append of the archive query goes through
beside it, a clash is tried again. Running any of them twice changes nothing more.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.offline.tile_merge import merge_tiles
from featurestore.timeline import HOUR, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from featurestore.definitions.view import FeatureView
    from featurestore.timeline import Clock, Instant

TRIES = 5
TARGET_BYTES = 128 << 20
LEAST_RETENTION_H = 7 * 24
"""Below a week a reader, a stream or a rebuild that is still at work can lose its files."""
_PAUSE_S = 0.2


@dataclass
class Compacted:
    """What became of one table.

    Attributes:
        table: "events/SOURCE", "tiles" or "quarantine".
        rows_merged: How many rows of tiles went into others.
        files_before: Files of the table before.
        files_after: Files after.
        deleted: Files that vacuum deleted, or would.
    """

    table: str
    rows_merged: int = 0
    files_before: int = 0
    files_after: int = 0
    deleted: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Compaction:
    """Options of a compaction.

    Attributes:
        offline: Root of the Delta tables.
        views: The applied views; tiles of others are left as they are.
        older_than: Tiles that end so long ago are merged, microseconds.
        target_bytes: About how large files become.
        retention_hours: Vacuum deletes what has not been named by a version for so long; None does not vacuum.
        manifests: Files or folders with manifests of training sets, whose versions are kept.
        force: Whether vacuum may go below a week, and delete what a manifest names.
        dry_run: Whether vacuum only counts, and nothing else is done.
        clock: Tells how old a tile is.
    """

    offline: str
    views: Sequence[FeatureView]
    older_than: int = HOUR
    target_bytes: int = TARGET_BYTES
    retention_hours: int | None = None
    manifests: Sequence[Path] = ()
    force: bool = False
    dry_run: bool = False
    clock: Clock = field(default_factory=SystemClock)

    def run(self, tables: Sequence[str] | None = None) -> list[Compacted]:
        """Compact tables; all that there are when None.

        Raises:
            OfflineError: A table is not there, other writers were in the way too often, or vacuum was refused; the tables before
                it are done.
        """
        if self.retention_hours is not None and self.retention_hours < LEAST_RETENTION_H and not self.force:
            raise OfflineError(
                f"vacuum of files younger than {LEAST_RETENTION_H // 24} days ({self.retention_hours} hours asked): readers, "
                "streams and rebuilds may still need them; nothing was changed.",
                hint="keep a week, or pass --force when nothing else runs.",
            )
        known = self.tables()
        for name in tables or ():
            if name not in known:
                raise OfflineStoreUnavailableError(
                    f"there is no table {name!r} in {self.offline}.", hint=f"tables: {', '.join(known) or 'none'}."
                )
        return [self._one(name) for name in tables or known]

    def tables(self) -> list[str]:
        """Return the names of the tables that grow with every batch."""
        names = [f"events/{source}" for source in dict.fromkeys(view.source.name for view in self.views)]
        return [name for name in (*sorted(names), "tiles", "quarantine") if DeltaTable.is_deltatable(self._path(name))]

    def _path(self, name: str) -> str:
        return f"{self.offline.rstrip('/')}/{name}"

    def _one(self, name: str) -> Compacted:
        result = Compacted(name)
        path = self._path(name)
        try:
            result.files_before = len(DeltaTable(path).file_uris())
            if name == "tiles" and not self.dry_run:
                before = self.clock.now() - self.older_than
                for view in self.views:
                    result.rows_merged += retried(name, partial(_merge, path, view, before))
            if not self.dry_run:
                retried(name, lambda: self._optimize(path))
            result.files_after = len(DeltaTable(path).file_uris())
            if self.retention_hours is not None:
                result.deleted = self._vacuum(name, path, self.retention_hours)
        except (DeltaError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(f"{path} cannot be compacted: {reason}.") from error
        return result

    def _optimize(self, path: str) -> int:
        made = DeltaTable(path).optimize.compact(
            target_size=self.target_bytes,
            max_concurrent_tasks=1,
            commit_properties=CommitProperties(custom_metadata={"featurestore": "compact"}),
        )
        return int(made["numFilesRemoved"])

    def _vacuum(self, name: str, path: str, hours: int) -> int:
        table = DeltaTable(path)
        enforce = hours >= LEAST_RETENTION_H
        doomed = set(table.vacuum(hours, dry_run=True, enforce_retention_duration=enforce))
        if doomed and not self.force:
            for manifest, version in self._manifests(name):
                lost = {unquote(each) for each in doomed} & _files(path, version)
                if lost:
                    raise OfflineError(
                        f"vacuum of {name} would delete {len(lost):,} files of version {version}, which the training set "
                        f"{manifest} was made of; it could not be rebuilt any more.",
                        hint="keep more days, remove the manifest, or pass --force.",
                    )
        if not self.dry_run and doomed:
            table.vacuum(hours, dry_run=False, enforce_retention_duration=enforce)
        return len(doomed)

    def _manifests(self, name: str) -> Iterator[tuple[Path, int]]:
        """Yield the manifests that name a table, and the version they name."""
        for file in _manifest_files(self.manifests):
            try:
                version = json.loads(file.read_text(encoding="utf-8")).get("tables", {}).get(name)
            except (OSError, ValueError, AttributeError) as error:
                raise OfflineError(
                    f"manifest {file} cannot be read, so what it needs is not known: {error}.",
                    hint="repair or remove it, or pass --force.",
                ) from error
            if isinstance(version, int):
                yield file, version


def _merge(path: str, view: FeatureView, before: Instant) -> int:
    return merge_tiles(DeltaTable(path), view, before=before)


def _manifest_files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(place.rglob("_manifest.json")) if place.is_dir() else [place]


def _files(path: str, version: int) -> set[str]:
    """Return the files of a version; none where it cannot be read any more, so that nothing of it can be kept."""
    try:
        table = DeltaTable(path, version=version)
        return {unquote(each) for each in pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()}
    except (DeltaError, OSError):
        return set()


def retried(name: str, attempt: Callable[[], int], pause: Callable[[float], None] = time.sleep) -> int:
    """Return what an attempt returns; one that another writer was in the way of is made again, after a pause.

    Raises:
        OfflineError: Other writers were in the way of them all.
    """
    for number in range(TRIES):
        try:
            return attempt()
        except CommitFailedError as error:
            if number == TRIES - 1:
                raise OfflineError(
                    f"{name}: other writers were in the way {TRIES} times; it was left as it is.",
                    hint="run it again at a quieter time, or merge only older tiles (--older-than).",
                ) from error
            pause(_PAUSE_S * (number + 1))
    raise AssertionError
