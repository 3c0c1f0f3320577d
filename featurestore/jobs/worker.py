"""What becomes of the records of one source, wherever they come from: decoded, shaped, applied to an online store.

The hot query runs this inside Spark's workers, a replay inside a test. Neither Spark nor Kafka appears here.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from functools import cache
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra import sequence_of
from featurestore.definitions.cost import CATCH_UP_TAIL_CAP, TAIL_CAP
from featurestore.engines.shape import shape
from featurestore.events.decode import Decoder
from featurestore.events.repeats import digests_of
from featurestore.failpoints import reach
from featurestore.online.ids import SeenIds
from featurestore.online.writer import FencedWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView
    from featurestore.engines.shape import Shaped
    from featurestore.events.decode import Decoded
    from featurestore.jobs.breaker import QuarantineBreaker
    from featurestore.online.ids import JudgedIds
    from featurestore.online.store import OnlineStore
    from featurestore.timeline import Instant

COUNTS = ("consumed", "applied", "fenced", "duplicate", "quarantined", "late", "records", "folded", "took_us")


def decoding_of(source: EventSource) -> dict[str, Any]:
    """Return a source's settings of its decoder."""
    return {
        "event_time": source.event_time,
        "allowed_skew_us": source.allowed_skew_us,
        "max_bytes": source.max_bytes,
        "wire": source.wire,
    }


def decoder_of(source: EventSource) -> Decoder:
    """Return the decoder of a source's records."""
    return Decoder(source.contract, **decoding_of(source))


@dataclass(frozen=True)
class SourceWorker:
    """Applies the records of one source to the views on it.

    Attributes:
        source: The source.
        decoder: Turns its records into events.
        writer: Applies the events, to all views on the source.
        breaker: Stops before records are passed of which too many are no events; None passes whatever comes.
    """

    source: EventSource
    decoder: Decoder
    writer: FencedWriter
    breaker: QuarantineBreaker | None = None

    def apply(
        self, partition: int, offsets: np.ndarray, arrival: np.ndarray, values: pa.Array | Sequence[bytes | None]
    ) -> dict[str, int]:
        """Apply consecutive records of one partition, at least one; return how many met which fate (``COUNTS``)."""
        began = perf_counter_ns()
        decoded, shaped = self._shape(partition, offsets, arrival, values)
        reach("worker.decoded")
        arrived = arrival[decoded.rows]
        judged = self._judged(partition, offsets[decoded.rows], arrived, decoded.batch)
        counts = self.writer.apply(partition, int(offsets[-1]) + 1, int(arrival.max()), shaped, judged=judged)
        return {
            **counts,
            "consumed": len(offsets),
            "duplicate": max((len(each.repeated) for each in judged), default=0),
            "quarantined": len(decoded.rejected),
            "late": int(np.count_nonzero(arrived - decoded.event_time_us > self.source.late_after_us)),
            "took_us": (perf_counter_ns() - began) // 1_000,
        }

    def rehearse(self) -> None:
        """Go through what every record goes through up to the store, without one."""
        nothing = np.zeros(0, np.int64)
        self._shape(0, nothing, nothing, [])

    def _shape(
        self, partition: int, offsets: np.ndarray, arrival: np.ndarray, values: pa.Array | Sequence[bytes | None]
    ) -> tuple[Decoded, list[Shaped]]:
        decoded = self.decoder.decode(values, arrival)
        if self.breaker is not None:
            self.breaker.check(partition, offsets, decoded.rejected)
        arrived = arrival[decoded.rows]
        sequence = sequence_of(partition, 0) | offsets[decoded.rows]
        shaped = [shape(view, decoded.batch, decoded.event_time_us, sequence, arrived) for view in self.writer.views]
        return decoded, shaped

    def _judged(
        self, partition: int, offsets: np.ndarray, arrived: np.ndarray, events: pa.RecordBatch
    ) -> list[JudgedIds]:
        """Return per view which events are repetitions, where the source has ids."""
        if self.source.event_id is None or not self.writer.ids:
            return []
        digests = digests_of(events.column(self.source.event_id))
        return [ids.judge(partition, offsets, arrived, digests) for ids in self.writer.ids]


def writer_of(
    store: OnlineStore,
    source: EventSource,
    views: Sequence[FeatureView],
    *,
    epoch: int | None = None,
    tail_cap: int = TAIL_CAP,
) -> FencedWriter:
    """Return what writes the events of a source to a store, repetitions left out."""
    ids = [seen_ids(store, view, epoch=epoch) for view in views if source.event_id is not None]
    return FencedWriter(
        store, source.name, views, epoch=epoch, tail_cap=tail_cap, catch_up_cap=CATCH_UP_TAIL_CAP, ids=ids
    )


def seen_ids(store: OnlineStore, view: FeatureView, *, epoch: int | None = None) -> SeenIds:
    """Return the ids that a view has seen."""
    name = f"{view.name}@{view.layout.fingerprint}/{view.source.name}"
    return SeenIds(store, name, view.source.id_horizon_us, epoch=epoch)


def by_topic(views: Sequence[FeatureView]) -> dict[str, tuple[EventSource, tuple[FeatureView, ...]]]:
    """Return topic to source and the views on it."""
    topics: dict[str, tuple[EventSource, tuple[FeatureView, ...]]] = {}
    for view in views:
        source, others = topics.get(view.source.topic, (view.source, ()))
        topics[view.source.topic] = (source, (*others, view))
    return topics


def complete_through(
    progress: Mapping[int, tuple[int, Instant]], ends: Mapping[int, int], *, read_at: Instant | None
) -> Instant | None:
    """Return the arrival up to which everything of a source has been applied; None when nothing can be said.

    While some partition lags, that is the smallest newest arrival among the lagging ones. Once all have reached the end
    offsets, it is the time those offsets were read.

    Args:
        progress: Per partition, the next offset to apply and the newest arrival applied (``OnlineStore.progress``).
        ends: Per partition, the offset after its newest record.
        read_at: When ``ends`` was read; None where arrivals are not stamped by that clock (a replay through a real
            broker, whose records carry their own times): the newest arrival applied then stands for it.
    """
    lagging = [
        progress[partition][1] if partition in progress else None
        for partition, end in ends.items()
        if progress.get(partition, (0, 0))[0] < end
    ]
    if None in lagging:
        return None
    if lagging:
        return min(arrival for arrival in lagging if arrival is not None)
    if read_at is not None:
        return read_at
    return max((arrival for _, arrival in progress.values()), default=None)


@cache
def spare_collections(_what: str) -> None:
    """In a Python worker of Spark, take what it holds by now out of later collections of garbage, once for each kind of work.

    PySpark collects after every task, all that a worker has imported: 140,000 objects took 57 ms, of every worker in every
    micro-batch, and none of them is ever garbage.
    """
    if "SPARK_REUSE_WORKER" in os.environ:
        gc.collect()
        gc.freeze()
