"""What verbs share: the global options, and printing for people or as JSON."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from featurestore.store import FeatureStore

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="featurestore.toml or its folder.")]


@dataclass
class State:
    """The global options of this run."""

    config: Path | None = None
    debug: bool = False


STATE = State()


def open_store(config: Path | None, **overrides: Any) -> FeatureStore:
    """Return the store of the project that the options name."""
    from featurestore.store import FeatureStore

    return FeatureStore.open(config or STATE.config, **overrides)


def example(*lines: str) -> str:
    """Return the example that ends a verb's help."""
    return "Example: " + "; ".join(lines)


def print_json(content: Any) -> None:
    """Print data for machines."""
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def print_lines(lines: Iterable[Any]) -> None:
    """Print data for people, one line each."""
    for line in lines:
        sys.stdout.write(f"{line}\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns that line up; a pipe gets the same."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print_lines(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def note(text: str) -> None:
    """Say something that is not data."""
    sys.stderr.write(text + "\n")


@contextmanager
def progress_bar(label: str, *, total: float | None = None) -> Iterator[Callable[..., None] | None]:
    """Give a callback that moves a progress bar on a terminal (``completed``, ``total``, ``description``); None in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.update, bar.add_task("", total=total))
