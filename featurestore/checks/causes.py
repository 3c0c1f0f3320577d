"""Why the online store and the event log give different values: everything that can be told apart from outside. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.checks.explanation import Cause, OnlineSide
from featurestore.engines.fates import MERGED, Fate
from featurestore.timeline import Instant, format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.engines.fates import Judged


def causes_of(
    online: OnlineSide,
    judged: Sequence[Judged],
    *,
    published: str | None,
    applied: str,
    service: str | None,
    is_log_behind: bool,
    newest: Instant | None,
    repeated: Sequence[tuple[int, int]],
) -> list[Cause]:
    """Return the causes of a difference, the decisive one first; at least one.

    Args:
        online: The online store's side.
        judged: The fates of the key's events, at the time compared.
        published: Fingerprint of the view in the plan that the online store holds; None without a plan.
        applied: Fingerprint of the view in the registry.
        service: The service of that plan; None where none has the view.
        is_log_behind: Whether the online store has applied records that the event log does not have yet.
        newest: Newest event time of the key in the log that enters the view, before the time compared.
        repeated: Places that the log has more than once.
    """
    if online.status == "unreadable":
        return [
            Cause(
                "unreadable",
                f"the record in the online store cannot be read: {online.detail}",
                "rebuild the online store.",
            )
        ]
    found = []
    if service is not None and published != applied:
        what = "no plan of it" if published is None else f"definition {published}"
        text = f"the registry has definition {applied}, the online store {what} for service {service}."
        found.append(Cause("definition", text, "run featurestore apply, and restart the job."))
    found += _not_applied(online, judged, applied)
    if online.as_of is not None and (newest is None or online.as_of > newest):
        known = "no event of the key" if newest is None else f"none after {format_instant(newest)}"
        text = f"the online store has merged an event of {format_instant(online.as_of)}, and the event log has {known}."
        found.append(Cause("log_behind", text, "the archive query writes in longer batches; ask again."))
    elif is_log_behind:
        text = "the online store has applied records that the event log does not have yet."
        found.append(Cause("log_behind", text, "the archive query writes in longer batches; ask again."))
    if repeated:
        (partition, offset), more = repeated[0], len(repeated) - 1
        text = f"the event log has offset {offset} of partition {partition} more than once" + (
            f", and {more} others." if more else "."
        )
        found.append(Cause("repeated", text, "its rows count as often as they are there."))
    unseen = sum(one.fate == Fate.UNSEEN for one in judged)
    if unseen:
        text = f"{unseen} events arrived after the time asked about; the online store has merged them since."
        found.append(Cause("arrival", text))
    return found or [_disagreement(online)]


def _not_applied(online: OnlineSide, judged: Sequence[Judged], applied: str) -> list[Cause]:
    """Return whether something has not been applied, or was applied and is gone."""
    merged = [one.event for one in judged if one.fate in MERGED]
    waiting = [event for event in merged if event.offset >= (online.fences.get(event.partition) or 0)]
    ran = any(fence is not None for fence in online.fences.values())
    if online.status == "missing" and not ran:
        text = f"the online store has nothing of definition {applied}: never applied there, or lost."
        return [Cause("empty", text, "is the materialize job running? a store that was emptied has to be rebuilt.")]
    if waiting:
        first = min(waiting, key=lambda event: (event.partition, event.offset))
        fence = online.fences.get(first.partition)
        text = (
            f"the online store is behind: partition {first.partition} is applied up to offset {fence or 0}, and "
            f"{len(waiting)} of {len(merged)} events are not applied yet, the first at offset {first.offset}"
            f"{_complete(online)}."
        )
        return [Cause("behind", text, "is the materialize job running? its status tells how far it is.")]
    if online.status == "missing":
        text = (
            f"all {len(merged)} events have been applied by their offsets, and the key has no record: it was removed."
        )
        return [Cause("lost", text, "does the server evict keys? set maxmemory-policy noeviction, and rebuild.")]
    return []


def _complete(online: OnlineSide) -> str:
    if online.complete_through is None:
        return ""
    return f"; the source is complete through {format_instant(online.complete_through)}"


def _disagreement(online: OnlineSide) -> Cause:
    fences = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(_known(online.fences).items()))
    text = (
        "a real disagreement: definition and events are the same on both sides, and all of these are applied "
        f"(next offsets {{{fences}}}), yet the stored record gives another value."
    )
    return Cause("disagreement", text, "run featurestore verify; a damaged record is mended by a rebuild.")


def _known(fences: Mapping[int, int | None]) -> dict[int, Any]:
    return {partition: offset for partition, offset in fences.items() if offset is not None}
