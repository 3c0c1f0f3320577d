"""scripts/bench score: a score of fifty windowed features and a model of 200 trees over HTTP, against the usual stack and Feast.

All contenders run at the same time in processes of their own and read one Valkey; they are loaded one after the other, the whole
list once per round, so what else the machine does meets them all. Before the clock starts, every contender that runs the model
has to give the same score for the same cards, and one answer in fifty is compared under load. Reported per contender and number
of connections: requests per second, p50 and p99, CPU per request of the contender's processes and, apart, of the store; the CPU
of the load itself is left out. ``--kafka`` measures the Kafka scorer instead.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

from featurestore import FeatureClient
from featurestore.scoring.manifest import save_model
from featurestore.stack.valkey import OnlineServer
from scripts.benchmarks.lookup import CACHE, NOW, Peer, definitions, fill
from scripts.benchmarks.score_servers import CONTENDERS, Contender, Given

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featurestore import FeatureService

TREES, LEAVES, TRAINED_ROWS = 200, 31, 8_000
TOLERANCE = 1e-5
FEAST_YAML = """\
project: bench
registry: {folder}/registry.db
provider: local
online_store:
  type: redis
  connection_string: {redis}
entity_key_serialization_version: 3
"""


def main() -> int:
    """Run the measurement, print tables and write them as JSON."""
    given = _arguments()
    found: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "command": " ".join(["scripts/bench score", *sys.argv[1:]]),
    }
    with tempfile.TemporaryDirectory() as name:
        if given.kafka:
            from scripts.benchmarks.score_kafka import measure_kafka, table_kafka

            found["kafka"] = measure_kafka(Path(name), given)
            shown = table_kafka(found["kafka"])
        else:
            found |= measure(Path(name), given)
            found["summary"] = summary(found["cells"])
            shown = table(found["summary"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(shown)
    print(f"written: {given.out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench score", description=__doc__)
    parser.add_argument(
        "--contenders", default=",".join(CONTENDERS), help="in order; the first one is compared with the rest"
    )
    parser.add_argument("--connections", default="1,8,32", help="of the closed load")
    parser.add_argument("--cards", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load of each round")
    parser.add_argument(
        "--rate", type=float, default=200.0, help="requests per second of the open load; 0 leaves it out"
    )
    parser.add_argument("--kafka", action="store_true", help="measure the Kafka scorer instead of HTTP")
    parser.add_argument("--modes", default="realtime,micro-batch", help="with --kafka: jobs to measure")
    parser.add_argument("--events", type=int, default=50_000, help="with --kafka: events of the throughput measurement")
    parser.add_argument("--quick", action="store_true", help="few cards, one short round, to see that it works")
    parser.add_argument("--out", type=Path, help="default .cache/bench/score.json, score-kafka.json with --kafka")
    given = parser.parse_args()
    if given.quick:
        given.cards, given.rounds, given.seconds, given.events = 100, 1, 0.5, 5_000
    if given.out is None:
        given.out = CACHE / ("score-kafka.json" if given.kafka else "score.json")
    unknown = [name for name in given.contenders.split(",") if name not in CONTENDERS]
    if unknown:
        parser.error(f"no contender {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    return given


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return one cell per contender, load and round, and what was compared."""
    service = definitions(folder)
    names = given.contenders.split(",")
    with OnlineServer(folder / "online") as server, redis.Redis.from_url(server.url, protocol=2) as admin:
        fill(server.url, service, "usual", given.cards)
        cards = [f"c{card}" for card in range(given.cards)]
        rows = vectors(server.url, cards, NOW)
        booster = train(rows, folder / "model.txt")
        store_model(booster, service, folder / "models", times=2)
        champion(folder / "models", 1)
        address = redis.connection.parse_url(server.url)
        place = f"{address['host']}:{address['port']}"
        write_hashes(admin, service, cards, rows, server.url)
        if "feast" in names:
            write_feast(server.url, place, service, cards, rows, folder / "feast")
        started_with = Given(
            folder, place, folder / "models", folder / "model.txt", service.feature_ids, folder / "feast"
        )
        running: dict[str, Contender] = {}
        load = Load()
        try:
            for name in names:
                running[name] = CONTENDERS[name](started_with)
            for each in running.values():
                each.wait()
            wanted = [float(each) for each in booster.predict(rows, num_threads=1)]
            compared = compare(running, cards, wanted)
            cells = _rounds(running, load, admin, cards, wanted, given)
            if "ours" in running:
                cells += _swaps(running["ours"], load, cards, wanted, folder / "models", given)
        finally:
            for each in running.values():
                each.stop()
            load.close()
    return {"features": len(service.feature_ids), "trees": TREES, "compared": compared, "cells": cells}


def vectors(url: str, cards: list[str], now: int) -> np.ndarray:
    """Return the features of all cards as of an instant, as float32 numbers; null is NaN."""
    with FeatureClient(url, timeout="30s") as client:
        table = client.get_many("cards", [{"card_id": card} for card in cards], now=now)
        return table.to_numpy().astype(np.float32).astype(np.float64)


