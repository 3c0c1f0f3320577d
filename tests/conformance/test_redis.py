"""What only a real server can do: lose its scripts, hang, go away. The writer's cases are in ``test_writer``."""

from __future__ import annotations

import inspect
import socket
import time

import pytest
import redis

from featurestore.errors import (
    ConfigError,
    OnlineError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
)
from featurestore.online.client import FeatureClient
from featurestore.online.redis_errors import ERRORS, mapped_errors
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.redis_url import safe_url
from featurestore.online.writer import FencedWriter
from tests.conformance.cases import SOURCE
from tests.conformance.support import SECOND, VIEWS, Online, one, stream_of
from tests.raw import raw

pytestmark = pytest.mark.server


def online_of(url, project="default"):
    return Online(RedisOnlineStore(url, project))


@pytest.fixture
def online(online_url):
    made = online_of(online_url)
    yield made
    made.client.close()


def test_a_client_is_made_from_a_url(online, online_url):
    online.apply([one(0, card="c")])
    with FeatureClient(online_url, timeout="5s") as client:
        assert client.get("cards", {"card_id": "c"}, now=1)["many.n_1h"] == 1


def test_the_keys_of_two_projects_are_disjoint(online_url):
    left, right = online_of(online_url, "left"), online_of(online_url, "left_right")
    for each in (left, right):
        each.apply([one(0, card="c")])
    admin = raw(left.store)
    names = [{key.split(b"}")[0] for key in admin.keys(f"fs:{{{each.store.project}.*")} for each in (left, right)]
    assert all(names)
    assert not names[0] & names[1]


# --------------------------------------------------------------------------------------------- a store that fails


def test_a_store_that_lost_its_scripts_recovers_on_retry(online):
    stream = stream_of(3)
    online.apply(stream.events[:40])
    raw(online.store).script_flush()
    with pytest.raises(OnlineError, match="lost its scripts"):
        online.apply(stream.events)
    online.apply(stream.events)
    online.assert_oracle(stream.events, stream.probes)


def test_a_store_that_lost_its_scripts_still_records_progress_when_nothing_is_new(online):
    online.apply([one(0)])
    raw(online.store).script_flush()
    assert online.apply([one(0)])["fenced"] == len(VIEWS)
    assert online.store.progress(SOURCE.name) == {0: (1, 0)}


def test_scripts_lost_before_a_fold_cost_only_that_fold(online):
    for i in range(3):
        online.apply([one(i * SECOND, offset=i)])
    grown = {0: [(key, len(blob)) for key, blob in online.blobs().items() if b":many@" in key]}
    raw(online.store).script_flush()
    online.writer.tail_cap = 1
    assert online.writer.fold(grown, clock=10 * SECOND) == 0
    assert online.writer.fold(grown, clock=10 * SECOND) == 1


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_store_that_is_down_is_unavailable_and_its_password_stays_secret():
    url = f"redis://user:secret@127.0.0.1:{closed_port()}"
    with pytest.raises(OnlineStoreUnavailableError, match="cannot be reached") as caught:
        FeatureClient(url).get("cards", {"card_id": "c"})
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value.__cause__, redis.exceptions.ConnectionError)
    assert "secret" not in str(caught.value)
    with pytest.raises(OnlineStoreUnavailableError):
        FencedWriter(RedisOnlineStore(url, "p"), "s", [])


def test_a_store_that_never_answers_times_out_within_the_deadline():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        client = FeatureClient(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout="100ms")
        begin = time.monotonic()
        with pytest.raises(OnlineStoreTimeoutError, match="did not answer in time") as caught:
            client.get("cards", {"card_id": "c"})
        assert time.monotonic() - begin < 1
        assert isinstance(caught.value, TimeoutError)
        client.close()


def test_a_store_that_hangs_times_out_and_then_answers_the_right_question(online, online_url):
    online.apply([one(0, card="a"), one(0, card="b", amount=7.0, offset=1)])
    client = FeatureClient(online_url, timeout="50ms")
    assert client.get("cards", {"card_id": "a"}, now=1)["many.high_1h"] == 1.0
    raw(online.store).execute_command("CLIENT", "PAUSE", 600, "ALL")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreTimeoutError):
        client.get("cards", {"card_id": "a"}, now=1)
    assert time.monotonic() - begin < 0.3
    online.store.ping()  # answers when the pause is over
    assert client.get("cards", {"card_id": "b"}, now=1)["many.high_1h"] == 7.0
    client.close()


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "", "redis://localhost:port", "redis://h:1/notanumber"]
)
def test_a_url_that_is_none_is_a_config_error(url):
    with pytest.raises(ConfigError, match="not usable"):
        RedisOnlineStore(url, "p")


def test_a_url_is_shown_without_credentials():
    assert safe_url("redis://u:p@h:6379/0") == "redis://h:6379/0"
    assert safe_url("redis://h:6379/0?password=p") == "redis://h:6379/0"
    assert safe_url("unix:///run/valkey.sock") == "unix:///run/valkey.sock"


FOREIGN = [
    kind
    for _, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, redis.exceptions.RedisError)
]


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_redis_error_becomes_one_of_ours(kind):
    made = kind.__new__(kind)
    Exception.__init__(made, "foreign words")
    with pytest.raises(OnlineError, match=r"online store redis://h:1 ") as caught, mapped_errors("redis://u:p@h:1"):
        raise made
    assert caught.value.__cause__ is made


def test_no_row_of_the_error_map_hides_another():
    for i, (foreign, _, _) in enumerate(ERRORS):
        assert not any(issubclass(foreign, earlier) for earlier, _, _ in ERRORS[:i])
    assert ERRORS[-1][0] is redis.exceptions.RedisError


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (redis.exceptions.TimeoutError, OnlineStoreTimeoutError),
        (redis.exceptions.ConnectionError, OnlineStoreUnavailableError),
        (redis.exceptions.BusyLoadingError, OnlineStoreUnavailableError),
        (redis.exceptions.AuthenticationError, OnlineStoreUnavailableError),
        (redis.exceptions.MaxConnectionsError, OnlineStoreUnavailableError),
        (redis.exceptions.ReadOnlyError, OnlineStoreUnavailableError),
        (redis.exceptions.ClusterDownError, OnlineStoreUnavailableError),
        (redis.exceptions.MasterDownError, OnlineStoreUnavailableError),
        (redis.exceptions.ResponseError, OnlineError),
    ],
)
def test_what_means_come_back_later_is_unavailable(kind, ours):
    made = kind.__new__(kind)
    with pytest.raises(OnlineError) as caught, mapped_errors("redis://h:1"):
        raise made
    assert type(caught.value) is ours


def test_errors_that_are_not_the_stores_pass_through():
    with pytest.raises(KeyError), mapped_errors("redis://h:1"):
        raise KeyError("x")
