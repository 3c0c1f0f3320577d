"""Where tests kill processes: every failpoint there is, at the time it is reached, by what dies there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from featurestore.failpoints import VARIABLE
from tests.streaming.support import birth, kill_driver, process_tree, wait_for

WORKER = {  # each dies in a later batch than the one before, in batches of another size
    "worker.decoded:3": 61,
    "writer.fences:4": 53,
    "writer.bucket:1": 47,
    "writer.bucket:40": 50,
    "writer.appended:5": 40,
    "writer.folded:6": 37,
    "writer.progress:7": 31,
}
WORKER_WITH_IDS = {
    "writer.appended:2": 41,
    "writer.ids:3": 37,
    "writer.ids:6": 31,
    "writer.bucket:30": 29,
    "writer.folded:5": 23,
}
CONSUMER = ("consumer.polled:2", "consumer.committed")
DRIVER_WITH_BATCHES = "archive.begin"
DRIVER_IN_A_BATCH = ("archive.table", "archive.tables")

ALL = {*WORKER, *WORKER_WITH_IDS, *CONSUMER, DRIVER_WITH_BATCHES, *DRIVER_IN_A_BATCH}


def driver_killed_at(place, start, monkeypatch):
    """Return a job whose driver has died at a place, Python's process and then at once all that it had started: by SIGKILL."""
    with monkeypatch.context() as armed:
        armed.setenv(VARIABLE, place)
        job = start()
    pid, born = wait_for("the driver", lambda: _python_of(job), job=job)
    wait_for(f"the kill at {place}", lambda: birth(pid) != born)
    kill_driver(job)
    assert job.status().state == "failed"
    last = json.loads(Path(job.folder, "status.json").read_text())
    assert last["state"] in {"warming", "running"}, "it was not killed, it said goodbye"
    return job


def _python_of(job):
    """Return (pid, start time) of the Python process of a driver, which a JVM has started."""
    for pid, born in process_tree(job.record["pid"]):
        with contextlib.suppress(OSError):
            is_python = Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
            if is_python and b"materialize.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid, born
    return None
