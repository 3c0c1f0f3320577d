"""The way of the prediction log of `serve` through a topic to Delta: real processes, a real broker, a real store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import httpx
import pytest

from featurestore.cli import main
from featurestore.jobs.score_log import read_predictions
from featurestore.stack.valkey import OnlineServer
from tests.scored import Scored
from tests.streaming.support import table, wait_for

pytestmark = pytest.mark.jvm


@contextlib.contextmanager
def process(*arguments):
    """A command line in a process of its own, ended by SIGTERM."""
    command = [sys.executable, "-m", "featurestore.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(30)


def test_what_serve_logs_to_a_topic_reaches_delta_each_once(kafka_server, tmp_path, monkeypatch, capsys):
    scored, broker = Scored("score_served"), kafka_server.bootstrap_servers
    with OnlineServer(tmp_path / "online") as online:
        store = scored.open(tmp_path, broker, online.url)
        (tmp_path / "featurestore.toml").write_text(
            f'project = "score_served"\n[online]\nurl = "{online.url}"\n[kafka]\n"bootstrap.servers" = "{broker}"\n'
        )
        monkeypatch.chdir(tmp_path)
        said = {}

        def score(http, cards):
            for number in cards:
                body = {"keys": {"card_id": f"c{number}"}, "request": {"amount": 1.0}}
                answer = http.post("/score/fraud", json=body, headers={"x-request-id": f"r{number}"}).json()
                said[answer["prediction_id"]] = f"r{number}"

        def copied():
            if table(store.settings.offline, "predictions") is None:
                return {}
            rows = read_predictions(store.settings.offline).to_pylist()
            return {row["prediction_id"]: row["request_id"] for row in rows}

        with contextlib.ExitStack() as stack:
            serving = stack.enter_context(process("serve", "--port", "0", "--prediction-log", "kafka:served"))
            url = serving.stdout.readline().removeprefix("listening on ").strip()
            http = stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=30))
            score(http, range(5))
            with process("predictions", "copy", "served", "--every", "1s") as copier:
                wait_for("the copies", lambda: copied() == said)
                score(http, range(5, 8))
                wait_for("more copies", lambda: copied() == said)
                copier.terminate()
                assert copier.wait(30) == 0
            score(http, range(8, 10))
        # The scorer has ended, so everything is in the topic; what was copied is not copied again.
        assert main(["predictions", "copy", "served", "--once", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"copied": 2}
        assert copied() == said
        assert len(table(store.settings.offline, "predictions")) == len(said) == 10
        assert main(["predictions", "copy", "served", "--once", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"copied": 0}
