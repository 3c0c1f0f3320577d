"""scripts/bench training-set: twenty windowed features at a million rows' own times, by us and by others.

Every contender runs in a process of its own, one after the other, the whole list once per round. All answers are compared
with ours, value by value; a difference ends the run. On a machine that others use too, CPU seconds tell more than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.training_contenders import CONTENDERS, answer
from scripts.benchmarks.training_data import HOT, make

CACHE = Path(".cache/bench")
SPARK = ("ours", "spark-join")
"""What runs on Spark; the words of BENCH_SPARK_UNDER come before its command, such as those that lock a file."""


def main() -> int:
    """Run the measurements, print a table and write them as JSON."""
    given = _arguments()
    command = " ".join(["scripts/bench training-set", *sys.argv[1:]])
    found: dict[str, Any] = {"machine": _machine(), "commands": [command], "runs": []}
    if given.more:
        earlier = json.loads(given.more.read_text())
        found["commands"] = [*earlier["commands"], command]
        found["runs"] = earlier["runs"]
    for events, rows, names in _plan(given):
        folder = make(CACHE, events=events, keys=given.keys, rows=rows, hot=given.hot)
        began = 1 + max((run["round"] for run in found["runs"]), default=-1)
        for number in range(began, began + given.rounds):
            reference = None
            for name in names:
                run = _one(name, folder, given)
                out = run.pop("out")
                if "failed" not in run:
                    made = answer(out)
                    reference = made if reference is None else reference
                    run["largest_difference"] = _compare(name, reference, made, rows)
                    run["rows_per_s"] = round(rows / run["wall_s"])
                size = {"contender": name, "events": events, "rows": rows, "hot": given.hot, "round": number}
                found["runs"].append({**size, **run})
                print(json.dumps(found["runs"][-1]), flush=True)
                shutil.rmtree(out, ignore_errors=True)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps({**found, "summary": summary(found["runs"])}, indent=1) + "\n")
    print(table(summary(found["runs"])))
    print(f"written: {given.out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench training-set", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=200_000, help="spine rows")
    parser.add_argument("--hot", type=float, default=HOT, help="share of the events and rows of one key")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default="ours,duckdb-window,duckdb-totals,numpy", help="in order; ours first")
    parser.add_argument("--join-events", default="", help="sizes, comma-separated, at which spark-join takes part too")
    parser.add_argument("--scale-events", default="", help="sizes at which ours runs alone, to show how cost grows")
    parser.add_argument("--memory", default="2g", help="memory of Spark's JVM")
    parser.add_argument("--more", type=Path, help="a JSON file of earlier runs, which are kept")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds after which a contender is stopped")
    parser.add_argument("--quick", action="store_true", help="200,000 events and one round, to see that it works")
    parser.add_argument("--out", type=Path, default=CACHE / "training-set.json")
    given = parser.parse_args()
    if given.quick:
        given.events, given.rows, given.keys, given.rounds = 200_000, 20_000, 5_000, 1
    given.out = Path(given.out)
    return given


def _plan(given: argparse.Namespace) -> list[tuple[int, int, list[str]]]:
    """Return (events, rows, contenders); the share of rows to events is the same at every size."""
    share = given.rows / given.events
    names = given.contenders.split(",")
    plan = [(given.events, given.rows, names)] if names != [""] else []
    plan += [
        (int(size), int(int(size) * share), ["ours", "spark-join"]) for size in given.join_events.split(",") if size
    ]
    plan += [(int(size), int(int(size) * share), ["ours"]) for size in given.scale_events.split(",") if size]
    return plan


def _one(name: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    if name not in CONTENDERS:
        sys.exit(f"no contender {name!r}; there are {', '.join(CONTENDERS)}")
    out = CACHE.resolve() / f"out-{name}"
    for left in (out, Path(f"{out}-warm")):
        shutil.rmtree(left, ignore_errors=True)
    command = [
        sys.executable, "-m", "scripts.benchmarks.training_contenders", name, str(folder.resolve()), str(out),
        json.dumps({"memory": given.memory} if name == "ours" else {}),
    ]  # fmt: skip
    if name in SPARK:
        command = [*os.environ.get("BENCH_SPARK_UNDER", "").split(), *command]
    load = os.getloadavg()[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {given.timeout} s", "out": out}
    if done.returncode:
        return {"failed": " ".join(done.stderr.split())[-600:], "out": out}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "load_before": round(load, 2), "out": out}


def _compare(name: str, reference: Any, made: Any, rows: int) -> float:
    """Return the largest relative difference of a floating value; end the run where answers differ."""
    if made.num_rows != rows:
        sys.exit(f"{name}: {made.num_rows} rows, expected {rows}")
    worst = 0.0
    for column in reference.column_names:
        one, other = (each.column(column).to_numpy().astype(np.float64) for each in (reference, made))
        if not (np.isnan(one) == np.isnan(other)).all():
            sys.exit(f"{name}: nulls of {column} differ")
        scale = np.maximum(np.abs(one), 1.0) if column.startswith("sum") else 1.0
        difference = float(np.nanmax(np.abs(one - other) / scale, initial=0.0))
        # running totals of plain doubles, as others use them, keep some ten digits
        if difference > (1e-6 if column.startswith("sum") else 0.0):
            sys.exit(f"{name}: {column} differs by {difference}")
        worst = max(worst, difference)
    return worst


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per contender and size the medians, the spread, and how many times ours it took, round by round."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        size = (run["events"], run["rows"], run["hot"])
        groups.setdefault(size, {}).setdefault(run["contender"], []).append(run)
    found = []
    for (events, rows, hot), contenders in groups.items():
        mine = {run["round"]: run for run in contenders.get("ours", []) if "failed" not in run}
        for name, each in contenders.items():
            good = [run for run in each if "failed" not in run]
            row: dict[str, Any] = {"contender": name, "events": events, "rows": rows, "hot": hot, "rounds": len(good)}
            if not good:
                found.append({**row, "failed": each[0]["failed"]})
                continue
            for what in ("wall_s", "cpu_s", "peak_rss_mb", "python_peak_rss_mb", "rows_per_s", "load_before"):
                row[what] = statistics.median(run[what] for run in good)
            for what in ("wall_s", "cpu_s"):
                row[f"{what}_range"] = [min(run[what] for run in good), max(run[what] for run in good)]
                ratios = [run[what] / mine[run["round"]][what] for run in good if run["round"] in mine]
                if ratios:
                    row[f"{what}_times_ours"] = round(statistics.median(ratios), 2)
            found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the summary as a Markdown table."""
    lines = [
        "| events | rows | hot | contender | rounds | CPU s (range) | x ours | wall s (range) | x ours | peak MB | rows/s |",
        "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        begin = f"| {row['events']:,} | {row['rows']:,} | {row['hot']:.0%} | {row['contender']} | {row['rounds']} | "
        if "failed" in row:
            lines.append(f"{begin}{row['failed']} | | | | | |")
            continue
        costs = []
        for what in ("cpu_s", "wall_s"):
            low, high = row[f"{what}_range"]
            costs.append(f"{row[what]:.1f} ({low:.1f}-{high:.1f}) | {row.get(f'{what}_times_ours', '')} | ")
        lines.append(f"{begin}{''.join(costs)}{row['peak_rss_mb']:,.0f} | {row['rows_per_s']:,.0f} |")
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


if __name__ == "__main__":
    raise SystemExit(main())
