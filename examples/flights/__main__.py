"""Real flights through the whole system: ``scripts/demo``."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from examples.flights import data
from examples.flights.report import Console, failures, print_figures
from examples.flights.run import Options, run
from featurestore.errors import FeatureStoreError

FULL_START, FULL_HISTORY_DAYS, FULL_LIVE_DAYS = "2013-01-01T09:00:00Z", 273, 92
FULL_TICK = "60m"


def main(argv: list[str]) -> int:
    """Run the demo; return 0 when every claim held, 1 when one did not or something failed."""
    arguments = _parser().parse_args(argv)
    options = Options(
        start=FULL_START if arguments.full else arguments.start,
        history_days=FULL_HISTORY_DAYS if arguments.full else arguments.days,
        live_days=FULL_LIVE_DAYS if arguments.full else arguments.live_days,
        tick=arguments.tick or (FULL_TICK if arguments.full else data.TICK),
        freshness_s=arguments.freshness_seconds,
        freshness=arguments.freshness,
        rate=arguments.rate,
    )
    folder = Path(arguments.dir).resolve() if arguments.dir else Path(tempfile.mkdtemp(prefix="featurestore-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)
    keep = arguments.keep or bool(arguments.dir)
    try:
        figures = run(options, folder, Console(quiet=arguments.quiet))
    except FeatureStoreError as error:
        if arguments.debug:
            raise
        keep = True
        sys.stderr.write(f"error: {error}\nLogs are in {folder}.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    broken = failures(figures)
    figures["failures"] = broken
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=2, default=str) + "\n")
    else:
        print_figures(figures)
    for line in broken:
        sys.stderr.write(f"claim broken: {line}\n")
    if keep:
        sys.stderr.write(f"Everything is kept in {folder}.\n")
    return 1 if broken else 0


def _stop(*_: object) -> None:
    """Unwind as Ctrl-C does, so that everything that was started is stopped."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="New York's flights of 2013 through Kafka, Spark, Delta, the online store and a scorer, on this machine.",
        epilog="example: scripts/demo --days 60 --live-days 3 --json > figures.json",
    )
    parser.add_argument("--days", type=int, default=data.HISTORY_DAYS, help="days of history (default %(default)s)")
    parser.add_argument("--live-days", type=int, default=data.LIVE_DAYS, help="days stepped live (default %(default)s)")
    parser.add_argument("--start", default=data.START, help="first instant of the history (default %(default)s)")
    parser.add_argument("--tick", help=f"step of the virtual clock (default {data.TICK})")
    parser.add_argument(
        "--full", action="store_true", help="the whole year: train January to September, live October on"
    )
    parser.add_argument("--freshness-seconds", type=float, default=15.0, help="length of that measurement; 0 skips it")
    parser.add_argument("--rate", type=int, default=1_000, help="its events per second (default %(default)s)")
    parser.add_argument(
        "--freshness",
        choices=("micro-batch", "realtime"),
        default="micro-batch",
        help="how the hot query runs (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no stages on standard error")
    parser.add_argument("--keep", action="store_true", help="keep the folder with tables, logs and model")
    parser.add_argument("--dir", help="work in this folder, and keep it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
