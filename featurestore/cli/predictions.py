"""Verbs under ``predictions``: copy."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.app import predictions_app
from featurestore.cli.output import ConfigOption, JsonOption, example, note, open_store, print_json, print_lines
from featurestore.timeline import SECOND, parse_duration

if TYPE_CHECKING:
    from featurestore.jobs.score_log import PredictionCopier

_TICK_S = 0.25


@predictions_app.callback()
def _group() -> None:
    """Take the prediction log from its topic to Delta."""


@predictions_app.command(
    epilog=example("featurestore predictions copy predictions", "featurestore predictions copy predictions --once"),
)
def copy(
    topic: Annotated[str, typer.Argument(help="The topic of serve --prediction-log kafka:TOPIC.")],
    every: Annotated[str, typer.Option(help="Time between two appends to Delta.")] = "10s",
    once: Annotated[bool, typer.Option("--once", help="Copy what the topic holds now, then end.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append the predictions of a topic to the Delta table, each exactly once, until Ctrl-C or SIGTERM. Starts no JVM."""
    from featurestore.jobs.score_log import PREDICTIONS, PredictionCopier

    seconds = parse_duration(every) / SECOND
    settings = open_store(config).settings
    copier = PredictionCopier(settings.kafka, {topic: PREDICTIONS}, settings.offline, every_s=seconds)
    if once:
        copier.copy_once()
    else:
        note(f"copying {topic} to {settings.offline}/{PREDICTIONS}")
        _run(copier)
    if as_json:
        print_json({"copied": copier.copied})
    else:
        print_lines([f"{copier.copied:,} copied"])


def _run(copier: PredictionCopier) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    copier.start()
    said = None
    try:
        while not stop.wait(_TICK_S):
            copier.check()
            if copier.error is not None and copier.error != said:
                note(f"waiting: {copier.error}")
            said = copier.error
    finally:
        copier.stop()
