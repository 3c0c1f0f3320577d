from __future__ import annotations

import asyncio
import threading

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


def test_a_caller_that_has_gone_is_not_scored(models_root):
    def scenario(batcher, target):
        async def gone():
            return await batcher.score(target, target.rows("a", "a", "a"), None)

        return [gone(), batcher.score(target, target.rows("b"), None)]

    results, batches = run(models_root, scenario)
    assert isinstance(results[0], asyncio.CancelledError)
    assert batches == [(None, 1)]
