"""Sending quarantined records to their topic again, once the contract or definition that refused them is mended.

A record is sent as it was, to the partition it came from, with a header that names its first place. It gets a new offset and a
new arrival; every path then reads it as any other record. What the applied definition would still refuse is not sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import UnknownNameError
from featurestore.events.broker import OffsetReader, mapped_errors, producer
from featurestore.jobs.worker import decoder_of
from featurestore.offline.quarantine import Quarantine
from featurestore.timeline import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.definitions.registry import Definitions
    from featurestore.definitions.source import EventSource
    from featurestore.offline.quarantine import QuarantinedRecord
    from featurestore.timeline import Clock, Instant

HEADER = "featurestore-replayed-from"
"""Name of the header; its value is "TOPIC/PARTITION/OFFSET" of the record that was refused."""
_CHUNK = 1_000
LIMIT = 10_000


@dataclass
class QuarantineReplay:
    """What a replay did, or would do.

    Attributes:
        is_dry: Whether nothing was sent.
        sent: Source to how many records were sent, or would be.
        refused: Source to how many would be refused again.
        earlier: How many were left out because they have been sent before.
        uncertain: How many were left out because a replay ended between sending and noting it.
        reasons: Why records would be refused again, and how many.
    """

    is_dry: bool
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    earlier: int = 0
    uncertain: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return {
            "dry_run": self.is_dry,
            "sent": dict(self.sent),
            "refused_again": dict(self.refused),
            "reasons": dict(self.reasons),
            "sent_earlier": self.earlier,
            "uncertain": self.uncertain,
        }


def replay_quarantine(
    offline: str,
    kafka: Mapping[str, str],
    definitions: Definitions,
    *,
    source: str | None = None,
    reason: str | None = None,
    since: Instant | None = None,
    limit: int = LIMIT,
    again: bool = False,
    dry_run: bool = True,
    clock: Clock | None = None,
) -> QuarantineReplay:
    """Send quarantined records to their source's topic again, the oldest first, and note it.

    Args:
        offline: Root of the Delta tables.
        kafka: Kafka settings.
        definitions: The applied definitions: they say the topic, and what would be refused again.
        source: Only of this source.
        reason: Only for this reason.
        since: Only what arrived at this instant or later, microseconds.
        limit: At most so many; they are held in memory.
        again: Whether what has been sent before, or may have been, is sent once more.
        dry_run: Whether nothing is sent.
        clock: Tells the arrival that a record sent now would have.

    Raises:
        UnknownNameError: No such source is applied.
        OfflineError: The quarantine cannot be read, or another replay runs.
        BrokerUnavailableError: The broker cannot be reached. Records that it did not confirm stay "sending".
    """
    clock = clock or SystemClock()
    if source is not None and source not in definitions.sources:
        raise UnknownNameError(f"no source {source!r} is applied.", hint="see featurestore quarantine list.")
    quarantine = Quarantine(offline)
    result = QuarantineReplay(dry_run)
    chosen: dict[str, list[QuarantinedRecord]] = {}
    found = quarantine.records(source=source, reason=reason, since=since, oldest_first=True)
    for record in found:
        if record.replay and not again:
            result.earlier += record.replay == "sent"
            result.uncertain += record.replay == "sending"
        elif record.source in definitions.sources:
            chosen.setdefault(record.source, []).append(record)
    for name, records in chosen.items():
        defined = definitions.sources[name]
        left = limit - result.sent.total()
        accepted = _accepted(defined, records, clock.now(), result)[: max(0, left)]
        result.sent[name] += len(accepted)
        if not dry_run:
            for first in range(0, len(accepted), _CHUNK):
                chunk = accepted[first : first + _CHUNK]
                quarantine.note(chunk, "sending", at=clock.now(), again=again)
                _send(kafka, defined, chunk)
                quarantine.note(chunk, "sent", at=clock.now())
    return result


def _accepted(
    source: EventSource, records: Sequence[QuarantinedRecord], now: Instant, result: QuarantineReplay
) -> list[QuarantinedRecord]:
    """Return the records that the source would accept if they arrived now; count the others."""
    decoder, accepted = decoder_of(source), []
    for first in range(0, len(records), _CHUNK):
        chunk = records[first : first + _CHUNK]
        decoded = decoder.decode([each.raw for each in chunk], np.full(len(chunk), now, np.int64))
        accepted += [chunk[row] for row in decoded.rows.tolist()]
        result.refused[source.name] += len(decoded.rejected)
        result.reasons.update(str(each.reason) for each in decoded.rejected)
    return accepted


def _send(kafka: Mapping[str, str], source: EventSource, records: Sequence[QuarantinedRecord]) -> None:
    offsets = OffsetReader(kafka, [source.topic])
    try:
        partitions = len(offsets.end_offsets()[source.topic])
    finally:
        offsets.close()
    sender = producer(kafka, max_request_size=source.max_bytes + (1 << 20))
    try:
        with mapped_errors(kafka, f"sending to topic {source.topic}"):
            waiting = [
                sender.send(
                    source.topic,
                    each.raw,
                    partition=each.partition % partitions,
                    headers=[(HEADER, "/".join(map(str, each.place)).encode())],
                )
                for each in records
            ]
            for each in waiting:
                each.get(timeout=60)
    finally:
        sender.close()
