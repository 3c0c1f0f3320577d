"""The quarantine as Delta tables: what is listed, in which order, and what a replay marks. No broker, no JVM."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from featurestore import Entity
from featurestore.definitions.contract import Contract
from featurestore.definitions.registry import Definitions
from featurestore.definitions.source import EventSource
from featurestore.errors import OfflineError, OfflineStoreUnavailableError, UnknownNameError
from featurestore.jobs.quarantine import replay_quarantine
from featurestore.offline.quarantine import Quarantine
from featurestore.timeline import VirtualClock

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "us": {"type": "integer"}},
    "required": ["id", "us"],
}


def write(root, *rows, source="payments"):
    """Write quarantine rows (partition, offset, arrival, reason, raw) as the archive query does."""
    table = pa.table(
        {
            "source": [source] * len(rows),
            "_topic": ["pay"] * len(rows),
            "_partition": pa.array([row[0] for row in rows], pa.int32()),
            "_offset": pa.array([row[1] for row in rows], pa.int64()),
            "_arrival": pa.array([row[2] for row in rows], pa.int64()),
            "reason": [row[3] for row in rows],
            "detail": [f"detail {row[1]}" for row in rows],
            "raw": pa.array([row[4] for row in rows], pa.binary()),
        }
    )
    write_deltalake(f"{root}/quarantine", table, mode="append")


@pytest.fixture
def root(tmp_path):
    write(tmp_path, (0, 5, 100, "contract", b"{}"), (1, 2, 300, "not_json", b"\xff"), (0, 9, 200, "contract", None))
    write(tmp_path, (0, 1, 400, "future", b"x" * 300), source="visits")
    return str(tmp_path)


def places(records):
    return [(each.partition, each.offset) for each in records]


def test_records_come_newest_first_and_are_chosen_by_source_reason_and_time(root):
    quarantine = Quarantine(root)
    assert places(quarantine.records()) == [(0, 1), (1, 2), (0, 9), (0, 5)]
    assert places(quarantine.records(oldest_first=True, limit=2)) == [(0, 5), (0, 9)]
    assert places(quarantine.records(source="payments", limit=1)) == [(1, 2)]
    assert places(quarantine.records(reason="contract")) == [(0, 9), (0, 5)]
    assert places(quarantine.records(since=300)) == [(0, 1), (1, 2)]
    shown = quarantine.records(source="visits")[0].to_dict()
    assert (shown["bytes"], shown["text"], shown["raw_hex"]) == (300, "x" * 200, "78" * 300)
    assert shown["arrival"].startswith("1970-01-01T00:00:00.0004")
    json.dumps([each.to_dict() for each in quarantine.records()])


def test_a_store_without_quarantine_has_no_records_and_a_broken_one_says_so(tmp_path):
    assert Quarantine(str(tmp_path)).records() == []
    log = tmp_path / "quarantine" / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json").write_text("{")
    with pytest.raises(OfflineStoreUnavailableError, match="quarantine cannot be read"):
        Quarantine(str(tmp_path)).records()


def test_what_is_sent_is_marked_and_not_sent_again(root):
    quarantine = Quarantine(root)
    first, second = quarantine.records(reason="contract")
    quarantine.note([first], "sending", at=1)
    assert [each.replay for each in quarantine.records(reason="contract")] == ["sending", None]
    with pytest.raises(OfflineError, match="pay-0-9 is sending already; nothing was sent"):
        quarantine.note([second, first], "sending", at=2)
    assert places(quarantine.records(only_waiting=True)) == [(0, 1), (1, 2), (0, 5)]
    quarantine.note([first], "sent", at=3)
    quarantine.note([first], "sending", at=4, again=True)
    assert [each.replay for each in quarantine.records(reason="contract")] == ["sent", None]


def test_of_two_replays_at_once_the_second_sends_nothing(root):
    first, second = Quarantine(root).records(reason="contract")

    class Overtaken(Quarantine):
        """Another replay notes a record after this one has read what is known."""

        def _known(self, table):
            known = super()._known(table)
            Quarantine(root).note([second], "sending", at=1)
            return known

    with pytest.raises(OfflineError, match="another replay runs"):
        Overtaken(root).note([first], "sending", at=2)
    assert Quarantine(root).replays() == {second.place: "sending"}


def definitions(required):
    contract = Contract.from_json(json.dumps({**SCHEMA, "required": required}), "payment")
    made = EventSource("payments", topic="pay", schema=contract, event_time="us", allowed_skew="1us")
    return Definitions.of([Entity("card", keys={"id": "string"}), made])


def test_a_dry_run_says_what_the_applied_contract_would_accept_now(tmp_path):
    root = str(tmp_path)
    write(tmp_path, (0, 1, 100, "contract", b'{"us": 1}'), (0, 2, 100, "future", b'{"id": "a", "us": 50}'))
    write(tmp_path, (0, 3, 100, "not_json", b"{"), (0, 4, 100, "future", b'{"id": "a", "us": 999}'))
    write(tmp_path, (0, 77, 100, "contract", b"{}"), source="gone")
    clock = VirtualClock(60)
    found = replay_quarantine(root, {}, definitions(["id", "us"]), clock=clock)
    assert (found.sent["payments"], found.refused["payments"]) == (1, 3)
    assert dict(found.reasons) == {"contract": 1, "not_json": 1, "future": 1}
    mended = replay_quarantine(root, {}, definitions(["us"]), clock=clock)
    assert mended.sent["payments"] == 2
    assert replay_quarantine(root, {}, definitions(["us"]), clock=clock, limit=1).sent["payments"] == 1
    assert Quarantine(root).replays() == {}
    records = Quarantine(root).records(source="payments", oldest_first=True)
    Quarantine(root).note(records[:1], "sent", at=1)
    Quarantine(root).note(records[1:2], "sending", at=1)
    left = replay_quarantine(root, {}, definitions(["us"]), clock=clock)
    assert (left.sent["payments"], left.earlier, left.uncertain) == (0, 1, 1)
    assert replay_quarantine(root, {}, definitions(["us"]), clock=clock, again=True).sent["payments"] == 2
    with pytest.raises(UnknownNameError, match="no source 'paymets'"):
        replay_quarantine(root, {}, definitions(["us"]), source="paymets")
