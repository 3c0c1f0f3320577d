"""``lookup --watch``: one read after the other, shown in place on a terminal, or as one JSON document a line."""

from __future__ import annotations

import json
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.online.vector import FeatureVector


def watch(
    read: Callable[[], FeatureVector], wait: Callable[[], None], *, as_json: bool, refreshes: int | None = None
) -> None:
    """Show what ``read`` returns, again and again, until Ctrl-C.

    Args:
        read: A lookup.
        wait: Called between two of them.
        as_json: One line of JSON per refresh; else a table, redrawn on a terminal and printed again into a pipe.
        refreshes: End after so many; None never ends.
    """
    numbers = count() if refreshes is None else range(refreshes)
    try:
        if as_json:
            for number in numbers:
                if number:
                    wait()
                sys.stdout.write(json.dumps(read().to_dict(), separators=(",", ":"), default=str) + "\n")
                sys.stdout.flush()
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, auto_refresh=False, transient=False) as live:
            for number in numbers:
                if number:
                    wait()
                live.update(_table(read()), refresh=True)
    except KeyboardInterrupt:
        return


def _table(vector: FeatureVector) -> Any:
    from rich.table import Table

    shown = vector.to_dict()
    made = Table(title=f"at {shown['at']}", caption=f"complete through {shown['complete_through'] or 'unknown'}")
    for column in ("feature", "value", "status"):
        made.add_column(column)
    for name, value in shown["values"].items():
        made.add_row(name, "null" if value is None else str(value), shown["status"][name])
    return made
