"""Who may call: keys and their scopes, tokens, and that no route but health answers a stranger."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from featurestore.errors import ConfigError
from featurestore.scoring.auth import ApiKeys, Caller, Gate, new_key
from featurestore.scoring.problems import Refusal
from featurestore.scoring.service import build_app
from featurestore.scoring.tokens import Tokens, TokenSettings
from tests.unit.scoring.conftest import running
from tests.unit.scoring.support import MemoryReader, infer_body

GOOD = {"keys": {"card_id": "c1"}, "request": {"amount": 1}}
NOW = 1_700_000_000.0
CLAIMS = {"aud": "scorer", "iss": "https://id.example", "exp": NOW + 60, "sub": "batch", "scope": "score:fraud admin"}


def gate_of(tmp_path, *keys, tokens=None):
    made = [new_key(name, scopes) for name, scopes in keys]
    path = tmp_path / "keys"
    path.write_text("# live keys\n\n" + "".join(f"{line}\n" for _, line in made))
    return Gate(ApiKeys.from_file(path), tokens), [key for key, _ in made]


# --- Every route ------------------------------------------------------------------------------------------------------


def test_every_route_but_health_refuses_whoever_has_no_live_key(models_root, tmp_path):
    gate, (first, second) = gate_of(tmp_path, ("blue", ()), ("green", ()))
    app = build_app(models_root, MemoryReader, gate=gate)
    with running(app) as url, httpx.Client(base_url=url, trust_env=False) as http:
        described = http.get("/openapi.json", headers={"x-api-key": first}).json()["paths"]
        routes = [(method, path) for path, methods in described.items() for method in methods]
        # The description has every path that the application knows: none escapes the walk.
        assert {path for _, path in routes} == {route.path for route in app._routes._app.routes}
        wrong = [
            {},
            {"x-api-key": "blue.x"},
            {"x-api-key": "red." + first.partition(".")[2]},
            {"x-api-key": first + "a" * 300},
            {"authorization": "Bearer " + first[:-1]},
            {"authorization": "Basic " + base64.b64encode(first.encode()).decode()},
            {"authorization": first},
            {"cookie": f"x-api-key={first}"},
        ]
        for method, path in routes:
            target = path.replace("{name}", "fraud").replace("{version}", "2")
            for headers in wrong:
                answer = http.request(method, target, headers=headers, params={"x-api-key": first})
                is_health = target in ("/v2/health/live", "/v2/health/ready")
                assert answer.status_code == (200 if is_health else 401), (target, headers)
                assert is_health or answer.headers["www-authenticate"] == "Bearer"
        assert http.post("/nope").status_code == 401
        assert http.get("/metrics").status_code == 401
        for headers in (
            {"x-api-key": first},
            {"authorization": f"Bearer {second}"},
            {"authorization": f"bearer {first}"},
        ):
            assert http.post("/score/fraud", json=GOOD, headers=headers).status_code == 200
            assert http.get("/docs", headers=headers).status_code == 200
        both = [("x-api-key", first), ("authorization", f"Bearer {second}")]
        assert http.get("/docs", headers=both).status_code == 401


# --- Scopes -----------------------------------------------------------------------------------------------------------


def test_a_key_does_what_its_scopes_say_and_nothing_else(models_root, tmp_path):
    gate, (fraud, other, looks) = gate_of(
        tmp_path, ("fraud", ["score:fraud"]), ("other", ["score:other", "lookup:*"]), ("looks", ["lookup:fraud_v1"])
    )
    with (
        running(build_app(models_root, MemoryReader, gate=gate)) as url,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):

        def status(key, method, path, body=None):
            return http.request(method, path, json=body, headers={"x-api-key": key}).status_code

        for key, expected in ((fraud, 200), (other, 403), (looks, 403)):
            assert status(key, "POST", "/score/fraud", GOOD) == expected
            assert status(key, "POST", "/v2/models/fraud/infer", infer_body()) == expected
            assert status(key, "POST", "/v2/models/fraud/versions/1/infer", infer_body()) in (expected, 404)
            assert status(key, "GET", "/v2/models/fraud") == expected
            assert status(key, "GET", "/v2/models/fraud/ready") == expected
            assert status(key, "GET", "/v2") == 200
        for key, expected in ((fraud, 403), (other, 404), (looks, 403)):
            assert status(key, "POST", "/lookup/nothing", {"keys": {"card_id": "c"}}) == expected
        problem = http.post("/score/fraud", json=GOOD, headers={"x-api-key": other}).json()
        assert problem["type"] == "urn:featurestore:problem:forbidden"
        # What a key may not reach does not tell it what is there either.
        assert status(other, "POST", "/score/nope", GOOD) == 403


@pytest.mark.parametrize(
    ("scopes", "asked", "expected"),
    [
        ({"*"}, "score:a", True),
        ({"*"}, "admin", True),
        ({"score:*"}, "score:a", True),
        ({"score:*"}, "lookup:a", False),
        ({"score:*"}, "admin", False),
        ({"score:a"}, "score:ab", False),
        ({"admin"}, "score:admin", False),
        (set(), "score:a", False),
    ],
)
def test_a_scope_matches_itself_and_a_star(scopes, asked, expected):
    assert Caller("x", frozenset(scopes)).may(asked) is expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no key"),
        ("blue:secret", "line 1 is not id:sha256"),
        (f"blue:{'a' * 64}\nblue:{'b' * 64}", "line 2 repeats an id"),
        (f"blue:{'a' * 64} score:", "'score:' is no scope"),
        (f"blue:{'a' * 64} write:fraud", "line 1: 'write:fraud' is no scope.*Hint"),
    ],
)
def test_a_bad_key_file_is_refused_without_showing_it(tmp_path, content, words):
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        ApiKeys.from_file(path)
    assert "secret" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys.from_file(tmp_path / "none")


def test_a_key_file_gives_no_key_away(tmp_path):
    _, (key,) = gate_of(tmp_path, ("blue", ()))
    secret = key.partition(".")[2]
    assert len(secret) >= 43  # 256 bits
    assert secret not in (tmp_path / "keys").read_text()


# --- Tokens -----------------------------------------------------------------------------------------------------------


class Provider:
    """An identity provider: two RSA keys by id, and an elliptic one, published as a JWKS."""

    def __init__(self, path):
        self.path = path
        self.keys = {kid: rsa.generate_private_key(65537, 2048) for kid in ("a", "b")}
        self.elliptic = ec.generate_private_key(ec.SECP256R1())
        self.publish("a", "b")

    def publish(self, *kids):
        published = [
            {**json.loads(RSAAlgorithm.to_jwk(self.keys[kid].public_key())), "kid": kid, "use": "sig"} for kid in kids
        ]
        elliptic = {**json.loads(ECAlgorithm.to_jwk(self.elliptic.public_key())), "kid": "e"}
        self.path.write_text(json.dumps({"keys": [*published, elliptic]}))

    def token(self, kid="a", *, algorithm="RS256", key=None, headers=None, **claims):
        given = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
        return jwt.encode(given, key or self.keys[kid], algorithm, {"kid": kid} | (headers or {})).encode()

    def pem(self, kid="a"):
        return (
            self.keys[kid]
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    return Provider(tmp_path_factory.mktemp("idp") / "jwks.json")


def settings(path, **changed):
    return TokenSettings(**({"key_file": path, "audience": "scorer", "issuer": "https://id.example"} | changed))


@pytest.fixture
def tokens(provider):
    provider.publish("a", "b")
    return Tokens(settings(provider.path), clock=lambda: NOW)


def test_a_token_says_who_calls_and_what_they_may(provider, tokens):
    for _ in range(2):  # verified, then remembered
        caller = tokens.caller(provider.token())
        assert (caller.name, caller.scopes) == ("batch", {"score:fraud", "admin"})
    assert tokens.caller(provider.token("b", scope=None, scp=["lookup:*"])).scopes == {"lookup:*"}
    assert tokens.caller(provider.token(scope=None)).scopes == set()


def forged_none(provider):
    return jwt.encode(CLAIMS, None, "none", {"kid": "a"}).encode()


def confused(provider):
    """Signed by HMAC with the public key as secret, which everybody has."""

    def part(content):
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "kid": "a", "typ": "JWT"}) + b"." + part(CLAIMS)
    mac = hmac.new(provider.pem(), signed, hashlib.sha256).digest()
    return signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.token(exp=NOW - 11),
        lambda p: p.token(exp=None),
        lambda p: p.token(nbf=NOW + 11),
        lambda p: p.token(aud="another"),
        lambda p: p.token(aud=None),
        lambda p: p.token(iss="https://evil.example"),
        lambda p: p.token(iss=None),
        lambda p: p.token("a", key=p.keys["b"]),
        lambda p: p.token("a", headers={"kid": "c"}),
        lambda p: p.token("a", algorithm="PS256"),
        lambda p: p.token("e", algorithm="ES256", key=p.elliptic),
        lambda p: p.token(exp="soon"),
        lambda p: p.token()[:-2] + b"AA",
        lambda p: p.token(pad="x" * 10_000),
        forged_none,
        confused,
        lambda _: b"a.b.c",
        lambda _: b"..",
        lambda _: b"\xff.\xff.\xff",
    ],
    ids=lambda make: make.__name__,
)
def test_a_token_that_is_not_wholly_right_is_no_token(provider, tokens, make):
    assert tokens.caller(make(provider)) is None
    assert tokens.caller(provider.token()) is not None  # the right one is


def test_a_remembered_token_ends_when_it_expires(provider):
    now = [NOW]
    tokens = Tokens(settings(provider.path), clock=lambda: now[0])
    token = provider.token()
    assert tokens.caller(token) is not None
    now[0] = NOW + 69
    assert tokens.caller(token) is not None  # within the leeway
    now[0] = NOW + 71
    assert tokens.caller(token) is None


def test_keys_are_rotated_by_changing_the_file(provider):
    now = [NOW]
    tokens = Tokens(settings(provider.path), clock=lambda: now[0])
    old, new = provider.token("a", exp=NOW + 1000), provider.token("b", exp=NOW + 1000)
    assert tokens.caller(old) is not None
    assert tokens.caller(new) is not None  # two alive
    provider.publish("b")
    now[0] += 6
    assert tokens.caller(old) is None  # though it was remembered
    assert tokens.caller(new) is not None
    provider.path.write_text("{")  # half written: the keys stay
    now[0] += 6
    assert tokens.caller(new) is not None
    provider.publish("a", "b")
    now[0] += 6
    assert tokens.caller(old) is not None


def test_one_public_key_may_be_a_pem_and_a_shared_secret_a_file(provider, tmp_path):
    (tmp_path / "pem").write_bytes(provider.pem())
    tokens = Tokens(settings(tmp_path / "pem"), clock=lambda: NOW)
    assert tokens.caller(provider.token()) is not None
    assert tokens.caller(confused(provider)) is None
    (tmp_path / "secret").write_text("s" * 32)
    shared = Tokens(settings(tmp_path / "secret", algorithm="HS256"), clock=lambda: NOW)
    assert shared.caller(provider.token(algorithm="HS256", key="s" * 32)) is not None
    assert shared.caller(provider.token()) is None


@pytest.mark.parametrize(
    ("content", "changed", "words"),
    [
        ("{}", {}, "no key for RS256"),
        ("nonsense", {}, "Hint: give a JWKS or PEM"),
        ("short", {"algorithm": "HS256"}, "no secret of 32 bytes"),
        ("-----BEGIN PUBLIC KEY-----" + "x" * 40, {"algorithm": "HS256"}, "no secret"),
        ("{}", {"algorithm": "none"}, "'none' is not one of"),
        ("{}", {"audience": ""}, "tokens need their audience"),
        ("{}", {"issuer": ""}, "tokens need their issuer"),
    ],
)
def test_settings_that_would_let_in_too_many_are_refused(tmp_path, content, changed, words):
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match=words):
        Tokens(settings(tmp_path / "key", **changed))
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        Tokens(settings(tmp_path / "none"))


def test_keys_and_tokens_open_the_same_gate(provider, tmp_path):
    tokens = Tokens(settings(provider.path), clock=lambda: NOW)
    gate, (key,) = gate_of(tmp_path, ("blue", ()), tokens=tokens)
    assert gate.require([(b"x-api-key", key.encode())], "score:fraud").name == "blue"
    assert gate.require([(b"authorization", b"Bearer " + provider.token())], "score:fraud").name == "batch"
    with pytest.raises(Refusal, match="scope score:other") as caught:
        gate.require([(b"authorization", b"Bearer " + provider.token())], "score:other")
    assert caught.value.status == 403
    with pytest.raises(Refusal):
        Gate(None, tokens).require([(b"x-api-key", key.encode())], None)
