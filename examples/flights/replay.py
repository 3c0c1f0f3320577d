"""Replaying records through Kafka and knowing when they have been applied."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from featurestore.errors import JobError
from featurestore.events.broker import mapped_errors, producer
from featurestore.online.redis_store import RedisOnlineStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from examples.flights.stream import Record
    from featurestore.jobs.job import Job

PARTITIONS = 2
SOURCES = {"flight_departures": "departures", "flight_arrivals": "arrivals", "weather": "weather"}
"""Topic to source."""
_POLL_S = 0.005
_pause = threading.Event()


class Replay:
    """Sends records with their own arrival times, and waits until the streaming job has applied them.

    Args:
        kafka: Kafka settings.
        online_url: The online store.
        project: Its namespace.
    """

    def __init__(self, kafka: Mapping[str, str], online_url: str, project: str) -> None:
        self._kafka = kafka
        self._producer = producer(kafka, batch_size=1 << 18)
        self._store = RedisOnlineStore(online_url, project)
        self._ends: dict[str, dict[int, int]] = {topic: {} for topic in SOURCES}
        self.sent: Counter[str] = Counter()

    def send(self, records: Iterable[Record]) -> int:
        """Send the records in order and wait until the broker has them; return how many."""
        futures = []
        with mapped_errors(self._kafka, "sending"):
            for record in records:
                futures.append(
                    self._producer.send(
                        record.topic, record.value, key=record.key, timestamp_ms=record.received_us // 1000
                    )
                )
                self.sent[record.topic] += 1
            self._producer.flush()
            for future in futures:
                place = future.get(timeout=30)
                ends = self._ends[place.topic]
                ends[place.partition] = max(ends.get(place.partition, 0), place.offset + 1)
        return len(futures)

    def wait_applied(self, job: Job, timeout_s: float = 120.0) -> None:
        """Return once the job's fences of all sources have reached the offsets sent.

        Raises:
            JobError: The job stopped, or did not get there in time.
        """
        deadline = time.monotonic() + timeout_s
        next_look = time.monotonic() + 2
        while not self._applied():
            now = time.monotonic()
            if now > next_look:
                status = job.status()
                if status.state in ("failed", "stopped"):
                    raise JobError(f"the streaming job is {status.state}: {status.error}.", hint="see its driver.log.")
                next_look = now + 2
            if now > deadline:
                raise JobError(f"the streaming job did not apply all events within {timeout_s:.0f} s.")
            _pause.wait(_POLL_S)

    def _applied(self) -> bool:
        for topic, ends in self._ends.items():
            if ends:
                progress = self._store.progress(SOURCES[topic])
                if any(progress.get(partition, (0, 0))[0] < end for partition, end in ends.items()):
                    return False
        return True

    @property
    def total(self) -> int:
        """Records sent so far."""
        return sum(self.sent.values())

    def close(self) -> None:
        """Close the connections."""
        self._producer.close()
        self._store.close()


def wait_archived(offline: Any, expected: Mapping[str, int], job: Job, timeout_s: float = 180.0) -> None:
    """Return once the event logs and the quarantine hold ``expected`` records per source together.

    Raises:
        JobError: The job stopped, or did not get there in time.
    """
    deadline = time.monotonic() + timeout_s
    while archived(offline) != dict(expected):
        status = job.status()
        if status.state in ("failed", "stopped"):
            raise JobError(f"the streaming job is {status.state}: {status.error}.", hint="see its driver.log.")
        if time.monotonic() > deadline:
            raise JobError(f"Delta holds {archived(offline)} instead of {dict(expected)} after {timeout_s:.0f} s.")
        _pause.wait(0.25)


def archived(offline: Any) -> dict[str, int]:
    """Return the records per source in Delta: event log and quarantine together. Reads no data, only the logs."""
    counts = {source: _rows(f"{offline}/events/{source}") for source in SOURCES.values()}
    for source, rows in quarantined(offline).items():
        counts[source] = counts.get(source, 0) + rows
    return {source: rows for source, rows in counts.items() if rows}


def quarantined(offline: Any) -> Counter[str]:
    """Return the quarantined records per source."""
    return Counter(row["source"] for row in quarantine_rows(offline))


def quarantine_rows(offline: Any) -> list[dict[str, Any]]:
    """Return source, reason and detail of every quarantined record."""
    from deltalake import DeltaTable

    path = f"{offline}/quarantine"
    if not DeltaTable.is_deltatable(path):
        return []
    return DeltaTable(path).to_pyarrow_table(columns=["source", "reason", "detail"]).to_pylist()


def _rows(path: str) -> int:
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(path):
        return 0
    actions = DeltaTable(path).get_add_actions(flatten=True)
    return int(sum(actions.column("num_records").to_pylist()))
