"""The Open Inference Protocol, our OpenAPI document, and the service held to both: by its answers, and by generated requests."""

from __future__ import annotations

import json
import logging
import re

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from featurestore.online.client import FeatureClient
from featurestore.scoring.auth import ApiKeys, Gate, new_key
from featurestore.scoring.problems import Refusal
from featurestore.scoring.service import build_app
from featurestore.stack.valkey import OnlineServer
from tests.unit.scoring import inference_protocol as protocol
from tests.unit.scoring.conftest import PATIENT, running
from tests.unit.scoring.real import fill, payments, store_model
from tests.unit.scoring.support import INFER, MemoryReader, infer_body, tensor

# --- The Open Inference Protocol --------------------------------------------------------------------------------------


def at(path):
    return path.replace("{name}", "fraud").replace("{version}", "1")


def fits(content, schema):
    jsonschema.Draft202012Validator(schema).validate(content)


@pytest.mark.parametrize("path", protocol.GETS)
def test_what_is_asked_of_the_protocol_is_answered_in_its_form(http, path):
    answer = http.get(at(path))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    fits(answer.json(), protocol.GETS[path])


@pytest.mark.parametrize("path", protocol.POSTS)
@pytest.mark.parametrize("more", [{}, {"id": "42"}, {"outputs": [{"name": "score"}]}, {"parameters": {}}])
def test_an_inference_is_answered_in_its_form(http, path, more):
    answer = http.post(at(path), json=infer_body(("c1", "nobody"), (1, 2), **more)).raise_for_status()
    content = answer.json()
    fits(content, protocol.RESPONSE)
    for output in content["outputs"]:
        fits(output["data"], protocol.DATA)
        assert len(output["data"]) == output["shape"][0]
    # "if it was given, it is in the response", else the id of the headers and of the log is
    assert content["id"] == more.get("id", answer.headers["x-request-id"])


@pytest.mark.parametrize("datatype", protocol.DATATYPES)
def test_every_datatype_of_the_protocol_is_taken_where_it_fits(http, datatype):
    value = {"BOOL": True, "BYTES": "1"}.get(datatype, 1)
    answer = http.post(
        INFER, json={"inputs": [tensor("card_id", "BYTES", ["c1"]), tensor("amount", datatype, [value])]}
    )
    assert answer.status_code == (400 if datatype == "BYTES" else 200), answer.text
    if datatype == "BYTES":  # taken as text, which this model's input is not
        assert "not a number" in answer.json()["error"]
    if datatype.startswith(("INT", "UINT")):
        bits = int(datatype.strip("UINT"))
        beyond = 1 << (bits if datatype[0] == "U" else bits - 1)
        tensors = [tensor("card_id", "BYTES", ["c1"]), tensor("amount", datatype, [beyond])]
        assert http.post(INFER, json={"inputs": tensors}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v2/models/nope", None),
        ("GET", "/v2/models/nope/ready", None),
        ("POST", "/v2/models/nope/infer", {}),
        ("POST", INFER, {}),
        ("POST", INFER, {"inputs": []}),
        ("GET", INFER, None),
    ],
)
def test_a_refusal_has_its_form(http, method, path, body):
    answer = http.request(method, path, json=body)
    assert 400 <= answer.status_code < 500
    fits(answer.json(), protocol.ERROR)


def test_the_form_itself_refuses_what_is_not_in_it(http):
    good = http.post(INFER, json=infer_body()).json()
    for bad in ({**good, "outputs": None}, {**good, "model_name": 1}, {**good, "parameters": {"a": [1]}}, {}):
        with pytest.raises(jsonschema.ValidationError):
            fits(bad, protocol.RESPONSE)
    with pytest.raises(jsonschema.ValidationError):
        fits([None], protocol.DATA)


# --- Our document -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(app, models_root):
    with running(build_app(models_root, MemoryReader)) as url:
        return httpx.get(f"{url}/openapi.json", trust_env=False).json()


def test_the_document_has_the_protocol_and_names_what_is_served(document):
    assert document["openapi"] == "3.1.0"
    for path in protocol.GETS:
        assert "get" in document["paths"][path]
    for path in (*protocol.POSTS, "/score/{name}", "/lookup/{name}"):
        operation = document["paths"][path]["post"]
        statuses = {"200", "400", "401", "403", "404", "405", "408", "413", "415", "429", "431", "503"}
        assert set(operation["responses"]) == statuses
    (name,) = [one for one in document["paths"]["/score/{name}"]["post"]["parameters"] if one["name"] == "name"]
    assert name["schema"]["enum"] == ["fraud"]
    row = document["components"]["schemas"]["keys.fraud"]
    assert (row["required"], row["additionalProperties"]) == (["card_id"], False)
    assert document["components"]["schemas"]["request.fraud"]["required"] == ["amount"]
    ids = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_schema_of_the_document_is_one(document):
    text = json.dumps(document)
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in document["components"]["schemas"]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_page_needs_no_other_host_and_no_script(http):
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = answer.text
    for path in ("/score/{name}", "/v2/models/{name}/infer", "/lookup/{name}"):
        assert f"<code>{path}</code>" in page
    assert "keys.fraud" in page
    assert not re.search(r"<script|https?://|//cdn|<link|<img|onload=|@import|url\(", page)
    targets, names = set(re.findall(r'href="#([^"]+)"', page)), set(re.findall(r'id="([^"]+)"', page))
    assert targets
    assert targets <= names


