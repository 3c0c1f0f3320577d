"""The code in README.md runs: its blocks, in order, against real servers."""

from __future__ import annotations

import json
import re
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.config import Settings
from featurestore.timeline import SystemClock

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


DEFINE, SUBMIT, LOOK_UP, TRAIN = blocks("python")


def run(code, names):
    exec(compile(code, "README.md", "exec"), names)
    return names


def record(card, amount, when, status="approved"):
    event = {"card_id": card, "amount": amount, "event_time": when.isoformat(), "status": status}
    return json.dumps(event).encode()


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s"
        time.sleep(0.2)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder that holds the README's contract, as the working directory."""
    path = tmp_path / "schemas/transaction/v1.json"
    path.parent.mkdir(parents=True)
    path.write_text(blocks("json")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_is_short_and_so_is_its_code():
    assert len(TEXT.splitlines()) < 200
    assert sum(len(block.splitlines()) for block in blocks("python")) < 40


def test_its_definitions_are_valid(project):
    service = run(DEFINE, {})["fraud"]
    assert service.feature_ids[0] == "card_spend.transactions_5m"


def test_its_settings_are_accepted(project):
    (project / "featurestore.toml").write_text(blocks("toml")[0], encoding="utf-8")
    settings = Settings.load()
    assert settings.project == tomllib.loads(blocks("toml")[0])["project"]
    assert settings.kafka == {"bootstrap.servers": "localhost:9092"}


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_its_lookup_reads_what_the_streams_worker_wrote(project, online_url, monkeypatch):
    from featurestore.jobs.hot import HotWorker

    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT", "5s")
    names = run(DEFINE, {})
    names["store"] = names["FeatureStore"].open()
    names["store"].apply(names["fraud"])
    worker = HotWorker(online_url, "default", {"transactions": (names["transactions"], (names["card_spend"],))})
    now = datetime.now(UTC)
    values = [
        record("c1", 5.0, now - timedelta(minutes=3)),
        record("c1", 7.5, now - timedelta(minutes=2)),
        record("c1", 100.0, now - timedelta(minutes=1), status="declined"),
        b"not an event",
    ]
    rows = pa.record_batch(
        {
            "offset": pa.array(range(len(values)), pa.int64()),
            "timestamp": pa.array([now] * len(values), pa.timestamp("us", "UTC")),
            "value": pa.array(values, pa.binary()),
        }
    )
    counts = worker.apply("transactions", 0, rows)
    assert (counts["consumed"], counts["applied"], counts["quarantined"]) == (4, 2, 1)
    vector = run(LOOK_UP, names)["vector"]
    names["client"].close()
    assert vector["card_spend.spend_1h"] == 12.5
    assert vector["card_spend.transactions_5m"] == 2
    assert vector.status["card_spend.last_amount_lifetime"] == "present"


@pytest.mark.jvm
def test_all_of_it_runs_on_a_real_stack(spark, project, kafka_server, online_url, monkeypatch):
    from featurestore.events.broker import producer

    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT", "5s")
    monkeypatch.setenv("FEATURESTORE_KAFKA", json.dumps({"bootstrap.servers": kafka_server.bootstrap_servers}))
    names = run(DEFINE, {})
    run(SUBMIT, names)
    store, job = names["store"], names["job"]
    store._session = spark  # one JVM for all tests; a user's store starts its own
    try:
        now = datetime.now(UTC)
        sender = producer(store.settings.kafka)
        for amount in (5.0, 7.5):
            sender.send("transactions", key=b"c1", value=record("c1", amount, now - timedelta(minutes=2)))
        sender.flush()
        sender.close()

        def spent():
            return run(LOOK_UP, names)["vector"]["card_spend.spend_1h"] == 12.5

        wait_for(spent)
        log = store.settings.home / "offline/events/transactions/_delta_log"
        wait_for(lambda: any(log.glob("*.json")))
        spine = pa.table({"card_id": ["c1", "c2"], "ts": [SystemClock().now()] * 2})
        pq.write_table(spine, project / "spine.parquet")
        frame = run(TRAIN, names)["training"]
        assert frame["card_spend.spend_1h"].tolist()[0] == 12.5
        assert frame["card_spend.transactions_1h"].tolist() == [2, 0]
    finally:
        job.stop()
        if "client" in names:
            names["client"].close()
