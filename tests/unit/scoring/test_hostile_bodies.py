"""Bodies that mean harm: each is a 400, 413 or 415 before any lookup."""

from __future__ import annotations

import json

import pytest

from tests.unit.scoring.support import GOOD, INFER, SCORE, infer_body, raw


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b'""',
        b"[" * 100_000,
        b'{"keys":' * 10_000,
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD + b"x",
        GOOD.replace(b"c1", b"\xc0\xaf"),
        GOOD.replace(b"c1", b"\\ud800"),
        GOOD.replace(b": 1}", b": NaN}"),
        GOOD.replace(b": 1}", b": Infinity}"),
        GOOD.replace(b": 1}", b": 1e999}"),
        GOOD.replace(b": 1}", b": 9223372036854775808}"),
        GOOD.replace(b": 1}", b": " + b"9" * 10_000 + b"}"),
        GOOD.replace(b'"amount": 1', b'"amount": 1, "amount": 2'),
        GOOD.replace(b'"keys"', b'"keys": {"card_id": "c2"}, "keys"'),
        GOOD.replace(b'"amount": 1', b'"amount": 1, "\\u0061mount": 2'),
        GOOD.replace(b'"card_id"', b'"card_id": "a:b", "card_id"'),
    ],
)
def test_what_is_not_strict_json_is_refused(http, reader, content):
    for path in (SCORE, INFER):
        answer = raw(http, path, content)
        assert answer.status_code == 400, content[:60]
    assert reader.batches == []


def test_a_colon_in_a_text_is_not_taken_for_a_double(http):
    assert raw(http, SCORE, GOOD.replace(b"c1", b"a:b::\\u003a")).status_code == 200


def test_a_double_in_an_inference_request_is_refused(http):
    content = json.dumps(infer_body()).encode()
    doubled = content.replace(b'"datatype": "FP64"', b'"datatype": "FP32", "datatype": "FP64"')
    assert doubled != content
    answer = raw(http, INFER, doubled)
    assert answer.status_code == 400
    assert "'datatype' is there twice" in answer.json()["error"]


@pytest.mark.parametrize("key", ["' OR 1=1--", "*", "../../etc/passwd", "a\r\nEVAL", "{{7*7}}", "\0", "__proto__", ""])
def test_a_strange_key_is_just_a_key(http, key):
    answer = http.post(SCORE, json={"keys": {"card_id": key}, "request": {"amount": 1}})
    assert answer.status_code == 200
    assert answer.json()["statuses"] == {"missing": 2}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_only_json_is_taken(http, content_type):
    answer = raw(http, SCORE, GOOD, content_type)
    assert answer.status_code == 415
    assert answer.json()["title"] == "Unsupported Media Type"


def test_a_charset_beside_json_is_fine_and_an_encoding_is_not(http):
    assert raw(http, SCORE, GOOD, "Application/JSON; charset=utf-8").status_code == 200
    assert raw(http, SCORE, GOOD, **{"content-encoding": "gzip"}).status_code == 415


def test_a_large_body_is_refused_told_or_untold(http, reader):
    large = GOOD + b" " * (1024 * 1024)
    assert raw(http, SCORE, large).status_code == 413
    answer = http.post(
        SCORE,
        content=(large[i : i + 65536] for i in range(0, len(large), 65536)),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413
    assert raw(http, SCORE, GOOD + b" " * (1024 * 1024 - len(GOOD))).status_code == 200
    assert len(reader.batches) == 1
