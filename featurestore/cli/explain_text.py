"""An explanation for people: a few lines that say the answer, then tables of the record online, the tiles and the events."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurestore.checks.explanation import DIFFERENT, EQUAL, inputs_of
from featurestore.engines.fates import Fate
from featurestore.timeline import format_duration, format_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.checks.explain_derived import DerivedExplanation
    from featurestore.checks.explanation import Explanation
    from featurestore.engines.fates import Judged
    from featurestore.timeline import Instant

_PIPE_WIDTH = 160


def print_explanation(found: Explanation, console: Console | None = None) -> None:
    """Print an explanation; on a terminal in its width, elsewhere in 160 columns."""
    console = console or _console()
    _print_head(console, found)
    _print_values(console, found)
    _print_verdict(console, found)
    _print_record(console, found)
    _print_tiles(console, found)
    _print_events(console, found)


def print_derived(found: DerivedExplanation, console: Console | None = None) -> None:
    """Print the explanation of a feature that is computed from others: its value, then each of those."""
    console = console or _console()
    grid = Table.grid(padding=(0, 2))
    lines = [
        (found.feature, found.expression),
        ("key", ", ".join(f"{name}={shown(value)}" for name, value in found.keys.items())),
        ("request", ", ".join(f"{name}={shown(value)}" for name, value in found.request.items())),
        ("at", format_instant(found.at)),
    ]
    for name, text in lines:
        if text:
            grid.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    console.print(grid)
    console.print()
    table = _table("computed from", "event log", "online", "")
    for each in found.inputs:
        table.add_row(
            escape(each.feature), escape(shown(each.expected)), escape(shown(each.online.value)), each.verdict
        )
    for name, (offline, online) in found.steps.items():
        table.add_row(escape(name), escape(shown(offline)), escape(shown(online)), "")
    table.add_row(
        f"[bold]{escape(found.feature)}[/bold]", escape(shown(found.expected)), escape(shown(found.online)), ""
    )
    console.print(table)
    _print_verdict(console, found)
    for each in found.inputs:
        console.rule(escape(each.feature))
        print_explanation(each, console)


def _console() -> Console:
    is_terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if is_terminal else _PIPE_WIDTH)


def _print_head(console: Console, found: Explanation) -> None:
    keys = ", ".join(f"{name}={shown(value)}" for name, value in found.keys.items())
    lines = [
        (found.feature, f"{found.aggregate}, of {found.source} (topic {found.topic})"),
        ("key", keys),
        ("at", format_instant(found.at) + (", as served: without what arrived later" if found.as_served else "")),
        ("window", f"[{_time(found.start)}, {_time(found.end)})"),
        ("", found.rule),
    ]
    if found.where is not None:
        lines.append(("where", found.where))
    lines.append(("definition", found.fingerprint + (f", service {found.service}" if found.service else "")))
    grid = Table.grid(padding=(0, 2))
    for name, text in lines:
        grid.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    console.print(grid)
    console.print()


def _print_values(console: Console, found: Explanation) -> None:
    online, offline = found.online, found.offline
    table = _table("value", "by", "from")
    told = "not asked: too many events" if not offline.is_specified else "event by event"
    table.add_row(
        "" if not offline.is_specified else escape(shown(offline.specification)),
        "specification",
        f"event log at version {offline.version}, {told}",
    )
    table.add_row(
        escape(shown(offline.training_set)), "training set", f"event log at version {offline.version}, points kernel"
    )
    known = [f"newest event {_time(online.as_of)}" if online.as_of is not None else "no event"]
    if online.complete_through is not None:
        known.append(f"complete through {_time(online.complete_through)}")
    told = {"read": ", ".join(known), "missing": "no record of the key"}.get(online.status, online.status)
    if online.at != found.at:
        told += f"; at {format_instant(online.at)}, where offline says {shown(found.expected)}"
    table.add_row(escape(shown(online.value)) if online.status in ("read", "missing") else "", "online", escape(told))
    console.print(table)


def _print_verdict(console: Console, found: Explanation | DerivedExplanation) -> None:
    color = {EQUAL: "green", DIFFERENT: "red"}.get(found.verdict, "yellow")
    console.print(f"[bold {color}]{found.verdict}[/bold {color}]")
    for cause in found.causes:
        console.print(f"  [bold]{cause.kind}[/bold]: {escape(cause.text)}", soft_wrap=True)
        if cause.hint:
            console.print(f"    Hint: {escape(cause.hint)}", soft_wrap=True)
    console.print()


def _print_record(console: Console, found: Explanation) -> None:
    blob = found.online.blob
    if blob is None:
        return
    step = "a single row" if blob.hop is None else f"hop {format_duration(blob.hop)}"
    console.print(
        f"[bold]online record[/bold]: {blob.size} bytes, {blob.base} of them base (folded {blob.folds} times, newest event "
        f"{_time(blob.newest)}); {blob.ladder} ladder of {blob.rows} rows, {step}; {len(blob.tail)} records in the tail"
    )
    table = _table("merged from", "begins", "event times", "alone it gives")
    for row in blob.used:
        table.add_row(
            "row", _time(row.hop), "its hop and newer" if blob.ladder == "suffix" else "its hop", shown(row.value)
        )
    for record in blob.tail:
        times = f"{_time(record.oldest)} .. {_time(record.newest)}"
        name = "tail" if record.skipped is None else f"not merged: {record.skipped}"
        table.add_row(name, _time(record.tile), times, escape(shown(record.value)))
    if blob.used or blob.tail:
        console.print(table)
    else:
        console.print("  nothing of it lies in the window\n")


def _print_tiles(console: Console, found: Explanation) -> None:
    if found.tile is None:
        console.print("[bold]tiles[/bold]: none; this window is kept event by event\n")
        return
    left = (
        f", the newest {len(found.tiles)} of {len(found.tiles) + found.tiles_left_out}" if found.tiles_left_out else ""
    )
    console.print(f"[bold]tiles[/bold] of {format_duration(found.tile)}{left}; what each alone would give")
    if not found.tiles:
        console.print("  none\n")
        return
    table = _table("begins", "events", "event log", "tiles table", "")
    for tile in found.tiles:
        is_off = tile.is_whole and tile.is_stored and shown(tile.value) != shown(tile.stored)
        note = "" if tile.is_whole else "partly in the window"
        stored = shown(tile.stored) if tile.is_stored else "-"
        table.add_row(
            _time(tile.start),
            str(tile.events),
            escape(shown(tile.value)),
            escape(stored),
            "different" if is_off else note,
        )
    console.print(table)


def _print_events(console: Console, found: Explanation) -> None:
    told = ""
    if found.offline.fates:
        told = ": " + ", ".join(f"{count} {name}" for name, count in found.offline.fates.items())
    left = f"; {found.left_out} not shown" if found.left_out else ""
    console.print(f"[bold]events[/bold] of the key around the window{told}{left}")
    if not found.events:
        console.print("  none\n")
        return
    columns = [name for name in inputs_of(found.events[0]) if name not in found.keys]
    table = _table("partition", "offset", "event time", "arrival", *columns, "counts as", "why not")
    for one in found.events:
        table.add_row(*_cells(one, columns, is_input=not found.aggregate.endswith("()")))
    console.print(table)


def _cells(one: Judged, columns: Sequence[str], *, is_input: bool) -> list[str]:
    event = one.event
    counts = one.fate == Fate.COUNTED
    cells = [
        str(event.partition), str(event.offset), _time(event.event_time), _time(event.arrival),
        *(shown(event.row[name]) for name in columns),
        (shown(one.value) if is_input else "yes") if counts else "", "" if counts else str(one.fate),
    ]  # fmt: skip
    return [f"[dim]{escape(cell)}[/dim]" if not counts else escape(cell) for cell in cells]


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def _time(instant: Instant | None) -> str:
    return "-" if instant is None else format_instant(instant)


def shown(value: Any) -> str:
    """Return a value for people: null, true, 0.1, 'text'."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
