"""Snapshots through Spark and Delta: every key at every instant with the oracle's values, queried with SQL."""

from __future__ import annotations

import json
import shutil

import pytest

from featurestore import FeatureStore
from featurestore.cli import main
from featurestore.definitions.registry import Definitions
from featurestore.definitions.service import FeatureService
from featurestore.errors import OfflineError, OfflineStoreUnavailableError
from featurestore.offline.registry import DeltaRegistry
from featurestore.offline.snapshot import instants_of, snapshot
from featurestore.timeline import HOUR, to_datetime, to_instant
from tests.streaming.support import differences, oracle
from tests.streaming.test_training import SHOP, STREAM, offline

pytestmark = pytest.mark.jvm
__all__ = ["offline"]


def test_a_range_of_instants_is_a_table_that_sql_reads_and_a_second_write_replaces(spark, offline, tmp_path):
    view = SHOP.views[1]
    times = sorted(event.event_time for event in STREAM.events)
    begin = times[20] - times[20] % HOUR
    instants = instants_of(start=begin, end=begin + 3 * HOUR, every="1h")
    made = snapshot(spark, view, instants, offline=offline)
    path = made.write(str(tmp_path / "table"))
    assert made.facts["tables"] == {"events/payments": 1}

    def read():
        return spark.sql(f"SELECT * FROM delta.`{path}`").toArrow().to_pylist()

    rows = read()
    assert {to_instant(row["at"]) for row in rows} <= set(instants)
    assert len({(row["card_id"], row["at"]) for row in rows}) == len(rows) > 4
    wrong = []
    for row in rows:
        expected = oracle([view], STREAM.events, row, to_instant(row["at"]))
        wrong += differences([view], expected, {name: row[name] for name in expected}, f"{row['card_id']} {row['at']}")
    assert not wrong, "\n".join(wrong[:10])

    # The same again, and one hour of it again: nothing is there twice.
    made.write(path)
    snapshot(spark, view, instants[1:2], offline=offline).write(path)
    order = lambda row: (row["at"], row["card_id"] or "")  # noqa: E731
    assert sorted(map(repr, sorted(read(), key=order))) == sorted(map(repr, sorted(rows, key=order)))
    hour = to_datetime(instants[1]).isoformat()
    counted = spark.sql(f"SELECT count(*) n FROM delta.`{path}` WHERE at = timestamp'{hour}' AND `card.n_lifetime` > 0")
    at = [row for row in rows if to_instant(row["at"]) == instants[1]]
    assert counted.first()["n"] == sum(row["card.n_lifetime"] > 0 for row in at) > 0


def test_the_command_line_writes_an_instant_and_a_range_that_sql_counts(spark, offline, tmp_path, monkeypatch, capsys):
    root = tmp_path / "offline"
    shutil.copytree(offline, root)
    DeltaRegistry(str(root)).apply(Definitions.of([SHOP.service]))
    (tmp_path / "featurestore.toml").write_text('project = "shop"\noffline = "offline"\n')
    monkeypatch.chdir(tmp_path)
    last = max(event.event_time for event in STREAM.events) + 1
    begin, hours = to_datetime(last - 2 * HOUR).isoformat(), [last - 2 * HOUR, last - HOUR, last]

    def called(*arguments):
        capsys.readouterr()
        assert main(["snapshot", "card", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["path"]

    at = to_datetime(last).isoformat()
    path = called("--at", at)
    assert path == str(root / "snapshots" / "card")
    cards = {event.row["card_id"] for event in STREAM.events}
    counted = spark.sql(f"SELECT count(*) n, sum(`card.n_lifetime`) total FROM delta.`{path}`").first()
    expected = [oracle([SHOP.views[1]], STREAM.events, {"card_id": card}, last) for card in cards]
    assert 0 < counted["n"] <= len(cards)
    assert counted["total"] == sum(each["card.n_lifetime"] for each in expected) > 0
    assert called("--start", begin, "--end", at, "--every", "1h", "--path", str(tmp_path / "hourly")) == str(
        tmp_path / "hourly"
    )
    found = spark.sql(
        f"SELECT unix_micros(at) at, count(*) n FROM delta.`{tmp_path / 'hourly'}` GROUP BY at ORDER BY at"
    ).collect()
    assert [row["at"] for row in found] == hours
    assert found[-1]["n"] == counted["n"]
    # and from Python, by the store's own method
    assert FeatureStore.open(tmp_path).snapshot("card", at=at, path=tmp_path / "again") == str(tmp_path / "again")
    assert spark.read.format("delta").load(str(tmp_path / "again")).count() == counted["n"]
    assert main(["snapshot", "card", "--start", begin]) == 4
    assert "a snapshot takes at, or start, end and every" in capsys.readouterr().err


def test_views_of_different_keys_and_a_missing_log_are_refused(spark, offline, tmp_path):
    with pytest.raises(OfflineError, match=r"views visit and card of shop have different keys.*snapshot of each view"):
        snapshot(spark, SHOP.service, (0,), offline=offline)
    alone = FeatureService("alone", [SHOP.views[0]])
    with pytest.raises(OfflineStoreUnavailableError, match="no event log"):
        snapshot(spark, alone, (0,), offline=str(tmp_path))
    assert snapshot(spark, alone, (-(10**15),), offline=offline).frame.count() == 0
