"""Verbs that look after the stores: quarantine, rebuild-online, compact. Delta and Valkey are real, no JVM starts."""

from __future__ import annotations

import json

import pytest

from featurestore import FeatureService, FeatureStore
from featurestore.offline.events import write_events
from featurestore.offline.predictions import DeltaSink
from featurestore.testing.replay import Replay
from tests.faults.feeding import Feeder
from tests.streaming.support import Shop, simple_events
from tests.unit.offline.test_quarantine import write as write_quarantine

pytestmark = pytest.mark.thorough

SHOP = Shop("kept")


@pytest.fixture
def project(tmp_path, online_url, monkeypatch):
    """An applied project with an event log, in the working directory."""
    (tmp_path / "featurestore.toml").write_text(f'project = "kept"\n[online]\nurl = "{online_url}"\ntimeout = "5s"\n')
    monkeypatch.chdir(tmp_path)
    store = FeatureStore.open()
    store.apply(SHOP.service)
    run = Replay(SHOP.service)
    for event in SHOP.stream(3, 60).events:
        run.send("payments", event.row, arrival=event.arrival, partition=event.partition)
    for begin in (0, 30):
        write_events(store.settings.offline, "payments", run.log("payments").archived().slice(begin, 30))
    return store


def test_the_quarantine_is_listed_for_people_and_machines(project, run):
    assert run("quarantine", "list") == (0, "arrived  source  place  reason  replay  detail\n", "")
    write_quarantine(project.settings.offline, (0, 5, 100, "contract", b"{}"), (1, 2, 300, "not_json", b"\xff"))
    code, out, err = run("quarantine", "list", "--reason", "not_json")
    assert (code, err) == (0, "")
    assert "pay-1@2" in out
    assert "pay-0@5" not in out
    code, out, _ = run("quarantine", "list", "--since", "1970-01-01T00:00:00Z", "--limit", "1", "--json")
    (shown,) = json.loads(out)
    assert (shown["offset"], shown["raw_hex"], shown["replay"]) == (2, "ff", None)
    assert json.loads(run("quarantine", "list", "--since", "1h", "--json")[1]) == []
    code, _, err = run("quarantine", "list", "--since", "yesterday")
    assert code == 4
    assert "--since" in err


def test_a_replay_sends_nothing_until_it_is_told_to(project, run):
    write_quarantine(project.settings.offline, (0, 5, 100, "contract", b"{}"))
    code, out, err = run("quarantine", "replay", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["dry_run"] is True
    assert json.loads(out)["refused_again"] == {"payments": 1}
    code, out, err = run("quarantine", "replay")
    assert code == 0
    assert "payments: 1 would be refused again (contract 1)" in err
    code, _, err = run("quarantine", "replay", "--source", "paymnts")
    assert code == 4
    assert "no source 'paymnts' is applied" in err


def test_the_store_is_rebuilt_whole_by_view_and_by_key(project, run):
    code, out, err = run("rebuild-online", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["epoch"] == 1
    code, out, err = run("rebuild-online", "--view", "card", "--memory", "1")
    assert code == 0
    assert out.startswith("card: ")
    assert "epoch 2" in out
    assert "payments: the stream goes on from 0:" in err
    code, out, _ = run("rebuild-online", "--view", "card", "--key", "card_id=a", "--json")
    assert code == 0
    assert json.loads(out)["view"] == "card"
    for arguments, said in (
        (("--key", "card_id=a"), "--key needs --view"),
        (("--view", "cart"), "did you mean 'card'"),
        (("--view", "card", "--key", "card=a"), "card_id"),
        (("--view", "card", "--from-topics"), "whole store"),
    ):
        code, _, err = run("rebuild-online", *arguments)
        assert code == 4, err
        assert said in err
    assert json.loads(run("rebuild-online", "--from-topics", "--json")[1]) == {"epoch": 3}


def test_an_emptied_store_is_missing_not_zero_until_it_is_rebuilt_and_read(project, run, online_server):
    import redis

    assert run("rebuild-online")[0] == 0
    with redis.Redis.from_url(online_server.url) as client:
        client.flushall()
    assert run("apply", "--yes", "--definitions", "missing.py")[0] != 0
    project.apply(SHOP.service)
    vector = project.client(timeout="5s").get("shop", {"card_id": "a", "shop": 1})
    assert set(dict(vector).values()) == {None}
    assert vector.complete_through is None
    assert set(vector.status.values()) == {"missing"}


def test_tables_are_compacted_and_a_second_run_finds_nothing(project, run):
    code, out, err = run("compact", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {"table": "events/payments", "rows_merged": 0, "files_before": 2, "files_after": 1, "deleted": 0}
    ]
    code, out, _ = run("compact", "--table", "events/payments")
    assert out.splitlines()[1].split() == ["events/payments", "0", "1", "1", "0"]
    code, _, err = run("compact", "--vacuum", "1d")
    assert code == 1
    assert "younger than 7 days (24 hours asked)" in err
    code, _, err = run("compact", "--table", "event")
    assert code == 3
    assert "no table 'event'" in err
    code, out, _ = run("compact", "--vacuum", "8d", "--dry-run", "--json")
    assert json.loads(out)[0]["deleted"] == 0


def test_an_entity_is_erased_from_what_scoring_keeps(project, run):
    from tests.unit.jobs.test_score_erase import ids, prediction

    DeltaSink(project.settings.offline).write([prediction(1, card_id="c1"), prediction(2, card_id="c2")])
    code, out, err = run("erase", "card", "card_id=c1", "--vacuum", "7d", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": {"predictions": 1}, "files_deleted": {"predictions": 0}}
    assert ids(project.settings.offline) == ["p/0/2"]
    code, out, err = run("erase", "card", "card_id=c2")
    assert (code, "predictions" in out, "until they are a week old" in err) == (0, True, True)
    for arguments, words in (
        (("cart", "card_id=c1"), "no entity 'cart' is applied"),
        (("card", "card=c1"), "has no key 'card'"),
        (("card", "card_id=c1", "--vacuum", "1h"), "under a week"),
    ):
        code, _, err = run("erase", *arguments)
        assert (code, words in err) == (4, True)


def test_what_is_no_longer_applied_is_pruned(project, run, online_url):
    Feeder(SHOP, online_url).apply(simple_events(100, keys=10))
    assert run("prune-online", "--json") == (0, "[]\n", "")
    project.apply(FeatureService("shop", [SHOP.views[1]]), prune=True)
    for options in (["--dry-run"], []):
        (found,) = json.loads(run("prune-online", "--json", *options)[1])
        assert found["view"].startswith("visit@")
        assert (found["blobs"], found["ids"], found["held"]) == (10, 0, None)
    assert run("prune-online") == (0, "view  values  id hashes\n", "")
