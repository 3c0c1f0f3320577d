from __future__ import annotations

import threading
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.listener import uvicorn_config
from featurestore.scoring.manifest import save_model
from featurestore.scoring.service import build_app
from tests.unit.scoring.support import FIELDS, MemoryReader, onnx_bytes


@pytest.fixture(scope="session")
def models_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for _ in range(2):
        save_model(root, "fraud", onnx_bytes(), **FIELDS)
    return root


@contextmanager
def running(app, **options):
    """Serve an app by a real uvicorn on a free loopback port, in a thread; yield its URL."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            started.set()

    limits = getattr(app, "limits", None)
    server = Server(uvicorn_config(app, limits=limits, host="127.0.0.1", port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(10)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def session_reader():
    return MemoryReader()


PATIENT = ScorerLimits(deadline_seconds=30, queue_seconds=30)
"""What is not about overload should not meet it on a slow machine."""


@pytest.fixture(scope="session")
def app(models_root, session_reader):
    return build_app(models_root, lambda: session_reader, allow_now=True, models=["fraud", "fraud:1"], limits=PATIENT)


@pytest.fixture(scope="session")
def base_url(app, session_reader):
    with running(app) as url:
        yield url
    assert session_reader.closed


@pytest.fixture
def reader(session_reader):
    """The reader behind the server, as new."""
    session_reader.values = {
        "c1": [10.0, 2, 5.0],
        "c2": [8.0, 1, None],
        **{f"k{i}": [float(i), i, 1.0] for i in range(64)},
    }
    session_reader.down = session_reader.gate = None
    session_reader.fingerprint = "f" * 16
    session_reader.batches.clear()
    session_reader.entered = threading.Semaphore(0)
    yield session_reader
    session_reader.down = None


@pytest.fixture
def http(base_url, reader):
    with httpx.Client(base_url=base_url, trust_env=False, timeout=10) as client:
        yield client
