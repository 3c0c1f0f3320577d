"""The command line: what it prints, how it ends, and what bad input says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import featurestore
from featurestore.cli.exits import error_line, exit_code
from featurestore.errors import FeatureStoreError, OnlineStoreTimeoutError, StackError, SubmitError, UnknownNameError

pytestmark = pytest.mark.thorough


@pytest.fixture
def project(tmp_path, monkeypatch, run):
    """A project as init writes it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    assert run("init", "shop")[0] == 0
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def assert_one_line(err, *parts):
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def test_init_writes_a_project_that_plans(project, run):
    code, out, err = run("plan")
    assert (code, err) == (0, "")
    assert [line.partition(" (")[0] for line in out.splitlines()] == [
        "+ entity customer",
        "+ source purchases",
        "+ view customer_purchases",
        "+ service shop_v1",
    ]
    code, out, _ = run("plan", "--json")
    assert [change["name"] for change in json.loads(out)["changes"]][-1] == "shop_v1"


def test_plan_tells_what_a_key_costs_at_most(project, run):
    (line,) = [line for line in run("plan")[1].splitlines() if line.startswith("+ view")]
    assert "; at most " in line
    assert " kB per key, " in line
    assert line.endswith(" kB where nothing is null or left out)")
    code, out, err = run("plan", "--costs")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split("  ")[0] == "view"
    assert out.splitlines()[-1].startswith("customer_purchases: at most ")
    (cost,) = json.loads(run("plan", "--costs", "--json")[1])["costs"]
    assert cost["rows"] == sum(ladder["rows"] for ladder in cost["ladders"])
    assert cost["bytes"] > cost["rows"] * min(ladder["row_bytes"] for ladder in cost["ladders"])
    module = project / "features.py"
    module.write_text(module.read_text() + COSTLY)
    for arguments in (["plan"], ["plan", "--costs"]):
        code, out, err = run(*arguments)
        assert code == 0
        assert err.startswith("warning: view costly: a key with events in every hop takes ")
        assert "86,401 rows for 24h on a hop of 1s" in err


COSTLY = """
from featurestore import FeatureView as View, Count as N, Sawtooth as Window
costly = View("costly", customer, purchases, {"n": N().over(Window("24h", hop="1s"))})
"""


def test_init_overwrites_nothing(project, run):
    before = (project / "features.py").read_text()
    (project / "featurestore.toml").unlink()
    code, _, err = run("init", ".")
    assert code == 4
    assert_one_line(err, "features.py exists already", "Hint: ")
    assert (project / "features.py").read_text() == before
    assert not (project / "featurestore.toml").exists()


