"""The archive of classes with real JVMs: drivers map it, and one that cannot be used is no error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.engines import class_archive
from featurestore.stack.jars import spark_jars
from featurestore.stack.java import find_java

pytestmark = pytest.mark.jvm

LOOK = """
from pathlib import Path
from featurestore.engines.session import build_session
session = build_session("look")
pid = session._jvm.ProcessHandle.current().pid()
print("mapped:", *{line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith(".jsa")})
print("rows:", session.range(3).count())
"""


@pytest.fixture(scope="module")
def archive():
    """The archive of this machine, which scripts/test has made."""
    return Path(class_archive.make())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_driver_maps_the_archive(archive):
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert str(archive) in ran.stdout
    assert "rows: 3" in ran.stdout


@pytest.mark.parametrize("broken", ["of another class path", "no archive", "not there"])
def test_an_archive_that_cannot_be_used_is_neither_an_error_nor_a_word(archive, broken, tmp_path):
    bad = archive
    if broken != "of another class path":
        bad = tmp_path / "bad.jsa"
    if broken == "no archive":
        bad.write_bytes(b"no archive" * 1000)
    conf = class_archive._flags({}, spark_jars(), f"-XX:SharedArchiveFile={bad} {class_archive._QUIET}")
    options = conf["spark.driver.extraJavaOptions"].split()
    jar = next(each for each in Path(class_archive._spark_home(), "jars").glob("py4j*.jar"))
    program = ["-cp", str(jar), "py4j.GatewayServer", "--help"]
    ran = [
        subprocess.run(
            [find_java().executable, *given, *program], capture_output=True, text=True, timeout=60, check=False
        )
        for given in (options, [])
    ]
    with_it, without = [(each.returncode, each.stdout, each.stderr) for each in ran]
    assert "usage" in without[2]
    assert with_it == without
