from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from featurestore.errors import ConfigError, ModelError, OnlineStoreUnavailableError
from featurestore.online.client import FeatureClient
from featurestore.scoring.http import ScorerLimits
from featurestore.scoring.service import build_app, serve
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import MemoryReader

GOOD = {"keys": {"card_id": "c1"}, "request": {"amount": 1}}


def test_sigterm_ends_it_after_the_request_in_flight(models_root):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.scoring.serve_here", str(models_root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.split()[-1]
        answers = []

        def call():
            body = {"keys": {"card_id": "slow"}, "request": {"amount": 1}}
            answers.append(httpx.post(f"{url}/score/fraud", json=body, trust_env=False, timeout=20))

        caller = threading.Thread(target=call)
        caller.start()
        assert process.stdout.readline() == "looking up\n"
        process.send_signal(signal.SIGTERM)
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        while True:  # until the listener is closed
            try:
                socket.create_connection(address, timeout=5).close()
            except OSError:
                break
        assert process.poll() is None
        process.stdin.write("\n")
        process.stdin.flush()
        caller.join(20)
        assert answers[0].status_code == 200
        assert process.stdout.read() == "closed\nreturned\n"
        assert process.wait(20) == 0


def test_a_port_in_use_is_named(models_root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be bound.*Hint"):
            serve(models_root, MemoryReader, port=port)
    with pytest.raises(ConfigError, match="port 70000 is not one of"):
        serve(models_root, MemoryReader, port=70_000)


def test_a_missing_extra_is_named(models_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs uvicorn.*featurestore\[serve\]"):
        serve(models_root, MemoryReader, port=0)


def test_nothing_to_serve_or_another_definition_refuses_to_start(models_root, tmp_path):
    with pytest.raises(ModelError, match="no model to serve"):
        serve(tmp_path, MemoryReader, port=0)
    with pytest.raises(ModelError, match="the store serves other"):
        serve(models_root, lambda: MemoryReader(fingerprint="other"), port=0)


def test_a_store_that_is_away_at_the_start_is_waited_for(models_root):
    reader = MemoryReader({"c1": [1.0, 1, 1.0]}, down=OnlineStoreUnavailableError)
    with running(build_app(models_root, lambda: reader)) as url, httpx.Client(base_url=url, trust_env=False) as http:
        assert http.get("/v2/health/live").status_code == 200
        assert http.get("/v2/health/ready").status_code == 503
        assert http.post("/score/fraud", json=GOOD).status_code == 503
        reader.down = None
        assert http.post("/score/fraud", json=GOOD).status_code == 200
        assert http.get("/v2/health/ready").status_code == 200


def test_a_password_of_the_store_is_in_no_answer_and_no_log(models_root, caplog):
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"redis://scorer:canary-77@127.0.0.1:{port}/0"  # nobody listens there any more
    app = build_app(models_root, lambda: FeatureClient(url, timeout="1s"))
    with running(app) as served, httpx.Client(base_url=served, trust_env=False) as http:
        answers = [http.post("/score/fraud", json=GOOD), http.get("/v2/health/ready")]
        answers += [http.post("/lookup/fraud_v1", json={"keys": {"card_id": "a"}})]
    assert [one.status_code for one in answers] == [503] * 3
    assert "waits for the online store" in caplog.text
    for text in (caplog.text, *(one.text for one in answers)):
        assert "canary-77" not in text
    assert all(str(port) not in one.text for one in answers)


def test_now_is_refused_unless_it_was_allowed(models_root):
    with running(build_app(models_root, MemoryReader)) as url, httpx.Client(base_url=url, trust_env=False) as http:
        answer = http.post("/score/fraud", json=GOOD | {"now": 5})
        assert answer.status_code == 400
        assert "allow_now" in answer.json()["detail"]


def test_too_many_at_once_are_shed_and_a_body_that_dawdles_is_dropped(models_root):
    reader = MemoryReader(gate=threading.Event())
    app = build_app(models_root, lambda: reader, limits=ScorerLimits(in_flight=1, body_seconds=0.05))
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        first = threading.Thread(target=lambda: httpx.post(f"{url}/score/fraud", json=GOOD, trust_env=False))
        first.start()
        assert reader.entered.acquire(timeout=5)
        answer = http.post("/score/fraud", json=GOOD)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert http.post("/v2/models/fraud/infer", json={}).json().keys() == {"error"}
        assert http.get("/v2/health/live").status_code == 200
        reader.gate.set()
        first.join(5)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            head = (
                "POST /score/fraud HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            slow.sendall(head.encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert http.post("/score/fraud", json=GOOD).status_code == 200


@pytest.mark.parametrize("keys", [{"card_id": "c1"}, {}])
def test_a_caller_who_leaves_before_the_answer_is_no_failure(models_root, keys, caplog):
    app = build_app(models_root, MemoryReader)
    body = json.dumps({"keys": keys, "request": {"amount": 1}}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/score/fraud",
        "headers": [(b"content-type", b"application/json")],
    }
    received = [{"type": "http.request", "body": body}]

    async def receive():
        return received.pop()

    async def send(message):
        raise RuntimeError("the handler is closed")

    asyncio.run(app(scope, receive, send))
    received = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]
    asyncio.run(app(scope, receive, send))
    assert caplog.text == ""
