"""The quarantine: what was no event, with its bytes, reason and Kafka coordinates; read and marked without a JVM.

    quarantine           source, _topic, _partition, _offset, _arrival, reason, detail, raw; written by the archive query
    quarantine_replays   source, _topic, _partition, _offset, state, at: what has been sent to a topic again

A replay notes "sending" before it sends and "sent" once the broker has the records. Both tables only grow, so neither
compaction nor the archive query stands in the way. Of two replays at once the second to note fails and sends nothing; after a
crash between the notes a record is "sending": nobody can tell whether it was sent, so it is sent again only when asked for.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.offline.tables import ensure_table
from featurestore.timeline import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.timeline import Instant

Place: TypeAlias = tuple[str, int, int]
"""Topic, partition, offset."""
_SHOWN_BYTES = 200
_BATCH_ROWS = 4_096
_REPLAYS = pa.schema(
    [
        ("source", pa.string()),
        ("_topic", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("state", pa.string()),
        ("at", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record that was no event.

    Attributes:
        source: Its source.
        topic: Where it was.
        partition: Its partition.
        offset: Its offset.
        arrival: When it arrived, microseconds.
        reason: Why it was refused (``events.wire.Reason``).
        detail: What exactly.
        raw: Its bytes; None where it had none.
        replay: None, or "sending" or "sent" (see the module).
    """

    source: str
    topic: str
    partition: int
    offset: int
    arrival: Instant
    reason: str
    detail: str
    raw: bytes | None
    replay: str | None = None

    @property
    def place(self) -> Place:
        """Topic, partition and offset."""
        return self.topic, self.partition, self.offset

    def to_dict(self) -> dict[str, Any]:
        """Return the record as data: the bytes as hexadecimal digits, and their beginning as text."""
        raw = self.raw or b""
        return {
            "source": self.source,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "arrival": format_instant(self.arrival),
            "reason": self.reason,
            "detail": self.detail,
            "replay": self.replay,
            "bytes": len(raw),
            "text": raw[:_SHOWN_BYTES].decode(errors="replace"),
            "raw_hex": None if self.raw is None else raw.hex(),
        }


class Quarantine:
    """The quarantine of an offline store.

    Args:
        root: Folder or URI of the Delta tables.
    """

    def __init__(self, root: str) -> None:
        root = str(root).rstrip("/")
        self._path, self._replays_path = f"{root}/quarantine", f"{root}/quarantine_replays"

    def records(
        self,
        *,
        source: str | None = None,
        reason: str | None = None,
        since: Instant | None = None,
        limit: int | None = None,
        only_waiting: bool = False,
        oldest_first: bool = False,
    ) -> list[QuarantinedRecord]:
        """Return records, the newest arrivals first; those of one arrival by place. Memory grows with what is returned.

        Args:
            source: Only of this source.
            reason: Only for this reason.
            since: Only what arrived at this instant or later, microseconds.
            limit: At most so many.
            only_waiting: Only those that no replay has touched.
            oldest_first: In the order in which they arrived.

        Raises:
            OfflineError: The table cannot be read.
        """
        with self._reading(self._path):
            if not DeltaTable.is_deltatable(self._path):
                return []
            replays = self.replays()
            kept = ds.scalar(value=True)
            for name, value in (("source", source), ("reason", reason)):
                kept = kept if value is None else kept & (ds.field(name) == value)
            if since is not None:
                kept &= ds.field("_arrival") >= since
            dataset = DeltaTable(self._path).to_pyarrow_dataset()
            scanner = dataset.scanner(filter=kept, batch_size=_BATCH_ROWS, batch_readahead=1, fragment_readahead=1)
            found: list[QuarantinedRecord] = []
            for batch in scanner.to_batches():
                found += [each for each in _records(batch, replays) if not (only_waiting and each.replay)]
                if limit is not None and len(found) > 2 * max(limit, _BATCH_ROWS):
                    found = _ordered(found, oldest_first=oldest_first)[:limit]
        return _ordered(found, oldest_first=oldest_first)[:limit]

    def replays(self) -> dict[Place, str]:
        """Return what has been replayed, and how far that got."""
        with self._reading(self._replays_path):
            if not DeltaTable.is_deltatable(self._replays_path):
                return {}
            return _states(DeltaTable(self._replays_path))

    def note(self, records: Sequence[QuarantinedRecord], state: str, *, at: Instant, again: bool = False) -> None:
        """Note that records are being sent, or have been.

        Args:
            records: The records.
            state: "sending" or "sent".
            at: When.
            again: Whether records that have been noted already may be sent once more.

        Raises:
            OfflineError: Another replay noted something in between, or has noted one of these; nothing was changed.
        """
        rows = pa.Table.from_pylist(
            [dict(zip(_REPLAYS.names, (each.source, *each.place, state, at), strict=True)) for each in records],
            schema=_REPLAYS,
        )
        with self._reading(self._replays_path):
            table = ensure_table(self._replays_path, _REPLAYS)
            known = self._known(table)
            twice = [each for each in records if state == "sending" and each.place in known and not again]
            if twice:
                raise self._conflict(f"{'-'.join(map(str, twice[0].place))} is {known[twice[0].place]} already")
            try:
                write_deltalake(table, rows, mode="append", commit_properties=CommitProperties(max_commit_retries=0))
            except CommitFailedError as error:
                raise self._conflict("another replay runs at this moment") from error

    def _known(self, table: DeltaTable) -> dict[Place, str]:
        return _states(table)

    def _conflict(self, what: str) -> OfflineError:
        return OfflineError(f"quarantine {self._path}: {what}; nothing was sent.", hint="run the replay again.")

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(
                f"{path} cannot be read or written: {reason}.", hint="check offline in featurestore.toml."
            ) from error


def _states(table: DeltaTable) -> dict[Place, str]:
    rows = table.to_pyarrow_table(columns=["_topic", "_partition", "_offset", "state"]).to_pylist()
    states: dict[Place, str] = {}
    for row in rows:
        place = (row["_topic"], row["_partition"], row["_offset"])
        states[place] = "sent" if "sent" in (row["state"], states.get(place)) else row["state"]
    return states


def _records(batch: pa.RecordBatch, replays: dict[Place, str]) -> Iterator[QuarantinedRecord]:
    for row in batch.to_pylist():
        place = (row["_topic"], row["_partition"], row["_offset"])
        yield QuarantinedRecord(
            row["source"], *place, row["_arrival"], row["reason"], row["detail"], row["raw"], replays.get(place)
        )


def _ordered(found: list[QuarantinedRecord], *, oldest_first: bool) -> list[QuarantinedRecord]:
    return sorted(found, key=lambda each: (each.arrival if oldest_first else -each.arrival, each.place))
