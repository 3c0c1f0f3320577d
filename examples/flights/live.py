"""The live phase: a virtual clock steps through the days; at every tick the flights about to leave are scored over HTTP."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from examples.flights.model import STATIC_FEATURES
from featurestore.errors import ScoringError
from featurestore.timeline import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from examples.flights.replay import Replay
    from examples.flights.stream import Stream
    from featurestore.jobs.job import Job

KEYS = ("origin", "carrier", "tailnum", "dest")
MAX_ROWS = 500
_pause = threading.Event()


class ScoringServer:
    """``featurestore serve`` as a process of its own, on a free loopback port."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "featurestore.cli",
                    "--config",
                    str(config),
                    "serve",
                    "--port",
                    "0",
                    "--allow-now",
                ],
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        self.url = self._wait_ready()

    def _wait_ready(self, timeout_s: float = 60.0) -> str:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe
        killer = threading.Timer(timeout_s, self._process.kill)
        killer.start()
        try:
            for line in self._process.stdout:
                if "listening on" in line:
                    return line.split("listening on", 1)[1].strip()
        finally:
            killer.cancel()
        raise ScoringError(f"the scorer did not start; see {self._log}.")

    def stop(self) -> None:
        """End it with SIGTERM; it finishes what it is doing."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class HttpScorer:
    """Calls ``POST /v2/models/NAME/infer`` (Open Inference Protocol) and ``POST /score/NAME`` over one connection."""

    def __init__(self, url: str, model: str) -> None:
        import http.client
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)
        self._model = model

    def infer(self, rows: pd.DataFrame, now: int) -> list[float]:
        """Return one score per row, by the Open Inference Protocol."""
        count = len(rows)
        inputs: list[dict[str, Any]] = [
            {"name": name, "shape": [count], "datatype": "BYTES", "data": rows[name].tolist()} for name in KEYS
        ]
        inputs += [
            {"name": name, "shape": [count], "datatype": "FP64", "data": rows[name].astype("float64").tolist()}
            for name in STATIC_FEATURES
        ]
        reply = self._post(f"/v2/models/{self._model}/infer", {"inputs": inputs, "parameters": {"now": now}})
        return [float(score) for score in reply["outputs"][0]["data"]]

    def score(self, rows: pd.DataFrame, now: int) -> list[dict[str, Any]]:
        """Return score and the vector as it was served, one per row."""
        body = {
            "keys": rows[list(KEYS)].to_dict("records"),
            "request": rows[list(STATIC_FEATURES)].astype("float64").to_dict("records"),
            "explain": True,
            "now": now,
        }
        reply = self._post(f"/score/{self._model}", body)
        return list(reply["predictions"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        self._connection.request("POST", path, msgspec.json.encode(body), {"content-type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ScoringError(f"POST {path} answered {response.status}: {content[:300].decode(errors='replace')}")
        return msgspec.json.decode(content)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@dataclass
class LiveResult:
    """What the live phase saw.

    Attributes:
        scored: The flights' spine rows with ``score`` and ``visible_us``, in the order they were scored.
        served: The vectors as served, same rows, one column per feature.
        events: Events streamed.
        took_s: Wall time.
        step_ms: Milliseconds from the first event of a step sent to all of it readable, per step with events.
    """

    scored: pd.DataFrame
    served: pd.DataFrame
    events: int
    took_s: float
    step_ms: list[float] = field(default_factory=list)


def run_live(
    stream: Stream,
    spine: pd.DataFrame,
    *,
    start_us: int,
    end_us: int,
    tick: str,
    replay: Replay,
    job: Job,
    scorer: HttpScorer,
    progress: Callable[[int, int], None],
) -> LiveResult:
    """Step through [start, end): send what was received before each tick, wait until it is applied, then score.

    What a vector holds is what had arrived strictly before its tick; ``visible_us`` says so for the offline check.
    """
    step = parse_duration(tick)
    began = time.monotonic()
    first, sent_until, events = start_us - start_us % step, start_us, 0
    scored, served, step_ms = [], [], []
    ticks = list(range(first + step, end_us + 1, step))
    by_tick = {int(t): rows for t, rows in spine.groupby("t_us", sort=True)}
    for number, now in enumerate(ticks):
        records = stream.between(sent_until, now).records()
        sent_until = now
        if records:
            sending = time.perf_counter()
            replay.send(records)
            replay.wait_applied(job)
            step_ms.append((time.perf_counter() - sending) * 1000)
            events += len(records)
        rows = by_tick.get(now)
        for begin in range(0, 0 if rows is None else len(rows), MAX_ROWS):
            part = rows.iloc[begin : begin + MAX_ROWS]
            predictions = scorer.score(part, now)
            scored.append(part.assign(score=[prediction["score"] for prediction in predictions], visible_us=now - 1))
            served += [prediction["vector"] for prediction in predictions]
        progress(number + 1, len(ticks))
    return LiveResult(
        scored=pd.concat(scored, ignore_index=True) if scored else spine.iloc[:0],
        served=pd.DataFrame(served),
        events=events,
        took_s=time.monotonic() - began,
        step_ms=step_ms,
    )


def latency(call: Callable[[], object], *, repeats: int = 1_000, warm_up: int = 100) -> dict[str, float]:
    """Return p10, p50 and p99 of a call in milliseconds."""
    for _ in range(warm_up):
        call()
    took = np.empty(repeats)
    for index in range(repeats):
        began = time.perf_counter()
        call()
        took[index] = time.perf_counter() - began
    p10, p50, p99 = np.quantile(took * 1000, [0.1, 0.5, 0.99])
    return {"p10_ms": float(p10), "p50_ms": float(p50), "p99_ms": float(p99)}
