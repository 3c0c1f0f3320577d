"""Several processes, their metrics and their end; TLS; what comes before a request has a handler."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from featurestore.errors import ConfigError
from featurestore.scoring.auth import new_key
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.service import build_app, serve
from featurestore.stack.valkey import OnlineServer
from tests.unit.scoring.conftest import running
from tests.unit.scoring.real import fill, payments, served, store_model
from tests.unit.scoring.support import MemoryReader

pytestmark = pytest.mark.thorough

BODY = {"keys": {"card_id": "a"}, "request": {"amount": 1.0}}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return payments(tmp_path_factory.mktemp("payment"))


@pytest.fixture(scope="module")
def root(tmp_path_factory, service):
    root = tmp_path_factory.mktemp("models")
    store_model(root, service)
    return root


@pytest.fixture(scope="module")
def store_url(tmp_path_factory, service):
    with OnlineServer(tmp_path_factory.mktemp("store")) as store:
        fill(store.url, service)
        yield store.url


def samples(text):
    return {
        (one.name, *sorted(one.labels.values())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(met, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


# --- Several processes ------------------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.thorough
def test_processes_share_an_address_and_their_metrics_and_one_that_dies_is_replaced(root, store_url):
    with served(root, store_url, workers=2, admin_port=0) as (process, (url, metrics_url)):
        workers = children(process.pid)
        assert len(workers) == 3  # two that score, one for the metrics

        def score(times):
            for _ in range(times):  # a connection each, so that both have some
                assert httpx.post(f"{url}/score/fraud", json=BODY, trust_env=False).status_code == 200

        def metrics():
            return samples(httpx.get(metrics_url, trust_env=False).text)

        score(16)
        counted = "featurestore_scorer_requests_total", "200", "score"
        until(lambda: metrics()[counted] == 16)  # they are told a moment after the answer
        found = metrics()
        assert found["featurestore_scorer_request_seconds_count", "score"] == 16
        assert any(name[0] == "featurestore_scorer_model_info" and value == 1 for name, value in found.items())
        until(lambda: metrics()[("featurestore_scorer_ready",)] == 1)
        assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 404
        assert (
            httpx.post(f"{metrics_url.removesuffix('/metrics')}/score/fraud", json=BODY, trust_env=False).status_code
            == 404
        )

        os.kill(workers[0], signal.SIGKILL)
        until(lambda: workers[0] not in children(process.pid) and len(children(process.pid)) == 3)
        score(8)
        until(lambda: metrics()[counted] == 24)  # the dead one's are not lost

        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "returned\n"), err
        assert f"({workers[0]}) ended with status -9" in err


@pytest.mark.server
@pytest.mark.thorough
def test_processes_whose_parent_is_killed_end_too(root, store_url):
    with served(root, store_url, workers=2) as (process, (url,)):
        workers = children(process.pid)
        assert httpx.post(f"{url}/score/fraud", json=BODY, trust_env=False).status_code == 200
        process.kill()
        process.wait(10)
        until(lambda: not any(is_alive(pid) for pid in workers))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.server
def test_processes_that_cannot_start_end_the_service_with_their_reason(tmp_path, store_url):
    command = [sys.executable, "-m", "tests.unit.scoring.serve_real", str(tmp_path), store_url, '{"workers": 2}']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "ModelError: there is no model to serve. Hint" in ended.stderr


@pytest.mark.server
@pytest.mark.thorough
def test_sigterm_waits_for_the_requests_of_all_processes(root, store_url):
    """Requests are sent all the while; each one that was taken is answered, and none after the end."""
    with served(root, store_url, workers=2) as (process, (url,)):
        answers, refused = [], []

        def call():
            while True:
                try:
                    answers.append(httpx.post(f"{url}/score/fraud", json=BODY, trust_env=False, timeout=30).status_code)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    refused.append(repr(error))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        until(lambda: len(answers) > 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for caller in callers:
            caller.join(30)
        assert set(answers) == {200}
        # A connection of which no process had read a request yet is closed: at most one per caller and process.
        assert len(refused) <= 2 * len(callers), refused


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "scorer.example"])
def test_an_address_others_can_reach_needs_credentials(models_root, host):
    with pytest.raises(ConfigError, match=r"no API keys are configured.*Hint"):
        serve(models_root, MemoryReader, host=host, port=0)
    with pytest.raises(ConfigError, match=r"no API keys are configured.*Hint"):
        serve(models_root, MemoryReader, port=0, admin_host=host, admin_port=0)


@pytest.mark.server
def test_the_metrics_need_the_scope_of_operators(root, store_url, tmp_path):
    (team, team_line), (ops, ops_line) = new_key("team", ["score:*"]), new_key("ops", ["admin"])
    (tmp_path / "keys").write_text(f"{team_line}\n{ops_line}\n")
    options = {"host": "0.0.0.0", "admin_port": 0, "api_key_file": str(tmp_path / "keys")}
    with served(root, store_url, **options) as (_, (bound, metrics_url)):
        url = bound.replace("0.0.0.0", "127.0.0.1")

        def status(method, target, key=None):
            headers = {"x-api-key": key} if key else {}
            return httpx.request(method, target, json=BODY, headers=headers, trust_env=False).status_code

        for key, score, metrics in ((None, 401, 401), (team, 200, 403), (ops, 403, 200), ("team.x", 401, 401)):
            assert status("POST", f"{url}/score/fraud", key) == score
            assert status("GET", metrics_url, key) == metrics
        assert status("POST", metrics_url, ops) == 405
        assert status("GET", metrics_url + "/x", ops) == 404
        assert httpx.get(metrics_url, trust_env=False).headers["content-type"] == "application/problem+json"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = trustme.CA()
    files = {}
    for name in ("server", "client"):
        issued = made.issue_cert("127.0.0.1", common_name=name)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for place, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(folder / f"{name}.pem", append=place > 0)
        files[name] = (str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    made.cert_pem.write_to_path(folder / "ca.pem")
    return str(folder / "ca.pem"), files


@pytest.mark.server
@pytest.mark.thorough
def test_listeners_speak_tls_and_may_ask_for_certificates(root, store_url, authority):
    ca, files = authority
    trusting = ssl.create_default_context(cafile=ca)
    known = ssl.create_default_context(cafile=ca)
    known.load_cert_chain(*files["client"])
    tls = {"certificate": files["server"][0], "key": files["server"][1]}
    with served(root, store_url, tls=tls, admin_port=0) as (_, (url, metrics_url)):
        assert url.startswith("https://")
        assert httpx.post(f"{url}/score/fraud", json=BODY, trust_env=False, verify=trusting).status_code == 200
        assert httpx.get(metrics_url, trust_env=False, verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/v2", trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/v2", trust_env=False)
        old = ssl.create_default_context(cafile=ca)
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/v2", trust_env=False, verify=old)
    with served(root, store_url, tls=tls | {"client_ca": ca}, workers=2) as (_, (url,)):
        assert httpx.post(f"{url}/score/fraud", json=BODY, trust_env=False, verify=known).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2/health/live", trust_env=False, verify=trusting)


def test_tls_files_that_cannot_be_used_are_named(models_root, authority):
    from featurestore.scoring.listener import TlsFiles

    _, files = authority
    with pytest.raises(ConfigError, match=r"cannot be used \(SSLError\).*Hint"):
        serve(models_root, MemoryReader, port=0, tls=TlsFiles(certificate=files["server"][0], key=files["client"][1]))
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        serve(models_root, MemoryReader, port=0, tls=TlsFiles(certificate="none.pem", key="none.key"))


# --- Before there is a handler ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(models_root):
    limits = ScorerLimits(
        header_bytes=2000, body_seconds=0.3, body_bytes=200_000, connections=40, deadline_seconds=30, queue_seconds=30
    )
    with running(build_app(models_root, lambda: MemoryReader({"c1": [1.0, 1, 1.0]}), limits=limits)) as url:
        yield url


def send(url, data, *, then=b"", keep=False):
    """Send raw bytes, and return all that comes back until the other side closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        if then:
            connection.sendall(then)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                got += part
                if keep and b"\r\n\r\n" in got:
                    break
        return got


