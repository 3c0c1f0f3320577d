"""scripts/bench stream: what it costs to keep windowed features of a Kafka topic, and how fresh they are.

A real broker and a real store, started here; all contenders read the same topic, one after the other, the whole list once per
round. After ours, counts, sums and maxima of two hundred cards are compared with those of the columns the events were made
from. Those that would take hours are stopped after ``--limit`` seconds and judged by how far they got. CPU is that of the
contender's processes and, apart, of the store; the broker's is left out for everyone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from featurestore import FeatureClient
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.stack.kafka import KafkaServer
from featurestore.stack.valkey import OnlineServer
from scripts.benchmarks.lookup import feast_environment
from scripts.benchmarks.stream_contenders import CONTENDERS
from scripts.benchmarks.stream_data import SPAN, START, columns, definitions, expected, fill
from scripts.benchmarks.stream_freshness import MODES, freshness

CACHE = Path(".cache/bench")
WARM_EVENTS = 4_000
SLOW = ("spark-1h", "spark-5m", "transform-with-state")
OURS = ("ours", "realtime", "realtime-kafka-python")


def main() -> int:
    """Run the measurements, print tables and write them as JSON."""
    given = _arguments()
    found: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "commands": [" ".join(["scripts/bench stream", *sys.argv[1:]])],
        "runs": [],
        "freshness": [],
    }
    if given.more:
        earlier = json.loads(given.more.read_text())
        found |= {name: [*earlier[name], *found[name]] for name in ("commands", "runs", "freshness")}
    names = [name for name in given.contenders.split(",") if name]
    with tempfile.TemporaryDirectory() as folder, KafkaServer(Path(folder) / "kafka") as kafka:
        broker = kafka.bootstrap_servers
        if names:
            for topic, events in (("warm", WARM_EVENTS), ("payments", given.events)):
                fill(broker, topic, events, partitions=given.partitions, keys=given.keys, hot=given.hot)
        began = 1 + max((run["round"] for run in found["runs"]), default=-1)
        for number in range(began, began + given.rounds):
            for name in names:
                with OnlineServer(Path(folder) / f"online-{number}-{name}") as server:
                    run = _one(name, broker, server.url, Path(folder), given)
                size = {"events_of_topic": given.events, "keys": given.keys, "hot": given.hot, "cores": given.cores}
                size |= {"partitions": given.partitions, "workers": given.workers}
                found["runs"].append({"contender": name, "round": number, **size, **run})
                print(json.dumps(found["runs"][-1]), flush=True)
                _write(given.out, found)
        for mode in [mode for mode in given.freshness.split(";") if mode]:
            with OnlineServer(Path(folder) / f"online-fresh-{mode}") as server:
                found["freshness"].append(
                    freshness(mode, broker, server.url, Path(folder), rate=given.rate, seconds=given.seconds)
                )
            print(json.dumps(found["freshness"][-1]), flush=True)
            _write(given.out, found)
    _write(given.out, found)
    print(table(found))
    print(f"written: {given.out}")
    return 0


def _write(out: Path, found: dict[str, Any]) -> None:
    """Write what has been measured so far: a run of an hour that is stopped keeps what it has."""
    found["summary"] = summary(found["runs"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench stream", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--hot", type=float, default=0.0, help="share of all events that one card has")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2, help="of Spark")
    parser.add_argument(
        "--workers", type=int, default=0,
        help="of a standalone cluster, one core each, on which ours runs; 0: inside the driver, on --cores",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default=",".join([*CONTENDERS, "feast-push"]), help="in order")
    parser.add_argument("--feast-events", type=int, default=20_000, help="how many rows Feast is given")
    parser.add_argument(
        "--stateful-batch", type=int, default=5_000, help="events per micro-batch of the stateful queries"
    )
    parser.add_argument("--limit", type=int, default=60, help="seconds after which a stateful query is stopped")
    parser.add_argument("--memory", default="2g", help="memory of Spark's JVM")
    parser.add_argument(
        "--freshness", default=";".join(MODES), help="jobs whose freshness to measure, with ; between; empty for none"
    )
    parser.add_argument("--rate", type=int, default=1_000, help="events per second of the freshness measurement")
    parser.add_argument("--seconds", type=float, default=30.0, help="its length, after ten seconds of warm-up")
    parser.add_argument("--more", type=Path, help="a JSON file of earlier runs, which are kept")
    parser.add_argument("--quick", action="store_true", help="few events and one round, to see that it works")
    parser.add_argument("--out", type=Path, default=CACHE / "stream.json")
    given = parser.parse_args()
    if given.quick:
        given.events, given.keys, given.rounds, given.limit, given.seconds = 20_000, 2_000, 1, 10, 5.0
        given.feast_events = 2_000
    return given


def _one(name: str, broker: str, url: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    if name == "feast-push":
        return _feast(url, folder, given)
    if name not in CONTENDERS:
        sys.exit(f"no contender {name!r}; there are {', '.join([*CONTENDERS, 'feast-push'])}")
    order = {
        "broker": broker, "redis": url, "topic": "payments", "events": given.events, "warm": "warm",
        "warm_events": WARM_EVENTS, "cores": given.cores, "partitions": given.partitions, "memory": given.memory,
        "workers": given.workers, "limit_s": given.limit, "stateful_batch": given.stateful_batch,
    }  # fmt: skip
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.stream_contenders", name, json.dumps(order)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"failed": " ".join(done.stderr.split())[-600:]}
    run = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    if name in OURS:
        run["compared"] = _compare(name, url, folder, given)
    return {**run, "load_before": round(load, 2), "store_mb": round(_memory(url) / 1e6, 1)}


def _compare(name: str, url: str, folder: Path, given: argparse.Namespace) -> int:
    """Compare what is served with the columns the events came from; end the run where they differ."""
    wanted = expected(given.events, given.keys, given.hot)
    store = RedisOnlineStore(url, "payments")
    store.publish_plan(LookupPlan.of(definitions(folder, "payments")))
    store.close()
    with FeatureClient(url, project="payments", timeout="30s") as client:
        rows = client.get_many("cards", [{"card_id": card} for card in wanted], now=START + SPAN + 2_000)
    for (card, (count, total, most)), row in zip(wanted.items(), rows, strict=True):
        served = (row["card.n_7d"], row["card.spend_7d"], row["card.most_7d"])
        if served[0] != count or served[2] != most or abs(served[1] - total) > 1e-9 * total:
            sys.exit(f"{name}: {card} has {served}, expected {(count, total, most)}")
    return len(wanted)


def _memory(url: str) -> int:
    with redis.Redis.from_url(url, protocol=2) as admin:
        return int(admin.info("memory")["used_memory"])


def _feast(url: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    python = feast_environment()
    card, time, amount = (column[: given.feast_events] for column in columns(given.events, given.keys, given.hot))
    rows = {f"f{number}": pa.array(amount) for number in range(12)}
    rows |= {
        "card_id": pa.array([f"c{each}" for each in card.tolist()]),
        "event_timestamp": pa.array(time, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(rows), folder / "pushed.parquet")
    address = redis.connection.parse_url(url)
    order = {
        "folder": str(folder),
        "rows": str(folder / "pushed.parquet"),
        "redis": f"{address['host']}:{address['port']}",
    }
    with redis.Redis.from_url(url, protocol=2) as admin:
        before = admin.info("cpu")
        done = subprocess.run(
            [str(python), str(Path(__file__).with_name("feast_push.py")), json.dumps(order)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        after = admin.info("cpu")
    if done.returncode:
        return {"failed": " ".join(done.stderr.split())[-600:]}
    store = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "store_cpu_s": round(store, 2)}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per contender and setting: events per second and CPU per million events, medians and ranges, and ratios to ours."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        setting = *(run[name] for name in ("events_of_topic", "hot", "partitions", "cores")), run.get("workers", 0)
        groups.setdefault(setting, {}).setdefault(run["contender"], []).append(run)
    found = []
    for (events, hot, partitions, cores, workers), contenders in groups.items():
        mine = {run["round"]: run for run in contenders.get("ours", []) if "failed" not in run}
        for name, each in contenders.items():
            good = [run for run in each if not run.get("failed") and run["events"]]
            row: dict[str, Any] = {
                "contender": name, "events_of_topic": events, "hot": hot, "partitions": partitions, "cores": cores,
                "workers": workers, "rounds": len(good),
            }  # fmt: skip
            if good:
                rates = [run["events"] / run["wall_s"] for run in good]
                costs = [_cpu(run) for run in good]
                row |= {
                    "events": min(run["events"] for run in good),
                    "events_per_s": round(statistics.median(rates)),
                    "events_per_s_range": [round(min(rates)), round(max(rates))],
                    "cpu_s_per_million": round(statistics.median(costs), 2),
                    "cpu_s_per_million_range": [round(min(costs), 2), round(max(costs), 2)],
                }
                for what, of in (("rate", lambda run: run["events"] / run["wall_s"]), ("cpu", _cpu)):
                    ratios = [of(run) / of(mine[run["round"]]) for run in good if run["round"] in mine]
                    if ratios:
                        row[f"{what}_times_ours"] = round(statistics.median(ratios), 4)
            else:
                row["failed"] = each[0].get("failed", "no batch was done in time")
            found.append(row)
    return found


def _cpu(run: dict[str, Any]) -> float:
    return float((run["cpu_s"] + run["store_cpu_s"]) / run["events"] * 1e6)


def table(found: dict[str, Any]) -> str:
    """Return summary and freshness as Markdown tables."""
    lines = [
        "| contender | events | hot | partitions | workers | rounds | events/s (range) | x ours | CPU s/M (range) | x ours |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["summary"]:
        begin = (
            f"| {row['contender']} | {row.get('events', 0):,} | {row['hot']:.0%} | {row['partitions']} | "
            f"{row['workers'] or 'local'} | {row['rounds']} | "
        )
        if "failed" in row:
            lines.append(f"{begin}{row['failed']} | | | |")
            continue
        (slow, fast), (low, high) = row["events_per_s_range"], row["cpu_s_per_million_range"]
        lines.append(
            f"{begin}{row['events_per_s']:,} ({slow:,}-{fast:,}) | {row.get('rate_times_ours', '')} | "
            f"{row['cpu_s_per_million']:,.1f} ({low:,.1f}-{high:,.1f}) | {row.get('cpu_times_ours', '')} |"
        )
    if found["freshness"]:
        lines += ["", "| freshness | events/s | markers | lost | p10 ms | p50 ms | p99 ms | worst ms | load |"]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        lines += [
            f"| {each['mode']} | {each['rate']:,.0f} | {each['markers']} | {each['lost']} | {each['p10_ms']:.0f} | "
            f"{each['p50_ms']:.0f} | {each['p99_ms']:.0f} | {each['worst_ms']:.0f} | {each['load']:.1f} |"
            for each in found["freshness"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
