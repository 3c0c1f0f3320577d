"""The marks of repetitions in an event log: batch by batch, with restarts in between, they are those of the rule."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest

from featurestore.definitions.contract import Contract
from featurestore.definitions.source import EventSource
from featurestore.engines.oracle import Event, without_repetitions
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.jobs.archive import MarkRepeats
from featurestore.offline.events import write_events
from featurestore.offline.ids import REPEATS, LogIds, without_repeats
from featurestore.offline.scan import LogScan
from featurestore.timeline import MINUTE, SECOND

PROPERTIES = {"id": {"type": ["string", "null"]}, "us": {"type": "integer"}}
CONTRACT = Contract.from_json(json.dumps({"type": "object", "properties": PROPERTIES, "required": ["us"]}), "paid")
SOURCE = EventSource("paid", topic="paid", schema=CONTRACT, event_time="us", event_id="id", id_horizon="1m")


def stream(dice, count=200):
    """Return events of two partitions, whose arrivals now and then go back."""
    now, offsets, made = 1_700_000_000 * SECOND, [0, 0], []
    for _ in range(count):
        now += dice.choice((0, SECOND, 2 * SECOND, 30 * SECOND))
        partition = dice.randrange(2)
        arrival = now - dice.choice((0, 0, 0, SECOND, 5 * MINUTE))
        row = {"id": dice.choice((None, *(f"{number}" for number in range(12)))), "us": now}
        made.append(Event(row, now, arrival, partition, offsets[partition]))
        offsets[partition] += 1
    return made


def log_of(events):
    """Return events as decoded rows of the log."""
    return pa.table(
        {
            **{
                name: pa.array([event.row[name] for event in events], ARROW_TYPES[kind])
                for name, kind in CONTRACT.columns.items()
            },
            "_topic": ["paid"] * len(events),
            "_partition": pa.array([event.partition for event in events], pa.int32()),
            "_offset": [event.offset for event in events],
            "_arrival": [event.arrival for event in events],
            "_event_time": [event.event_time for event in events],
        }
    )


def marked(known, rows):
    found = known.judge(rows.select(["_partition", "_offset", "_arrival", "id"]))
    return pa.Table.from_batches(MarkRepeats(found)(iter(rows.to_batches())))


@pytest.mark.parametrize("seed", range(6))
def test_a_log_is_marked_as_the_rule_says_whatever_the_batches(tmp_path, seed):
    dice = random.Random(seed)
    events, done, known, written = stream(dice), 0, None, []
    while done < len(events):
        batch = events[done : done + dice.randrange(1, 40)]
        done += len(batch)
        rows = log_of(batch)
        if known is None:  # a job that begins: it reads the ids of before, and of nothing that the batch brings
            known = LogIds(SOURCE)
            known.load(
                str(tmp_path),
                {p: min(e.offset for e in batch if e.partition == p) for p in {e.partition for e in batch}},
            )
        made = marked(known, rows)
        write_events(str(tmp_path), "paid", made)
        written.append(made)
        if dice.random() < 0.3:
            known = None
            if (
                dice.random() < 0.5
            ):  # it died behind its first table, and writes the others again: as they would have been
                again = LogIds(SOURCE)
                firsts = {p: min(e.offset for e in batch if e.partition == p) for p in {e.partition for e in batch}}
                again.load(str(tmp_path), firsts)
                assert marked(again, rows) == made
        else:
            known.keep()
    log = pa.concat_tables(written)
    kept = without_repetitions(SOURCE, events)
    assert 30 < len(kept) < len(events) - 30
    unmarked = [(row["_partition"], row["_offset"]) for row in log.to_pylist() if row[REPEATS] is None]
    assert unmarked == [(event.partition, event.offset) for event in kept]
    assert sum(batch.num_rows for batch in map(without_repeats, log.to_batches())) == len(kept)
    assert LogScan(str(tmp_path), "paid").ends().rows == len(events)


def test_only_the_newest_ids_are_read(tmp_path):
    events = [Event({"id": f"{n}", "us": n}, n, n * SECOND, 0, n) for n in range(1_000)]
    write_events(str(tmp_path), "paid", log_of(events))
    known = LogIds(SOURCE)
    known.load(str(tmp_path))
    assert known.partitions[0].through == 999 * SECOND
    assert len(known.partitions[0].newest) == 61  # a minute of them, its first second too
    known = LogIds(SOURCE)
    known.load(str(tmp_path), {0: 100})
    assert known.partitions[0].through == 99 * SECOND
    known.load(str(tmp_path / "nowhere"))


def test_a_log_without_ids_knows_none(tmp_path):
    write_events(str(tmp_path), "paid", log_of([]).drop_columns("id"))
    known = LogIds(SOURCE)
    known.load(str(tmp_path))
    assert known.partitions == {}
    assert (
        known.judge(
            log_of([Event({"id": None, "us": 1}, 1, 1, 0, 0)]).select(["_partition", "_offset", "_arrival", "id"])
        )
        == {}
    )
