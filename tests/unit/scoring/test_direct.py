"""Plain requests that are answered without ASGI get the answers of the long way, over real sockets, in order."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from featurestore.scoring import listener
from featurestore.scoring.auth import Gate, KeyFile, new_key
from featurestore.scoring.direct import Exchange
from featurestore.scoring.limits import ScorerLimits
from featurestore.scoring.listener import BoundedProtocol
from featurestore.scoring.problems import Refusal
from featurestore.scoring.service import build_app
from tests.unit.scoring.conftest import PATIENT, running
from tests.unit.scoring.support import MemoryReader

LONG = (("accept", "application/json;q=1"),)
ONE = {"keys": {"card_id": "c1"}, "request": {"amount": 1.5}}
NOW = 1_700_000_000_000_000


class Line:
    """One connection; answers come as (status, headers, body)."""

    def __init__(self, url):
        self._socket = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, *requests):
        self._socket.sendall(b"".join(requests))

    def read(self):
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            headers[name.decode()] = value.decode()
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def ask(self, body, *headers, path="/score/fraud"):
        self.send(request(body, *headers, path=path))
        return self.read()

    def is_ended(self):
        return self._file.read() == b""

    def close(self):
        self._file.close()
        self._socket.close()


def request(body, *headers, path="/score/fraud"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


@contextlib.contextmanager
def serving(models_root, reader=None, *, limits=PATIENT, gate=None, **options):
    """Yield a connection, the URL, and what was taken so far: whether each request went the direct way."""
    reader = reader or MemoryReader()
    app = build_app(models_root, lambda: reader, allow_now=True, models=["fraud", "fraud:1"], limits=limits, gate=gate)
    taken, take, read_head = [], app.direct.take, app.direct.read_head

    def watched(*arguments):
        found = take(*arguments)
        taken.append(isinstance(found, Exchange))
        return found

    def watched_head(*arguments):
        found = read_head(*arguments)
        if found is None:
            taken.append(False)
        return found

    app.direct.take, app.direct.read_head = watched, watched_head
    with running(app, **options) as url, contextlib.closing(Line(url)) as line:
        yield line, url, taken


BODIES = [
    ONE,
    {**ONE, "now": NOW},
    {**ONE, "now": "2026-01-01T00:00:00Z", "explain": True},
    {"keys": [{"card_id": "c1"}, {"card_id": "nobody"}, {"card_id": None}], "request": [{"amount": 1}] * 3, "now": NOW},
    {**ONE, "now": "yesterday"},
    {**ONE, "more": 1},
    {"keys": {}, "request": {"amount": 1}},
    {"keys": {"card_id": 7}, "request": {"amount": 1}},
    {"keys": {"card_id": "c1"}, "request": {"amount": "much"}},
    {"keys": [], "request": []},
    {"keys": [{"card_id": "c1"}], "request": {"amount": 1}},
    b"",
    b"{broken",
    b'{"keys": {"card_id": "a", "card_id": "b"}, "request": {"amount": 1}}',
    b'{"keys": {"card_id": "\xff"}, "request": {"amount": 1}}',
    b'{"keys": {"card_id": "c1"}, "request": {"amount": NaN}}',
]


def without_time(answer):
    status, headers, body = answer
    headers = {name: value for name, value in headers.items() if name != "content-length"}
    if "now" not in body:
        body = {name: value for name, value in body.items() if name not in ("at", "complete_through")}
    return status, headers, body


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_both_ways_answer_alike(models_root, body):
    own = ("x-request-id", "r-1")
    with serving(models_root) as (line, _, taken):
        direct = line.ask(body, own)
        long = line.ask(body, own, *LONG)
        assert taken == [True, False]
        assert without_time(direct) == without_time(long)
        for deadline in ("0", "soon"):
            direct = line.ask(body, own, ("x-deadline-ms", deadline))
            assert direct == line.ask(body, own, ("x-deadline-ms", deadline), *LONG)
            assert direct[0] == 400


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/score/none", ()),
        ("/score/fra%75d", ()),
        ("/score/fraud?x=1", ()),
        ("/score/fraud/", ()),
        ("/v2/models/fraud/infer", ()),
        ("/score/fraud", (("content-encoding", "gzip"),)),
        ("/score/fraud", (("content-type", "text/plain"),)),
        ("/score/fraud", (("accept", "application/vnd.apache.arrow.streamx"),)),
        ("/score/fraud", (("connection", "close"),)),
    ],
)
def test_anything_else_goes_the_long_way(models_root, path, headers):
    with serving(models_root) as (line, _, taken):
        line.ask(ONE, *headers, path=path)
        assert True not in taken


def test_requests_sent_at_once_are_answered_in_order_whichever_way_each_goes(models_root):
    with serving(models_root) as (line, _, taken):
        ways = [(), LONG, (), (), LONG, LONG, ()]
        line.send(*[request(ONE, ("x-request-id", f"r{at}"), *way) for at, way in enumerate(ways)])
        answers = [line.read() for _ in ways]
        assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
            (200, f"r{at}") for at in range(len(ways))
        ]
        assert True in taken  # a request behind another one that is under way is left to uvicorn's queue
        assert line.ask(ONE)[0] == 200


def test_a_body_in_pieces_is_taken_whole_and_one_too_large_is_refused(models_root):
    with serving(models_root, limits=ScorerLimits(body_bytes=200, deadline_seconds=30, queue_seconds=30)) as (
        line,
        _,
        taken,
    ):
        whole = request(ONE)
        for at in range(0, len(whole), 7):
            line.send(whole[at : at + 7])
        assert line.read()[0] == 200
        assert line.ask({**ONE, "keys": {"card_id": "c" * 200}})[0] == 413
        assert taken == [True, False]


def test_a_caller_who_leaves_before_the_answer_harms_nobody(models_root):
    with serving(models_root) as (line, url, taken):
        for _ in range(3):
            gone = Line(url)
            gone.send(request(ONE))
            gone.close()
            half = Line(url)
            half.send(request(ONE)[:-3])
            half.close()
        assert line.ask(ONE)[0] == 200
        assert taken.count(True) > 1


def test_a_caller_who_does_not_read_is_answered_when_it_does_and_holds_up_nobody(models_root):
    """Answers that nobody takes stay few: once they fill the connection, its requests wait where they are."""
    reader = MemoryReader()
    with serving(models_root, reader) as (line, url, _):
        asked = {"keys": [{"card_id": "c1"}] * 60, "request": [{"amount": 1.5}] * 60, "explain": True, "now": NOW}
        _, _, expected = line.ask(asked)
        content, sent = request(asked), 0
        silent = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            silent.setsockopt(socket.SOL_SOCKET, option, 1 << 14)
        silent.settimeout(0.5)
        silent.connect((urlsplit(url).hostname, urlsplit(url).port))
        with contextlib.closing(silent):
            with contextlib.suppress(TimeoutError):
                while sent < 50_000:  # until the server takes no more
                    silent.sendall(content)
                    sent += 1
            scored = len(reader.batches)
            assert 10 < scored < sent < 50_000
            begin = time.monotonic()
            assert line.ask(asked)[2] == expected
            assert time.monotonic() - begin < 5
            silent.settimeout(20)
            with silent.makefile("rb") as file:
                for _ in range(scored + 20):
                    while (head := file.readline().strip()) != b"":
                        if head.startswith(b"content-length: "):
                            length = int(head.removeprefix(b"content-length: "))
                    assert json.loads(file.read(length)) == expected


def test_a_silent_connection_is_closed_after_the_time_of_silence_and_one_in_use_is_not(models_root):
    with serving(models_root, timeout_keep_alive=0.6) as (line, url, taken), contextlib.closing(Line(url)) as silent:
        assert silent.ask(ONE)[0] == 200
        began = time.monotonic()
        while time.monotonic() < began + 1.2:  # longer than the time of silence, which no pause here is
            assert line.ask(ONE)[0] == 200
        assert silent.is_ended()
        began = time.monotonic()
        assert line.is_ended()
        assert 0.2 < time.monotonic() - began < 10
        assert all(taken)


def test_only_who_may_is_served_directly(models_root, tmp_path):
    (right, entry), (other, theirs) = new_key("a", ["score:fraud"]), new_key("b", ["score:other"])
    (tmp_path / "keys").write_text(f"{entry}\n{theirs}\n")
    with serving(models_root, gate=Gate(KeyFile(tmp_path / "keys"))) as (line, _, taken):
        found = [
            line.ask(ONE, *[("authorization", f"Bearer {key}")] * bool(key))[0] for key in (right, "", other, right)
        ]
        assert found == [200, 401, 403, 200]
        assert taken == [True, False, False, True]


def test_a_head_that_came_before_is_not_parsed_again_and_says_the_same(models_root, monkeypatch):
    parsed, again = [], []

    def watched(name, seen):
        call = getattr(BoundedProtocol, name)

        def wrapped(self, *arguments):
            found = call(self, *arguments)
            seen.append(found)
            return found

        monkeypatch.setattr(BoundedProtocol, name, wrapped)

    watched("on_headers_complete", parsed)
    watched("_goes_like_another", again)
    a, b = {**ONE, "now": NOW}, {"keys": {"card_id": "x1"}, "request": {"amount": 2.5}, "now": NOW}
    with serving(models_root) as (line, _, taken):
        first, other = line.ask(a)[2], line.ask(b)[2]
        assert first != other
        assert [line.ask(one)[2] for one in (b, a)] == [other, first]
        assert again == [True] * 3, "the same head was parsed again"
        longer = line.ask({**a, "explain": True})
        assert longer[2]["vector"], "another head was taken for the first"
        assert again == [True] * 3 + [False]
        assert len(parsed) == 2
        # Bodies that hold what ends a head, pieces, and two at once are nobody else's requests.
        tricky = json.dumps(a).replace(" ", "\r\n\r\n").encode()
        assert [line.ask(tricky)[2] for _ in range(2)] == [first, first]
        whole = request(a)
        line.send(whole[:-5])
        line.send(whole[-5:])
        line.send(whole + request(b))
        assert [line.read()[2] for _ in range(3)] == [first, first, other]
        assert line.ask({**a, "more": 1})[0] == 400
        assert line.ask(b"x" * len(json.dumps(a)))[0] == 400
        assert line.ask(a)[2] == first
        assert all(taken)


def test_what_a_head_said_is_not_kept_for_a_credential_that_is_gone_nor_for_ids(models_root, tmp_path):
    key, entry = new_key("a", ["score:fraud"])
    (tmp_path / "keys").write_text(f"{entry}\n")
    mine = ("authorization", f"Bearer {key}")
    gate = Gate(KeyFile(tmp_path / "keys"))
    with serving(models_root, gate=gate) as (line, _, taken):
        assert [line.ask(ONE, mine)[0] for _ in range(3)] == [200] * 3
        gate.require = _refuses
        assert line.ask(ONE, mine)[0] == 401
        assert taken == [True, True, True, False, False]
        del gate.require
        for number in range(3 * listener._KEPT_HEADS):
            assert line.ask(ONE, mine, ("x-request-id", f"r{number}"))[1]["x-request-id"] == f"r{number}"
            assert line.ask(ONE, mine, ("x-more", str(number)))[0] == 200


def _refuses(*_):
    raise Refusal(401, "no-credential", "Not any more.")
