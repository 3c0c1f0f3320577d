"""A module's name says what is in it."""

from __future__ import annotations

import ast

import pytest
from source_tree import modules

BANNED = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "base", "misc", "tools", "stuff"}
MODULES = modules()


def test_no_module_is_named_after_nothing():
    wrong = [name for name in MODULES if BANNED & {word for part in name.split(".") for word in part.split("_")}]
    assert not wrong


def test_no_class_is_a_manager_or_helper():
    wrong = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and node.name.lower().endswith(("manager", "helper", "util", "utils", "handler"))
    ]
    assert not wrong


@pytest.mark.parametrize("name", sorted(name for name, path in MODULES.items() if path.stat().st_size))
def test_every_module_opens_with_what_it_is(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
