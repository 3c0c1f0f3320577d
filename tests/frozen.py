"""Stop a process where it stands, as a hung machine does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def freeze(pid):
    """Send SIGSTOP, and return once every thread stands still: until one of them has taken the signal, the others go on."""
    os.kill(pid, signal.SIGSTOP)
    give_up = time.monotonic() + 30
    while any(state != "T" for state in _states(pid)):
        assert time.monotonic() < give_up, f"process {pid} does not stop"
        time.sleep(0.001)


def _states(pid):
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            yield stat.read_text().rpartition(")")[2].split()[0]
        except OSError:  # a thread that has ended
            continue
