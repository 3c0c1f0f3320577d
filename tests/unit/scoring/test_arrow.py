"""Arrow bodies of /score: the same rows and scores as JSON, and streams that mean harm."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.scoring.support import AS_OF, COMPLETE_THROUGH, GOOD, INFER, SCORE, expected_score, raw

ARROW = "application/vnd.apache.arrow.stream"
CARDS, AMOUNTS = ["c1", "c2", "nobody"], [1.5, 2.0, None]
TABLE = pa.table({"card_id": CARDS, "amount": pa.array(AMOUNTS, pa.float64())})


def stream(table, *, batches=None, metadata=None, **options):
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, batches)
    return sink.getvalue().to_pybytes()


def table_of(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    return pa.ipc.open_stream(answer.content).read_all()


def test_a_table_in_gives_a_table_of_scores(http, reader):
    answer = raw(http, SCORE, stream(TABLE), ARROW, accept=ARROW)
    scored = table_of(answer)
    assert scored.column_names == ["score", "at", "complete_through"]
    assert scored.schema.metadata == {b"model": b"fraud", b"version": b"2"}
    expected = [expected_score(amount, reader.values.get(card)) for card, amount in zip(CARDS, AMOUNTS, strict=True)]
    assert scored["score"].to_pylist() == pytest.approx(expected, rel=1e-6)
    assert scored["score"].type == pa.float32()
    assert scored["complete_through"].cast(pa.int64()).to_pylist() == [COMPLETE_THROUGH] * 3


def test_either_side_may_be_json(http):
    keys, request = [{"card_id": card} for card in CARDS], [{"amount": amount} for amount in AMOUNTS]
    as_json = http.post(SCORE, json={"keys": keys, "request": request}).json()
    assert raw(http, SCORE, stream(TABLE), ARROW).json() == as_json
    answered = http.post(SCORE, json={"keys": keys, "request": request}, headers={"accept": f"text/html, {ARROW};q=1"})
    # A float32 is written to JSON with all its digits, so both are the same to the bit.
    assert np.array_equal(table_of(answered)["score"], np.float32([one["score"] for one in as_json["predictions"]]))


def test_metadata_asks_for_the_vector_and_for_a_time(http, reader):
    asked = stream(TABLE, batches=2, metadata={"explain": "true", "now": "1500000"})
    scored = table_of(raw(http, SCORE, asked, ARROW, accept=ARROW))
    assert reader.batches == [(1_500_000, 3)]  # of two record batches
    assert scored["at"].cast(pa.int64()).to_pylist() == [1_500_000] * 3
    assert scored["card_spend.mean_1h"].to_pylist() == [5.0, None, None]
    assert scored["status:card_spend.mean_1h"].to_pylist() == ["present", "null", "missing"]
    assert scored["as_of:card_spend"].cast(pa.int64()).to_pylist() == [AS_OF, AS_OF, None]
    for now in ("2013-01-01", "x" * 10_000, "9" * 19):
        answer = raw(http, SCORE, stream(TABLE, metadata={"now": now}), ARROW)
        assert answer.status_code == 400
    assert (
        "neither true nor false" in raw(http, SCORE, stream(TABLE, metadata={"explain": "yes"}), ARROW).json()["detail"]
    )


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.bool_(), pa.float16()])
def test_numbers_of_any_type_are_numbers(http, kind):
    table = pa.table(
        {
            "card_id": pa.array(["c1"], pa.large_string()),
            "amount": pa.array([1]).cast(pa.int8()).cast(kind) if kind != pa.float16() else pa.array([np.float16(1)]),
        }
    )
    found = raw(http, SCORE, stream(table), ARROW).json()["predictions"][0]["score"]
    assert found == http.post(SCORE, content=GOOD, headers={"content-type": "application/json"}).json()["score"]


def column(values, kind=None, name="amount"):
    return pa.table({"card_id": ["c1"] * len(values), name: pa.array(values, kind)})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (column(["1"]), "request input 'amount' is '1', not a number"),
        (column([1.0], name="amuont"), "column 'amuont' is unknown to model fraud:2"),
        (pa.table({"card_id": ["c1"]}), "'amount' is missing"),
        (
            pa.table([pa.array(["c"]), pa.array([1]), pa.array([2])], names=["card_id", "amount", "amount"]),
            "there twice",
        ),
        (column([[1]]), "column 'amount' is list"),
        (column([{"a": 1}]), "column 'amount' is struct"),
        (column([None], pa.null()), "column 'amount' is null"),
        (column(["a"]).set_column(0, "card_id", pa.array(["c1"]).dictionary_encode()), "cast dictionaries to string"),
        (column([1]).set_column(1, "amount", pa.array([5], pa.timestamp("us"))), "without a time zone"),
        (column([1.0]).slice(0, 0), "0 rows"),
        (column([1.0] * 1001), "1001 rows"),
        (column([b"x"]), "column 'amount' is binary"),
        (pa.table({f"c{i}": [1] for i in range(1001)}), "1001 columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(http, reader, table, words):
    answer = raw(http, SCORE, stream(table), ARROW)
    assert answer.status_code == 400
    assert words in answer.json()["detail"], answer.text
    assert reader.batches == []


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_small_body_does_not_become_a_large_one(http, reader, codec):
    bomb = stream(pa.table({"amount": np.zeros(20_000_000)}), compression=codec)
    assert len(bomb) < 1024 * 1024  # within the limit of a body; 160 MB when read
    answer = raw(http, SCORE, bomb, ARROW)
    assert answer.status_code == 400
    assert "compressed" in answer.json()["detail"]
    assert "compressed" in raw(http, SCORE, stream(TABLE, compression=codec), ARROW).json()["detail"]
    assert reader.batches == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"\0" * 1000,
        b"\xff" * 1000,
        GOOD,
        stream(TABLE)[:-20],
        stream(TABLE)[:100],
        b"ARROW1\0\0" + stream(TABLE),
    ],
)
def test_what_is_no_stream_is_refused(http, reader, body):
    answer = raw(http, SCORE, body, ARROW)
    if answer.status_code == 200:  # without its end mark a stream is whole all the same
        assert len(answer.json()["predictions"]) == 3
        return
    assert answer.status_code == 400
    assert reader.batches == []


def test_bytes_changed_at_random_are_never_worse_than_refused(http):
    """Lengths, offsets and text of a stream, changed: Arrow is memory, so what is not checked would be read."""
    good = stream(pa.table({"card_id": ["c1", "carte \u00e9"], "amount": [1.0, None]}))
    chance = random.Random(7)
    seen = set()
    for _ in range(400):
        body = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            body[chance.randrange(len(body))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        answer = raw(http, SCORE, bytes(body), ARROW)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400), answer.text
    assert seen == {200, 400}


def test_only_the_plain_route_takes_arrow(http):
    assert raw(http, INFER, stream(TABLE), ARROW).status_code == 415
    assert raw(http, "/lookup/fraud_v1", stream(TABLE), ARROW).status_code == 415
