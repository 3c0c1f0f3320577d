"""The model registry on a real MLflow: SQLite, and a server of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from featurestore.errors import ModelError, ModelRegistryUnavailableError, UnknownNameError
from featurestore.scoring.folder import read_aliases
from featurestore.scoring.manifest import find_model, list_models, load_model, save_model
from featurestore.scoring.registry import ModelRegistry
from featurestore.scoring.sync import keep_in_step
from featurestore.stack.valkey import OnlineServer
from tests.unit.scoring.real import fill, payments
from tests.unit.scoring.support import FIELDS, onnx_bytes

pytestmark = pytest.mark.thorough  # importing MLflow and making its tables takes seconds

SAMPLE = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return payments(tmp_path_factory.mktemp("payment"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests, each with a model name of its own: MLflow takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'registry.db'}"


@pytest.fixture
def registry(uri, tmp_path):
    return ModelRegistry(uri, tmp_path / "models")


@pytest.fixture
def name(request):
    return "m" + str(abs(hash(request.node.nodeid)))[:12]


def register(registry, name, service, *, weights=(0.1, 0.2, 0.3), **options):
    given = {"inputs": ["amount", *service.feature_ids], "sample": SAMPLE} | options
    return registry.register(name, onnx_bytes(weights=weights), service=service, **given)


def applied(service, fingerprint=None):
    return {service.name: fingerprint or service.fingerprint}


def test_a_version_is_registered_promoted_and_rolled_back(registry, name, service):
    first, second = register(registry, name, service), register(registry, name, service, alias="challenger")
    assert (first.version, second.version) == (1, 2)
    assert first.manifest.request_inputs == ("amount",)
    assert first.manifest.feature_inputs == service.feature_ids
    assert first.manifest.service_fingerprint == service.fingerprint
    assert read_aliases(registry.root, name) == {"challenger": 2}
    assert registry.promote(name, 1, applied=applied(service)).before is None
    assert read_aliases(registry.root, name) == {"challenger": 2, "champion": 1}
    moved = registry.promote(name, applied=applied(service))
    assert (str(moved), moved.before) == (f"{name}: champion is version 2, was 1", 1)
    assert read_aliases(registry.root, name) == {"champion": 2, "previous": 1}
    assert registry.rollback(name, applied=applied(service)).version == 1
    assert registry.rollback(name, applied=applied(service)).version == 2  # a rollback can be rolled back
    listed = registry.versions(name)
    assert [(one.version, one.aliases) for one in listed] == [(1, ("previous",)), (2, ("champion",))]
    assert {one.service_fingerprint for one in listed} == {service.fingerprint}
    assert {one.sha256 for one in listed} == {first.manifest.sha256}
    assert listed[0].created_at.endswith("Z")
    assert load_model(registry.root, name, 2).manifest == second.manifest


def test_a_model_of_another_definition_is_not_promoted_and_the_old_one_stays(registry, name, service):
    register(registry, name, service)
    registry.promote(name, 1, applied=applied(service))
    register(registry, name, service, alias="challenger")
    for wrong in (applied(service, "f" * 16), {"another": service.fingerprint}):
        with pytest.raises(ModelError, match=r"no alias was moved.*Hint: train and register"):
            registry.promote(name, applied=wrong)
    assert read_aliases(registry.root, name) == {"challenger": 2, "champion": 1}
    assert [one.aliases for one in registry.versions(name)] == [("champion",), ("challenger",)]
    registry.promote(name, applied=applied(service))
    with pytest.raises(ModelError, match="no alias was moved"):
        registry.rollback(name, applied=applied(service, "f" * 16))
    assert read_aliases(registry.root, name) == {"champion": 2, "previous": 1}


def test_files_that_were_changed_are_not_promoted(registry, name, service):
    register(registry, name, service)
    path = find_model(registry.root, name).directory / "model.onnx"
    path.write_bytes(onnx_bytes(weights=(9, 9, 9)))
    with pytest.raises(ModelError, match="sha256"):
        registry.promote(name, 1, applied=applied(service))
    manifest = path.with_name("manifest.json")
    changed = json.loads(manifest.read_text()) | {"service_fingerprint": "0" * 16}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="the registry has service_fingerprint"):
        registry.promote(name, 1, applied=applied(service, "0" * 16))
    assert read_aliases(registry.root, name) == {}


def test_what_is_refused_leaves_no_trace(registry, name, service):
    for options, words in (
        ({"inputs": ["amount", "card.count_1h", "card.spent_1h"]}, "did you mean 'card.spend_1h'"),
        ({"inputs": ["amount"], "sample": SAMPLE[:, :1]}, "takes 3 columns"),
        ({"sample": np.array([[np.inf, -np.inf, 0]] * 5)}, "5 of 5 real rows get no finite score"),
    ):
        with pytest.raises((ModelError, UnknownNameError), match=words):
            register(registry, name, service, **options)
    with pytest.raises(ModelError, match="is not registered"):
        registry.versions(name)
    assert list_models(registry.root) == []


def test_numbers_that_the_folder_has_taken_are_skipped(registry, name, service):
    for _ in range(2):
        save_model(registry.root, name, onnx_bytes(), **FIELDS)
    assert register(registry, name, service).version == 3
    assert [one.version for one in registry.versions(name)] == [3]
    assert [one.version for one in list_models(registry.root)] == [1, 2, 3]


def test_what_is_asked_for_and_is_not_there_is_named(registry, name, service):
    register(registry, name, service)
    with pytest.raises(ModelError, match="has no challenger"):
        registry.promote(name, applied=applied(service))
    with pytest.raises(ModelError, match="has no previous"):
        registry.rollback(name, applied=applied(service))
    with pytest.raises(ModelError, match="reading a version is refused"):
        registry.promote(name, 7, applied=applied(service))
    with pytest.raises(ModelError, match=f"did you mean '{name}'"):
        registry.promote(f"{name}x", 1, applied=applied(service))
    with pytest.raises(ModelError, match="is not allowed"):
        registry.versions("../x")


def test_a_folder_elsewhere_keeps_its_aliases_when_the_files_cannot_be_had(
    registry, name, service, uri, tmp_path, caplog
):
    register(registry, name, service)
    registry.promote(name, 1, applied=applied(service))
    other = ModelRegistry(uri, tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="the registry has no files of it"):
        other.sync()
    slept = []
    with caplog.at_level(logging.WARNING):
        keep_in_step(other, every="10s", sleep=slept.append, until=lambda: len(slept) == 3)
    assert slept == [10, 10, 10]
    assert caplog.text.count("not in step") == 3
    assert read_aliases(other.root, name) == {}


def test_a_registry_that_is_away_is_an_error_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ModelRegistryUnavailableError, match=r"registry http://user:\*\*\*@.* it cannot be opened"
    ) as caught:
        ModelRegistry("http://user:pa55@127.0.0.1:9", tmp_path).versions()
    assert "pa55" not in str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real MLflow server, which takes long to start; ``start`` it again after ``kill``."""
    tmp_path = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *(
            "--backend-store-uri",
            f"sqlite:///{tmp_path / 'server.db'}",
            "--artifacts-destination",
            str(tmp_path / "files"),
        ),
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (tmp_path / "server.log").open("wb")

    class Server:
        url = f"http://127.0.0.1:{port}"

        def start(self):
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            deadline = time.monotonic() + 300
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                        return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
                    raise AssertionError((tmp_path / "server.log").read_text())
                assert time.monotonic() < deadline

        def kill(self):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    found = Server()
    with log:
        found.start()
        yield found
        found.kill()


