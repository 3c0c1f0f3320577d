"""What a job reports: progress of its queries, what became of its records, how far behind it is. Kept for its status file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.jobs.worker import COUNTS
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.jobs.consumers import Consumers
    from featurestore.timeline import Instant


@dataclass
class Reporter:
    """Collects progress and writes the status file.

    Attributes:
        path: The status file; None writes none.
        state: "starting", "warming", "running", "stopped" or "failed".
        queries: Per query, its last progress.
        totals: How many records met which fate since the start (``worker.COUNTS``).
        sources: Per source, "lag", the records not applied yet, and "complete_through", an instant or None.
        error: Why the job failed, in one line.
        reached: Topic to partition to the offset after all that the hot query has been through. It can be beyond what is
            applied: markers of transactions have offsets too.
    """

    path: Path | None
    state: str = "starting"
    queries: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None
    reached: dict[str, dict[int, int]] = field(default_factory=dict)
    _consumed: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)

    def collect(self, query: StreamingQuery) -> None:
        """Take over the last progress of a query, if it has one that is new."""
        progress = query.lastProgress
        if progress is None or progress["timestamp"] == self._seen.get(query.name):
            return
        self._seen[query.name] = progress["timestamp"]
        if query.name == "hot":
            self.reached = _ends_of(progress)
        self.queries[query.name] = {
            "batch": progress["batchId"],
            "rows": progress["numInputRows"],
            "duration_ms": dict(progress["durationMs"]),
            "at": progress["timestamp"],
        }

    def count(self, counts: Mapping[str, int]) -> None:
        """Add what has become of records since the last call.

        Args:
            counts: How many met which fate since the start.
        """
        for name in COUNTS:
            self.totals[name] += counts.get(name, 0) - self._consumed.get(name, 0)
        self._consumed = dict(counts)

    def collect_consumers(self, consumers: Consumers) -> None:
        """Add what the real-time consumers have done since the last call."""
        self.count(consumers.counts)
        self.reached = consumers.reached
        self.queries["hot"] = {"realtime": True, **consumers.status()}

    def write(self) -> None:
        """Replace the status file."""
        if self.path is None:
            return
        status = {
            "state": self.state,
            "queries": self.queries,
            "totals": self.totals,
            "sources": {
                name: {**each, "complete_through": _iso(each["complete_through"])}
                for name, each in self.sources.items()
            },
            "updated_at": format_instant(SystemClock().now()),
            "error": self.error,
        }
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(status))
            temporary.replace(self.path)
        except OSError as error:  # a full disk: a job that works is not ended by what it says of itself
            sys.stderr.write(
                f"{self.path} cannot be written: {error.strerror}; state {self.state}, error {self.error}\n"
            )


def _ends_of(progress: Any) -> dict[str, dict[int, int]]:
    """Return where a batch of Kafka's records ended."""
    text = str(progress["sources"][0]["endOffset"])
    ends = json.loads(text) if text.startswith("{") else {}  # before the first batch it is no offset at all
    return {topic: {int(partition): end for partition, end in offsets.items()} for topic, offsets in ends.items()}


def _iso(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant)
