"""Feast's part of scripts/bench stream: python feast_push.py JSON, in an environment that holds nothing but Feast.

Pushes the rows of a Parquet file to the online store, a thousand at a time, as a consumer of the topic would; prints what it
took as JSON. The feature values are given: Feast computes no windows here.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

warnings.filterwarnings("ignore")
import pandas as pd  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource  # noqa: E402
from feast.data_source import PushMode  # noqa: E402
from feast.repo_config import RepoConfig  # noqa: E402
from feast.types import Float64  # noqa: E402


def main() -> None:
    """Push, and tell what it took."""
    order = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr
    folder, rows = Path(order["folder"]), pd.read_parquet(order["rows"])
    store = FeatureStore(
        config=RepoConfig(
            project="bench_push",
            registry=str(folder / "push.db"),
            provider="local",
            online_store={"type": "redis", "connection_string": order["redis"]},
            entity_key_serialization_version=3,
        )
    )
    names = [name for name in rows.columns if name not in ("card_id", "event_timestamp")]
    source = PushSource(name="pushed", batch_source=FileSource(path=order["rows"], timestamp_field="event_timestamp"))
    card = Entity(name="card", join_keys=["card_id"])
    schema = [Field(name=name, dtype=Float64) for name in names]
    store.apply([card, FeatureView(name="card", entities=[card], schema=schema, source=source, ttl=timedelta(days=30))])
    store.push("pushed", rows.iloc[:1000], to=PushMode.ONLINE)
    began, cpu = time.perf_counter(), time.process_time()
    for begin in range(0, len(rows), 1000):
        store.push("pushed", rows.iloc[begin : begin + 1000], to=PushMode.ONLINE)
    took = {"events": len(rows), "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    answers.write(json.dumps(took) + "\n")


main()
