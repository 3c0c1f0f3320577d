"""Snapshots through Spark and Delta: every key at every instant with the oracle's values, queried with SQL."""

from __future__ import annotations

import pytest

from featurestore.definitions.service import FeatureService
from featurestore.errors import OfflineError, OfflineStoreUnavailableError
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


def test_views_of_different_keys_and_a_missing_log_are_refused(spark, offline, tmp_path):
    with pytest.raises(OfflineError, match=r"views visit and card of shop have different keys.*snapshot of each view"):
        snapshot(spark, SHOP.service, (0,), offline=offline)
    alone = FeatureService("alone", [SHOP.views[0]])
    with pytest.raises(OfflineStoreUnavailableError, match="no event log"):
        snapshot(spark, alone, (0,), offline=str(tmp_path))
    assert snapshot(spark, alone, (-(10**15),), offline=offline).frame.count() == 0
