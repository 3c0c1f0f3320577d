"""The module of definitions is read as it is now."""

from __future__ import annotations

import os
import sys

from featurestore.config import Settings
from featurestore.modules import load_module


def test_an_edit_of_equal_size_in_the_same_second_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "features.py"
    settings = Settings.load(_project(tmp_path))
    for answer in (1, 2):
        path.write_text(f"answer = {answer}\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert load_module(settings).answer == answer


def _project(folder):
    config = folder / "featurestore.toml"
    config.write_text('project = "p"\ndefinitions = "features.py"\n')
    return config
