from __future__ import annotations

import asyncio
import threading

import pytest

from featurestore.errors import OnlineStoreUnavailableError, PastLookupError
from featurestore.scoring.batching import Batcher
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.manifest import load_model
from featurestore.scoring.reads import ThreadReads
from featurestore.scoring.scorer import Scorer
from tests.unit.scoring.support import MemoryReader


class Target:
    def __init__(self, models_root, reader):
        loaded = load_model(models_root, "fraud")
        self._scorer = Scorer(loaded.model, loaded.manifest, reader)

    @property
    def bound(self):
        return self._scorer

    def scorer(self):
        return self._scorer

    def rows(self, *cards):
        return [self._scorer.inputs.check(ScoreRequest({"card_id": card}, {"amount": 1})) for card in cards]


def run(models_root, scenario, **options):
    """Run a scenario with a batcher whose first lookup waits at a gate, so that all later requests queue up behind it."""
    reader = MemoryReader({"a": [1.0, 1, 1.0], "b": [2.0, 1, 1.0]})
    target = Target(models_root, reader)

    async def main():
        batcher = Batcher(lambda on_worker: ThreadReads(reader, on_worker), **options)
        reader.gate = threading.Event()
        first = batcher.score(target, target.rows("a"), None)
        await asyncio.get_running_loop().run_in_executor(None, reader.entered.acquire)
        tasks = [asyncio.ensure_future(one) for one in scenario(batcher, target)]
        await asyncio.sleep(0)
        for task in tasks:
            if isinstance(task, asyncio.Task):
                task.cancel()
        reader.gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return results

    return asyncio.run(main()), reader.batches[1:]


def test_what_arrives_meanwhile_forms_the_next_batch(models_root):
    results, batches = run(models_root, lambda b, t: [b.score(t, t.rows("a", "b"), None) for _ in range(5)])
    assert batches == [(None, 10)]
    assert len({tuple(one.score for one in result) for result in results}) == 1
    assert all(len(result) == 2 for result in results)


def test_different_times_do_not_mix(models_root):
    times = (5, None, 5, 6, None)
    results, batches = run(models_root, lambda b, t: [b.score(t, t.rows("a"), now) for now in times])
    assert batches == [(5, 2), (None, 2), (6, 1)]
    assert [results[index][0].at for index in (0, 2, 3)] == [5, 5, 6]


def test_a_batch_stops_at_its_cap_and_a_larger_request_goes_alone(models_root):
    sizes = (3, 3, 9, 1)
    _, batches = run(models_root, lambda b, t: [b.score(t, t.rows(*"a" * n), None) for n in sizes], max_rows=6)
    assert batches == [(None, 6), (None, 9), (None, 1)]


def test_one_bad_request_fails_alone(models_root):
    results, _ = run(models_root, lambda b, t: [b.score(t, t.rows(card), None) for card in ("a", "past", "b")])
    assert isinstance(results[1], PastLookupError)
    assert results[0][0].score != results[2][0].score


def test_a_bug_in_one_batch_reaches_its_callers_and_no_others(models_root):
    results, _ = run(models_root, lambda b, t: [b.score(t, t.rows("bug"), 1), b.score(t, t.rows("a"), 2)])
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1][0].at == 2


def test_a_store_that_is_away_is_asked_once_for_the_whole_batch(models_root):
    reader = MemoryReader({"a": [1.0, 1, 1.0]})
    target = Target(models_root, reader)

    async def main():
        batcher = Batcher(lambda on_worker: ThreadReads(reader, on_worker))
        reader.down = OnlineStoreUnavailableError
        calls = [batcher.score(target, target.rows("a"), None) for _ in range(4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        await batcher.close()
        return results

    results = asyncio.run(main())
    assert reader.batches == []  # its plan already could not be asked for
    assert [type(one) for one in results] == [OnlineStoreUnavailableError] * 4


class SlowModel:
    """Takes its time, as a model that is not compiled does, and notes on which thread."""

    def __init__(self, model, seconds):
        self._model, self._seconds, self.threads = model, seconds, []
        self.inputs = model.inputs

    def predict(self, matrix):
        self.threads.append(threading.get_ident())
        threading.Event().wait(self._seconds * len(matrix))
        return self._model.predict(matrix)


@pytest.mark.parametrize(("seconds", "rows", "inline"), [(0.0, 1, True), (0.0, 65, False), (0.05, 1, False)])
def test_what_takes_long_is_scored_beside_the_event_loop(models_root, seconds, rows, inline):
    reader = MemoryReader({"a": [1.0, 1, 1.0]})
    target = Target(models_root, reader)
    target._scorer.model = model = SlowModel(target._scorer.model, seconds)

    async def main():
        batcher = Batcher(lambda on_worker: ThreadReads(reader, on_worker))
        for _ in range(20):  # it learns; on a machine that stalls it may think otherwise for a while
            await batcher.score(target, target.rows(*"a" * rows), None)
        await batcher.close()

    asyncio.run(main())
    assert model.threads[0] != threading.get_ident()  # not known yet
    assert (threading.get_ident() in model.threads[1:]) is inline


def test_a_deadline_passes_for_who_waits_and_for_who_is_read(models_root):
    reader = MemoryReader({"a": [1.0, 1, 1.0]}, gate=threading.Event())
    target = Target(models_root, reader)

    async def main():
        batcher = Batcher(lambda on_worker: ThreadReads(reader, on_worker))
        now = asyncio.get_running_loop().time()
        waits = [batcher.score(target, target.rows("a"), None, expires=now + after) for after in (60.0, 0.1, 0.05)]
        await asyncio.get_running_loop().run_in_executor(None, reader.entered.acquire)  # the first three are read
        late = batcher.score(target, target.rows("a"), None, expires=now + 0.1)
        await asyncio.wait([waits[1], waits[2], late], timeout=5)
        reader.gate.set()
        results = await asyncio.gather(*waits, late, return_exceptions=True)
        await batcher.close()
        return results

    patient, first, second, late = asyncio.run(main())
    for one in (first, second, late):
        assert (one.status, one.kind) == (503, "deadline-passed")
    assert patient[0].score > 0
    assert reader.batches == [(None, 3)]  # who was late before being read was never read


def test_a_caller_that_has_gone_is_not_scored(models_root):
    def scenario(batcher, target):
        async def gone():
            return await batcher.score(target, target.rows("a", "a", "a"), None)

        return [gone(), batcher.score(target, target.rows("b"), None)]

    results, batches = run(models_root, scenario)
    assert isinstance(results[0], asyncio.CancelledError)
    assert batches == [(None, 1)]
