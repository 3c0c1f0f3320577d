"""What was noted is what Prometheus would have been told one by one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from featurestore.scoring.metrics import BulkHistogram, ScorerMetrics
from featurestore.scoring.scorer import Timings

BOUNDS = (0.25, 1.0, 4.0)


def samples(registry):
    return {(one.name, tuple(one.labels.values())): one.value for each in registry.collect() for one in each.samples}


@given(st.lists(st.floats(-1, 8).map(lambda value: round(value * 4) / 4), max_size=30))
def test_many_observations_at_once_are_those_one_by_one(values):
    both = CollectorRegistry(), CollectorRegistry()
    one, many = (
        kind("h", "h", ("m",), buckets=BOUNDS, registry=each)
        for kind, each in zip((Histogram, BulkHistogram), both, strict=True)
    )
    for value in values:
        one.labels("a").observe(value)
    many.labels("a").observe_all(iter(values))
    if values:
        mine, others = (
            {name: value for name, value in samples(each).items() if name[0] != "h_created"} for each in reversed(both)
        )
        assert mine == others
        assert mine["h_count", ("a",)] == len(values)


def prediction(model, complete_through, **tally):
    return SimpleNamespace(model=model, at=5_000_000, complete_through=complete_through, tally=tally)


def test_batches_and_answers_are_told_soon_or_when_somebody_asks():
    metrics, prefix = ScorerMetrics(), "featurestore_scorer"

    def found():
        return samples(metrics._registry)

    async def scenario():
        metrics.show_queue(3, 2)
        metrics.note_batch(
            [prediction("a", 1_000_000, present=2), prediction("a", 0, present=1, null=1)], Timings(0.1, 0.2, 0.3)
        )
        metrics.note_batch([prediction("b", None, missing=2)], Timings(0.1, 0.2, 0.3))
        metrics.note_batch([], Timings(0.0, 0.0))
        for code, seconds in ((200, 0.5), (200, 0.25), (429, 9.0), (400, 0.25)):
            metrics.note_answer("score", code, seconds)
        assert found()[f"{prefix}_lookup_seconds_count", ()] == 0
        give_up = asyncio.get_running_loop().time() + 10
        while not found()[f"{prefix}_lookup_seconds_count", ()]:
            assert asyncio.get_running_loop().time() < give_up
            await asyncio.sleep(0.01)
        metrics.note_answer("infer", 200, 1.0)
        assert b'featurestore_scorer_requests_total{code="200",route="infer"} 1.0' in metrics.render()

    asyncio.run(scenario())
    seen = found()
    assert [seen[f"{prefix}_{name}_seconds_sum", ()] for name in ("lookup", "decode", "model")] == [0.2, 0.6, 0.4]
    assert (seen[f"{prefix}_batch_rows_count", ()], seen[f"{prefix}_batch_rows_sum", ()]) == (2, 3)
    assert (seen[f"{prefix}_freshness_seconds_sum", ("a",)], seen[f"{prefix}_freshness_unknown_total", ("b",)]) == (
        4,
        1,
    )
    statuses = {labels: value for (name, labels), value in seen.items() if name == f"{prefix}_feature_values_total"}
    assert statuses == {("a", "present"): 3, ("a", "null"): 1, ("b", "missing"): 2}
    codes = {labels: value for (name, labels), value in seen.items() if name == f"{prefix}_requests_total"}
    assert codes == {("score", "200"): 2, ("score", "429"): 1, ("score", "400"): 1, ("infer", "200"): 1}
    assert (seen[f"{prefix}_request_seconds_count", ("score",)], seen[f"{prefix}_request_seconds_sum", ("score",)]) == (
        3,
        1,
    )
    assert (seen[f"{prefix}_in_flight", ()], seen[f"{prefix}_waiting", ()]) == (3, 2)
