"""What ``--watch`` shows: in place on a terminal, one after the other into a pipe."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from dataclasses import dataclass
from itertools import count, pairwise

import pytest

from featurestore.cli.watch import watch

ERASE = "\x1b[2K"
WORDS = ("first", "second", "third")


@dataclass(frozen=True)
class Reading:
    """The number of a read."""

    number: int

    def to_dict(self):
        return {"number": self.number}


@pytest.fixture
def on_terminal(monkeypatch):
    """Return what a function writes to a standard output that is a real terminal, and what it returns."""

    def call(function):
        master, slave = pty.openpty()
        monkeypatch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        with os.fdopen(slave, "w") as screen, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", screen)
            found = function()
        text = b""
        with contextlib.suppress(OSError):  # the end of what was written, once nobody has the terminal any more
            while part := os.read(master, 65_536):
                text += part
        os.close(master)
        return text.decode(), found

    return call


def show(**options):
    """Watch three readings; return how often it waited."""
    numbers, waits = count(), []
    watch(
        lambda: Reading(next(numbers)),
        lambda found: WORDS[found.number],
        lambda: waits.append(None),
        refreshes=3,
        **options,
    )
    return len(waits)


def test_a_terminal_is_redrawn_in_place(on_terminal):
    text, waits = on_terminal(lambda: show(as_json=False))
    assert waits == 2
    for before, after in pairwise(WORDS):
        between = text.partition(before)[2].partition(after)[0]
        assert ERASE in between
        assert "\n" not in between, "the next reading stands below, not in its place"


def test_a_pipe_gets_text_without_control(capsys):
    assert show(as_json=False) == 2
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert WORDS[-1] in text


def test_json_is_a_line_per_reading_on_a_terminal_too_and_ends_with_what_is_the_last(on_terminal):
    text, waits = on_terminal(lambda: show(as_json=True, is_last=lambda found: found.number == 1))
    assert (text.split(), waits) == (['{"number":0}', '{"number":1}'], 1)
