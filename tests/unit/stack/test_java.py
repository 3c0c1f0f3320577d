"""Finding Java: which one is taken, and what is said when there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from featurestore.errors import StackError
from featurestore.stack.java import find_java, install_hint, parse_version

if TYPE_CHECKING:
    from pathlib import Path


def install(home: Path, banner: str, code: int = 0) -> Path:
    """Put a program into ``home`` that answers -version like a Java."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{banner}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "21.0.2" 2024-01-16 LTS', 21),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "22-ea" 2024-03-19', 22),
        ('openjdk version "17" 2021-09-14', 17),
        ('Picked up JAVA_TOOL_OPTIONS: -Dx=1\nopenjdk version "17.0.1"', 17),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_the_major_version_is_read_off_the_banner(banner: str, version: int | None) -> None:
    assert parse_version(banner) == version


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    home = install(tmp_path / "home", 'openjdk version "21.0.2"')
    on_path = install(tmp_path / "path", 'openjdk version "17.0.15"')
    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(on_path.parent)}, search=())
    assert (java.executable, java.version, java.home) == (home, 21, tmp_path / "home")


def test_a_java_of_the_wrong_version_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path / "home", 'java version "1.8.0_392"')
    on_path = install(tmp_path / "path", 'openjdk version "17.0.15"')
    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(on_path.parent)}, search=())
    assert java.executable == on_path


def test_a_java_on_no_path_is_found_where_installers_put_it(tmp_path: Path) -> None:
    program = install(tmp_path / "opt" / "openjdk@17", 'openjdk version "17.0.15"')
    java = find_java({"PATH": "/nonexistent"}, search=(f"{tmp_path}/opt/openjdk@*",))
    assert java.executable == program


def test_without_java_the_message_says_what_to_install() -> None:
    with pytest.raises(StackError, match=r"Java 17 or 21 is needed and none was found") as error:
        find_java({"PATH": "/nonexistent"}, search=())
    assert error.value.hint == install_hint()


def test_with_only_a_wrong_java_the_message_names_it(tmp_path: Path) -> None:
    program = install(tmp_path, 'openjdk version "25.0.1"')
    with pytest.raises(StackError) as error:
        find_java({"JAVA_HOME": str(tmp_path), "PATH": "/nonexistent"}, search=())
    assert f"found only {program} (version 25)" in str(error.value)


def test_a_java_home_without_java_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError) as error:
        find_java({"JAVA_HOME": str(tmp_path / "gone"), "PATH": "/nonexistent"}, search=())
    assert f"{tmp_path}/gone/bin/java (version unknown)" in str(error.value)