def test_a_server_keeps_the_files_for_other_machines_and_may_be_away(server, service, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trainer, scorer = (ModelRegistry(server.url, tmp_path / machine) for machine in ("trainer", "scorer"))
    stored = register(trainer, "fraud", service)
    assert scorer.sync() == {"fraud": {}}
    trainer.promote("fraud", 1, applied=applied(service))
    assert scorer.sync() == {"fraud": {"champion": 1}}
    here = load_model(scorer.root, "fraud", 1)
    assert here.manifest == stored.manifest
    np.testing.assert_array_equal(here.model.predict(SAMPLE), load_model(trainer.root, "fraud").model.predict(SAMPLE))

    register(trainer, "fraud", service, weights=(0.5, 0, 0))
    trainer.promote("fraud", 2, applied=applied(service))
    server.kill()
    with pytest.raises(ModelRegistryUnavailableError, match="what is served goes on"):
        trainer.rollback("fraud", applied=applied(service))
    assert read_aliases(scorer.root, "fraud") == {"champion": 1}
    assert load_model(scorer.root, "fraud", 1).manifest.version == 1
    shown = []
    with caplog.at_level(logging.WARNING):
        keep_in_step(
            scorer,
            every="1s",
            sleep=lambda _: shown or server.start(),
            show=shown.append,
            until=lambda: bool(shown),
        )
    assert caplog.text.count("not in step") == 1  # it was away
    assert shown == [{"fraud": {"champion": 2, "previous": 1}}]  # and is back
    assert read_aliases(scorer.root, "fraud") == {"champion": 2, "previous": 1}


def is_gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_serve_follows_a_server_by_a_process_of_its_own_that_ends_with_it(server, service, tmp_path):
    trainer = ModelRegistry(server.url, tmp_path / "trainer")
    register(trainer, "live", service)
    trainer.promote("live", 1, applied=applied(service))
    deadline = time.monotonic() + 120
    with OnlineServer(tmp_path / "store") as store:
        fill(store.url, service)
        (tmp_path / "featurestore.toml").write_text(
            f'registry = "{server.url}"\nmodels = "served"\n[online]\nurl = "{store.url}"\ntimeout = "5s"\n'
        )
        command = [
            sys.executable,
            "-m",
            "featurestore.cli",
            "serve",
            "--port",
            "0",
            "--follow",
            "1s",
            "--model",
            "live",
        ]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as serving:
            try:
                url = serving.stdout.readline().removeprefix("listening on ").strip()
                (syncing,) = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text().split()

                def version():
                    assert time.monotonic() < deadline
                    body = {"keys": {"card_id": "a"}, "request": {"amount": 1.0}}
                    return httpx.post(f"{url}/score/live", json=body, trust_env=False, timeout=20).json()["version"]

                assert version() == 1  # its folder was empty
                assert b"sync" in Path(f"/proc/{syncing}/cmdline").read_bytes()
                register(trainer, "live", service, weights=(0.5, 0, 0))
                trainer.promote("live", 2, applied=applied(service))
                while version() != 2:
                    time.sleep(0.2)
                assert not is_gone(syncing)
                serving.kill()  # it has no time to end anything
                serving.wait(30)
                while not is_gone(syncing):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            finally:
                serving.kill()
