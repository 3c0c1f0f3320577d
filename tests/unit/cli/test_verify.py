"""featurestore verify: on a fresh project, from the outside."""

from __future__ import annotations

import json

import pytest

from featurestore.timeline import HOUR
from tests.conformance.planted import BUGS

pytestmark = pytest.mark.thorough


@pytest.fixture
def project(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    assert run("init", "shop")[0] == 0
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.syspath_prepend(str(tmp_path / "shop"))
    return tmp_path / "shop"


def test_a_fresh_project_is_equal(project, run):
    code, out, err = run("verify", "--seconds", 0, "--seed", 3, "--engines", "memory")
    assert (code, err) == (0, "")
    assert out.startswith("equal: 1 cases (customer_purchases 1)")
    assert "seed 3" in out


@pytest.mark.server
def test_a_server_of_its_own_is_used_where_there_is_one(project, run):
    code, out, _ = run("verify", "--seconds", 0, "--seed", 3, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["engines"] == ["training set", "memory", "redis"]
    assert found["equal"] is True
    assert found["failure"] is None
    assert 0 < found["seconds"] * 1_000_000 < HOUR


def test_a_difference_ends_with_1_and_a_test_that_imports_the_users_own_view(project, run, monkeypatch):
    (bug,) = [bug for bug in BUGS if bug.name == "points: the event at t counts"]
    with monkeypatch.context() as patch:
        bug.plant(patch)
        code, out, err = run("verify", "--seed", 3, "--engines", "memory", "--out", "test_found.py")
    assert code == 1
    assert out.startswith("different: ")
    assert err == "written: test_found.py\n"
    text = (project / "test_found.py").read_text()
    assert "from features import customer_purchases\n" in text
    assert "with replay(customer_purchases" in text
    compile(text, "test_found.py", "exec")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--view", "customer_purchase"), "did you mean 'customer_purchases'"),
        (("--service", "shop"), "shop_v1"),
        (("--engines", "sparkle,memory"), "no engine 'sparkle'. Hint: did you mean 'spark'?"),
        (("--definitions", "nowhere.py"), "does not exist"),
    ],
)
def test_a_wrong_name_is_one_line(project, run, arguments, message):
    code, out, err = run("verify", *arguments)
    assert (code, out) == (4, "")
    assert message in err
    assert len(err.splitlines()) == 1
