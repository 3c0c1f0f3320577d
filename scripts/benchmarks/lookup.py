"""scripts/bench lookup: what a lookup of fifty windowed features costs, against the floors, redis-py and Feast.

All contenders read one Valkey, interleaved: every round runs each of them a few times. Reported are p10, p50 and p99 of a
call, and the CPU of client and server per call; on a machine that others use too, CPU and the ratios within a run are what
travels. Feast holds the same values, already computed, as its own hashes; what is asked of it is to return them. Events are
written in small batches, as a stream writes them, so that keys have the tails that a stream leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
import uvloop

from featurestore import (
    AsyncFeatureClient,
    Count,
    Entity,
    EventSource,
    FeatureClient,
    FeatureService,
    FeatureView,
    Max,
    Mean,
    Min,
    Sum,
)
from featurestore.engines.oracle import Event
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.stack.valkey import OnlineServer
from featurestore.testing.streams import shape_events
from featurestore.timeline import DAY, HOUR, MINUTE, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path(".cache/bench")
FEAST = "feast[redis]==0.67.0"
NOW = 1_750_000_000_000_000
WINDOWS = ("5m", "1h", "24h", "7d")
IN_FLIGHT = 32
_RAW = struct.Struct("<qddd")
CONTRACT = {
    "type": "object",
    "required": ["card_id", "event_time", "amount", "fee", "points"],
    "properties": {
        "card_id": {"type": "string"},
        "event_time": {"type": "string", "format": "date-time"},
        "amount": {"type": "number"},
        "fee": {"type": "number"},
        "points": {"type": "number"},
    },
}


def main() -> int:
    """Run the measurement, print a table and write it as JSON."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = definitions(folder)
        found: dict[str, Any] = {
            "machine": {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "command": " ".join(["scripts/bench lookup", *sys.argv[1:]]),
            "features": len(service.feature_ids),
            "cells": [],
        }
        for keys in given.kinds.split(","):
            with OnlineServer(folder / f"online-{keys}") as server:
                found["cells"] += measure(server.url, service, folder, keys, given)
    found["goals"] = goals(found["cells"])
    found["machine"]["load_after"] = os.getloadavg()[0]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found["cells"]))
    print(f"written: {given.out}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench lookup", description=__doc__)
    parser.add_argument(
        "--kinds", default="usual,hot", help="usual keys have 10 %% of their hops populated, hot ones all"
    )
    parser.add_argument("--batches", default="1,10,100,1000", help="entities per call")
    parser.add_argument("--cards", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-feast", action="store_true", help="leave Feast out; it is installed on the first run")
    parser.add_argument("--quick", action="store_true", help="few cards and rounds, to see that it works")
    parser.add_argument("--out", type=Path, default=CACHE / "lookup.json")
    given = parser.parse_args()
    if given.quick:
        given.cards, given.rounds, given.batches = 120, 3, "1,10,100"
    return given


def definitions(folder: Path) -> FeatureService:
    """Return a service of fifty features: four aggregates of three columns over four windows, and two counts."""
    contract = folder / "v1.json"
    contract.write_text(json.dumps(CONTRACT))
    cards = EventSource("cards", topic="cards", schema=contract, event_time="event_time")
    features = {
        f"{kind.__name__.lower()}_{column}": kind(column).over(*WINDOWS)
        for kind in (Sum, Mean, Min, Max)
        for column in ("amount", "fee", "points")
    }
    view = FeatureView(
        "spend",
        entity=Entity("card", keys={"card_id": "string"}),
        source=cards,
        features={**features, "events": Count().over("5m", "1h")},
    )
    return FeatureService("cards", [view])


def times(kind: str, dice: random.Random) -> list[int]:
    """Return the event times of one card: a share of the hops of every window, the newest within the last minute."""
    found = {NOW - dice.randrange(MINUTE)}
    for length in (5 * MINUTE, HOUR, DAY, 7 * DAY):
        hop = length // 20
        for step in range(20):
            if kind == "hot" or dice.random() < 0.1:
                found.add(NOW - step * hop - dice.randrange(hop) - 1)
    return sorted(found)


def events_of(kind: str, cards: int) -> list[Event]:
    """Return the events of all cards in order of time."""
    dice = random.Random(7)  # noqa: S311 - not for secrets
    stamped = sorted((t, card) for card in range(cards) for t in times(kind, dice))
    return [
        Event(
            {
                "card_id": f"c{card}",
                "event_time": t,
                "amount": dice.random() * 100,
                "fee": dice.random(),
                "points": 1.0,
            },
            t,
            t,
            0,
            offset,
        )
        for offset, (t, card) in enumerate(stamped)
    ]


def fill(url: str, service: FeatureService, kind: str, cards: int) -> None:
    """Write the events of all cards as the stream does: a batch has an event of every other card, more or less."""
    events, batch = events_of(kind, cards), max(1, cards // 2)
    store = RedisOnlineStore(url, "default")
    store.publish_plan(LookupPlan.of(service))
    writer = FencedWriter(store, "cards", service.views)
    for begin in range(0, len(events), batch):
        some = events[begin : begin + batch]
        writer.apply(0, begin + len(some), some[-1].arrival, [shape_events(view, some) for view in service.views])
    store.publish_complete("cards", NOW)
    store.close()


class Raw:
    """A socket and hiredis, nothing else: the floor of a client in Python."""

    def __init__(self, url: str) -> None:
        address = redis.connection.parse_url(url)
        self._redis = redis.connection.Connection(host=address["host"], port=address["port"], protocol=2)
        self._redis.connect()
        self._socket = self._redis._get_socket()  # noqa: SLF001
        self._reader = hiredis.Reader()

    def __call__(self, packed: bytes) -> Any:
        """Return the reply to a packed command."""
        self._socket.sendall(packed)
        while True:
            self._reader.feed(self._socket.recv(65536))
            reply = self._reader.gets()
            if reply is not False:
                return reply

    def close(self) -> None:
        """Close the socket."""
        self._redis.disconnect()


class Peer:
    """Feast in a process and an environment of its own."""

    def __init__(self, url: str, rows: Path, folder: Path) -> None:
        python = feast_environment()
        script = Path(__file__).with_name("feast_peer.py")
        self._process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._orders: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        address = redis.connection.parse_url(url)
        order = {"folder": str(folder), "rows": str(rows), "redis": f"{address['host']}:{address['port']}"}
        self.ask({"setup": order})

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order and return its answer."""
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        line = self._answers.readline()
        if not line:
            raise SystemExit("Feast ended; run scripts/benchmarks/feast_peer.py by hand to see why.")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._orders.close()
        self._process.wait(30)
        self._answers.close()


def feast_environment() -> Path:
    """Return the Python of an environment that holds nothing but Feast; made on the first call."""
    folder = CACHE.resolve() / "feast"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {FEAST} into {folder} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", FEAST], check=True)
        (folder / "installed").touch()
    return python


def measure(
    url: str, service: FeatureService, folder: Path, kind: str, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one cell per contender and batch size."""
    fill(url, service, kind, given.cards)
    admin = redis.Redis.from_url(url, protocol=2)
    client = FeatureClient(url, timeout="30s")
    raw = Raw(url)
    lookup = client.service("cards")
    cells = []
    peer = None
    if not given.no_feast:
        rows = client.get_many("cards", [{"card_id": f"c{card}"} for card in range(min(given.cards, 10_000))], now=NOW)
        kept = rows.to_arrow()
        names = [name.replace(".", "__") for name in kept.column_names]
        columns = [column.cast(pa.float64()) for column in kept.columns]
        frame = pa.table(dict(zip(names, columns, strict=True)))
        frame = frame.append_column("card_id", pa.array([f"c{card}" for card in range(len(rows))]))
        stamps = pa.array([NOW] * len(rows), pa.timestamp("us", "UTC"))
        pq.write_table(frame.append_column("event_timestamp", stamps), folder / f"{kind}.parquet")
        peer = Peer(url, folder / f"{kind}.parquet", folder)
    dice = random.Random(1)  # noqa: S311 - not for secrets
    sizes = [int(size) for size in given.batches.split(",") if int(size) <= given.cards]
    for size in sizes:
        cards = [f"c{card}" for card in dice.sample(range(given.cards), size)]
        keys = [{"card_id": card} for card in cards]
        names = lookup.store_keys(keys)
        cells += _interleaved(url, admin, client, raw, peer, keys, names, kind=kind, size=size, rounds=given.rounds)
    cells.append({"kind": kind, "contender": "memory", **_memory(admin, kind, given.cards)})
    if peer is not None:
        peer.close()
    raw.close()
    client.close()
    admin.close()
    return cells


def _interleaved(
    url: str,
    admin: Any,
    client: FeatureClient,
    raw: Raw,
    peer: Peer | None,
    keys: list[dict[str, str]],
    names: list[bytes],
    *,
    kind: str,
    size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    commands: list[Any] = [(b"PING",), (b"MGET", *names)]
    ping, mget = map(hiredis.pack_command, commands)
    one = client.get if size == 1 else None
    contenders: dict[str, Callable[[], Any]] = {
        "PING, redis-py": admin.ping,
        "PING, hiredis": lambda: raw(ping),
        "MGET, redis-py": lambda: admin.mget(names),
        "MGET, hiredis": lambda: raw(mget),
        "featurestore": (lambda: one("cards", keys[0], now=NOW))
        if one
        else lambda: client.get_many("cards", keys, now=NOW),
    }
    if size > 1:
        contenders["featurestore, as numpy"] = lambda: client.get_many("cards", keys, now=NOW).to_numpy()
    calls = {1: 100, 10: 40, 100: 8, 1000: 2}.get(size, 4)
    took: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    served: dict[str, list[float]] = {}
    medians: dict[str, list[list[float]]] = {}

    def note(name: str, seconds: list[float], client_s: float, server_s: float, calls: int) -> None:
        took.setdefault(name, []).extend(seconds)
        medians.setdefault(name, []).append(seconds)
        cpu.setdefault(name, []).append(client_s / calls)
        served.setdefault(name, []).append(server_s / calls)

    for call in contenders.values():
        call()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the event loop of the scorer's process
        fast = AsyncFeatureClient(url, timeout="30s", clock=VirtualClock(NOW))
        for _ in range(rounds):
            for name, call in contenders.items():
                before, began, seconds = _server_cpu(admin), time.process_time(), []
                for _ in range(calls):
                    at = time.perf_counter()
                    call()
                    seconds.append(time.perf_counter() - at)
                note(name, seconds, time.process_time() - began, _server_cpu(admin) - before, calls)
            for flight in (1, IN_FLIGHT) if size == 1 else (1,):
                before, began = _server_cpu(admin), time.process_time()
                seconds = runner.run(_async_calls(fast, keys, calls, flight))
                done = len(seconds)
                note(
                    f"featurestore, async, {flight} in flight", seconds, time.process_time() - began,
                    _server_cpu(admin) - before, done,
                )  # fmt: skip
            if peer is not None:
                before = _server_cpu(admin)
                many = max(1, calls // 10)
                answer = peer.ask({"keys": [key["card_id"] for key in keys], "calls": many})
                note("Feast", answer["took"], answer["cpu"], _server_cpu(admin) - before, many)
        runner.run(fast.close())
    return [
        {
            "kind": kind,
            "batch": size,
            "contender": name,
            **{f"p{q}_us": round(1e6 * float(np.quantile(seconds, q / 100)), 1) for q in (10, 50, 99)},
            "cpu_client_us": round(1e6 * float(np.median(cpu[name])), 1),
            "cpu_server_us": round(1e6 * float(np.median(served[name])), 1),
            "round_client_us": [round(1e6 * each, 1) for each in cpu[name]],
            "round_cpu_us": [round(1e6 * (a + b), 1) for a, b in zip(cpu[name], served[name], strict=True)],
            "round_p50_us": [round(1e6 * float(np.median(each)), 1) for each in medians[name]],
            "calls": len(seconds),
        }
        for name, seconds in took.items()
    ]


async def _async_calls(client: AsyncFeatureClient, keys: list[dict[str, str]], calls: int, flight: int) -> list[float]:
    seconds: list[float] = []

    async def timed() -> None:
        began = time.perf_counter()
        await (client.get_many("cards", keys) if len(keys) > 1 else client.get("cards", keys[0]))
        seconds.append(time.perf_counter() - began)

    for _ in range(max(1, calls // flight)):
        await asyncio.gather(*(timed() for _ in range(flight)))
    return seconds


def _server_cpu(admin: Any) -> float:
    info = admin.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _memory(admin: Any, kind: str, cards: int) -> dict[str, Any]:
    """Return bytes per card: ours; those of the raw events, packed in a sorted set; and Feast's hash where it is there."""

    def used(names: list[Any]) -> int:
        return round(sum(admin.memory_usage(name, samples=0) for name in names) / cards)

    found = {"bytes_per_card": used(list(admin.scan_iter("fs:*:v:*", 1000)))}
    others = [key for key in admin.scan_iter("*", 1000) if not key.startswith(b"fs:") and admin.type(key) == b"hash"]
    if others:
        found["feast_bytes_per_card"] = used(others)
    raw: dict[str, dict[bytes, int]] = {}
    for event in events_of(kind, cards):
        row = event.row
        packed = _RAW.pack(event.offset, row["amount"], row["fee"], row["points"])
        raw.setdefault(f"raw:{row['card_id']}", {})[packed] = event.event_time
    for name, members in raw.items():
        admin.zadd(name, members)
    found["raw_events_bytes_per_card"] = used(list(raw))
    found["events_per_card"] = round(sum(map(len, raw.values())) / cards)
    admin.delete(*raw)
    return found


def _spread(ratios: Any) -> str:
    low, middle, high = np.quantile(np.asarray(ratios, dtype=float), (0.1, 0.5, 0.9))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def goals(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals with what was reached: medians of the rounds' ratios, and their 10th and 90th percentile."""
    found = []

    def add(kind: str, goal: str, bound: str, mine: Any, other: Any) -> None:
        """Note a ratio, round by round; ``other`` is None for a figure that is no ratio."""
        rounds = np.asarray(mine, dtype=float) / (1.0 if other is None else np.asarray(other, dtype=float))
        found.append({"kind": kind, "goal": goal, "bound": bound, "reached": _spread(rounds)})

    by = {(cell["kind"], cell.get("batch"), cell["contender"]): cell for cell in cells}
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        cell = lambda size, name, kind=kind: by.get((kind, size, name))  # noqa: E731
        for size, floor, bound in ((1, "PING, redis-py", "at most 1.5"), (100, "MGET, hiredis", "at most 2.5")):
            if (ours := cell(size, "featurestore")) and (other := cell(size, floor)):
                add(kind, f"CPU of {size} per call, to {floor}", bound, ours["round_cpu_us"], other["round_cpu_us"])
        for size, bound in ((1, "at least 15"), (100, "at least 50")):
            if (ours := cell(size, "featurestore")) and (other := cell(size, "Feast")):
                add(kind, f"p50 of Feast to ours, {size} per call", bound, other["round_p50_us"], ours["round_p50_us"])
        if ours := cell(1, f"featurestore, async, {IN_FLIGHT} in flight"):
            add(kind, f"client CPU us of a lookup, {IN_FLIGHT} in flight", "at most 30", ours["round_client_us"], None)
            add(kind, f"client and server CPU us, {IN_FLIGHT} in flight", "", ours["round_cpu_us"], None)
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Return the cells as text, and the goals with what was reached."""
    lines = []
    measured = [cell for cell in cells if "batch" in cell]
    for kind, size in dict.fromkeys((cell["kind"], cell["batch"]) for cell in measured):
        mine = {cell["contender"]: cell for cell in measured if (cell["kind"], cell["batch"]) == (kind, size)}
        lines.append(
            f"\n{kind} keys, {size} per call" + " " * 24 + "p10 us    p50 us    p99 us   client   server us CPU"
        )
        for name, cell in mine.items():
            lines.append(
                f"  {name:<38}{cell['p10_us']:>10,.1f}{cell['p50_us']:>10,.1f}{cell['p99_us']:>10,.1f}"
                f"{cell['cpu_client_us']:>9,.1f}{cell['cpu_server_us']:>9,.1f}"
            )
    lines += [
        f"\n{cell['kind']} keys: " + ", ".join(f"{name} {value}" for name, value in cell.items() if "bytes" in name)
        for cell in cells
        if cell["contender"] == "memory"
    ]
    lines.append(f"\n{'goal':<46}{'keys':<8}{'bound':<14}reached: median of the rounds (10th-90th percentile)")
    lines += [f"{each['goal']:<46}{each['kind']:<8}{each['bound']:<14}{each['reached']}" for each in goals(cells)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
