"""Made-up payments and a spine, the same for the same sizes: skewed keys, one of them hot, ninety days."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Last, Max, Min, Sum
from featurestore.definitions.contract import Contract
from featurestore.timeline import DAY, SECOND

if TYPE_CHECKING:
    from pathlib import Path

WINDOWS = ("1h", "24h", "7d", "30d")
BEGIN = 1_700_000_000_000_000
SPAN = 90 * DAY
HOT = 0.05
"""Share of the events and of the spine that one key has."""


def service() -> FeatureService:
    """Return twenty features: five aggregates over four windows."""
    text = json.dumps(
        {
            "type": "object",
            "properties": {
                "card_id": {"type": "string"},
                "amount": {"type": "number"},
                "event_time": {"type": "string", "format": "date-time"},
            },
            "required": ["card_id", "amount", "event_time"],
        }
    )
    source = EventSource(
        "payments", topic="payments", schema=Contract.from_json(text, "payment"), event_time="event_time"
    )
    view = FeatureView(
        "card",
        Entity("card", keys={"card_id": "string"}),
        source,
        {
            "n": Count().over(*WINDOWS),
            "sum": Sum("amount").over(*WINDOWS),
            "min": Min("amount").over(*WINDOWS),
            "max": Max("amount").over(*WINDOWS),
            "last": Last("amount").over(*WINDOWS),
        },
    )
    return FeatureService("bench", [view])


def make(folder: Path, *, events: int, keys: int, rows: int, hot: float = HOT) -> Path:
    """Return a folder with the event log as a Delta table and the spine as Parquet; makes them when they are missing."""
    target = folder / f"payments-{events}-{keys}-{rows}-{hot:g}"
    if (target / "done").exists():
        return target
    weights = 1.0 / (np.arange(keys) + 50.0)
    edges = np.cumsum(weights / weights.sum())
    random = np.random.default_rng(7)
    piece, done = 1_000_000, 0
    while done < events:
        count = min(piece, events - done)
        # in order of arrival, as the archive query writes it
        arrival = BEGIN + SPAN // events * np.arange(done, done + count)
        time = arrival - random.exponential(5 * SECOND, count).astype(np.int64)
        table = pa.table(
            {
                "card_id": _names(_keys(random, edges, count, hot)),
                "amount": np.round(random.lognormal(3.0, 1.2, count), 2),
                "event_time": pa.array(time, pa.timestamp("us", "UTC")),
                "_topic": pa.repeat("payments", count),
                "_partition": pa.array(np.zeros(count, np.int32)),
                "_offset": np.arange(done, done + count),
                "_arrival": arrival,
                "_event_time": time,
            }
        )
        write_deltalake(str(target / "events" / "payments"), table, mode="append")
        done += count
    spine = pa.table(
        {
            "card_id": _names(_keys(random, edges, rows, hot)),
            "t": pa.array(BEGIN + random.integers(SPAN // 3, SPAN, rows), pa.timestamp("us", "UTC")),
            "label": random.integers(0, 2, rows),
            "number": np.arange(rows),
        }
    )
    pq.write_table(spine, target / "spine.parquet")
    (target / "done").write_text("")
    return target


def _keys(random: np.random.Generator, edges: np.ndarray, count: int, hot: float) -> np.ndarray:
    key = np.searchsorted(edges, random.random(count)).clip(max=len(edges) - 1)
    key[random.random(count) < hot] = 0
    return key


def _names(key: np.ndarray) -> pa.Array:
    distinct, code = np.unique(key, return_inverse=True)
    return pa.array([f"c{each:07d}" for each in distinct.tolist()]).take(pa.array(code))


def log_files(folder: Path) -> list[str]:
    """Return the Parquet files of the event log, for those who do not read Delta."""
    return sorted(str(file) for file in (folder / "events" / "payments").glob("*.parquet"))
