"""Kafka -> submitted job -> online store and Delta, with a hostile stream: oracle == lookup == training set == as served."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from featurestore.errors import JobError, PastLookupError, SubmitError, UnknownNameError
from featurestore.events.broker import OffsetReader
from featurestore.jobs.job import CHILDREN
from featurestore.timeline import HOUR, MINUTE
from tests.streaming.support import (
    InProcess,
    Shop,
    birth,
    differences,
    ends_of,
    entering,
    oracle,
    places_of,
    process_tree,
    produce,
    produce_events,
    table,
    to_bytes,
    wait_applied,
    wait_archived,
    wait_for,
)

pytestmark = pytest.mark.jvm


def malformed(event):
    """Return spoilt copies of an event with the reason each is refused for."""
    good = json.loads(to_bytes(event))
    return [
        (None, "empty"),
        (b"", "empty"),
        (to_bytes(event)[:-9], "not_json"),
        (b"\xff\xfe{}", "not_json"),
        (json.dumps({**good, "amount": "12"}).encode(), "contract"),
        (json.dumps({**good, "event_time": "2024-01-01T00:00:00"}).encode(), "contract"),
        (json.dumps({name: value for name, value in good.items() if name != "card_id"}).encode(), "contract"),
        (json.dumps({**good, "event_time": "2199-01-01T00:00:00Z"}).encode(), "future"),
    ]


def cuts_of(events, shares):
    """Return cuts of a stream between two instants of arrival, so that "what had arrived" has one meaning."""
    cuts = []
    for share in shares:
        cut = int(len(events) * share)
        while events[cut - 1].arrival == events[cut].arrival:
            cut += 1
        cuts.append(cut)
    return [*cuts, len(events)]


def keys_of(events):
    found = {(event.row["card_id"], event.row["shop"]) for event in events}
    return [{"card_id": card, "shop": shop} for card, shop in sorted(found, key=repr)] + [
        {"card_id": "nobody", "shop": 1},
        {"card_id": events[0].row["card_id"], "shop": -987},
    ]


def spine_of(asked):
    """Return an Arrow spine of (key, t, visible_at) rows."""
    return pa.table(
        {
            "card_id": [key["card_id"] for key, _, _ in asked],
            "shop": pa.array([key["shop"] for key, _, _ in asked], pa.int64()),
            "t": pa.array([t for _, t, _ in asked], pa.int64()),
            "seen": pa.array([seen for _, _, seen in asked], pa.int64()),
        }
    )


def compare(views, events, asked, rows, *, as_served):
    wrong = []
    for (key, t, seen), row in zip(asked, rows, strict=True):
        expected = oracle(views, events, key, t, visible_at=seen if as_served else None)
        actual = {name: row[name] for name in expected}
        wrong += differences(views, expected, actual, f"{key} at {t}, seen {seen}")
    assert not wrong, "\n".join(wrong[:10])


def wait_complete(client, newest, job):
    """Return once a lookup says that everything up to the arrival of the newest event has been applied."""
    key = {name: newest.row[name] for name in ("card_id", "shop")}

    def complete():
        return client.get("shop", key, now=newest.arrival + 1_000 * HOUR).complete_through == newest.arrival

    wait_for(f"completeness through {newest.arrival}", complete, 30.0, job=job)


def test_every_path_gives_the_oracle_and_no_event_disappears(spark, kafka_server, online_server, tmp_path):
    shop = Shop("materialized")
    broker, url, topic, views = kafka_server.bootstrap_servers, online_server.url, shop.source.topic, shop.views
    store = shop.open(tmp_path, broker, url)
    stream = shop.stream(seed=11, events=240)
    events = stream.events
    with pytest.raises(UnknownNameError, match=r"'shopp'.*did you mean 'shop'"):
        store.submit("materialize", service="shopp")
    with pytest.raises(SubmitError, match="there is no job 'materialise'"):
        store.submit("materialise", service="shop")
    with pytest.raises(UnknownNameError, match="no topic 'nowhere'"):
        OffsetReader(store.settings.kafka, ["nowhere"])
    with pytest.raises(UnknownNameError, match="no job 'materialize-shop'"):
        store.job("materialize-shop")

    job = store.submit("materialize", service="shop", archive_every="1 second")
    process = CHILDREN[job.record["pid"]]
    try:
        # In three steps, each looked up as it was served then.
        client = store.client(timeout="5s")
        asked, served, done, refused = [], [], 0, 0
        for cut in cuts_of(events, (0.35, 0.7)):
            produce_events(broker, topic, events[done:cut])
            done = cut
            wait_applied(url, shop.name, ends_of(events[:cut]), job)
            wait_complete(client, events[cut - 1], job)
            seen, newest = events[cut - 1].arrival, max(event.event_time for event in events[:cut])
            times = [newest + 1, newest + 10 * MINUTE, newest + 3 * HOUR, *(t for _, t in stream.probes[:6])]
            for key in keys_of(events[:cut]):
                for t in times:
                    try:
                        vector = client.get("shop", key, now=t)
                    except PastLookupError:
                        refused += 1
                        continue
                    asked.append((key, t, seen))
                    served.append(dict(vector))
        assert len(asked) > 100
        assert refused

        # Malformed records of all kinds, on both partitions.
        last = events[-1]
        ends = ends_of(events)
        spoilt = [(partition, value, reason) for partition in (0, 1) for value, reason in malformed(last)]
        places = produce(broker, topic, [(partition, value, last.arrival) for partition, value, _ in spoilt])
        ends = {partition: ends[partition] + len(spoilt) // 2 for partition in ends}
        wait_applied(url, shop.name, ends, job)
        consumed = len(events) + len(spoilt)
        wait_archived(store.settings.offline, consumed, job)

        # Nothing disappeared: consumed == log + quarantine, with reasons and coordinates; the job's own totals agree.
        offline = store.settings.offline
        assert places_of(offline, "events/payments") == {(event.partition, event.offset): 1 for event in events}
        quarantine = table(offline, "quarantine").to_pylist()
        found = {(row["_partition"], row["_offset"]): (row["reason"], row["raw"], row["_topic"]) for row in quarantine}
        expected = {place: (reason, value, topic) for place, (_, value, reason) in zip(places, spoilt, strict=True)}
        assert found == expected
        assert all(row["source"] == "payments" and row["detail"] for row in quarantine)
        assert {row["_arrival"] for row in quarantine} == {last.arrival}
        status = wait_for(
            "totals", lambda: (s := job.status()).totals.get("consumed", 0) >= consumed and s, 30.0, job=job
        )
        entered = sum(entering(view, events) for view in views)
        late = sum(event.arrival - event.event_time > shop.source.late_after_us for event in events)
        totals = {name: status.totals[name] for name in ("consumed", "applied", "fenced", "quarantined", "late")}
        assert totals == {
            "consumed": consumed, "applied": entered, "fenced": 0, "quarantined": len(spoilt), "late": late,
        }  # fmt: skip
        assert (status.state, status.service, status.error) == ("running", "shop", None)
        assert {each.name for each in store.jobs()} == {"materialize-shop"}
        assert store.job("materialize-shop").status().pid == job.record["pid"]
        with pytest.raises(SubmitError, match="runs already"):
            store.submit("materialize", service="shop")

        # Everything that arrived is complete, and a lookup says so.
        wait_complete(client, last, job)

        # A clean stop: state, exit code, no process left.
        tree = process_tree(job.record["pid"])
        assert len(tree) > 2
        assert job.stop().state == "stopped"
        assert process.wait(10.0) == 0
        wait_for("the workers' end", lambda: all(birth(pid) != born for pid, born in tree), 30.0)
        assert job.stop().state == "stopped"
        with pytest.raises(JobError, match="is stopped, not running"):
            job.wait_until("running")

        # oracle == lookup == as served
        compare(views, events, asked, served, as_served=True)
        rows = store.training_set("shop", spine_of(asked), event_time="t", as_served="seen").to_arrow().to_pylist()
        compare(views, events, asked, rows, as_served=True)
        # oracle == training set by event time, at the hostile probes too
        probes = [({"card_id": card, "shop": number}, t, t) for (card, number), t in stream.probes]
        training = store.training_set("shop", spine_of(asked + probes), event_time="t").to_arrow().to_pylist()
        compare(views, events, asked + probes, training, as_served=False)
        assert any(a != b for a, b in zip(rows, training, strict=False)), "no late event made a difference"

        # Begun again, it goes on where it stopped; in the session of the tests, which spares a driver.
        more = shop.stream(seed=12, events=60).events
        after = [
            type(event)(
                event.row, event.event_time, event.arrival, event.partition, event.offset + ends[event.partition]
            )
            for event in more
        ]
        produce_events(broker, topic, after)
        job = InProcess(spark, store, shop, job.folder)
        wait_applied(url, shop.name, ends_of(after), job)
        wait_archived(offline, consumed + len(after), job)
        everything = [*events, *after]
        newest = max(event.event_time for event in everything) + 1
        asked = [(key, newest, newest) for key in keys_of(everything)]
        compare(
            views, everything, asked, [dict(client.get("shop", key, now=t)) for key, t, _ in asked], as_served=False
        )
        status = wait_for(
            "totals", lambda: (s := job.status()).totals.get("consumed", 0) >= len(after) and s, 30.0, job=job
        )
        assert status.totals["applied"] == sum(entering(view, after) for view in views)
        client.close()
    finally:
        job.stop()
