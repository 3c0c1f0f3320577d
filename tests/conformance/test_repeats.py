"""Events sent twice count once, wherever batches are cut, and on every path: the store, the log, the specification."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Count, Entity, EventSource, FeatureView, Last, Sum
from featurestore.checks.generate import generate
from featurestore.checks.verify import verify
from featurestore.definitions.contract import Contract
from featurestore.definitions.registry import Definitions
from featurestore.definitions.service import FeatureService
from featurestore.errors import DefinitionError, FenceError
from featurestore.events.repeats import digests_of, repetitions, times_of
from featurestore.jobs.rebuild import rebuild_online
from featurestore.jobs.worker import seen_ids
from featurestore.offline.events import write_events
from featurestore.offline.ids import REPEATS, LogIds
from featurestore.online.ids import SeenIds
from featurestore.testing.replay import replay
from featurestore.timeline import MINUTE, SECOND

NAMES = {
    "id": {"type": ["string", "null"]},
    "number": {"type": "integer"},
    "card": {"type": "string"},
    "amount": {"type": "number"},
    "us": {"type": "integer"},
}


def source_of(event_id="id", **options):
    text = json.dumps({"type": "object", "properties": NAMES, "required": ["card", "us"]})
    contract = Contract.from_json(text, "paid")
    return EventSource("paid", topic="paid", schema=contract, event_time="us", event_id=event_id, **options)


def view_of(source, name="spend"):
    features = {
        "n": Count().over("1h", "lifetime"),
        "sum": Sum("amount").over("10m", "lifetime"),
        "last": Last("amount").over("1h"),
    }
    return FeatureView(name, Entity("card", keys={"card": "string"}), source, features)


VIEW = view_of(source_of())
T0 = 1_700_000_000 * SECOND


def row(event_id, at=-SECOND, card="c", amount=1.0):
    return {"id": event_id, "number": 0, "card": card, "amount": amount, "us": T0 + at}


def count_of(run, card="c"):
    run.assert_equal()
    return run.get({"card": card})["spend.n_lifetime"]


@pytest.mark.parametrize(
    ("gaps", "counted"),
    [
        pytest.param([0], 1, id="at once"),
        pytest.param([10 * MINUTE], 1, id="at the end of the horizon"),
        pytest.param([10 * MINUTE + 1], 2, id="a microsecond later"),
        pytest.param([6 * MINUTE, 6 * MINUTE, 6 * MINUTE], 1, id="a chain of retries is one event"),
        pytest.param([6 * MINUTE, 11 * MINUTE, 6 * MINUTE], 2, id="which can end, and another begin"),
    ],
)
def test_an_event_counts_again_only_after_the_horizon(gaps, counted):
    for cut in (False, True):
        with replay(VIEW) as run:
            arrival = T0
            run.send("paid", row("a"), arrival=arrival)
            for gap in gaps:
                if cut:
                    run.drain()
                arrival += gap
                run.send("paid", row("a"), arrival=arrival)
            assert count_of(run) == counted
            assert run.counts["duplicate"] == len(gaps) + 1 - counted
            assert run.counts["consumed"] == run.counts["applied"] + run.counts["duplicate"]


def test_neither_key_nor_event_time_nor_content_tells_copies_apart_but_partitions_and_nulls_do():
    with replay(VIEW) as run:
        for event, partition in (
            (row("a"), 0),
            (row("a", at=-2 * SECOND, card="other", amount=7.0), 0),  # a repetition
            (row("a"), 1),  # in another partition nobody sees the first
            (row(None), 0),
            (row(None), 0),
        ):
            run.send("paid", event, arrival=T0, partition=partition)
        assert count_of(run) == 4
        assert not run.get({"card": "other"}).known["spend"]
        assert run.counts["duplicate"] == 1


def test_time_is_the_newest_arrival_so_far():
    """Clocks of producers disagree: what arrives with an older stamp is no older than what came before it."""
    with replay(VIEW) as run:
        log = run.log("paid")
        for event_id, arrival in (("a", 0), ("b", 15 * MINUTE), ("a", 15 * MINUTE)):
            run.send("paid", row(event_id), arrival=T0 + arrival)
        assert count_of(run) == 3
        assert log.archived().column(REPEATS).to_pylist() == [None] * 3
    arrival = np.array([0, 15, 1]) * MINUTE
    digests = digests_of(pa.array(["a", "b", "a"]))
    assert repetitions(digests, times_of(arrival), 10 * MINUTE, {})[0].tolist() == [False, False, False]
    assert repetitions(digests, arrival, 10 * MINUTE, {})[0].tolist() == [False, False, True], (
        "stamps taken as they are"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("event_id", ["id", "number"])
def test_verify_finds_all_paths_equal_where_events_have_ids(event_id):
    view = view_of(source_of(event_id, id_horizon="1m"))
    result = verify([view], seconds=1e9, seed=7, most_cases=25)
    assert result.equal, str(result)
    cases = [generate(view, 7 + number) for number in range(25)]
    assert any(_repeated(case) for case in cases)


def _repeated(case):
    with replay(case.view) as run:
        for step in case.steps:
            if hasattr(step, "arrival"):
                run.send("paid", step.event, arrival=step.arrival, partition=step.partition)
        run.drain()
        return run.counts["duplicate"]


@pytest.mark.thorough
def test_on_a_real_store_too(open_store):
    view = view_of(source_of(id_horizon="1m"))

    class Opened:
        def __enter__(self):
            store = open_store()
            _empty(store)
            return store

        def __exit__(self, *_):
            pass

    result = verify([view], seconds=1e9, seed=11, most_cases=6, stores={"store": Opened})
    assert result.equal, str(result)


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        pytest.param("judge", lambda self, *given: _nothing(SeenIds.real(self, *given)), id="no event is a repetition"),
        pytest.param("keep", lambda self, until, judged: None, id="ids are not kept"),
        pytest.param(
            "keep",
            lambda self, until, judged: SeenIds.real(
                self, until, dataclasses.replace(judged, kept=judged.kept[:-1] * 2)
            ),
            id="ids are kept twice",
        ),
    ],
)
def test_without_its_parts_verify_finds_a_difference(monkeypatch, broken, change):
    monkeypatch.setattr(SeenIds, "real", getattr(SeenIds, broken), raising=False)
    monkeypatch.setattr(SeenIds, broken, change)
    view = view_of(source_of(id_horizon="1m"))
    assert not verify([view], seconds=1e9, seed=7, most_cases=30, shrink_seconds=0).equal


def _nothing(judged):
    return dataclasses.replace(judged, repeated=judged.repeated[:0])


def test_two_writers_of_one_partition_keep_no_id_twice(open_store):
    store = open_store()
    store.prepare()
    ids = [seen_ids(store, VIEW) for _ in range(2)]
    given = 0, np.arange(2), np.array([T0, T0]), digests_of(pa.array(["a", "a"]))
    judged = [each.judge(*given) for each in ids]
    assert [each.repeated.tolist() for each in judged] == [[1], [1]]
    ids[0].keep(2, judged[0])
    with pytest.raises(FenceError, match=r"the ids of bucket .* another writer is active"):
        ids[1].keep(2, judged[1])
    again = ids[1].judge(*given)
    assert again.done.tolist() == [0, 1]
    assert again.kept == ()
    later = ids[1].judge(0, np.array([2, 3]), np.array([T0, T0 + 11 * MINUTE]), digests_of(pa.array(["a", "a"])))
    assert later.repeated.tolist() == [2]


def test_ids_out_of_the_horizon_are_forgotten(open_store):
    store = open_store()
    store.prepare()
    ids = seen_ids(store, VIEW)
    for step in range(8):
        offsets = np.arange(50) + 50 * step
        arrival = np.full(50, T0 + step * 10 * MINUTE)
        judged = ids.judge(0, offsets, arrival, digests_of(pa.array([f"{offset}" for offset in offsets.tolist()])))
        assert not len(judged.repeated)
        ids.keep(int(offsets[-1]) + 1, judged)
    names = [store.space.ids(bucket, ids.name, 0) for bucket in range(16)]
    slices = [len(each) - 1 for each in store.read_hashes([(name, None) for name in names])]
    assert max(slices) <= 3
    assert sum(slices) > 16


@pytest.mark.parametrize("seed", range(3))
def test_a_rebuild_restores_the_ids_and_the_stream_goes_on_from_there(open_store, tmp_path, seed):
    dice = random.Random(seed)
    store = open_store()
    definitions = Definitions.of([FeatureService("spend", [VIEW])])
    rows = [row(f"{dice.randrange(60)}", at=number * SECOND, card=f"c{number % 5}") for number in range(200)]
    with replay(VIEW, store=store) as run:
        for number, each in enumerate(rows[:120]):
            run.send("paid", each, arrival=T0 + number * 7 * SECOND, partition=number % 2)
        run.drain()
        assert run.counts["duplicate"] > 20
        write_events(str(tmp_path), "paid", run.log("paid").archived())
        before = _values(run)
        _empty(store)
        rebuild_online(store, definitions, str(tmp_path))
        assert _values(run) == before
        for number, each in enumerate(rows[120:], 120):
            run.send("paid", each, arrival=T0 + number * 7 * SECOND, partition=number % 2)
        run.crash(after=dice.randrange(8), lost_checkpoint=True)
        run.assert_equal()
    # Negative control: without the ids, the first copies after a rebuild would count again.
    known = LogIds(VIEW.source)
    known.load(str(tmp_path))
    assert sum(len(each.newest) for each in known.partitions.values()) > 30


def _values(run):
    return [run.get({"card": f"c{number}"}).to_list() for number in range(5)]


def _empty(store):
    """Lose every value, fence and id."""
    if hasattr(store, "clear"):
        store.clear()
    else:
        store.forget_project()


def test_an_id_has_to_be_a_text_or_an_integer_and_a_horizon_some_time():
    with pytest.raises(DefinitionError, match="event_id 'amount' is float64; it must be a string or an integer"):
        source_of("amount")
    with pytest.raises(DefinitionError, match="duration '0s' is not positive"):
        source_of(id_horizon="0s")
    prints = {view_of(each).layout.fingerprint for each in (source_of(), source_of(None), source_of(id_horizon="1h"))}
    assert len(prints) == 3
    assert EventSource.from_dict(source_of(id_horizon="1h").to_dict()) == source_of(id_horizon="1h")
