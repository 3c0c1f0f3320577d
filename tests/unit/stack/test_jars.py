"""The cache of jars: whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestore.errors import StackError
from featurestore.stack import jars
from featurestore.stack.ivy import ivy_file


def fill(cache: Path, name: str, coordinates: tuple[str, ...]) -> Path:
    """Put a complete set of one jar into the cache, where ``ensure`` looks for it."""
    directory = jars.directory_of(name, ivy_file(name, coordinates, ()), cache)
    directory.mkdir(parents=True)
    (directory / "a-1.jar").write_bytes(b"jar")
    (directory / "contents.json").write_text(json.dumps({"a-1.jar": 3}))
    return directory


def test_a_whole_set_is_used_without_java_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    directory = fill(tmp_path, "set", ("g:a:1",))
    assert jars.ensure("set", ("g:a:1",), label="jars", cache=tmp_path) == directory


def test_other_versions_are_another_set(tmp_path: Path) -> None:
    first = jars.directory_of("set", ivy_file("set", ("g:a:1",), ()), tmp_path)
    assert first != jars.directory_of("set", ivy_file("set", ("g:a:2",), ()), tmp_path)
    assert first != jars.directory_of("set", ivy_file("set", ("g:a:1",), {"there"}), tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut", "unlisted"])
def test_a_damaged_set_is_not_whole(damage: str, tmp_path: Path) -> None:
    directory = fill(tmp_path, "set", ("g:a:1",))
    assert jars.is_whole(directory)
    match damage:
        case "gone":
            (directory / "a-1.jar").unlink()
        case "cut":
            (directory / "a-1.jar").write_bytes(b"j")
        case _:
            (directory / "contents.json").write_text("{")
    assert not jars.is_whole(directory)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match=r"the cache .*file/jars cannot be written") as error:
        jars.ensure("set", ("g:a:1",), label="jars", cache=tmp_path / "file")
    assert "FEATURESTORE_CACHE" in (error.value.hint or "")


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path))
    assert jars.cache_directory() == tmp_path
    monkeypatch.delenv("FEATURESTORE_CACHE")
    assert jars.cache_directory() == Path.home() / ".cache" / "featurestore"