def test_a_project_is_applied_once_and_looked_up(project, run, online_url, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    code, out, err = run("apply", "--yes")
    assert (code, len(out.splitlines())) == (0, 4)
    assert err == "published: shop_v1\n"
    code, out, _ = run("apply")
    assert (code, out) == (0, "no changes\n")
    code, out, _ = run("apply", "--json")
    assert json.loads(out) == {"changes": [], "published": ["shop_v1"], "topics": []}
    assert run("plan")[1] == "no changes\n"
    code, out, _ = run("lookup", "shop_v1", "customer_id=c1", "--now", "2026-01-01T00:00:00Z", "--json")
    vector = json.loads(out)
    assert (code, vector["at"]) == (0, "2026-01-01T00:00:00Z")
    assert set(vector["status"].values()) == {"missing"}
    assert "customer_purchases.purchases_1h" in run("lookup", "shop_v1", "customer_id=c1")[1]
    chosen = ("lookup", "shop_v1", "customer_id=c1", "--features", "customer_purchases.purchases_1h")
    assert list(json.loads(run(*chosen, "--json")[1])["values"]) == ["customer_purchases.purchases_1h"]
    code, out, _ = run(*chosen, "--watch", "--every", "1ms", "--refreshes", "3", "--json")
    assert code == 0
    assert [list(json.loads(line)["status"].values()) for line in out.splitlines()] == [["missing"]] * 3
    code, out, _ = run(*chosen, "--watch", "--every", "1ms", "--refreshes", "2")
    assert code == 0
    assert "complete through unknown" in out


def test_what_is_no_longer_defined_is_removed_from_registry_and_store(project, run, online_url, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    run("apply", "--yes")
    text = (project / "features.py").read_text()
    (project / "features.py").write_text(text.replace('"shop_v1"', '"shop_v2"'))
    code, out, _ = run("apply", "--yes")
    assert code == 0
    assert [line.partition(" (")[0] for line in out.splitlines()] == ["- service shop_v1", "+ service shop_v2"]
    code, _, err = run("lookup", "shop_v1", "customer_id=c1")
    assert code == 4
    assert_one_line(err, "'shop_v1'", "did you mean 'shop_v2'?")


def test_an_emptied_store_is_restored_by_applying_again(project, run, online_server, online_url, monkeypatch):
    import redis

    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    run("apply", "--yes")
    with redis.Redis.from_url(online_url) as client:
        client.flushdb()
    assert run("lookup", "shop_v1", "customer_id=c1")[0] == 4
    assert run("apply")[1] == "no changes\n"
    assert run("lookup", "shop_v1", "customer_id=c1")[0] == 0


BAD_LOOKUPS = [
    (["lookup", "shop_v9", "customer_id=c1"], 4, ["'shop_v9'", "Hint: did you mean 'shop_v1'?"]),
    (["lookup", "shop_v1"], 4, ["needs key 'customer_id'", "Hint: add customer_id=..."]),
    (["lookup", "shop_v1", "customer=c1"], 4, ["no key 'customer'", "Hint: did you mean 'customer_id'?"]),
    (["lookup", "shop_v1", "c1"], 4, ["'c1' is not name=value", "Hint: write customer_id="]),
    (["lookup", "shop_v1", "customer_id=c1", "--now", "noon"], 4, ["--now 'noon'", "Hint: "]),
    (["lookup", "shop_v1", "customer_id=c1", "--now", "2026-01-01T00:00:00"], 4, ["no time zone", "Hint: "]),
    (["jobs", "submit", "--service", "shop_v9"], 4, ["'shop_v9'", "Hint: did you mean 'shop_v1'?"]),
    (["jobs", "submit", "--service", "shop_v1", "--conf", "x"], 4, ["--conf 'x'", "Hint: "]),
    (["jobs", "submit", "nojob", "--service", "shop_v1", "--dry-run"], 1, ["no job 'nojob'", "Hint: "]),
    (["jobs", "status", "nojob"], 4, ["no job 'nojob'", "Hint: "]),
    (["training-set", "shop_v1", "none.parquet", "--event-time", "t", "--out", "o"], 4, ["none.parquet", "Hint: "]),
]


def test_bad_input_to_an_applied_project_is_one_line(project, run, online_url, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    run("apply", "--yes")
    for arguments, expected, parts in BAD_LOOKUPS:
        code, out, err = run(*arguments)
        assert (code, out) == (expected, ""), (arguments, err)
        assert_one_line(err, *parts)


FEATURES_LINE = '"spend": Sum("price * quantity")'


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            FEATURES_LINE,
            '"spend": Sum("prize * quantity")',
            ["customer_purchases.spend", "'prize'", "Hint: ", "'price'"],
        ),
        (FEATURES_LINE, '"spend": Sum("price *")', ["customer_purchases.spend", "features.py, line "]),
        ('topic="purchases"', 'topic="no good"', ["purchases", "'no good'", "features.py, line 9"]),
        ("purchase/v1.json", "purchase/v7.json", ["v7.json", "cannot be read"]),
        ("[customer_purchases]", "[customer_purchase]", ["NameError", "customer_purchase", "features.py, line "]),
        ("from featurestore import", "from featurestoer import", ["features.py, line 5", "featurestoer"]),
        ("shop_v1 =", "shop_v1 = =", ["features.py, line ", "SyntaxError"]),
    ],
)
def test_a_wrong_definition_is_one_line_with_its_place(project, run, old, new, parts):
    text = (project / "features.py").read_text()
    assert old in text
    (project / "features.py").write_text(text.replace(old, new))
    for verb in (["plan"], ["apply", "--yes"]):
        code, out, err = run(*verb)
        assert (code, out) == (4, "")
        assert_one_line(err, *parts)