def test_the_page_escapes_what_it_is_given():
    from featurestore.scoring.page import page

    said = '<script>alert("x")</script>'
    operation = {"summary": said, "parameters": [], "responses": {"200": {"description": said}}}
    shown = page(
        {
            "info": {"title": said, "version": said, "description": said},
            "paths": {said: {"get": operation}},
            "components": {"schemas": {said: {"description": said}}},
        }
    )
    assert "<script" not in shown


# --- Requests made from the document ----------------------------------------------------------------------------------

CANARY = "canary-4b1d"
"""Part of the key: it must be in no answer and in no log."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A scorer of a real store that asks for a key, its URL and a key."""
    folder = tmp_path_factory.mktemp("guarded")
    service = payments(folder)
    store_model(folder / "models", service)
    key, line = new_key("team")
    (folder / "keys").write_text(line)
    with OnlineServer(folder / "store") as store:
        fill(store.url, service)
        gate = Gate(ApiKeys.from_file(folder / "keys"))
        app = build_app(folder / "models", lambda: FeatureClient(store.url, timeout="5s"), gate=gate, limits=PATIENT)
        with running(app) as url:
            yield url, key


@pytest.mark.server
@pytest.mark.thorough
def test_no_generated_request_meets_more_than_a_declared_refusal(guarded, caplog):
    url, key = guarded
    caplog.set_level(logging.INFO)
    headers = {"x-api-key": key}
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    held = [
        checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_headers_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
        schemathesis.specs.openapi.checks.negative_data_rejection,
    ]
    seen = {}
    operations = [one.ok() for one in schema.get_all_operations()]
    described = {
        f"{method.upper()} {path}" for path, methods in schema.raw_schema["paths"].items() for method in methods
    }
    assert {one.label for one in operations} == described - {"GET /openapi.json"}  # where it read the document

    def ask(case):
        answer = case.call(base_url=url, headers=headers)
        case.validate_response(answer, checks=held)
        assert answer.elapsed < 5
        assert key.partition(".")[2] not in answer.text
        seen.setdefault(case.operation.label, set()).add(answer.status_code)

    for mode in schemathesis.GenerationMode:
        for operation in operations:
            if operation.path.startswith(("/v2/health", "/docs", "/openapi")) and mode.is_negative:
                continue  # there is nothing to get wrong
            strategy = operation.as_strategy(generation_mode=mode)
            bounded = settings(
                max_examples=10,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            bounded(given(case=strategy)(ask))()

    assert 200 in seen["POST /score/{name}"]
    assert {400, 404} & seen["POST /lookup/{name}"]
    assert 400 in seen["POST /v2/models/{name}/infer"]
    assert key.partition(".")[2] not in caplog.text


HOSTILE = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'""',
    b"[" * 1_000_000,
    b'{"keys":' * 100_000,
    b'\xef\xbb\xbf{"keys": {"card_id": "a"}}',
    '{"keys": {"card_id": "a"}}'.encode("utf-16"),
    b'{"keys": {"card_id": "\xc0\xaf"}}',
    b'{"keys": {"card_id": "\\ud800"}}',
    b'{"keys": {"card_id": 1}}',
    b'{"keys": {"card_id": true}}',
    b'{"keys": {"card_id": ["a"]}}',
    b'{"keys": {"card_id": {"a": 1}}}',
    b'{"keys": {"card_id": 1e999}}',
    b'{"keys": {"card_id": -0.0}}',
    b'{"keys": {"card_id": NaN}}',
    b'{"keys": {"card_id": 9223372036854775808}}',
    b'{"keys": {"card_id": ' + b"9" * 10_000 + b"}}",
    b'{"keys": {"__proto__": "a"}}',
    b'{"keys": {"__class__": "a", "card_id": "a"}, "request": {"amount": 1}}',
    b'{"keys": {"card_id": "a", "card_id": "b"}, "request": {"amount": 1}}',
    b'{"keys": {"card_id": "a"}, "request": {"amount": "1"}}',
    b'{"keys": {"card_id": "a"}, "request": {"amount": 1e39}}',
    b'{"keys": {"card_id": "a"}, "request": [{"amount": 1}]}',
    b'{"keys": [{"card_id": "a"}], "request": [{"amount": 1}, {"amount": 1}]}',
    b'{"keys": [' + b'{"card_id": "a"},' * 20_000 + b'{"card_id": "a"}]}',
    b'{"keys": {"card_id": "' + b"a" * 5000 + b'"}, "request": {"amount": 1}}',
    b'{"keys": {"card_id": "a"}, "features": ["card.nothing"]}',
    b'{"keys": {"card_id": "a"}, "features": ["card.count_1h", "card.count_1h"]}',
    b'{"keys": {"card_id": "a"}, "features": []}',
    b'{"keys": {"card_id": "a"}, "now": "2013-01-01T00:00:00Z"}',
    b'{"keys": {"card_id": "a"}, "now": 1e308}',
    b'{"inputs": [{"name": "card_id", "datatype": "BYTES", "shape": [9223372036854775807], "data": []}]}',
    b'{"inputs": [{"name": "card_id", "datatype": "BYTES", "shape": [-1], "data": ["a"]}]}',
    b'{"inputs": [{"name": "card_id", "datatype": "BYTES", "shape": [1], "data": [[[["a"]]]]}]}',
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",  # a pickle
    b"PK\x03\x04" + b"\0" * 100,
    b"\x1f\x8b\x08" + b"\0" * 100,
]
PATHS = ("/score/fraud", "/lookup/fraud", "/v2/models/fraud/infer", "/v2/models/fraud/versions/1/infer")


