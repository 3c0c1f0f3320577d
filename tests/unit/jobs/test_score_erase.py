"""Erasing an entity from what scoring keeps, on real Delta tables: all of its records go, nobody else's does."""

from __future__ import annotations

import base64
import json
import threading

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from featurestore.errors import OfflineStoreUnavailableError
from featurestore.jobs.score_erase import erase_scored
from featurestore.jobs.score_log import QUARANTINE_SCHEMA
from featurestore.offline.predictions import DeltaSink
from featurestore.scoring.prediction_log import PredictionRecord
from featurestore.timeline import SystemClock
from tests.streaming.support import Shop

SHOP = Shop("erased")
SOURCE = SHOP.service.views[0].source
SOURCES = {SOURCE.name: SOURCE}


def prediction(number: int, **keys: object) -> PredictionRecord:
    return PredictionRecord(
        prediction_id=f"p/0/{number}", model="fraud", version=1, role="champion", service="s", service_fingerprint="f",
        keys=keys, request={}, features={}, score=0.5, at=1, scored_at=SystemClock().now(), complete_through=None, latency_us=1,
    )  # fmt: skip


def refuse(root, *raws: bytes | None) -> None:
    rows = [
        {"source": SOURCE.name, "_topic": "it's", "_partition": 0, "_offset": at, "_arrival": 1, "reason": "contract",
         "detail": "", "raw": raw} for at, raw in enumerate(raws)
    ]  # fmt: skip
    write_deltalake(f"{root}/score_quarantine", pa.Table.from_pylist(rows, QUARANTINE_SCHEMA), mode="append")


def ids(root) -> list[str]:
    return sorted(DeltaTable(f"{root}/predictions").to_pyarrow_table()["prediction_id"].to_pylist())


def left(root) -> list[int]:
    return sorted(DeltaTable(f"{root}/score_quarantine").to_pyarrow_table()["_offset"].to_pylist())


def test_predictions_of_an_entity_go_whatever_else_their_key_names(tmp_path):
    keys = [
        {"card_id": "c1"}, {"card_id": "c1", "shop": 7}, {"card_id": "c10"}, {"card_id": 1}, {"shop": 7},
        {"card_id": None}, {"card_id": "o'c\"1"},
    ]  # fmt: skip
    DeltaSink(str(tmp_path)).write([prediction(at, **each) for at, each in enumerate(keys)])
    assert erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES).to_dict()["rows"] == {"predictions": 2}
    assert ids(tmp_path) == [f"p/0/{at}" for at in (2, 3, 4, 5, 6)]
    assert erase_scored(str(tmp_path), {"card_id": "o'c\"1"}, SOURCES).rows == {"predictions": 1}
    assert erase_scored(str(tmp_path), {"card_id": 1}, SOURCES).rows == {"predictions": 1}
    assert erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES).rows == {"predictions": 0}
    assert ids(tmp_path) == [f"p/0/{at}" for at in (2, 4, 5)]


def test_refused_events_of_an_entity_go_and_in_doubt_too(tmp_path):
    whole = {"card_id": "c1"}
    raws = (
        json.dumps(whole).encode(),  # its contract refuses it, its key is plain
        json.dumps({"specversion": "1.0", "data": whole}).encode(),
        b'{"card_id": "c1", "amount": ',  # no JSON
        b"\x00\x00\x07\xffc1\x00",  # binary
        b'{"card_id": "c10"}',
        b"card c1.5, c10 and xc1",
        b'{"card_id": "c2", "note": "c1"}',
        b"",
        None,
    )
    refuse(tmp_path, *raws)
    assert erase_scored(str(tmp_path), whole, SOURCES).rows == {"score_quarantine": 4}
    assert left(tmp_path) == [4, 5, 6, 7, 8]
    refuse(tmp_path, *[b"c1"] * 6_000)  # more than one statement holds
    assert erase_scored(str(tmp_path), whole, {}).rows == {
        "score_quarantine": 6_000 + 5
    }  # these offsets are used twice


def test_an_event_that_can_be_read_is_judged_by_its_columns(tmp_path):
    event = next(one for one in SHOP.stream(3, 60).events if one.row["card_id"])
    refuse(tmp_path, json.dumps(event.row).encode())
    assert erase_scored(str(tmp_path), {"card_id": "nobody"}, SOURCES).rows == {"score_quarantine": 0}
    assert erase_scored(str(tmp_path), {"card_id": event.row["card_id"]}, SOURCES).rows == {"score_quarantine": 1}


def test_an_event_in_the_base64_of_a_cloud_event_is_found_however_it_is_written(tmp_path):
    def envelope(data: bytes, **more: object) -> bytes:
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **more}
        return json.dumps({**event, "data_base64": base64.b64encode(data).decode()}).encode()

    own, other = b'{"card_id": "c1", "note": "\xc3\xbf\xc3\xbe?>"}', b'{"card_id": "c10", "note": "c1"}'
    text = base64.b64encode(own).decode()
    assert {"+", "/"} <= set(text), "no letter that is written in several ways"
    event = next(one for one in SHOP.stream(3, 60).events if one.row["card_id"])
    whole = json.dumps({**event.row, "card_id": "c1"}).encode()
    raws = (
        envelope(own),
        envelope(own, subject="c10"),
        envelope(whole),  # its contract reads it
        envelope(b"\x00\x07\xffc1\x00"),  # binary
        envelope(own)[:-1],  # broken off behind its data
        envelope(own)[: -len(text) // 3],  # broken off in them
        envelope(own).replace(b"/", b"\\/").replace(b"+", b"\\u002b"),
        envelope(own).replace(text.encode(), text.rstrip("=").translate(str.maketrans("+/", "-_")).encode()),
        envelope(other),
        envelope(json.dumps({**event.row, "card_id": "c10"}).encode()),
        b'{"data_base64": 7}',
        b'{"data_base64": "c1x"',
        b'{"data_base64": "\\ud800"}',
    )
    refuse(tmp_path, *raws)
    assert erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES).rows == {"score_quarantine": 8}
    assert left(tmp_path) == [8, 9, 10, 11, 12]


def test_what_is_appended_meanwhile_stays_and_what_a_copier_noted_too(tmp_path):
    sink = DeltaSink(str(tmp_path))
    sink.write([prediction(at, card_id=f"c{at % 4}") for at in range(400)])
    table = DeltaTable(sink.path)
    noted = CommitProperties(app_transactions=[Transaction("featurestore-copy/p/0", 400)])
    write_deltalake(table, table.to_pyarrow_table().slice(0, 0), mode="append", commit_properties=noted)
    appended, stop = [], threading.Event()

    def append() -> None:
        while not stop.is_set():
            sink.write([prediction(1_000 + len(appended), card_id="c2")])
            appended.append(1)

    writer = threading.Thread(target=append)
    writer.start()
    try:
        assert erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES).rows == {"predictions": 100}
    finally:
        stop.set()
        writer.join()
    assert appended
    assert len(ids(tmp_path)) == 300 + len(appended)
    assert DeltaTable(sink.path).transaction_version("featurestore-copy/p/0") == 400


def test_a_store_without_scoring_has_nothing_to_erase_and_a_broken_table_is_named(tmp_path):
    assert erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES).rows == {}
    DeltaSink(str(tmp_path)).write([prediction(1, card_id="c1")])
    for file in (tmp_path / "predictions").glob("*.parquet"):
        file.unlink()
    with pytest.raises(OfflineStoreUnavailableError, match="predictions cannot be erased from"):
        erase_scored(str(tmp_path), {"card_id": "c1"}, SOURCES)
