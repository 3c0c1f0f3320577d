"""A model is exchanged under load: a real server process, concurrent callers, and no failed request."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.scoring.folder import write_aliases
from featurestore.scoring.follow import Change, Follower
from featurestore.scoring.http import ScoringApp
from featurestore.scoring.manifest import find_model, load_model, save_model
from featurestore.scoring.served import ModelSet, ServedModel
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import FIELDS, MemoryReader, onnx_bytes

pytestmark = pytest.mark.thorough

WEIGHTS = {1: (1.0, 0.0, 0.0), 2: (-1.0, 0.0, 0.0), 3: (0.0, 0.0, 0.0)}
SCORES = {1: 0.7310586, 2: 0.2689414, 3: 0.5}
"""What each version gives for an amount of 1: a score tells which model gave it."""
BODY = {"keys": {"card_id": "k1"}, "request": {"amount": 1}}


@pytest.fixture
def root(tmp_path):
    for weights in WEIGHTS.values():
        save_model(tmp_path, "fraud", onnx_bytes(weights=weights), **FIELDS)
    write_aliases(tmp_path, "fraud", {"champion": 1})
    return tmp_path


@contextmanager
def serving(root, *arguments):
    """Serve a folder from a process of its own; yield the URL and that of its metrics."""
    command = [sys.executable, "-m", "tests.unit.scoring.serve_models", str(root), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, metrics = (process.stdout.readline().split()[-1] for _ in range(2))
            yield url, metrics
        finally:
            process.terminate()
            assert process.wait(20) == 0


class Callers:
    """Threads that call without a pause, and keep every answer."""

    def __init__(self, url: str, count: int = 4) -> None:
        self.answers: list[tuple[int, int, float]] = []
        self.failures: list[object] = []
        self._stop = threading.Event()
        self._url = url
        self._pool = ThreadPoolExecutor(count)
        for _ in range(count):
            self._pool.submit(self._call)

    def _call(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=20) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/score/fraud", json=BODY)
                    found = answer.json()
                    self.answers.append((answer.status_code, found.get("version"), found.get("score")))
                except httpx.HTTPError as error:
                    self.failures.append(error)

    def wait_for(self, version: int, answers: int = 20) -> None:
        """Return when so many more answers came from a version."""
        deadline = time.monotonic() + 60
        start = len(self.answers)
        while sum(one[1] == version for one in self.answers[start:]) < answers:
            assert time.monotonic() < deadline, self.answers[-1:]
            self._stop.wait(0.005)

    def end(self) -> None:
        self._stop.set()
        self._pool.shutdown()


def test_the_champion_changes_under_load_without_a_failed_request(root):
    with serving(root) as (url, metrics):
        callers = Callers(url)
        try:
            callers.wait_for(1)
            write_aliases(root, "fraud", {"champion": 2, "previous": 1})
            callers.wait_for(2)
            write_aliases(root, "fraud", {"champion": 3, "previous": 2})
            callers.wait_for(3)
            write_aliases(root, "fraud", {"champion": 2, "previous": 3})  # and back
            callers.wait_for(2)
        finally:
            callers.end()
        exposition = httpx.get(metrics, trust_env=False).text
    assert callers.failures == []
    assert {status for status, _, _ in callers.answers} == {200}
    assert {version for _, version, _ in callers.answers} == {1, 2, 3}
    for _, version, score in callers.answers:  # every score is of the model that the answer names
        assert score == pytest.approx(SCORES[version], rel=1e-6)
    assert 'model_changes_total{model="fraud",outcome="swapped"} 3.0' in exposition
    assert 'version="2"} 1.0' in exposition
    assert 'version="1"} 0.0' in exposition


def test_a_version_that_is_refused_leaves_the_old_one_serving_under_load(root):
    broken = find_model(root, "fraud", 2).directory / "model.onnx"
    broken.write_bytes(b"\xff" * 100)
    save_model(root, "fraud", onnx_bytes(), **FIELDS | {"service_fingerprint": "another"})  # version 4
    with serving(root) as (url, metrics):
        callers = Callers(url)
        try:
            callers.wait_for(1)
            for refusals, version in enumerate((2, 4, 9), start=1):
                write_aliases(root, "fraud", {"champion": version, "previous": 1})
                wanted = f'model_changes_total{{model="fraud",outcome="refused"}} {refusals}.0'
                deadline = time.monotonic() + 60
                while wanted not in httpx.get(metrics, trust_env=False).text:
                    assert time.monotonic() < deadline
                callers.wait_for(1)
            write_aliases(root, "fraud", {"champion": 3, "previous": 1})
            callers.wait_for(3)
        finally:
            callers.end()
    assert callers.failures == []
    assert {(status, version) for status, version, _ in callers.answers} == {(200, 1), (200, 3)}


def test_a_swap_that_leaves_a_gap_would_be_noticed(root, monkeypatch):
    """The negative control of the callers: the same swap, with nothing served in between."""
    replace, closed = ModelSet.replace, threading.Event()

    def with_a_gap(models, served):
        models._newest = {}
        closed.wait(0.3)
        return replace(models, served)

    monkeypatch.setattr(ModelSet, "replace", with_a_gap)
    models = ModelSet([load_model(root, "fraud", 1)], MemoryReader({"k1": [1.0, 1, 1.0]}))
    models.bind()
    with running(ScoringApp(models)) as url:
        callers = Callers(url)
        callers.wait_for(1)
        models.replace(ServedModel(load_model(root, "fraud", 2), models.client))
        callers.wait_for(2)
        callers.end()
    assert {status for status, _, _ in callers.answers} == {200, 404}


def test_without_following_the_same_change_is_not_seen(root):
    """The negative control: it is the follower that swaps, and nothing else."""

    async def on_worker(call):
        return call()

    async def rounds() -> tuple[int, int]:
        models = ModelSet([load_model(root, "fraud", 1)], MemoryReader())
        models.bind()
        write_aliases(root, "fraud", {"champion": 2})
        before = models.find("fraud").manifest.version
        found = await Follower(root, models, ["fraud"], try_first=False).step(on_worker)
        assert found == [Change("fraud", 2, None)]
        return before, models.find("fraud").manifest.version

    assert asyncio.run(rounds()) == (1, 2)


def test_versions_asked_for_by_number_stay_and_a_store_away_is_asked_again(root):
    reader = MemoryReader()
    models = ModelSet([load_model(root, "fraud", 3), load_model(root, "fraud", 1)], reader)
    slept, outcomes = [], []

    async def on_worker(call):
        return call()

    async def follow() -> None:
        follower = Follower(root, models, ["fraud"], swapped=lambda *one: outcomes.append(one), try_first=False)
        write_aliases(root, "fraud", {"champion": 2})
        reader.down = OnlineStoreUnavailableError

        async def sleep(seconds):
            slept.append(seconds)
            if len(slept) == 2:
                reader.down = None
            if len(slept) == 4:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await follower.run(on_worker, every_s=7, sleep=sleep)

    asyncio.run(follow())
    assert slept == [7, 7, 7, 7]
    assert outcomes == [("fraud", "swapped")]  # no refusal: the store was only away
    assert models.find("fraud").manifest.version == 2
    assert models.versions("fraud") == [1, 2]  # 3 was the newest, 1 was asked for
    assert models.find("fraud", "1").manifest.version == 1


def test_a_folder_that_goes_away_changes_nothing(root, caplog):
    models = ModelSet([load_model(root, "fraud", 1)], MemoryReader())
    follower = Follower(root, models, ["fraud", "unknown"], try_first=False)
    (root / "fraud" / "aliases.json").write_text("{")
    assert follower.changes() == []
    assert "is unreadable" in caplog.text
    shutil.rmtree(root / "fraud")
    assert follower.changes() == []