def train(rows: np.ndarray, path: Path) -> lightgbm.Booster:
    """Return a model of 200 trees of 31 leaves, trained on the cards' features with noise; also kept as a file."""
    dice = np.random.default_rng(3)
    chosen = rows[dice.integers(0, len(rows), TRAINED_ROWS)]
    noisy = (chosen * dice.lognormal(0.0, 0.3, chosen.shape)).astype(np.float32).astype(np.float64)
    signal = np.nan_to_num(noisy) @ dice.normal(size=rows.shape[1]) / 100.0
    labels = (signal + dice.normal(size=len(signal)) > np.median(signal)).astype(float)
    parameters = {
        "objective": "binary", "num_leaves": LEAVES, "min_data_in_leaf": 5, "seed": 3, "deterministic": True,
        "force_row_wise": True, "num_threads": 2, "verbose": -1,
    }  # fmt: skip
    booster = lightgbm.train(parameters, lightgbm.Dataset(noisy, labels), num_boost_round=TREES)
    booster.save_model(path)
    return booster


def store_model(booster: lightgbm.Booster, service: FeatureService, root: Path, times: int = 1) -> None:
    """Store the model, converted to ONNX, as one or more versions."""
    width = len(service.feature_ids)
    graph = convert_lightgbm(
        booster, initial_types=[("input", FloatTensorType([None, width]))], zipmap=False, target_opset=15
    )
    for _ in range(times):
        save_model(
            root, "cards", graph.SerializeToString(), service=service.name, service_fingerprint=service.fingerprint,
            keys=service.keys, inputs=service.feature_ids, feature_inputs=service.feature_ids,
        )  # fmt: skip


def write_hashes(admin: Any, service: FeatureService, cards: list[str], rows: np.ndarray, url: str) -> None:
    """Write the computed features as hashes for the usual stack, as the model's rows, and ours as they are for the floors."""
    with FeatureClient(url, timeout="30s") as client:
        places = client.service("cards").store_keys([{"card_id": card} for card in cards])[: len(cards)]
    for card, row, place in zip(cards, rows.tolist(), places, strict=True):
        values = {
            name: repr(value) for name, value in zip(service.feature_ids, row, strict=True) if not math.isnan(value)
        }
        admin.hset(f"features:{card}", mapping=values)
        admin.set(f"floor:{card}", admin.get(place))
        admin.set(f"row:{card}", np.array(row, dtype=np.float32).tobytes())