HEAD = b"POST /score/fraud HTTP/1.1\r\nhost: x\r\n"
JSON = b'{"keys": {"card_id": "c1"}, "request": {"amount": 1}}'
WHOLE = HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(JSON)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (WHOLE + b"connection: close\r\n\r\n" + JSON, 200),
        (WHOLE + b"x: " + b"a" * 1500 + b"\r\nconnection: close\r\n\r\n" + JSON, 200),
        (WHOLE + b"x: " + b"a" * 2000 + b"\r\n\r\n" + JSON, 431),
        (WHOLE + b"".join(b"x%d: a\r\n" % i for i in range(100_000)), 431),
        (HEAD + b"x: " + b"a" * 3000, 431),  # never ends
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /" + b"a" * 3_000_000, 431),
        (HEAD + b"x: y", 408),
        (WHOLE + b"\r\n{", 408),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /score/fraud HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n", 400),
        (HEAD + b"bad header\r\n\r\n", 400),
    ],
    ids=lambda value: str(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_what_is_no_request_or_too_much_of_one_is_refused_on_the_connection(bounded, data, status):
    got = send(bounded, data)
    assert got.startswith(b"HTTP/1.1 %d " % status), got[:200]
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head or status == 200
    assert b"Traceback" not in body
    assert (
        httpx.post(
            f"{bounded}/score/fraud", content=JSON, headers={"content-type": "application/json"}, trust_env=False
        ).status_code
        == 200
    )


def test_a_silent_connection_is_closed(bounded):
    assert send(bounded, b"") == b""


def test_requests_that_follow_each_other_are_answered_in_order(bounded):
    got = send(bounded, (WHOLE + b"\r\n" + JSON) * 20 + WHOLE + b"connection: close\r\n\r\n" + JSON)
    assert got.count(b"HTTP/1.1 200 OK") == 21
    long = (WHOLE + b"x: " + b"a" * 1000 + b"\r\n\r\n" + JSON) * 5 + WHOLE + b"x: " + b"a" * 2500 + b"\r\n\r\n" + JSON
    assert b"HTTP/1.1 431" in send(bounded, long)


def test_connections_beyond_the_most_are_turned_away(bounded):
    host, port = bounded.removeprefix("http://").split(":")
    until(lambda: send(bounded, WHOLE + b"connection: close\r\n\r\n" + JSON).startswith(b"HTTP/1.1 200"))
    with contextlib.ExitStack() as stack:
        seen = b""
        for _ in range(60):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            one.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            seen = one.recv(4096)
        assert seen.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"retry-after: 1" in seen


@pytest.mark.parametrize(
    ("value", "status"), [("50", 200), ("0", 400), ("-1", 400), ("1.5", 400), ("soon", 400), ("9" * 12, 400)]
)
def test_a_deadline_is_a_whole_number_of_milliseconds(bounded, value, status):
    headers = {"content-type": "application/json", "x-deadline-ms": "30000" if status == 200 else value}
    answer = httpx.post(f"{bounded}/score/fraud", content=JSON, headers=headers, trust_env=False)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["type"] == "urn:featurestore:problem:invalid-deadline"


def test_a_request_is_answered_at_its_deadline_though_the_store_is_not(models_root):
    gate = threading.Event()
    reader = MemoryReader({"c1": [1.0, 1, 1.0]}, gate=gate)
    with (
        running(build_app(models_root, lambda: reader)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=20) as http,
    ):
        for path, body in (("/score/fraud", JSON), ("/lookup/fraud_v1", b'{"keys": {"card_id": "c1"}}')):
            began = time.monotonic()
            answer = http.post(path, content=body, headers={"content-type": "application/json", "x-deadline-ms": "100"})
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:featurestore:problem:deadline-passed")
            assert answer.headers["retry-after"] == "1"
            assert 0.09 < time.monotonic() - began < 5
        gate.set()
        assert http.post("/score/fraud", content=JSON, headers={"content-type": "application/json"}).status_code == 200


def test_limits_are_checked():
    assert ScorerLimits.of({"rows": 5.0, "queue_seconds": 0.5}) == ScorerLimits(rows=5, queue_seconds=0.5)
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        ScorerLimits.of({"row": 5})
    with pytest.raises(ConfigError, match=r"rows is 1\.5, which is no whole number"):
        ScorerLimits.of({"rows": 1.5})
    with pytest.raises(ConfigError, match="limit rows is 0"):
        ScorerLimits(rows=0)
