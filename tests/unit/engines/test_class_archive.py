"""Which drivers start from the archive of classes: those of the JVM and the jars it was made from."""

from __future__ import annotations

import pytest

from featurestore.engines import class_archive
from featurestore.engines.class_archive import SWITCH, make, with_classes
from featurestore.stack.java import Java

OPTIONS, CLASS_PATH = "spark.driver.extraJavaOptions", "spark.driver.extraClassPath"
CONF = {OPTIONS: "-Xss8m", "spark.ui.enabled": "false"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A Java, a Spark and a connector of files, and a cache; an archive for them is there."""
    for path in ("java/lib/modules", "java/bin/java", "spark/jars/core.jar", "connector.jar"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    monkeypatch.setattr(
        class_archive, "find_java", lambda: Java(executable=tmp_path / "java" / "bin" / "java", version=17)
    )
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "cache" / "classes" / f"{class_archive._key([tmp_path / 'connector.jar'])}.7.jsa"
    assert with_classes(CONF, [tmp_path / "connector.jar"]) == CONF, "there is none yet"
    archive.parent.mkdir(parents=True)
    archive.write_text("classes")
    return tmp_path, archive


def test_a_driver_gets_the_archive_and_the_class_path_it_was_made_with(machine):
    folder, archive = machine
    connector = str(folder / "connector.jar")
    given = with_classes(CONF, [folder / "connector.jar"])
    assert given[OPTIONS].startswith(f"-Xss8m -XX:SharedArchiveFile={archive} ")
    assert given[CLASS_PATH] == connector
    assert given["spark.ui.enabled"] == "false"
    mine = with_classes(CONF | {CLASS_PATH: "/mine/*"}, [folder / "connector.jar"])
    assert mine[CLASS_PATH] == f"{connector}:/mine/*"


@pytest.mark.parametrize("changed", ["java/lib/modules", "spark/jars/core.jar", "spark/jars/new.jar", "connector.jar"])
def test_another_java_or_jar_needs_another_archive(machine, changed):
    folder, _ = machine
    (folder / changed).write_text("another one of another size")
    assert with_classes(CONF, [folder / "connector.jar"]) == CONF


@pytest.mark.parametrize("gone", ["java/lib/modules", "connector.jar"])
def test_without_what_it_is_made_from_a_driver_starts_without(machine, gone):
    folder, _ = machine
    (folder / gone).unlink()
    assert with_classes(CONF, [folder / "connector.jar"]) == CONF


@pytest.mark.parametrize("own", ["-XX:SharedArchiveFile=/mine.jsa", "-Xshare:off"])
def test_the_users_own_choice_stays(machine, own):
    folder, _ = machine
    conf = {OPTIONS: own}
    assert with_classes(conf, [folder / "connector.jar"]) == conf


def test_one_that_was_cut_short_is_not_used(machine):
    folder, archive = machine
    archive.write_text("clas")
    assert with_classes(CONF, [folder / "connector.jar"]) == CONF


def test_it_can_be_switched_off(machine, monkeypatch):
    folder, _ = machine
    monkeypatch.setenv(SWITCH, "0")
    assert with_classes(CONF, [folder / "connector.jar"]) == CONF
    assert make() == f"no class archive: {SWITCH}=0"
