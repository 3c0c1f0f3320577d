"""Ends a server when the process that started it is gone, however it went: Ctrl-C, SIGTERM, SIGKILL or a crash.

Run as ``python -I -S guard.py PID BIRTH`` beside each server, with a pipe from the starter as its standard input. The
kernel closes the pipe when the starter dies: that ends the server. A byte in the pipe says that the server was stopped
or released: that ends the guard alone. (Linux's parent-death signal would fire when the starting *thread* ends, and
other systems have none.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 10.0


def birth(pid: int) -> str | None:
    """Return when a process was born, None when it is not alive: with its pid it names one process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    else:
        return None if fields[0] == "Z" else fields[19]
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def end(pid: int, born: str, grace_s: float = GRACE_S) -> None:
    """End exactly this process and its group: SIGTERM, and SIGKILL when it is still there after ``grace_s``."""
    for signal_, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if birth(pid) != born:
            return
        try:
            os.killpg(pid, signal_)
        except ProcessLookupError:
            return
        give_up = time.monotonic() + patience
        while birth(pid) == born and time.monotonic() < give_up:
            time.sleep(0.02)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if not sys.stdin.buffer.read(1):
        end(int(sys.argv[1]), sys.argv[2])
