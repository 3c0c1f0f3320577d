"""What the demo prints: stages on standard error while it runs, the figures on standard output when it is done."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table


class Console:
    """Prints stages; a progress line on a terminal, plain lines in a pipe."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._rich = RichConsole(stderr=True, quiet=quiet, highlight=False)
        self._began = time.monotonic()
        self._stage = ""

    def stage(self, text: str) -> None:
        """Begin a stage."""
        self._began, self._stage = time.monotonic(), text
        self._rich.print(f"[bold]{text}[/] ...")

    def progress(self, done: int, total: int) -> None:
        """Show how far the stage is; on a terminal only."""
        if self._rich.is_terminal:
            self._rich.print(f"  {done:,} of {total:,}", end="\r")

    def done(self, text: str) -> None:
        """End the stage with what came of it."""
        self._rich.print(f"  {text} [dim]({time.monotonic() - self._began:.1f} s)[/]")


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures for a person, on standard output."""
    out = RichConsole(file=sys.stdout, highlight=False)
    if not out.is_terminal:
        out.width = 120
    history, live, latency = figures["history"], figures["live"], figures["latency"]
    quality, equal, kept = figures["quality"], figures["equality"], figures["conservation"]

    table = Table(title="Real flights through the whole system", show_header=False, title_justify="left")
    table.add_column("what", style="bold")
    table.add_column("figure")
    table.add_row(
        "history",
        f"{history['events']:,} events through Kafka, Spark, Redis: {history['events_per_s']:,.0f} per second",
    )
    table.add_row(
        "live",
        f"{live['flights']:,} flights scored over HTTP while {live['events']:,} events streamed in "
        f"({live['times_real_time']:,.0f} times real time)",
    )
    if "freshness" in figures:
        fresh = figures["freshness"]
        table.add_row(
            "freshness",
            f"p50 {fresh['p50_ms']:.0f} ms, p99 {fresh['p99_ms']:.0f} ms from produced to readable, at "
            f"{fresh['rate']:,.0f} events per second ({fresh['markers']} markers, {fresh['lost']} lost)",
        )
    table.add_row(
        "lookup",
        f"p50 {latency['lookup']['p50_ms']:.2f} ms, p99 {latency['lookup']['p99_ms']:.2f} ms for the "
        f"{latency['features']} features of a flight",
    )
    table.add_row(
        "score",
        f"p50 {latency['score']['p50_ms']:.2f} ms, p99 {latency['score']['p99_ms']:.2f} ms over HTTP, lookup included",
    )
    with_, without = quality["with_windows"], quality["without_windows"]
    table.add_row(
        "quality",
        f"AUC {with_['auc']:.3f} with the streaming features, {without['auc']:.3f} without "
        f"(average precision {with_['average_precision']:.3f} and {without['average_precision']:.3f}; "
        f"{with_['rows']:,.0f} labelled flights, {with_['base_rate']:.1%} late)",
    )
    served, by_time = equal["as_served"], equal["event_time"]
    table.add_row(
        "online = offline",
        f"{served['equal_vectors']:,} of {served['vectors']:,} served vectors equal what Delta says had arrived "
        f"({served['values']:,} values, {served['different']} different)",
    )
    table.add_row(
        "late events",
        f"{by_time['different']} values differ from the event-time answer; {by_time['explained_by_late_events']} of them "
        f"explained by {len(by_time['late_events'])} late events, {by_time['unexplained']} unexplained",
    )
    table.add_row(
        "nothing lost",
        f"{kept['sent']:,} records sent, {kept['in_delta']:,} in Delta; {kept['quarantined']} of "
        f"{kept['malformed_sent']} malformed in quarantine; {kept['late_healed']:,} of {kept['late_sent']:,} late ones healed",
    )
    out.print(table)
    if by_time["example"]:
        out.print(f"A late event at work: {by_time['example']}.")
    out.print(f"Whole run: {figures['took_s']:.0f} s.")


def failures(figures: dict[str, Any]) -> list[str]:
    """Return what the figures claim and do not keep; empty when all is well."""
    found = []
    equal, kept = figures["equality"], figures["conservation"]
    if equal["as_served"]["different"]:
        found.append(f"{equal['as_served']['different']} served values differ from Delta's.")
    if equal["event_time"]["unexplained"]:
        found.append(f"{equal['event_time']['unexplained']} differences to the event-time answer have no late event.")
    if kept["sent"] != kept["in_delta"]:
        found.append(f"{kept['sent']} records sent, {kept['in_delta']} in Delta.")
    if kept["quarantined"] != kept["malformed_sent"]:
        found.append(f"{kept['malformed_sent']} malformed records sent, {kept['quarantined']} in quarantine.")
    if kept["late_healed"] != kept["late_sent"]:
        found.append(f"{kept['late_sent']} late events sent, {kept['late_healed']} merged.")
    if figures.get("freshness", {}).get("lost"):
        found.append(f"{figures['freshness']['lost']} freshness markers were never readable.")
    return found
