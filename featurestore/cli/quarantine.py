"""Verbs under ``quarantine``: list, replay."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.cli.app import quarantine_app
from featurestore.cli.output import (
    ConfigOption,
    JsonOption,
    example,
    note,
    open_store,
    print_json,
    print_lines,
    print_table,
)
from featurestore.errors import DefinitionError
from featurestore.timeline import SystemClock, format_instant, parse_duration, to_instant

SourceOption = Annotated[str | None, typer.Option(help="Only records of this source.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only for this reason: contract, not_json, future, ...")]
SinceOption = Annotated[
    str | None,
    typer.Option(help='Only what arrived since: an instant (ISO 8601 with an offset), or "2h" for two hours ago.'),
]


@quarantine_app.command(
    name="list",
    epilog=example(
        "featurestore quarantine list --source transactions --since 2h", "featurestore quarantine list --json"
    ),
)
def list_records(
    source: SourceOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List records that were no events, the newest first. Reads Delta, starts no JVM."""
    from featurestore.offline.quarantine import Quarantine

    store = open_store(config)
    records = Quarantine(store.settings.offline).records(
        source=source, reason=reason, since=instant_of(since), limit=limit
    )
    if as_json:
        print_json([each.to_dict() for each in records])
        return
    rows = [
        (
            format_instant(each.arrival),
            each.source,
            f"{each.topic}-{each.partition}@{each.offset}",
            each.reason,
            each.replay or "-",
            each.detail,
        )
        for each in records
    ]
    print_table(("arrived", "source", "place", "reason", "replay", "detail"), rows)


@quarantine_app.command(
    epilog=example(
        "featurestore quarantine replay --source transactions",
        "featurestore quarantine replay --source transactions --reason contract --yes",
    )
)
def replay(
    source: SourceOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the oldest.")] = 10_000,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send them; without it nothing is sent.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also those that were, or may have been, sent before.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send records that the applied contract accepts by now to their topic again, each once. Sends nothing without --yes."""
    from featurestore.jobs.quarantine import replay_quarantine

    store = open_store(config)
    found = replay_quarantine(
        store.settings.offline, store.settings.kafka, store.definitions(), source=source, reason=reason,
        since=instant_of(since), limit=limit, again=again, dry_run=not yes,
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    verb = "sent" if yes else "would be sent"
    print_lines(f"{name}: {count:,} {verb}" for name, count in sorted(found.sent.items()))
    for name, count in sorted(found.refused.items()):
        if count:
            note(
                f"{name}: {count:,} would be refused again ({', '.join(f'{why} {n:,}' for why, n in found.reasons.items())})"
            )
    if found.earlier:
        note(f"{found.earlier:,} were sent before; --again sends them once more")
    if found.uncertain:
        note(f"{found.uncertain:,} may have been sent: a replay ended before it could note it; --again sends them")
    if not yes and found.sent.total():
        note("nothing was sent; pass --yes")


def instant_of(since: str | None) -> int | None:
    """Return the instant of an ISO text, or of so long ago."""
    if since is None:
        return None
    try:
        return SystemClock().now() - parse_duration(since)
    except DefinitionError:
        return to_instant(since, name="--since")
