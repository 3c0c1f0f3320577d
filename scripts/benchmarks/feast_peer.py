"""Feast's part of scripts/bench lookup; runs in an environment of its own that holds nothing but Feast.

Reads one JSON object a line from standard input and answers with one. ``{"setup": ...}`` writes the entities of a Parquet file
through Feast's own writer; ``{"keys": [...], "calls": n}`` looks them up n times and tells the seconds of each call.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import pandas as pd  # noqa: E402
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource  # noqa: E402
from feast.repo_config import RepoConfig  # noqa: E402
from feast.types import Float64  # noqa: E402


def setup(order: dict[str, str]) -> FeatureStore:
    """Return a store that holds the rows of a file."""
    folder, rows = Path(order["folder"]), pd.read_parquet(order["rows"])
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            registry=str(folder / "registry.db"),
            provider="local",
            online_store={"type": "redis", "connection_string": order["redis"]},
            entity_key_serialization_version=3,
        )
    )
    card = Entity(name="card", join_keys=["card_id"])
    names = [name for name in rows.columns if name not in ("card_id", "event_timestamp")]
    view = FeatureView(
        name="spend",
        entities=[card],
        schema=[Field(name=name, dtype=Float64) for name in names],
        source=FileSource(path=order["rows"], timestamp_field="event_timestamp"),
    )
    store.apply([card, view, FeatureService(name="cards", features=[view])])
    for begin in range(0, len(rows), 500):
        store.write_to_online_store("spend", rows.iloc[begin : begin + 500])
    return store


def main() -> None:
    """Answer until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever Feast prints is no answer
    store = service = None
    for line in sys.stdin:
        order = json.loads(line)
        if "setup" in order:
            store = setup(order["setup"])
            service = store.get_feature_service("cards")
            answer: dict[str, object] = {"ready": True}
        else:
            rows = [{"card_id": key} for key in order["keys"]]
            took, found = [], {}
            cpu = time.process_time()
            for _ in range(order["calls"]):
                began = time.perf_counter()
                found = store.get_online_features(features=service, entity_rows=rows).to_dict()
                took.append(time.perf_counter() - began)
            answer = {
                "took": took,
                "cpu": time.process_time() - cpu,
                "columns": len(found),
                "values": sum(value is not None for name, each in found.items() if name != "card_id" for value in each),
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
