"""A store that is emptied under a running job: the job says so, a rebuild from Delta gives the oracle, and the stream goes on."""

from __future__ import annotations

import json

import pytest
import redis

from featurestore.cli import main
from featurestore.online.redis_store import RedisOnlineStore
from tests.streaming.support import (
    InProcess,
    Shop,
    applied_offsets,
    differences,
    ends_of,
    oracle,
    places_of,
    produce_events,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm


def assert_online(store, shop, events):
    """Every key's values, at three times after the newest event, are the specification's."""
    client = store.client(timeout="5s")
    newest = max(event.event_time for event in events)
    keys = sorted({(event.row["card_id"], event.row["shop"]) for event in events}, key=repr)
    wrong = []
    for card, shop_id in keys:
        key = {"card_id": card, "shop": shop_id}
        for t in (newest + 1, newest + 600_000_000, newest + 7_200_000_000):
            expected = oracle(shop.views, events, key, t)
            wrong += differences(shop.views, expected, dict(client.get("shop", key, now=t)), f"{key} at {t}")
    assert not wrong, "\n".join(wrong[:10])


@pytest.mark.parametrize("freshness", ["micro-batch", "realtime"])
def test_an_emptied_store_stops_the_job_and_a_rebuild_from_delta_goes_on_exactly(
    spark, kafka_server, online_url, tmp_path, capsys, freshness
):
    shop = Shop(f"emptied_{freshness[:5]}")
    broker, topic = kafka_server.bootstrap_servers, shop.source.topic
    store = shop.open(tmp_path, broker, online_url)
    events = shop.stream(seed=23, events=200).events
    first, second, third = events[:90], events[:140], events

    def start():
        return InProcess(spark, store, shop, tmp_path / "job", freshness=freshness)

    job = start()
    try:
        produce_events(broker, topic, first)
        wait_applied(online_url, shop.name, ends_of(first), job)
        wait_archived(store.settings.offline, len(first), job)
        with redis.Redis.from_url(online_url) as client:
            client.flushall()
            assert client.dbsize() == 0
        if freshness == "micro-batch":  # records come, and are refused by the writer; or none, and the driver notices
            produce_events(broker, topic, events[90:140])
        wait_for("the job's end", lambda: not job.is_alive, 60.0)
        status = job.status()
        assert status.state == "failed"
        assert "was emptied" in status.error
        assert "rebuild-online" in status.error
    finally:
        job.stop()
    assert applied_offsets(online_url, shop.name) == {}, "nothing was written to the empty store"
    if freshness != "micro-batch":
        produce_events(broker, topic, events[90:140])
    refused = start()
    wait_for("the refusal", lambda: not refused.is_alive, 90.0)
    assert "was emptied" in refused.status().error

    (tmp_path / "featurestore.toml").write_text(
        f'project = "{shop.name}"\n[online]\nurl = "{online_url}"\n[kafka]\n"bootstrap.servers" = "{broker}"\n'
    )
    capsys.readouterr()
    assert main(["rebuild-online", "--config", str(tmp_path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    log = places_of(store.settings.offline, "events/payments")
    reached = {str(p): max(offset for q, offset in log if q == p) + 1 for p, _ in log}
    assert (made["epoch"], made["until"]) == (2, {"payments": reached})
    archived = [event for event in second if (event.partition, event.offset) in log]
    assert_online(store, shop, archived)

    job = start()
    try:
        wait_applied(online_url, shop.name, ends_of(second), job)
        assert_online(store, shop, second)
        produce_events(broker, topic, events[140:])
        wait_applied(online_url, shop.name, ends_of(third), job)
        assert_online(store, shop, third)
        wait_archived(store.settings.offline, len(third), job)
    finally:
        job.stop()
    assert set(places_of(store.settings.offline, "events/payments").values()) == {1}
    online = RedisOnlineStore(online_url, shop.name)
    assert {p: offset for p, (offset, _) in online.progress("payments").items()} == ends_of(third)
    online.close()
