"""``featurestore serve`` as an operator starts it: from a file of settings, with keys and tokens, as a real process."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from featurestore.scoring.auth import new_key
from featurestore.stack.valkey import OnlineServer
from tests.unit.scoring.real import fill, payments, store_model

pytestmark = pytest.mark.thorough

BODY = {"keys": {"card_id": "a"}, "request": {"amount": 1.0}}


@pytest.mark.server
def test_serve_takes_who_may_call_and_what_it_may_cost_from_the_settings(tmp_path):
    service = payments(tmp_path)
    store_model(tmp_path / "models", service)
    key, line = new_key("team", ["score:*"])
    (tmp_path / "keys").write_text(line)
    signing = ed25519.Ed25519PrivateKey.generate()
    public = signing.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "provider.pem").write_bytes(public)
    with OnlineServer(tmp_path / "store") as store:
        fill(store.url, service)
        (tmp_path / "featurestore.toml").write_text(
            f"""
            models = "models"
            [online]
            url = "{store.url}"
            timeout = "5s"
            [serve]
            host = "0.0.0.0"
            port = 0
            workers = 2
            api_key_file = "keys"
            token_key_file = "provider.pem"
            token_algorithm = "EdDSA"
            token_audience = "scorer"
            token_issuer = "us"
            limits = {{rows = 2, deadline_seconds = 30, queue_seconds = 30}}
            """
        )
        command = [sys.executable, "-m", "featurestore.cli", "serve", "--config", str(tmp_path / "featurestore.toml")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            try:
                url = process.stdout.readline().split()[-1].replace("0.0.0.0", "127.0.0.1")
                metrics = process.stdout.readline().split()[-1]
                claims = {"aud": "scorer", "iss": "us", "exp": time.time() + 60, "scope": "admin"}
                bearer = {"authorization": f"Bearer {jwt.encode(claims, signing, 'EdDSA')}"}
                with httpx.Client(trust_env=False, timeout=30) as http:
                    score = f"{url}/score/fraud"
                    assert http.post(score, json=BODY).status_code == 401
                    assert http.post(score, json=BODY, headers={"x-api-key": key}).status_code == 200
                    assert http.post(score, json=BODY, headers=bearer).status_code == 403
                    assert http.get(metrics, headers=bearer).status_code == 200
                    assert http.get(metrics, headers={"x-api-key": key}).status_code == 403
                    many = {"keys": [BODY["keys"]] * 3, "request": [BODY["request"]] * 3}
                    refused = http.post(score, json=many, headers={"x-api-key": key})
                    assert "1 to 2 are allowed" in refused.json()["detail"]
            finally:
                process.terminate()
                out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "no API keys are configured"),
        ({"admin_host": "0.0.0.0"}, "no API keys are configured"),
        ({"limits": {"row": 1}}, "did you mean 'rows'"),
        ({"tls_key": "key.pem"}, "TLS needs a certificate and its key"),
        ({"token_key_file": "none.json", "token_audience": "a", "token_issuer": "b"}, "FileNotFoundError"),
        ({"token_key_file": "none.json"}, "tokens need their audience"),
        ({"worker": 2}, "did you mean 'workers'"),
    ],
)
def test_settings_that_cannot_be_served_end_it_with_their_reason(run, tmp_path, settings, words):
    (tmp_path / "featurestore.toml").write_text(
        "[serve]\n" + "".join(f"{name} = {toml(value)}\n" for name, value in settings.items())
    )
    code, out, err = run("serve", "--port", "0", "--config", tmp_path / "featurestore.toml")
    assert code != 0
    assert out == ""
    assert words in err


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)
