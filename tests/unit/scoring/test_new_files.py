"""Keys and certificates that change while a real service runs: new ones count without a restart, bad ones do not."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import time

import httpx
import pytest
import trustme

from featurestore.errors import ConfigError
from featurestore.scoring.auth import KeyFile, new_key
from featurestore.stack.valkey import OnlineServer
from tests.unit.scoring.real import fill, payments, served, store_model

BODY = {"keys": {"card_id": "a"}, "request": {"amount": 1.0}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new-files")
    service = payments(folder)
    store_model(folder / "models", service)
    with OnlineServer(folder / "store") as store:
        fill(store.url, service)
        yield folder / "models", store.url


def until(met, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def issue(authority, folder, name):
    """Write a certificate of an authority for loopback and its key; return what a client sees of it."""
    made = authority.issue_cert("127.0.0.1", common_name=name)
    for path, content in (
        (folder / "chain.pem", made.cert_chain_pems[0].bytes()),
        (folder / "key.pem", made.private_key_pem.bytes()),
    ):
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


@pytest.mark.server
@pytest.mark.thorough
def test_keys_and_certificates_are_replaced_while_it_serves(project, tmp_path):
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    first = issue(authority, tmp_path, "first")
    (old, old_line), (new, new_line) = new_key("old"), new_key("new")
    (tmp_path / "keys").write_text(old_line)
    options = {
        "tls": {"certificate": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")},
        "api_key_file": str(tmp_path / "keys"), "limits": {"handshake_seconds": 0.5},
    }  # fmt: skip
    with served(*project, **options) as (process, (url,)):
        host, port = "127.0.0.1", int(url.rpartition(":")[2])

        def shown():
            plain = socket.create_connection((host, port), timeout=10)
            with trusting.wrap_socket(plain, server_hostname=host) as connection:
                return connection.getpeercert(binary_form=True)

        with httpx.Client(base_url=url, trust_env=False, verify=trusting, timeout=20) as open_one:

            def status(key):
                return open_one.post("/score/fraud", json=BODY, headers={"x-api-key": key}).status_code

            assert (status(old), status(new), shown()) == (200, 401, first)
            (tmp_path / "keys").write_text(f"{old_line}\n{new_line}\n")
            until(lambda: status(new) == 200)
            second = issue(authority, tmp_path, "second")
            until(lambda: shown() == second)
            (tmp_path / "key.pem").write_text("no key")
            (tmp_path / "keys").write_text("no key either\n")
            seen = time.monotonic()
            until(lambda: time.monotonic() - seen > 1.5 and shown() == second)  # it has been looked at, and refused
            assert (status(old), status(new)) == (200, 200)
            (tmp_path / "keys").write_text(new_line)
            until(lambda: status(old) == 401)
            third = issue(authority, tmp_path, "third")
            until(lambda: shown() == third)
            assert status(new) == 200  # on a connection that was opened with the first certificate

        # Who says nothing, or stops in the middle of a handshake, is dropped.
        for data in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
            with socket.create_connection((host, port), timeout=10) as silent:
                silent.sendall(data)
                began = time.monotonic()
                assert silent.recv(100) == b""
                assert time.monotonic() - began < 5
        process.terminate()
        said = process.stderr.read()
    assert said.count("keys: changed, and refused") == 1
    assert "key.pem: changed, and refused; what was read before stays" in said
    assert "no key" not in said.replace("holds no key", "")


def test_a_key_file_is_looked_at_once_a_second(tmp_path):
    (key, line), (other, other_line) = new_key("a"), new_key("b")
    path, now = tmp_path / "keys", [100.0]
    path.write_text(line)
    keys = KeyFile(path, clock=lambda: now[0])
    path.write_text(other_line)
    assert keys.caller(key.encode()) is not None
    now[0] += 1.1
    assert keys.caller(key.encode()) is None
    assert keys.caller(other.encode()) is not None
    path.unlink()
    now[0] += 1.1
    assert keys.caller(other.encode()) is not None
    shutil.copy(__file__, path)
    now[0] += 1.1
    assert keys.caller(other.encode()) is not None
    path.write_text(line)
    os.utime(path, (1, 1))  # older than what was read, and another one all the same
    now[0] += 1.1
    assert keys.caller(key.encode()) is not None
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyFile(tmp_path / "none")
