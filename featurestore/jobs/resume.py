"""Whether a job's queries may go on from their checkpoints: what ``checkpoint`` asks, read from tables, store and broker."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.events.broker import OffsetReader, holds_records
from featurestore.jobs.checkpoint import (
    ASYNCHRONOUS,
    SYNCHRONOUS,
    Checkpoint,
    losses,
    noted_topics,
    refuse_foreign,
    refuse_losses,
    refuse_other_tables,
    refuse_other_topics,
    remember,
)
from featurestore.jobs.online_epoch import farthest, offsets_of
from featurestore.offline.losses import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.jobs.checkpoint import Offsets
    from featurestore.online.store import OnlineStore


@dataclass(frozen=True)
class Resume:
    """What a job's queries go on from.

    Attributes:
        project: The project.
        offline: Root of the Delta tables.
        kafka: Kafka settings.
        topics: Topic to the name of its source.
        accept_loss: Whether to go on without records that Kafka no longer has, and write that down.
        ids: Topic to the id that Kafka gave it.
    """

    project: str
    offline: str
    kafka: Mapping[str, str]
    topics: Mapping[str, str]
    accept_loss: bool = False
    ids: Mapping[str, str] = field(default_factory=dict)

    def online(self, store: OnlineStore) -> None:
        """Check that the topics are those that the store has offsets of; a store that has none yet is told.

        Raises:
            OffsetsGoneError: One was made anew.
        """
        (known,) = store.read_hashes([(store.space.topics, None)])
        refuse_other_topics(
            "the online store", {name.decode(): made.decode() for name, made in known.items()}, self.ids
        )
        store.remember_topics(self.ids)

    def hot(self, path: Path, store: OnlineStore) -> bool:
        """Check the hot query's checkpoint and what the store waits for; return whether it begins before Kafka does, and may.

        Raises:
            CheckpointMismatchError: It is damaged or foreign.
            OffsetsGoneError: Kafka no longer has what comes next, and that is not accepted.
        """
        ends, applied = self._places(path, store)
        needed: Offsets = {topic: offsets for topic, offsets in farthest(ends, applied).items() if offsets}
        return self._gone("hot", needed, ends)

    def _places(self, path: Path, store: OnlineStore) -> tuple[Offsets, Offsets]:
        """Return, of every topic, where the hot query's checkpoint is and what the store waits for; errors as of ``hot``."""
        found = Checkpoint.read(path)
        refuse_foreign(path, found, self.project, ASYNCHRONOUS)
        ends = {topic: {} if found is None else found.ends.get(topic, {}) for topic in self.topics}
        return ends, {topic: offsets_of(store.progress(source)) for topic, source in self.topics.items()}

    def step_back(self, path: Path, store: OnlineStore) -> Offsets | None:
        """Set the hot query's checkpoint aside where the store has less than it says; return where to begin instead, else None.

        So it is after a failover that lost the last writes, where neither this job nor its writers had seen them. The query
        begins at what the store waits for; the fences drop what is applied.

        Raises:
            CheckpointMismatchError: It is damaged or foreign.
            BrokerUnavailableError: The broker cannot be reached.
        """
        ends, applied = self._places(path, store)
        behind: Offsets = {}
        for topic, offsets in ends.items():
            for partition, end in offsets.items():
                if (waits_for := applied[topic].get(partition, 0)) < end:
                    behind.setdefault(topic, {})[partition] = waits_for
        if not behind or not holds_records(self.kafka, behind, ends):
            return None
        reader = OffsetReader(self.kafka, self.topics)
        try:
            firsts = reader.first_offsets()
        finally:
            reader.close()
        aside = path.with_name(f"{path.name}.ahead")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        return {
            topic: {partition: max(first, applied[topic].get(partition, 0)) for partition, first in of.items()}
            for topic, of in firsts.items()
        }

    def archive(self, path: Path) -> bool:
        """Check the archive query's checkpoint; return whether it begins before what Kafka still has, and may.

        Raises:
            CheckpointMismatchError: It is lost, damaged, truncated or foreign.
            OffsetsGoneError: Kafka no longer has what comes next, and that is not accepted; or a topic was made anew.
        """
        found = Checkpoint.read(path)
        refuse_foreign(path, found, self.project, SYNCHRONOUS)
        refuse_other_tables(path, found, None if found is None else self._written(found.query_id), self._table())
        if found is None:
            return False
        refuse_other_topics(f"checkpoint {path}", noted_topics(path), self.ids)
        return self._gone("archive", found.ends, found.ends)

    def remember(self, path: Path, query: StreamingQuery, progress: str) -> None:
        """Note whose checkpoint it is, once its query has begun."""
        remember(path, str(query.id), self.project, progress, self.ids)

    def _written(self, query_id: str) -> int | None:
        """Return the newest batch of a query in the tables.

        Every batch is written to the tiles; only the first can be in an event log and not in them yet.
        """
        found = (
            self._delta(name, lambda table: table.transaction_version(query_id))
            for name in ("tiles", *(f"events/{source}" for source in self.topics.values()))
        )
        return next((batch for batch in found if batch is not None), None)

    def _table(self) -> str | None:
        """Return an event log that has been written to."""
        for source in self.topics.values():
            if self._delta(f"events/{source}", lambda table: table.version()) is not None:
                return f"{self.offline}/events/{source}"
        return None

    def _delta(self, name: str, ask: Callable[[DeltaTable], int | None]) -> int | None:
        path = f"{self.offline.rstrip('/')}/{name}"
        try:
            return ask(DeltaTable(path)) if DeltaTable.is_deltatable(path) else None
        except (DeltaError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(f"{path} cannot be read: {reason}.") from error

    def _gone(self, query: str, needed: Offsets, begins: Offsets) -> bool:
        """Return whether a query begins before what Kafka has; raise when it would miss records, unless that is accepted."""
        if not needed:
            return False
        reader = OffsetReader(self.kafka, needed)
        try:
            firsts, ends = reader.first_offsets(), reader.end_offsets()
        finally:
            reader.close()
        found = losses(needed, firsts, ends)
        if not self.accept_loss:
            refuse_losses(query, found, ends)
        elif found:
            Losses(self.offline).record(query, [(one.topic, one.partition, one.begin, one.end) for one in found])
        return any(
            offset < firsts[topic][each] for topic, offsets in begins.items() for each, offset in offsets.items()
        )
