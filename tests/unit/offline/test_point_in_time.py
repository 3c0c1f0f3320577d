"""The workers of a training set against the oracle, without Spark: hostile streams, several views, any cut and any order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from featurestore.datatypes import DataType
from featurestore.engines.scalar import evaluate_row
from featurestore.errors import DefinitionError
from featurestore.events.decode import ARROW_TYPES
from featurestore.offline.blobs import codes_of, hashes
from featurestore.offline.digest import digest_of
from featurestore.offline.snapshot import instants_of
from featurestore.timeline import HOUR, to_instant
from tests.effort import tries
from tests.streaming.support import Shop, differences, oracle
from tests.unit.offline.local import keys_at, leaks, run

pytestmark = pytest.mark.thorough

SHOP = Shop("offline")


def log_of(events):
    """Return events as the archive writes them."""
    kinds = SHOP.source.contract.columns
    columns = {
        name: pa.array(
            [event.row.get(name) for event in events], pa.int64() if kind == DataType.TIMESTAMP else ARROW_TYPES[kind]
        )
        for name, kind in kinds.items()
    }
    columns["event_time"] = columns["event_time"].cast(pa.timestamp("us", "UTC"))
    columns["_partition"] = pa.array([event.partition for event in events], pa.int32())
    columns["_offset"] = pa.array([event.offset for event in events], pa.int64())
    columns["_arrival"] = pa.array([event.arrival for event in events], pa.int64())
    columns["_event_time"] = pa.array([event.event_time for event in events], pa.int64())
    return pa.table(columns)


def spine_of(probes):
    return pa.table(
        {
            "card_id": pa.array([card for (card, _), _ in probes], pa.string()),
            "shop": pa.array([shop for (_, shop), _ in probes], pa.int64()),
            "label": pa.array(range(len(probes))),
        }
    )


def expected_of(stream, spine, at, visible=None):
    rows = spine.to_pylist()
    seen = [None] * len(rows) if visible is None else visible.tolist()
    return [
        oracle(SHOP.views, stream.events, row, t, visible_at=v)
        for row, t, v in zip(rows, at.tolist(), seen, strict=True)
    ]


@pytest.mark.parametrize("seed", range(tries(4)))
@pytest.mark.parametrize("as_served", [False, True])
def test_any_cut_gives_the_oracles_values_in_the_spines_order(seed, as_served):
    stream = SHOP.stream(seed=seed, events=180, probes=40)
    probes = [*stream.probes, *stream.probes[:5], (("nobody", 3), stream.probes[0][1]), ((None, None), 0)]
    spine, at = spine_of(probes), np.array([t for _, t in probes])
    visible = at + 60_000_000 if as_served else None
    made = expected_of(stream, spine, at, visible)
    for buckets, batch in ((1, 1000), (3, 50), (40, 7)):
        rows, _ = run(
            SHOP.views, {"payments": log_of(stream.events)}, spine, at, visible=visible, buckets=buckets, batch=batch
        )
        assert rows.select(spine.column_names).equals(spine)
        wrong = []
        for row, expected in zip(rows.to_pylist(), made, strict=True):
            wrong += differences(SHOP.views, expected, {name: row[name] for name in expected}, row["label"])
        assert not wrong, "\n".join(wrong[:10])


def test_the_same_inputs_give_the_same_bits_in_whatever_order_they_come():
    stream = SHOP.stream(seed=7, events=200, probes=30)
    spine, at = spine_of(stream.probes), np.array([t for _, t in stream.probes])
    log = log_of(stream.events)
    mixed = log.take(pa.array(np.random.default_rng(1).permutation(log.num_rows)))
    first = run(SHOP.views, {"payments": log}, spine, at, batch=20)
    assert first[0].equals(run(SHOP.views, {"payments": mixed}, spine, at, batch=77)[0])
    assert first[1].equals(run(SHOP.views, {"payments": mixed}, spine, at, batch=77)[1])
    changed = spine.set_column(2, "label", pa.array([9, *range(1, spine.num_rows)]))
    assert not first[1].equals(run(SHOP.views, {"payments": log}, changed, at)[1])


def test_a_spine_without_events_and_an_empty_spine_are_answered():
    stream = SHOP.stream(seed=7, events=20, probes=3)
    spine, at = spine_of(stream.probes), np.array([t for _, t in stream.probes])
    rows, _ = run(SHOP.views, {}, spine, at)
    assert rows.column("visit.n_1h").to_pylist() == [0] * spine.num_rows
    assert rows.column("visit.last_1h").null_count == spine.num_rows


def test_hashes_tell_keys_apart_and_depend_on_nothing_else():
    texts = ["", "a", "b", "ab", "ba", "abcdefgh", "abcdefg", "abcdefghi", "é" * 40, "\0", "\0\0", None]
    array = pa.array(texts)
    found = hashes([array])
    assert len(set(found.tolist())) == len(texts)
    for offset in range(len(texts)):
        assert hashes([array.slice(offset)]).tolist() == found[offset:].tolist()
        assert hashes([pa.array(texts[offset : offset + 1], pa.string())])[0] == found[offset]
    numbers = pa.array([0, 1, -1, 2**62, None], pa.int64())
    assert len(set(hashes([numbers]).tolist())) == 5
    swapped = hashes([pa.array(["a", "b"]), pa.array(["b", "a"])])
    assert swapped[0] != swapped[1]


def test_codes_follow_the_keys_not_the_order_of_rows():
    codes, count = codes_of([pa.array(["b", None, "a", "b"]), pa.array([1, 1, None, 2], pa.int64())])
    assert count == 4
    assert codes.tolist() == [1, 3, 0, 2]
    mixed, _ = codes_of(
        [pa.chunked_array([["a"], ["b", "b", None]]), pa.chunked_array([pa.array([None, 2, 1, 1], pa.int64())])]
    )
    assert mixed.tolist() == [0, 2, 1, 3]


@pytest.mark.thorough
def test_the_leak_report_counts_the_rows_where_the_oracle_differs():
    stream = SHOP.stream(seed=3, events=200, probes=60)
    spine, at = spine_of(stream.probes), np.array([t for _, t in stream.probes])
    event_time = expected_of(stream, spine, at)
    served = expected_of(stream, spine, at, at)
    counted: dict[str, list[int]] = {}
    for row, (left, right) in enumerate(zip(event_time, served, strict=True)):
        for name in left:
            if differences(SHOP.views, {**right, name: left[name]}, right):
                counted.setdefault(name, []).append(row)
    assert counted, "the stream has no late event that matters"
    found: dict[str, list[dict]] = {}
    for each in leaks(SHOP.views, {"payments": log_of(stream.events)}, spine, at, at):
        found.setdefault(each["feature"], []).append(each)
    assert {name: sum(each["rows"] for each in parts) for name, parts in found.items()} == {
        name: len(rows) for name, rows in counted.items()
    }
    for name, parts in found.items():
        assert min(each["row"] for each in parts) == counted[name][0]


def test_a_snapshot_has_every_key_from_its_first_event_on_with_the_oracles_values():
    stream = SHOP.stream(seed=9, events=120)
    times = sorted(event.event_time for event in stream.events)
    instants = [times[0], times[0] + 1, times[40], times[-1] + 1]
    for view in SHOP.views:
        names = list(view.entity.keys)
        rows = keys_at([view], {"payments": log_of(stream.events)}, instants, batch=33)
        entering = [event for event in stream.events if event.row[names[0]] is not None]
        made = {}
        for row in rows:
            key = tuple(row.pop(name) for name in names)
            made[key, to_instant(row.pop("at"))] = row
        assert len(made) == len(rows)
        first: dict[tuple, int] = {}
        for event in stream.events:
            if view.condition is None or evaluate_row(view.condition, event.row) is True:
                key = tuple(event.row[name] for name in names)
                first[key] = min(first.get(key, event.event_time), event.event_time)
        assert set(made) == {(key, t) for key, begin in first.items() for t in instants if begin < t}
        wrong = []
        for (key, t), row in made.items():
            expected = oracle([view], entering, dict(zip(names, key, strict=True)), t)
            wrong += differences([view], expected, row, f"{key} at {t}")
        assert not wrong, "\n".join(wrong[:10])


def test_the_instants_of_a_snapshot_are_stated_one_way_or_the_other():
    assert instants_of(5) == (5,)
    assert instants_of(start=0, end=2 * HOUR, every="1h") == (0, HOUR, 2 * HOUR)
    for wrong in ({}, {"start": 0, "end": 5}, {"at": 1, "every": "1h"}):
        with pytest.raises(DefinitionError, match="a snapshot takes at, or start, end and every"):
            instants_of(**wrong)
    with pytest.raises(DefinitionError, match="lies before its start"):
        instants_of(start=5, end=0, every="1h")


def test_a_digest_depends_on_content_alone():
    array = pa.array(["a", None, "", "bc"])
    same = [
        array,
        pa.chunked_array([["a", None], ["", "bc"]]),
        array.cast(pa.large_string()),
        array.dictionary_encode(),
        pa.array(["x", "a", None, "", "bc"]).slice(1),
    ]
    assert len({digest_of([("c", each)]) for each in same}) == 1
    nan = np.array([0x7FF8000000000000, 0x7FF8000000000001], np.uint64).view(np.float64)
    others = [
        pa.array(["a", "", None, "bc"]),
        pa.array(["ab", None, "", "c"]),
        pa.array([1, None, 0, 2]),
        pa.array([1, None, 0, 2], pa.int32()),
        pa.array([1.0, None, 0.0, 2.0]),
        pa.array([True, None, False, True]),
        pa.array([1, None, 0, 2], pa.timestamp("us", "UTC")),
        pa.array([1, None, 0, 2], pa.timestamp("us")),
        pa.array([["a"], None, [], ["bc"]]),
        pa.array([["a", None], [], ["bc"]]),
        pa.array([{"a": 1}, None, {"a": None}, {"a": 2}]),
        pa.array([{"a": 1}, None, {"a": 2}, {"a": None}]),
        pa.array([None, None], pa.null()),
        pa.array([0.0]),
        pa.array([-0.0]),
    ]
    digests = [digest_of([("c", each)]) for each in [same[0], *others]] + [digest_of([("d", array)])]
    assert len(set(digests)) == len(digests)
    assert digest_of([("c", pa.array(nan[:1]))]) == digest_of([("c", pa.array(nan[1:]))])
    micros = pa.array([1, None], pa.timestamp("us", "UTC"))
    assert digest_of([("c", micros)]) == digest_of([("c", micros.cast(pa.timestamp("ns", "UTC")))])
