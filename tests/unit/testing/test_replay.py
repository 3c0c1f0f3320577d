"""Replay: what a user's own test can do, and that it fails when something is wrong."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from featurestore.definitions.service import FeatureService
from featurestore.errors import DefinitionError, PastLookupError, SpineError, UnknownNameError
from featurestore.online.memory import MemoryOnlineStore
from featurestore.testing.replay import replay
from featurestore.timeline import HOUR, to_instant
from tests.conformance.cases import COMPOSITE, CONDITIONS, MANY, SHORT

pytestmark = pytest.mark.thorough

CARDS = FeatureService("cards", [MANY, CONDITIONS])
C1 = {"card_id": "c1"}
DAY = "2024-01-01T00:00:00Z"


def payment(amount=1.0, card="c1", **more):
    return {"card_id": card, "amount": amount, "status": "a", **more}


def test_an_event_is_read_back_online_and_offline():
    with replay(CARDS) as run:
        run.send("payments", payment(12.0), at=DAY)
        run.advance("1h")
        vector = run.get(C1)
        assert vector["many.spend_1h"] == 12.0
        assert vector.at == vector.complete_through == to_instant(DAY) + HOUR
        table = run.training_set([{"card_id": "c1", "event_time": "2024-01-01T00:00:01Z"}])
        assert table.column("many.spend_1h").to_pylist() == [12.0]
        run.assert_equal()


def test_the_event_at_t_does_not_count():
    with replay(CARDS) as run:
        run.send("payments", payment(12.0), at=DAY)
        assert run.get(C1)["many.n_1h"] == 0
        run.advance("1us")
        assert run.get(C1)["many.n_1h"] == 1


def test_the_clock_stands_where_it_was_started_and_moves_with_arrivals_only():
    with replay(CARDS, start=DAY) as run:
        run.send("payments", payment(), at="2023-12-31T23:00:00Z")
        assert run.clock.now() == to_instant(DAY)  # late: it arrives now
        run.send("payments", payment(), at="2024-01-01T02:00:00Z")
        assert run.clock.now() == to_instant("2024-01-01T02:00:00Z")
        run.advance_to("2024-01-01T03:00:00Z")
        run.advance(timedelta(hours=1))
        assert run.clock.now() == to_instant("2024-01-01T04:00:00Z")


def test_times_may_be_given_in_the_row_as_text_datetime_or_number():
    times = [DAY, datetime(2024, 1, 1, tzinfo=UTC), to_instant(DAY)]
    with replay(CARDS) as run:
        run.send_many("payments", [payment(event_time=each) for each in times])
        run.advance("1s")
        assert run.get(C1)["many.n_1h"] == 3
        run.assert_equal()


def test_a_late_event_heals_its_window_and_as_served_hides_it():
    with replay(CARDS) as run:
        run.send("payments", payment(1.0), at=DAY)
        run.send("payments", payment(5.0), at=DAY, arrival="2024-01-01T00:30:00Z")
        run.advance("1s")
        assert run.get(C1)["many.spend_1h"] == 6.0
        assert run.counts["late"] == 1
        spine = [{"card_id": "c1", "event_time": "2024-01-01T00:10:00Z"}]
        assert run.training_set(spine).column("many.spend_1h").to_pylist() == [6.0]
        assert run.training_set(spine, as_served=True).column("many.spend_1h").to_pylist() == [1.0]
        run.assert_equal(C1, at="2024-01-01T00:10:00Z", visible_at="2024-01-01T00:10:00Z")


def test_malformed_bytes_are_quarantined_and_change_nothing():
    with replay(CARDS) as run:
        run.send("payments", payment(), at=DAY)
        run.send("payments", b"{not json")
        run.send("payments", None)
        run.send("payments", {"amount": 1.0}, at=DAY)
        run.send("payments", payment(), at="2024-01-01T00:10:00Z", arrival=DAY)
        run.send("payments", payment(event_time="yesterday"))
        run.advance("1s")
        assert [(one.offset, one.reason) for one in run.quarantine] == [
            (1, "not_json"), (2, "empty"), (3, "contract"), (4, "future"), (5, "contract"),
        ]  # fmt: skip
        assert run.counts["consumed"] == 6
        assert run.counts["quarantined"] == 5
        assert run.get(C1)["many.n_1h"] == 1
        run.assert_equal()


def test_a_raw_event_counts_like_a_row():
    with replay(CARDS) as run:
        run.send("payments", b'{"card_id": "c1", "amount": 3, "event_time": "2024-01-01T00:00:00Z"}', arrival=DAY)
        run.advance("1s")
        assert run.get(C1)["many.spend_1h"] == 3.0
        run.assert_equal()


def test_doubles_that_json_cannot_write_are_carried_all_the_same():
    with replay(CARDS) as run:
        for number, amount in enumerate((math.nan, math.inf, -math.inf)):
            run.send("payments", payment(amount, card=f"c{number}"), at=DAY)
        run.advance("1s")
        values = [run.get({"card_id": f"c{number}"})["many.spend_1h"] for number in range(3)]
        assert math.isnan(values[0])
        assert values[1:] == [math.inf, -math.inf]
        run.assert_equal()


@pytest.mark.parametrize("after", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("lost", [False, True])
def test_a_crash_between_bucket_writes_loses_and_doubles_nothing(after, lost):
    with replay(CARDS, tail_cap=1) as run:
        for number in range(40):
            run.send("payments", payment(card=f"c{number % 20}"), at=to_instant(DAY) + number)
        run.crash(after=after, lost_checkpoint=lost)
        for number in range(40, 80):
            run.send("payments", payment(card=f"c{number % 20}"), at=to_instant(DAY) + number)
        run.advance("1s")
        assert [run.get({"card_id": f"c{number}"})["many.n_1h"] for number in range(20)] == [4] * 20
        run.assert_equal()


def test_a_crash_leaves_some_buckets_written_and_others_not():
    """The negative control: without the restart, the keys would disagree."""
    with replay(CARDS) as run:
        for number in range(40):
            run.send("payments", payment(card=f"c{number}"), at=DAY)
        run.crash(after=5)
        run._running = False
        run.clock.advance_to(run.clock.now() + 1)
        known = [run.get({"card_id": f"c{number}"}).known["many"] for number in range(40)]
        assert any(known)
        assert not all(known)
        with pytest.raises(AssertionError, match=r"values differ:\n.*online"):
            run.assert_equal()


def test_a_stopped_job_lags_and_catches_up():
    with replay(CARDS) as run:
        run.send("payments", payment(), at=DAY)
        run.advance("1s")
        complete = run.get(C1).complete_through
        run.stop()
        run.send("payments", payment(), at="2024-01-01T00:10:00Z")
        run.advance("30m")
        assert run.get(C1)["many.n_1h"] == 1
        assert run.get(C1).complete_through == complete
        run.start()
        run.advance("1us")
        assert run.get(C1).complete_through == run.clock.now()
        run.assert_equal()


def test_the_online_store_refuses_the_past_and_the_training_set_answers_it():
    with replay(SHORT, tail_cap=0) as run:
        run.send("payments", payment(), at=DAY)
        run.send("payments", payment(), at="2024-01-01T00:00:05Z")
        run.drain()
        with pytest.raises(PastLookupError):
            run.get(C1, now="2024-01-01T00:00:01Z")
        run.assert_equal(at="2024-01-01T00:00:01Z")


def test_several_entities_and_views_are_compared_each_by_its_own_keys():
    with replay(FeatureService("all", [MANY]), COMPOSITE) as run:
        run.send("payments", payment(shop=1, online=True), at=DAY)
        run.send("payments", payment(shop=None, card="1"), at=DAY)
        run.advance("1s")
        assert run.get({"card_id": "1", "shop": None, "online": None, "shipped": None}, service="composite").row[0] == 1
        assert len(run.get_many([C1, {"card_id": "1"}], now=run.clock.now())) == 2
        run.assert_equal()


def test_what_the_training_set_takes_it_takes():
    pandas = pytest.importorskip("pandas")
    with replay(CARDS) as run:
        run.send("payments", payment(2.0), at=DAY)
        frame = pandas.DataFrame({"card_id": ["c1"], "ts": pandas.to_datetime(["2024-01-01T00:00:01Z"]), "label": [7]})
        table = run.training_set(frame, event_time="ts")
        assert table.column_names == ["card_id", "ts", "label", *CARDS.feature_ids]
        assert table.column("label").to_pylist() == [7]
        assert table.column("many.spend_1h").to_pylist() == [2.0]
        with pytest.raises(SpineError, match="time column 'when'"):
            run.training_set(frame, event_time="when")


def test_a_wrong_value_in_the_store_is_reported_with_all_that_is_needed():
    store = MemoryOnlineStore()
    with replay(SHORT, store=store) as run:
        run.send("payments", payment(points=1), at=DAY)
        run.advance("1s")
        run.assert_equal()
        ((name, blob),) = [(name, blob) for name, blob in store.values.items() if b":v:" in name]
        store.values[name] = blob[:-24] + (2).to_bytes(8, "little") + blob[-16:]
        with pytest.raises(AssertionError) as caught:
            run.assert_equal()
    assert "{'card_id': 'c1'} at 2024-01-01T00:00:01Z: specification" in str(caught.value)


def test_misuse_is_named():
    with pytest.raises(DefinitionError, match="takes feature services and views"):
        replay("cards")
    with pytest.raises(DefinitionError, match="takes feature services and views"):
        replay()
    with replay(CARDS) as run:
        with pytest.raises(UnknownNameError, match="did you mean 'payments'"):
            run.send("payment", payment(), at=DAY)
        with pytest.raises(UnknownNameError, match="did you mean 'cards'"):
            run.get(C1, service="card")
        run.send("payments", payment(), at=DAY)
        with pytest.raises(DefinitionError, match="in order of arrival"):
            run.send("payments", payment(), at=DAY, arrival="2023-01-01T00:00:00Z")