@pytest.mark.server
@pytest.mark.parametrize("path", PATHS)
def test_hostile_bodies_are_refused_in_bounded_time(guarded, path):
    url, key = guarded
    # What a lookup's service does not take is ignored, so that a whole request can be passed on.
    allowed = {200, 400, 415} if path.startswith("/lookup") else {400, 415}
    with httpx.Client(base_url=url, trust_env=False, headers={"x-api-key": key}, timeout=10) as http:
        for body in HOSTILE:
            for kind in ("application/json", "application/vnd.apache.arrow.stream"):
                answer = http.post(path, content=body, headers={"content-type": kind})
                assert answer.status_code in allowed, (body[:80], answer.text)
                assert len(answer.content) < 2000
                assert answer.elapsed.total_seconds() < 5
        assert http.get("/v2/health/ready").status_code == 200


NAMES = (
    "..",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%252e%252e%252f",
    "..\\..",
    "file:",
    "%00",
    "fraud%00",
    "*",
    "{0.__init__}",
)
NAMES += (
    "${jndi:ldap:x}",
    "{{7*7}}",
    "' OR 1=1--",
    "a%0d%0aSET%20x%201",
    "fraud%20",
    "%F0%9F%92%A9",
    "%ff",
    "a" * 3000,
)


@pytest.mark.server
@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_unknown_ones(guarded, name, caplog):
    url, key = guarded
    with httpx.Client(base_url=url, trust_env=False, headers={"x-api-key": key}) as http:
        for path in (*PATHS, "/v2/models/fraud/ready", "/v2/models/fraud/versions/1"):
            target = f"/{name}".join(path.rsplit("/fraud", 1))
            method = "GET" if path.endswith(("ready", "1")) else "POST"
            answer = http.request(method, target, json={"keys": {"card_id": "a"}, "request": {"amount": 1}})
            assert answer.status_code == 404, (target, answer.text)
            assert len(answer.content) < 2000
    assert "\r" not in caplog.text


@pytest.mark.server
@pytest.mark.parametrize("credential", [None, f"team.{CANARY}", f"{CANARY}.x", f"a.{CANARY}.c", CANARY * 20])
def test_a_credential_is_in_no_answer_and_no_log(guarded, credential, caplog):
    url, _ = guarded
    caplog.set_level(logging.DEBUG)
    with httpx.Client(base_url=url, trust_env=False) as http:
        for header in ("x-api-key", "authorization"):
            headers = {} if credential is None else {header: credential, "x-request-id": CANARY + " x"}
            for path in ("/score/fraud", "/v2/models/fraud", "/docs", f"/{CANARY}"):
                answer = http.get(path, headers=headers)
                assert answer.status_code == 401
                assert CANARY not in answer.text + str(answer.headers)
    assert CANARY not in "".join(one.getMessage() for one in caplog.records if one.name.startswith("featurestore"))


def test_only_declared_statuses_can_be_answered(document):
    """Every refusal that the code can make has a status in the document."""
    declared = {
        int(status) for methods in document["paths"].values() for one in methods.values() for status in one["responses"]
    }
    made = {400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 503}
    assert made <= declared
    assert 500 not in declared
    assert Refusal(431, "x", "y").phrase
