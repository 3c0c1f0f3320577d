"""Verbs that keep the stores healthy: rebuild-online, prune-online, compact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import app
from featurestore.cli.output import (
    ConfigOption,
    JsonOption,
    example,
    note,
    open_store,
    print_json,
    print_lines,
    print_table,
    progress_bar,
)
from featurestore.datatypes import DataType
from featurestore.errors import ConfigError
from featurestore.timeline import HOUR, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.25


@app.command(
    name="rebuild-online",
    epilog=example(
        "featurestore rebuild-online",
        "featurestore rebuild-online --view card_spend",
        "featurestore rebuild-online --view card_spend --key card_id=c1 --wait 1m",
    ),
)
def rebuild_online(
    view: Annotated[str | None, typer.Option(help="Only this view.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Only this key of the view, name=value; once per column.")
    ] = None,
    wait: Annotated[str, typer.Option(help="With --key: how long to wait for the event log to catch up.")] = "1m",
    from_topics: Annotated[
        bool,
        typer.Option(
            "--from-topics", help="Build nothing: the job reads its topics again, from the store's own fences."
        ),
    ] = False,
    memory: Annotated[int, typer.Option(min=1, help="MiB of blobs held before they are written.")] = 1024,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the online store anew from the event log, while it is read. Starts no JVM.

    All of it, or one view: writers are refused from then on, so stop the job first and submit it again afterwards; it
    goes on from exactly where the log ended. One key: the job may go on running.
    """
    from featurestore.jobs.rebuild import accept_online
    from featurestore.jobs.rebuild import rebuild_online as rebuild
    from featurestore.jobs.rebuild_key import rebuild_key
    from featurestore.online.redis_store import RedisOnlineStore

    if key and view is None:
        raise ConfigError("--key needs --view.", hint="for example --view card_spend --key card_id=c1.")
    if from_topics and view is not None:
        raise ConfigError("--from-topics is about the whole store.", hint="leave out --view.")
    project = open_store(config)
    definitions = project.definitions()
    online = RedisOnlineStore(project.settings.online.url, project.settings.project)
    try:
        online.ping()
        if from_topics:
            epoch = accept_online(online, project.settings.offline)
            if as_json:
                print_json({"epoch": epoch})
            else:
                print_lines([f"epoch {epoch}"])
                note("submit the job again; it reads its topics from the store's fences on")
            return
        if key and view is not None:
            from featurestore.cli.serving import parse_keys
            from featurestore.definitions.keys import key_values

            found = definitions.view(view)
            columns = found.layout.keys
            entity = parse_keys(f"view {view}", key, dict(columns), option="--key ")
            values = key_values(entity, columns, where=f"view {view}")
            made = rebuild_key(online, found, values, project.settings.offline, wait=_waiting(wait))
            if as_json:
                print_json(made.to_dict())
            else:
                print_lines([f"{view}: made of {made.events:,} events, up to offsets {made.until}"])
            return
        with progress_bar("buckets") as move:

            def moved(done: int, total: int) -> None:
                if move is not None:
                    move(completed=done, total=total, description=f"{done}/{total}")

            result = rebuild(
                online, definitions, project.settings.offline, view=view, memory_bytes=memory << 20, progress=moved
            )
    finally:
        online.close()
    if as_json:
        print_json(result.to_dict())
    else:
        print_lines([f"{', '.join(result.views)}: {result.blobs:,} blobs, epoch {result.epoch}"])
        for source, until in result.until.items():
            note(
                f"{source}: the stream goes on from {', '.join(f'{p}:{offset:,}' for p, offset in sorted(until.items()))}"
            )
        note("submit the job again")


