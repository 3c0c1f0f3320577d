"""Who may reach the store, and how: TLS, users with their rights, Unix sockets. No message tells a password."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import tempfile
from pathlib import Path

import pytest
import trustme

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.errors import ConfigError, OnlineError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.jobs.lease import Lease
from featurestore.jobs.prune import prune_online
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.redis_url import Endpoint, parse_url, safe_url
from featurestore.stack.ports import free_ports
from tests.conformance.cases import SOURCE
from tests.conformance.support import SECOND, VIEWS, Online, one
from tests.raw import client_of
from tests.servers import Node
from tests.tls import TlsFront, server_context

ROOT = Path(__file__).parents[2]


def amount_by_both(url, card="c"):
    """Return a value that both clients read."""

    async def ask():
        async with AsyncFeatureClient(url, timeout="5s") as client:
            await client.ping()
            return (await client.get("cards", {"card_id": card}, now=100 * SECOND))["many.high_1h"]

    with FeatureClient(url, timeout="5s") as client:
        client.ping()
        alone = client.get("cards", {"card_id": card}, now=100 * SECOND)["many.high_1h"]
    assert asyncio.run(ask()) == alone
    return alone


def refusals(url, error=OnlineStoreUnavailableError):
    """Return what both clients say of a store they cannot use."""

    async def ask():
        async with AsyncFeatureClient(url, timeout="2s") as client:
            await client.ping()

    said = []
    with FeatureClient(url, timeout="2s") as client, pytest.raises(error) as caught:
        client.ping()
    said.append(str(caught.value))
    with pytest.raises(error) as caught:
        asyncio.run(ask())
    said.append(str(caught.value))
    return said


# ------------------------------------------------------------------------------------------------ URLs


def test_urls_say_where_and_how():
    cluster = parse_url("redis+cluster://u:p%40ss@a,b:7000,[::1]:7001")
    assert (cluster.kind, cluster.hosts) == (
        "cluster",
        (Endpoint("a", 6379), Endpoint("b", 7000), Endpoint("::1", 7001)),
    )
    assert cluster.login.commands == [(b"AUTH", b"u", b"p@ss")]
    watched = parse_url("redis+sentinel://:p@a,b:7/shop/3?sentinel_password=q")
    assert (watched.kind, watched.master, watched.hosts) == (
        "sentinel",
        "shop",
        (Endpoint("a", 26379), Endpoint("b", 7)),
    )
    assert watched.login.commands == [(b"AUTH", b"p"), (b"SELECT", b"3")]
    assert watched.sentinel_login.commands == [(b"AUTH", b"q")]
    local = parse_url("unix://u:p@/run/valkey.sock?db=2")
    assert (local.kind, local.hosts[0].path, local.login.db) == ("unix", "/run/valkey.sock", 2)
    assert parse_url("redis://").hosts == (Endpoint("localhost", 6379),)
    assert parse_url("redis://h/4").login.db == 4
    context = parse_url("rediss://h").tls
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert parse_url("rediss://h?ssl_cert_reqs=required&ssl_check_hostname=true").tls is not None
    assert parse_url("redis://h").tls is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rediss://:hush@h?ssl_cert_reqs=none", "unchecked.*ssl_ca_certs"),
        ("rediss://:hush@h?ssl_cert_reqs=optional", "unchecked"),
        ("rediss://:hush@h?ssl_check_hostname=false", "unchecked"),
        ("rediss://:hush@h?ssl_ca_certs=/nowhere/ca.pem", "/nowhere/ca.pem.*no file"),
        ("rediss://:hush@h?ssl_keyfile=/etc/hostname", "needs ssl_certfile"),
        ("redis://:hush@h?ssl_ca_certs=/etc/hostname", "scheme of TLS"),
        ("redis://:hush@h?sentinel_password=hush", "URL of Sentinels"),
        ("redis://:hush@h?passwort=hush", "unknown option passwort.*password"),
        ("redis://:hush@h?hu-sh=1", "unknown option"),
        ("redis://:hush@a,b", "several hosts"),
        ("redis+cluster://:hush@a,b/1", "only database 0"),
        ("redis+cluster://:hush@", "no host"),
        ("redis+cluster://:hush@a,,b", "a host is missing"),
        ("redis+sentinel://:hush@a:1", "name of the master is missing"),
        ("redis://:hush@h:hush", "port is not a number"),
        ("redis://:hush@h:70000", "1 to 65535"),
        ("redis://:hush@h/hush", "database is not a number"),
        ("redis://:hush@[::1", "not closed"),
        ("redis://user@h", "user without a password"),
        ("redis+ring://:hush@h", "begins with none of"),
        ("unix://:hush@run/x", "not absolute"),
        ("unix://:hush@/run/x?ssl_ca_certs=a", "no options of TLS"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_keeps_its_secrets(url, why):
    with pytest.raises(ConfigError, match=why) as caught:
        RedisOnlineStore(url, "p")
    assert "hush" not in str(caught.value).replace(safe_url(url), "")
    assert caught.value.__cause__ is None
    with pytest.raises(ConfigError):
        AsyncFeatureClient(url)


def test_an_address_shows_no_password():
    shown = repr(parse_url("redis+sentinel://u:hush@a/m?sentinel_password=hush"))
    assert "hush" not in shown
    assert "'u'" in shown


# ------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def front(server, authority, *names, client_authority=None):
    return TlsFront(server.port, server_context(authority, *names, client_authority=client_authority))


@pytest.mark.server
def test_both_clients_and_the_writer_speak_tls_and_check_who_answers(online_server, online_url, authority, ca_file):
    with front(online_server, authority, "localhost", "127.0.0.1") as tls:
        url = f"rediss://localhost:{tls.port}?ssl_ca_certs={ca_file}"
        online = Online(RedisOnlineStore(url, "default"))
        online.apply([one(i * SECOND, card="c", amount=5.0, offset=i) for i in range(12)])
        assert amount_by_both(url) == 5.0
        assert amount_by_both(url.replace("localhost", "127.0.0.1")) == 5.0
        online.store.close()
        for said in refusals(f"rediss://localhost:{tls.port}"):  # not signed by whom the system trusts
            assert "certificate" in said or "self-signed" in said
        refusals(f"redis://localhost:{tls.port}", OnlineError)  # without TLS, no answer is taken for one
    with front(online_server, authority, "elsewhere.example") as tls:
        for said in refusals(f"rediss://localhost:{tls.port}?ssl_ca_certs={ca_file}"):
            assert "localhost" in said.lower()
            assert "mismatch" in said.lower() or "not valid for" in said.lower()


@pytest.mark.server
def test_a_server_that_asks_for_it_is_shown_the_clients_certificate(
    online_server, online_url, authority, ca_file, tmp_path
):
    clients = trustme.CA()
    own = clients.issue_cert("scorer@shop.example")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    online = Online(RedisOnlineStore(online_url, "default"))
    online.apply([one(0, card="c", amount=7.0)])
    online.store.close()
    with front(online_server, authority, "localhost", client_authority=clients) as tls:
        url = f"rediss://localhost:{tls.port}?ssl_ca_certs={ca_file}"
        assert amount_by_both(f"{url}&ssl_certfile={tmp_path / 'client.pem'}") == 7.0
        refusals(url)


# ------------------------------------------------------------------------------------------------ users


def lines_of_the_guide():
    """Return the access list that the guide shows: user -> rules."""
    text = (ROOT / "docs/guide/operations.md").read_text(encoding="utf-8")
    return {name: rules.split() for name, rules in re.findall(r"^user (\w+) (.*)$", text, re.MULTILINE)}


@pytest.fixture(params=["standalone", "cluster"])
def guarded(request):
    """URLs of an empty store for the two users of the guide, and for everybody."""
    if request.param == "standalone":
        url = request.getfixturevalue("online_url")
        nodes = [request.getfixturevalue("online_server")]
        ports = [node.port for node in nodes]
    else:
        url = request.getfixturevalue("cluster_url")
        ports = [node.port for node in request.getfixturevalue("cluster").primaries]
    from tests.servers import ask

    for port in ports:
        for name, rules in lines_of_the_guide().items():
            assert ask(port, b"ACL", b"SETUSER", name, b"reset", *(rule.encode() for rule in rules)) == b"OK"
    head, _, rest = url.partition("://")
    yield {
        "": url,
        "stream": f"{head}://stream:STREAM-PASSWORD@{rest}",
        "scorer": f"{head}://scorer:SCORER-PASSWORD@{rest}",
        "stranger": f"{head}://scorer:HUSH@{rest}",
    }
    for port in ports:
        assert ask(port, b"ACL", b"DELUSER", *lines_of_the_guide()) == 2


@pytest.mark.server
def test_the_users_of_the_guide_can_do_all_they_need_and_nothing_more(guarded):
    stream = Online(RedisOnlineStore(guarded["stream"], "shop"), tail_cap=1)
    folded = 0
    for batch in range(4):
        events = [one((2 * batch + i) * SECOND, card="c", amount=9.0, offset=2 * batch + i) for i in range(2)]
        folded += stream.apply(events)["folded"]
    assert folded
    stream.store.publish_complete(SOURCE.name, 5)
    stream.store.ping()
    assert stream.store.progress(SOURCE.name) == {0: (8, 7 * SECOND)}
    assert stream.client.get("cards", {"card_id": "c"}, now=8 * SECOND)["many.n_1h"] == 8
    stream.store.publish_plan(LookupPlan("gone", (VIEWS[0].layout,)))
    stream.store.remove_plan("gone")
    stream.store.remember_topics({"topic": "id"})
    lease = Lease(stream.store, ["gone@1"], "job", "words")
    lease.take()
    lease.renew()
    lease.release()
    assert prune_online(stream.store, VIEWS) == []

    scorer = RedisOnlineStore(guarded["scorer"], "shop")
    with FeatureClient(guarded["scorer"], project="shop", timeout="5s") as client:
        client.ping()
        assert client.get("cards", {"card_id": "c"}, now=8 * SECOND)["many.high_1h"] == 9.0
        many = client.get_many("cards", [{"card_id": f"c{i or ''}"} for i in range(40)], now=8 * SECOND)
        assert many[0]["many.n_1h"] == 8
        assert many[0].complete_through == 5
        with pytest.raises(UnknownNameError, match="cards"):
            client.get("card", {"card_id": "c"})

    async def ask():
        async with AsyncFeatureClient(guarded["scorer"], project="shop", timeout="5s") as client:
            await client.ping()
            return await client.get("cards", {"card_id": "c"}, now=8 * SECOND)

    assert asyncio.run(ask())["many.n_1h"] == 8

    before = Online(RedisOnlineStore(guarded[""], "shop")).dump()
    for write in (
        lambda: scorer.publish_complete(SOURCE.name, 9),
        lambda: scorer.publish_plan(LookupPlan("cards", (VIEWS[0].layout,))),
        lambda: scorer.remove_plan("cards"),
        lambda: scorer.record_progress(SOURCE.name, 0, 99, 99),
        lambda: stream.new_writer().__class__(scorer, SOURCE.name, VIEWS),
        scorer.forget_project,
    ):
        with pytest.raises(OnlineError, match="does not allow this user a command"):
            write()
    assert Online(RedisOnlineStore(guarded[""], "shop")).dump() == before

    for user in ("scorer", "stream"):  # nothing of another project, not even a look
        other = RedisOnlineStore(guarded[user], "shop_2")
        with pytest.raises(OnlineError, match="does not allow this user a command"):
            other.load_plan("cards")
        with pytest.raises(OnlineError, match="does not allow this user a command"):
            other.publish_complete(SOURCE.name, 1)
        other.close()
    for store in (stream.store, scorer):
        store.close()


@pytest.mark.server
def test_a_wrong_password_is_refused_and_in_no_message(guarded):
    for said in refusals(guarded["stranger"]):
        assert "refused the credentials" in said
        assert "HUSH" not in said
        assert "scorer" not in said


# ------------------------------------------------------------------------------------------------ Unix sockets


@pytest.mark.server
def test_both_clients_and_the_writer_use_a_unix_socket():
    folder = Path(tempfile.mkdtemp(prefix="fs-"))  # the path of a socket is short
    (port,) = free_ports(1)
    node = Node.server(folder, port, "--unixsocket", folder / "valkey.sock", "--requirepass", "p@ss")
    try:
        node.start()
        node.process.wait_until((folder / "valkey.sock").exists, 10)
        url = f"unix://:p%40ss@{folder}/valkey.sock?db=3"
        online = Online(RedisOnlineStore(url, "default"))
        online.apply([one(0, card="c", amount=3.0)])
        assert amount_by_both(url) == 3.0
        assert client_of(url).dbsize() > 0
        online.store.close()
        for said in refusals(f"unix://{folder}/nothing.sock"):
            assert "cannot be reached" in said
    finally:
        node.process.stop()
        shutil.rmtree(folder)
