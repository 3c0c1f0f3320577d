"""featurestore explain: on a fresh project with a real online store and an event log, from the outside."""

from __future__ import annotations

import json

import pytest

from featurestore import FeatureStore
from featurestore.offline.events import write_events
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.testing.replay import replay

pytestmark = pytest.mark.thorough

AT = "2024-01-01T12:30:00Z"


@pytest.fixture
def project(tmp_path, monkeypatch, run, online_url):
    """A project with three purchases of one customer: applied online, and in the event log."""
    monkeypatch.chdir(tmp_path)
    assert run("init", "shop")[0] == 0
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    assert run("apply", "--yes")[0] == 0
    store = FeatureStore.open()
    (service,) = store.definitions().services.values()
    with replay(service, store=RedisOnlineStore(online_url, store.settings.project)) as played:
        for minute in (0, 10, 20):
            row = {"purchase_id": f"p{minute}", "customer_id": "c1", "price": 2.5, "quantity": 1 + minute}
            played.send("purchases", row, at=f"2024-01-01T12:{minute:02}:00Z")
        played.advance("1m")
        write_events(store.settings.offline, "purchases", played.log("purchases").archived())
    return tmp_path / "shop"


def ask(run, *more, feature="customer_purchases.spend_24h", key="customer_id=c1"):
    return run("explain", feature, "--key", key, "--at", AT, *more)


def test_an_explanation_reads_well_and_ends_with_0(project, run):
    code, out, err = ask(run)
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "customer_purchases.spend_24h  Sum('price * quantity'), of purchases (topic purchases)"
    assert "equal" in lines
    for text in ("[2023-12-31T12:00:00Z, 2024-01-01T12:30:00Z)", "hop 2h", "82.5", "points kernel", "3 counted"):
        assert text in out
    assert max(map(len, lines)) <= 160
    assert "\x1b" not in out


def test_as_json_it_is_one_document(project, run):
    code, out, _ = ask(run, "--json", "--limit", 2)
    found = json.loads(out)
    assert code == 0
    assert (found["verdict"], found["online"]["value"], found["offline"]["training_set"]) == ("equal", 82.5, 82.5)
    assert [(each["offset"], each["value"]) for each in found["events"]] == [(1, 27.5), (2, 52.5)]
    assert found["events_left_out"] == 1
    assert found["service"] == "shop_v1"


def test_a_difference_ends_with_1_and_its_cause(project, run, online_url):
    RedisOnlineStore(online_url, "shop").forget_project()
    code, out, _ = ask(run)
    assert code == 1
    assert "empty: the online store has nothing of definition" in out


def test_a_store_that_is_down_ends_with_3_and_shows_the_offline_side(project, run, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
    code, out, err = ask(run)
    assert (code, err) == (3, "")
    assert "not compared" in out
    assert "82.5" in out


def test_what_is_wrong_is_one_line_with_a_hint(project, run):
    wrong = [
        (["customer_purchases.spend_2h", "--key", "customer_id=c1"], 4, "did you mean 'customer_purchases.spend_"),
        (["shop_v1.spend", "--key", "customer_id=c1"], 4, "service shop_v1 has no feature 'spend'"),
        (["customer_purchases.spend_24h"], 4, "Hint: add --key customer_id=..."),
        (["customer_purchases.spend_24h", "--key", "customer=c1"], 4, "Hint: did you mean 'customer_id'?"),
        (["customer_purchases.spend_24h", "--key", "c1"], 4, "Hint: write --key customer_id="),
        (["customer_purchases.spend_24h", "--key", "customer_id=c1", "--at", "noon"], 4, "--at 'noon' is not ISO 8601"),
        (["customer_purchases.spend_24h", "--key", "customer_id=c1", "--at", "2024-01-01"], 4, "no time zone"),
        ([], 2, "Hint: see featurestore explain --help."),
    ]
    for arguments, expected, message in wrong:
        code, out, err = run("explain", *arguments)
        assert (code, out) == (expected, ""), arguments
        assert message in err
        assert len(err.splitlines()) == 1


def test_without_an_event_log_it_ends_with_3(tmp_path, monkeypatch, run, online_url):
    monkeypatch.chdir(tmp_path)
    run("init", "shop")
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    run("apply", "--yes")
    code, out, err = ask(run)
    assert (code, out) == (3, "")
    assert "there is no event log" in err
    assert "Hint: start the materialize job" in err