def write_feast(
    url: str, place: str, service: FeatureService, cards: list[str], rows: np.ndarray, folder: Path
) -> None:
    """Write the computed features with Feast's own writer, and the settings of its feature server."""
    folder.mkdir()
    columns = {
        _feast_name(name): pa.array(rows[:, at], from_pandas=True) for at, name in enumerate(service.feature_ids)
    }
    columns["card_id"] = pa.array(cards)
    columns["event_timestamp"] = pa.array([NOW] * len(cards), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    Peer(url, folder / "rows.parquet", folder).close()
    (folder / "feature_store.yaml").write_text(FEAST_YAML.format(folder=folder, redis=place))


def _feast_name(name: str) -> str:
    return name.replace(".", "__")


def compare(running: dict[str, Contender], cards: list[str], wanted: list[float]) -> dict[str, Any]:
    """Return how many answers were compared and their largest difference to LightGBM's own; end where one is too large."""
    found = {}
    for name, each in running.items():
        if each.scores:
            some = list(zip(cards, wanted, strict=True))[:100]
            differences = [abs(each.ask(card)["score"] - score) for card, score in some]
            if max(differences) > TOLERANCE:
                sys.exit(f"{name}: scores differ from the model's own by {max(differences):g}")
            found[name] = {"cards": len(some), "largest_difference": max(differences)}
    return found


class Load:
    """The process that makes the load."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.score_load"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._orders: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def __call__(self, **order: Any) -> dict[str, Any]:
        """Return what came of an order."""
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return dict(json.loads(self._answers.readline()))

    def close(self) -> None:
        """End the process."""
        self._orders.close()
        self._process.wait(30)
        self._answers.close()


def _rounds(
    running: dict[str, Contender],
    load: Load,
    admin: Any,
    cards: list[str],
    wanted: list[float],
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    kinds = [{"connections": int(each)} for each in given.connections.split(",")]
    if given.rate:
        kinds.append({"connections": 32, "rate": given.rate})
    orders = {
        name: {
            "port": each.port,
            "path": each.path,
            "bodies": [each.body(card) for card in cards],
            "scores": wanted if each.scores else None,
        }
        for name, each in running.items()
    }
    for order in orders.values():
        load(**order, connections=8, seconds=min(1.0, given.seconds))
    cells = []
    for number in range(given.rounds):
        for kind in kinds:
            for name, each in running.items():
                cpu, store = each.cpu_s(), store_cpu_s(admin)
                done = load(**orders[name], **kind, seconds=given.seconds)
                if done["wrongs"]:
                    sys.exit(f"{name}: {done['wrongs']} wrong answers, like {done['wrong'][0]}")
                took = done.pop("took_us")
                cells.append(
                    {
                        "contender": name, "round": number, **kind, "per_s": round(done["answers"] / done["wall_s"], 1),
                        "answers": done["answers"], "unanswered": done["unanswered"],
                        **{f"p{q}_us": round(float(np.quantile(took, q / 100))) for q in (10, 50, 99)},
                        "cpu_us": round((each.cpu_s() - cpu) / done["answers"] * 1e6, 1),
                        "store_us": round((store_cpu_s(admin) - store) / done["answers"] * 1e6, 1),
                        "load": round(os.getloadavg()[0], 1),
                    }
                )  # fmt: skip
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
    return cells


def champion(root: Path, version: int) -> None:
    """Make a version the one that is served."""
    aside = root / "cards" / "aliases.partial"
    aside.write_text(json.dumps({"champion": version}))
    aside.replace(root / "cards" / "aliases.json")


def _swaps(
    ours: Contender, load: Load, cards: list[str], wanted: list[float], root: Path, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return cells of a steady load and of one in whose middle the model is exchanged for another version, in turns."""
    cells = []
    bodies = [ours.body(card) for card in cards]
    seconds = max(given.seconds, 2.0)  # a scorer looks at the folder every two seconds
    for number in range(given.rounds):
        for name in ("steady", "swap"):
            before = ours.ask(cards[0])["version"]
            moving = threading.Timer(seconds, champion, (root, 3 - before))
            if name == "swap":
                moving.start()
            done = load(
                port=ours.port, path=ours.path, bodies=bodies, scores=wanted, connections=8, seconds=3 * seconds
            )
            if done["wrongs"]:
                sys.exit(f"{name}: {done['wrongs']} wrong answers, like {done['wrong'][0]}")
            if name == "swap":
                moving.join()
                if ours.ask(cards[0])["version"] == before:
                    print("the model was not exchanged within the load: no cells of a swap", file=sys.stderr)
                    return []
            took = done["took_us"]
            cells.append(
                {
                    "contender": name, "round": number, "connections": 8, "rate": None, "what": "swap", "unanswered": 0,
                    "per_s": round(done["answers"] / done["wall_s"], 1), "answers": done["answers"],
                    "cpu_us": 0.0, "store_us": 0.0,
                    **{f"p{q}_us": round(float(np.quantile(took, q / 100))) for q in (10, 50, 99)},
                }
            )  # fmt: skip
    return cells


def store_cpu_s(admin: Any) -> float:
    """Return the CPU seconds of the store so far."""
    told = admin.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per load and contender median and range over the rounds, and ratios within a round to the first contender."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        groups.setdefault((cell["connections"], cell.get("rate"), cell.get("what")), {}).setdefault(
            cell["contender"], []
        ).append(cell)
    rows = []
    for (connections, rate, what_else), contenders in groups.items():
        first = next(iter(contenders.values()))
        for name, mine in contenders.items():
            row: dict[str, Any] = {"contender": name, "connections": connections, "rate": rate, "rounds": len(mine)}
            row["what"] = what_else
            row["unanswered"] = sum(cell["unanswered"] for cell in mine)
            for what in ("per_s", "p50_us", "p99_us", "cpu_us", "store_us"):
                row[what] = _spread(cell[what] for cell in mine)
            if mine is not first:
                pairs = list(zip(first, mine, strict=True))
                row["first_per_s_over_this"] = _spread(one["per_s"] / cell["per_s"] for one, cell in pairs)
                row["this_cpu_over_first"] = _spread(cell["cpu_us"] / max(one["cpu_us"], 0.1) for one, cell in pairs)
            rows.append(row)
    return rows


def _spread(values: Iterable[float]) -> list[float]:
    kept = sorted(values)
    return [round(each, 2) for each in (statistics.median(kept), kept[0], kept[-1])]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the summary as a Markdown table: medians over the rounds, with ranges."""
    lines = [
        "| load | contender | requests/s (range) | first x faster | p50 us | p99 us (range) | CPU us (range) | x first | store |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        load = f"{row['connections']} connections" + (f", {row['rate']:,.0f}/s" if row["rate"] else "")
        load += f", {row['what']}" if row["what"] else ""
        late = f", {row['unanswered']:,} not answered within 5 s" if row["unanswered"] else ""
        faster, cpu = (
            _shown(row[name], 1) if name in row else "" for name in ("first_per_s_over_this", "this_cpu_over_first")
        )
        lines.append(
            f"| {load} | {row['contender']} | {_shown(row['per_s'])}{late} | {faster} | {row['p50_us'][0]:,.0f} | "
            f"{_shown(row['p99_us'])} | {_shown(row['cpu_us'])} | {cpu} | {row['store_us'][0]:,.0f} |"
        )
    return "\n".join(lines)


def _shown(spread: list[float], digits: int = 0) -> str:
    middle, low, high = (f"{each:,.{digits}f}" for each in spread)
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    sys.exit(main())
