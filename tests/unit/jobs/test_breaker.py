"""The breaker: a job stops before it passes records of which too many are no events."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featurestore import Count, Entity, FeatureView
from featurestore.definitions.contract import Contract
from featurestore.definitions.source import EventSource
from featurestore.errors import QuarantineLimitError
from featurestore.jobs.breaker import QuarantineBreaker
from featurestore.jobs.worker import SourceWorker, decoder_of
from featurestore.online.memory import MemoryOnlineStore
from featurestore.online.writer import FencedWriter

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "us": {"type": "integer"}},
    "required": ["id", "us"],
}


def source(limit=0.5, after=10):
    contract = Contract.from_json(json.dumps(SCHEMA), "payment")
    return EventSource(
        "payments", topic="pay", schema=contract, event_time="us", quarantine_limit=limit, quarantine_after=after
    )


def worker(of):
    view = FeatureView("card", Entity("card", keys={"id": "string"}), of, {"n": Count().over("lifetime")})
    store = MemoryOnlineStore()
    return SourceWorker(of, decoder_of(of), FencedWriter(store, "payments", [view]), QuarantineBreaker(of)), store


def apply(worker, first, good, bad):
    values = [b'{"id": "a", "us": 1}'] * good + [b"{}"] * bad
    offsets = np.arange(first, first + len(values))
    return worker.apply(0, offsets, np.full(len(values), 10, np.int64), values)


def test_a_batch_beyond_the_limit_is_not_passed_and_says_what_is_wrong_with_it():
    stopped, store = worker(source())
    assert apply(stopped, 0, good=5, bad=5)["quarantined"] == 5, "half is not more than half"
    before = dict(store.values), store.bucket_fences, store.progress("payments")
    with pytest.raises(
        QuarantineLimitError,
        match=r"6 of 11 records.*payment version 1, allowed are 50%.*pay-0 offset 15: contract, .*`id`",
    ) as caught:
        apply(stopped, 10, good=5, bad=6)
    assert "quarantine_limit" in caught.value.hint
    assert (dict(store.values), store.bucket_fences, store.progress("payments")) == before
    mended, _ = worker(source())
    assert apply(mended, 10, good=11, bad=0)["applied"] == 11


def test_few_records_do_not_stop_a_job_but_add_up():
    counted, store = worker(source())
    apply(counted, 0, good=0, bad=4)
    apply(counted, 4, good=0, bad=5)
    assert store.progress("payments")[0][0] == 9
    with pytest.raises(QuarantineLimitError, match="10 of 10"):
        apply(counted, 9, good=0, bad=1)


def test_good_records_begin_the_count_anew():
    counted, _ = worker(source())
    apply(counted, 0, good=10, bad=0)
    with pytest.raises(QuarantineLimitError, match="6 of 10"):
        apply(counted, 10, good=4, bad=6)


@pytest.mark.parametrize(("limit", "bad", "stops"), [(1.0, 20, False), (0.0, 0, False), (0.0, 1, True)])
def test_the_ends_of_the_scale(limit, bad, stops):
    counted, _ = worker(source(limit))
    if not stops:
        assert apply(counted, 0, good=20, bad=bad)["quarantined"] == bad
        return
    with pytest.raises(QuarantineLimitError):
        apply(counted, 0, good=20, bad=bad)
