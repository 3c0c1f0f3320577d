"""The contenders of scripts/bench score, each in processes of its own, and what those cost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featurestore.stack.ports import free_ports
from scripts.benchmarks.lookup import NOW, feast_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PATIENCE_S = 90.0
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Given:
    """What the contenders are started with.

    Attributes:
        folder: For logs and settings.
        redis: HOST:PORT of the store.
        models: Folder of the models, for ours.
        booster: The same model as a LightGBM file.
        names: The features, in the model's order.
        feast: Folder of Feast's repository.
    """

    folder: Path
    redis: str
    models: Path
    booster: Path
    names: Sequence[str]
    feast: Path


@dataclass
class Contender:
    """A running contender.

    Attributes:
        path: Where it takes requests.
        port: Its port on loopback.
        body: Card to the body of a request.
        scores: Whether its answers hold the model's score.
        processes: All that work for it.
        logs: What they print.
    """

    path: str
    port: int
    body: Callable[[str], str]
    scores: bool = True
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes and their children so far."""
        return sum(cpu_of(each.pid) for each in self.processes)

    def start(self, argv: Sequence[str], log: Path, **environment: str) -> Self:
        """Start one of its processes."""
        self.logs.append(log)
        with log.open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    list(argv), stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True
                )
            )
        return self

    def ask(self, card: str) -> dict[str, Any]:
        """Return one answer."""
        return ask(f"http://127.0.0.1:{self.port}{self.path}", self.body(card))

    def wait(self) -> Self:
        """Return once it answers."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.ask("c0")
            except (OSError, http.client.HTTPException) as error:
                if any(each.poll() is not None for each in self.processes) or time.monotonic() > give_up:
                    said = "\n".join(log.read_text(errors="replace")[-1_000:] for log in self.logs)
                    raise SystemExit(f"{self.path} on port {self.port}: {error}\n{said}") from error
                time.sleep(0.1)
            else:
                return self

    def stop(self) -> None:
        """End all its processes."""
        for each in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGTERM)
        for each in self.processes:
            try:
                each.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(each.pid, signal.SIGKILL)
                each.wait(10)


def ask(url: str, body: str) -> dict[str, Any]:
    """Return the JSON answer to a JSON body."""
    request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return dict(json.loads(answer.read()))


def ours(given: Given) -> Contender:
    """Return ``featurestore serve``; its lookups are as of the data's end, so that no window runs empty meanwhile."""
    made = Contender("/score/cards", 0, lambda card: json.dumps({"keys": {"card_id": card}, "now": NOW}))
    log = given.folder / "ours.log"
    made.start(
        [
            sys.executable, "-m", "featurestore.cli", "serve", "--models", str(given.models), "--port", "0", "--allow-now",
        ],
        log,
        FEATURESTORE_ONLINE__URL=f"redis://{given.redis}/0",
        FEATURESTORE_ONLINE__TIMEOUT="5s",
    )  # fmt: skip
    give_up = time.monotonic() + _PATIENCE_S
    while (found := _LISTENING.search(log.read_text())) is None:
        if made.processes[0].poll() is not None or time.monotonic() > give_up:
            raise SystemExit(f"featurestore serve does not listen: {log.read_text()[-1_000:]}")
        time.sleep(0.1)
    made.port = int(found[1])
    return made


def usual(given: Given, *, features: str = "redis", feast: str = "") -> Contender:
    """Return FastAPI on uvicorn with uvloop and httptools, without access log."""
    made = Contender("/score", free_ports(1)[0], _card)
    order = {
        "names": [name.replace(".", "__") for name in given.names] if feast else list(given.names),
        "model": str(given.booster),
        "redis": f"redis://{given.redis}/0",
        "features": features,
        "feast": feast,
    }
    return made.start(
        _uvicorn("scripts.benchmarks.score_fastapi:create_app", made.port),
        given.folder / f"fastapi-{features}.log",
        SCORE_ORDER=json.dumps(order),
    )


def feast(given: Given) -> Contender:
    """Return Feast's feature server, and the usual stack that asks it for the features."""
    port = free_ports(1)[0]
    made = usual(given, features="feast", feast=f"http://127.0.0.1:{port}")
    program = feast_environment().with_name("feast")
    return made.start(
        [
            str(program), "-c", str(given.feast), "serve", "--port", str(port), "--no-access-log", "--workers", "1",
            "--max-requests", "10000000", "--registry_ttl_sec", "3600",
        ],
        given.folder / "feast.log",
        FEAST_USAGE="False",
    )  # fmt: skip


def floor_asyncio(given: Given) -> Contender:
    """Return a bare asyncio protocol."""
    made = Contender("/score", free_ports(1)[0], _card, scores=False)
    order = {"redis": given.redis, "prefix": "floor:", "port": made.port}
    argv = [sys.executable, "-m", "scripts.benchmarks.score_floor", json.dumps(order)]
    return made.start(argv, given.folder / "floor.log")


def floor_scored(given: Given) -> Contender:
    """Return the bare asyncio protocol that reads the model's row and runs the model: the least that gives a score."""
    made = Contender("/score", free_ports(1)[0], _card)
    model = given.models / "cards" / "1" / "model.onnx"
    order = {"redis": given.redis, "prefix": "row:", "port": made.port, "model": str(model)}
    argv = [sys.executable, "-m", "scripts.benchmarks.score_floor", json.dumps(order)]
    return made.start(argv, given.folder / "floor-scored.log")


def floor_uvicorn(given: Given) -> Contender:
    """Return a raw ASGI application on uvicorn."""
    made = Contender("/score", free_ports(1)[0], _card, scores=False)
    return made.start(
        _uvicorn("scripts.benchmarks.score_floor:create_app", made.port),
        given.folder / "uvicorn.log",
        SCORE_ORDER=json.dumps({"redis": given.redis, "prefix": "floor:"}),
    )


CONTENDERS: dict[str, Callable[[Given], Contender]] = {
    "ours": ours,
    "fastapi": usual,
    "feast": feast,
    "floor": floor_asyncio,
    "floor-scored": floor_scored,
    "floor-uvicorn": floor_uvicorn,
}


def _card(card: str) -> str:
    return json.dumps({"card_id": card})


def _uvicorn(app: str, port: int) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", app, "--factory", "--port", str(port), "--no-access-log", "--log-level", "warning",
        "--loop", "uvloop", "--http", "httptools",
    ]  # fmt: skip


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and all that it started, as far as they live."""
    return sum(map(_cpu_s, _tree(pid)))


def _tree(pid: int) -> list[int]:
    found, left = [], [pid]
    while left:
        each = left.pop()
        found.append(each)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                left += map(int, children.read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / _TICK