@pytest.mark.parametrize(
    ("toml", "parts"),
    [
        ("project = ", ["line 1", "not TOML", "Hint: "]),
        ('projet = "x"', ["unknown key 'projet'", "Hint: did you mean 'project'?"]),
        ('definitions = "nowhere.py"', ["nowhere.py does not exist", "Hint: "]),
        ('definitions = "no.such.module"', ["'no.such.module'", "Hint: "]),
    ],
)
def test_a_wrong_config_is_one_line(project, run, toml, parts):
    (project / "featurestore.toml").write_text(toml)
    code, out, err = run("plan")
    assert (code, out) == (4, "")
    assert_one_line(err, *parts)


def test_a_config_that_is_not_there_is_one_line_wherever_it_is_named(project, run):
    for arguments in (["--config", "none.toml", "plan"], ["plan", "--config", "none.toml"]):
        code, _, err = run(*arguments)
        assert code == 4
        assert_one_line(err, "none.toml does not exist", "Hint: ")


def test_an_unreachable_store_is_one_line(project, run, closed_port, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", f"redis://:pa55@127.0.0.1:{closed_port}/0")
    for arguments in (["lookup", "shop_v1", "customer_id=c1"], ["apply", "--yes"]):
        code, out, err = run(*arguments)
        assert (code, out) == (3, "")
        assert_one_line(err, f"127.0.0.1:{closed_port}", "cannot be reached", "Hint: ")
        assert "pa55" not in err
    assert run("plan")[1].startswith("+"), "a failed apply must leave nothing behind"


@pytest.mark.thorough
def test_an_unreachable_broker_is_one_line(project, online_url, closed_port, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    monkeypatch.setenv("FEATURESTORE_KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{closed_port}")
    # In a process of its own: the Kafka client leaves sockets behind when it finds no broker.
    command = [sys.executable, "-m", "featurestore.cli", "apply", "--yes", "--create-topics"]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert_one_line(done.stderr, f"Kafka at 127.0.0.1:{closed_port}", "Hint: is the broker running?")


def test_a_project_without_a_broker_says_how_to_name_one(project, run, online_url, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    code, _, err = run("apply", "--yes", "--create-topics")
    assert code == 4
    assert_one_line(err, "bootstrap.servers", "Hint: ")


def test_an_apply_that_nobody_can_confirm_is_refused(project, run, online_url, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, out, err = run("apply")
    assert (code, out) == (4, "")
    assert err.splitlines()[-1].startswith("error: apply has to be confirmed")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["aply"], "aply"),
        (["plan", "--jsno"], "--jsno"),
        (["lookup"], "service"),
        (["jobs", "submit"], "--service"),
        (["apply", "--partitions", "0"], "partitions"),
        (["serve", "--port", "x"], "port"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run, arguments, part):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(err.replace("'", ""), part, "Hint: see featurestore")


def test_debug_adds_the_traceback_wherever_it_stands(project, run):
    (project / "featurestore.toml").write_text("project = ")
    for arguments in (["--debug", "plan"], ["plan", "--debug"]):
        code, _, err = run(*arguments)
        assert code == 4
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in run("plan")[2]


def test_a_fault_of_ours_is_one_line_too(project, run, monkeypatch):
    from featurestore.store import FeatureStore

    monkeypatch.setattr(FeatureStore, "plan", lambda *_: 1 / 0)
    code, _, err = run("plan")
    assert code == 1
    assert_one_line(err, "unexpected ZeroDivisionError", "Hint: run it again with --debug")


def test_jobs_are_listed_as_a_table_and_as_json(project, run):
    assert run("jobs", "list")[1].split() == ["name", "state", "service", "pid", "started"]
    assert json.loads(run("jobs", "list", "--json")[1]) == []


def test_nothing_runs_before_up(project, run):
    assert run("up", "--stop") == (0, "nothing runs\n", "")
    assert json.loads(run("up", "--stop", "--json")[1]) == {"stopped": False}


VERBS = [
    ["init"], ["plan"], ["apply"], ["version"], ["lookup"], ["training-set"], ["serve"], ["up"], ["demo"],
    ["jobs", "submit"], ["jobs", "list"], ["jobs", "status"], ["jobs", "logs"], ["jobs", "stop"],
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example(run, verb):
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert "Example: featurestore" in out
    assert "--json" in out or verb == ["serve"]


def test_help_tells_the_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "Exit codes: 0 done" in out


def test_versions_are_printed(run):
    assert json.loads(run("version", "--json")[1])["featurestore"] == "0.1.0"
    assert run("--version") == (0, "featurestore 0.1.0\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownNameError("x"), 4),
        (OnlineStoreTimeoutError("x"), 3),
        (StackError("x"), 5),
        (SubmitError("x"), 1),
        (FeatureStoreError("x"), 1),
    ],
)
def test_exit_codes_follow_from_the_error(error, code):
    assert exit_code(error) == code


def test_an_error_is_one_line_whatever_is_in_it():
    assert error_line(FeatureStoreError("a\n  b", hint="c\nd")) == "error: a b Hint: c d"


@pytest.mark.parametrize("arguments", [["--help"], ["lookup", "--help"], ["version"]])
def test_help_loads_no_engine(arguments):
    code = (
        f"import sys\nfrom featurestore.cli import main\nassert main({arguments!r}) == 0\n"
        "heavy = {'pyspark', 'delta', 'deltalake', 'kafka', 'redis', 'pyarrow', 'pandas', 'numpy', 'sqlglot', 'onnxruntime'}\n"
        "found = heavy & {name.partition('.')[0] for name in sys.modules}\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)


def test_the_module_runs_as_a_program(tmp_path):
    command = [sys.executable, "-m", "featurestore.cli"]
    done = subprocess.run(
        [*command, "plan"], cwd=tmp_path, capture_output=True, text=True, env=_environment(), check=False
    )
    assert done.returncode == 4
    assert_one_line(done.stderr, "features.py does not exist", "Hint: write one with featurestore init")


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(featurestore.__file__).parents[1])}


def test_a_job_is_watched_until_it_ends(project, run):
    folder = project / ".featurestore" / "jobs" / "materialize-shop_v1"
    folder.mkdir(parents=True)
    record = {"name": folder.name, "service": "shop_v1", "pid": os.getpid(), "born": "long ago", "started_at": "2026"}
    (folder / "job.json").write_text(json.dumps(record))
    report = {
        "state": "failed",
        "queries": {
            "hot": {"realtime": True, "pids": [7, 8], "lag": None, "error": "Kafka is away", "client": "librdkafka"}
        },
        "totals": {"consumed": 7},
        "sources": {"orders": {"lag": 1_200, "complete_through": None}},
        "updated_at": "now",
        "error": "the disk is full",
    }
    (folder / "status.json").write_text(json.dumps(report))
    code, out, _ = run("jobs", "status", folder.name, "--watch", "--every", "1ms")
    assert code == 1
    for part in (
        "the disk is full", "source orders     1,200 records to come, complete through unknown",
        "query hot         realtime, 2 consumers by librdkafka, an unknown number of", "records to come; Kafka is away",
    ):  # fmt: skip
        assert part in out
    code, out, _ = run("jobs", "status", folder.name, "--watch", "--json")
    assert (code, json.loads(out)["sources"]) == (1, report["sources"])
