"""``--watch``: one read after the other, shown in place on a terminal, or as one JSON document a line."""

from __future__ import annotations

import json
import sys
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.online.vector import FeatureVector


class Shown(Protocol):
    """What can be shown: it has a form as data."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as data."""


T = TypeVar("T", bound=Shown)


def watch(
    read: Callable[[], T],
    draw: Callable[[T], Any],
    wait: Callable[[], None],
    *,
    as_json: bool,
    refreshes: int | None = None,
    is_last: Callable[[T], bool] = lambda _: False,
) -> None:
    """Show what ``read`` returns, again and again, until Ctrl-C.

    Args:
        read: Returns what to show.
        draw: Returns it as something rich can draw.
        wait: Called between two reads.
        as_json: One line of JSON per refresh; else drawn, in place on a terminal and again and again into a pipe.
        refreshes: End after so many; None never ends.
        is_last: Whether nothing more will come after this.
    """
    numbers = count() if refreshes is None else range(refreshes)
    try:
        if as_json:
            for number in numbers:
                if number:
                    wait()
                found = read()
                sys.stdout.write(json.dumps(found.to_dict(), separators=(",", ":"), default=str) + "\n")
                sys.stdout.flush()
                if is_last(found):
                    return
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, auto_refresh=False, transient=False) as live:
            for number in numbers:
                if number:
                    wait()
                found = read()
                live.update(draw(found), refresh=True)
                if is_last(found):
                    return
    except KeyboardInterrupt:
        return


def vector_table(vector: FeatureVector) -> Any:
    """Return a feature vector as a table of rich."""
    from rich.table import Table

    shown = vector.to_dict()
    made = Table(title=f"at {shown['at']}", caption=f"complete through {shown['complete_through'] or 'unknown'}")
    for column in ("feature", "value", "status"):
        made.add_column(column)
    for name, value in shown["values"].items():
        made.add_row(name, "null" if value is None else str(value), shown["status"][name])
    return made