@app.command(
    name="prune-online",
    epilog=example("featurestore prune-online --dry-run", "featurestore prune-online"),
)
def prune_online(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what the online store holds of views that are not defined any more, or were defined otherwise. Starts no JVM.

    Their values, the ids of their events and their fences. A view that a job still writes is left alone.
    """
    from featurestore.jobs.prune import prune_online as prune
    from featurestore.online.redis_store import RedisOnlineStore

    project = open_store(config)
    online = RedisOnlineStore(project.settings.online.url, project.settings.project)
    try:
        online.ping()
        found = prune(online, project.definitions().views.values(), dry_run=dry_run)
    finally:
        online.close()
    if as_json:
        print_json([each.to_dict() for each in found])
        return
    print_table(("view", "values", "id hashes"), [(each.view, each.blobs, each.ids) for each in found])
    for each in found:
        if each.held is not None:
            note(f"left alone: {each.held}")


def _waiting(duration: str) -> Callable[[], bool]:
    deadline = time.monotonic() + parse_duration(duration) / 1_000_000

    def wait() -> bool:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
        return True

    return wait


@app.command(
    epilog=example(
        "featurestore compact",
        "featurestore compact --table tiles --older-than 1d",
        "featurestore compact --vacuum 14d --manifests training_sets/ --dry-run",
    ),
)
def compact(
    table: Annotated[list[str] | None, typer.Option(help="events/SOURCE, tiles or quarantine; all by default.")] = None,
    older_than: Annotated[str, typer.Option(help="Merge tiles that ended so long ago.")] = "1h",
    target: Annotated[int, typer.Option(min=1, help="About how many MiB a file gets.")] = 128,
    vacuum: Annotated[
        str | None, typer.Option(help="Delete files that are unused for so long; a week at least.")
    ] = None,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            help="Manifests of training sets, or folders to look for them in; the project's own folders always."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Vacuum below a week, and what manifests name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what vacuum would delete.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make few large files of many small ones, and one row of each tile's many. Streams may go on. Starts no JVM."""
    from featurestore.offline.compact import Compaction

    store = open_store(config)
    settings = store.settings
    own = [settings.home, *([] if "://" in settings.offline else [Path(settings.offline)])]
    compaction = Compaction(
        settings.offline,
        tuple(store.definitions().views.values()),
        older_than=parse_duration(older_than),
        target_bytes=target << 20,
        retention_hours=None if vacuum is None else -(-parse_duration(vacuum) // HOUR),
        manifests=[each for each in (*(manifests or ()), *own) if each.exists()],
        force=force,
        dry_run=dry_run,
    )
    done = compaction.run(table)
    if as_json:
        print_json([each.to_dict() for each in done])
        return
    rows = [(each.table, each.rows_merged, each.files_before, each.files_after, each.deleted) for each in done]
    print_table(("table", "rows merged", "files before", "files after", "deleted"), rows)


@app.command(
    epilog=example("featurestore erase card card_id=c1", "featurestore erase card card_id=c1 --vacuum 7d"),
)
def erase(
    entity: Annotated[str, typer.Argument(help="Name of the entity.")],
    keys: Annotated[list[str], typer.Argument(help="Its key columns, name=value each.")],
    vacuum: Annotated[
        str | None, typer.Option(help="Also delete files that are unused for so long; a week at least.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an entity's predictions, and its events that could not be scored, from Delta. Streams may go on.

    Event log, tiles, training sets, topics and the online store keep theirs.
    """
    from featurestore.cli.serving import parse_keys
    from featurestore.errors import UnknownNameError, did_you_mean
    from featurestore.jobs.score_erase import erase_scored
    from featurestore.offline.compact import LEAST_RETENTION_H

    store = open_store(config)
    definitions = store.definitions()
    if entity not in definitions.entities:
        raise UnknownNameError(
            f"no entity {entity!r} is applied.", hint=did_you_mean(entity, definitions.entities, what="entities")
        )
    hours = None if vacuum is None else -(-parse_duration(vacuum) // HOUR)
    if hours is not None and hours < LEAST_RETENTION_H:
        raise ConfigError(
            f"--vacuum {vacuum} is under a week.", hint="readers may still need the files; run it later again."
        )
    values = parse_keys(
        f"entity {entity}", keys, {name: DataType(kind) for name, kind in definitions.entities[entity].keys.items()}
    )
    erased = erase_scored(store.settings.offline, values, definitions.sources, retention_hours=hours)
    if as_json:
        print_json(erased.to_dict())
        return
    print_table(
        ("table", "rows erased", "files deleted"),
        [(name, rows, erased.files_deleted.get(name, 0)) for name, rows in erased.rows.items()],
    )
    note("files that were written before hold the rows until they are a week old and vacuumed: --vacuum 7d")
