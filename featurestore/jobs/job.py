"""Jobs: streaming jobs that were submitted from this machine. Each has a folder, ``<home>/jobs/<name>/``.

    job.json      name, job, service, fingerprint, pid and its birth, argv, when it was started
    config.json   the resolved settings it runs with, readable by the owner only
    status.json   what its driver last reported; written by the driver, atomically
    driver.log    what spark-submit and the driver print

A pid alone may belong to anyone after a while; with the time of its birth it names one process. Only that is ever
signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import JobError, UnknownNameError, did_you_mean
from featurestore.stack import guard
from featurestore.timeline import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

ALIVE = frozenset({"starting", "warming", "running"})
ENDED = frozenset({"stopped", "failed"})
_POLL_S = 0.1
_LOG_END_BYTES = 64 * 1024

CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Jobs this process started: they are its children, and have to be waited for once they have ended."""


@dataclass(frozen=True)
class JobStatus:
    """What is known of a job.

    Attributes:
        name: Of the job.
        state: "starting", "warming", "running", "stopped" or "failed".
        service: The service it keeps.
        pid: Of its driver on this machine; None when it has ended.
        started_at: When it was submitted, ISO 8601.
        queries: Last progress of each query.
        totals: Counts since it started: consumed, applied, quarantined, ...
        sources: Per source, "lag", the records not applied yet, and "complete_through".
        updated_at: When the driver last reported.
        error: Why it failed, in one line.
    """

    name: str
    state: str
    service: str
    pid: int | None
    started_at: str
    queries: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    updated_at: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the status as data."""
        return asdict(self)


class Job:
    """A submitted job; any number of handles, in any process, may look at one.

    Args:
        folder: The job's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @property
    def log(self) -> Path:
        """The driver's log."""
        return self.folder / "driver.log"

    @property
    def record(self) -> dict[str, Any]:
        """What ``submit`` wrote.

        Raises:
            JobError: job.json is missing or unreadable.
        """
        path = self.folder / "job.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"job {self.name}: {path} cannot be read: {error}.", hint="submit it again.") from error
        return content

    @property
    def is_alive(self) -> bool:
        """Whether its process runs on this machine."""
        record = self.record
        pid = record["pid"]
        if pid in CHILDREN and CHILDREN[pid].poll() is not None:
            del CHILDREN[pid]
        return pid is not None and guard.birth(pid) == record["born"]

    def status(self) -> JobStatus:
        """Return its state now. A process that is gone without having said goodbye has failed."""
        record = self.record
        alive = self.is_alive  # before the report is read: a driver reports its end, then ends
        reported = self._reported()
        state, error = str(reported.get("state", "starting")), reported.get("error")
        if not alive and state not in ENDED:
            state = "stopped" if record.get("killed") else "failed"
            error = None if record.get("killed") else error or self._last_error()
        return JobStatus(
            name=self.name,
            state=state,
            service=record["service"],
            pid=record["pid"] if alive else None,
            started_at=record["started_at"],
            queries=reported.get("queries", {}),
            totals=reported.get("totals", {}),
            sources=reported.get("sources", {}),
            updated_at=reported.get("updated_at"),
            error=error,
        )

    def wait_until(self, state: str = "running", timeout: float | str = 120.0) -> JobStatus:
        """Return once the job is in a state.

        Args:
            state: "warming", "running" or "stopped".
            timeout: Seconds, or a duration such as "2m".

        Raises:
            JobError: It ended in another state, or did not get there in time.
        """
        seconds = _seconds(timeout)
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if status.state == state:
                return status
            if status.state in ENDED:
                reason = status.error or "it was stopped"
                raise JobError(f"job {self.name} is {status.state}, not {state}: {reason}", hint=f"see {self.log}.")
            if time.monotonic() > deadline:
                raise JobError(
                    f"job {self.name} is still {status.state}, not {state}, after {seconds:g} s.",
                    hint=f"see {self.log}.",
                )
            time.sleep(_POLL_S)

    def stop(self, timeout: float | str = 60.0) -> JobStatus:
        """End it: SIGTERM to its driver, which finishes its batch; after ``timeout`` SIGKILL. Harmless when ended.

        Args:
            timeout: Seconds, or a duration such as "1m", that the driver has for its goodbye.
        """
        record = self.record
        pid, born = record["pid"], record["born"]
        if self.is_alive:
            driver = self._driver_pid(pid)
            driver_born = guard.birth(driver)
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGTERM)
            if not _wait(lambda: not self.is_alive, _seconds(timeout)) and guard.birth(pid) == born:
                self._note_killed(record)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _wait(lambda: not self.is_alive and guard.birth(driver) != driver_born, 10.0)
            elif self._reported().get("state") not in ENDED:
                self._note_killed(record)
        return self.status()

    def logs(self, tail: int | None = 100) -> str:
        """Return the last ``tail`` lines of the driver's log, all of it for None; empty when there is none yet."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return ""
        return "".join(lines if tail is None else lines[max(0, len(lines) - tail) :])

    def _driver_pid(self, pid: int) -> int:
        """Return the pid of the Python driver, which spark-submit's JVM starts; the JVM's own while there is none.

        The JVM would end Spark under a driver that is still finishing its batch, so the signal goes to the driver.
        """
        config = str(self.folder / "config.json")
        return next((child for child, command in _children_of(pid) if config in command), pid)

    def _note_killed(self, record: dict[str, Any]) -> None:
        write_json(self.folder / "job.json", {**record, "killed": True})

    def _reported(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _last_error(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _LOG_END_BYTES))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        telling = [line for line in lines if "error" in line.lower() or "exception" in line.lower()]
        return (telling or lines or ["it ended without a word"])[-1][:500]

    def __repr__(self) -> str:
        return f"Job({self.name!r})"


def jobs_in(folder: Path) -> list[Job]:
    """Return the jobs under ``<home>/jobs``, by name."""
    return [Job(each.parent) for each in sorted(folder.glob("*/job.json"))]


def find_job(folder: Path, name: str) -> Job:
    """Return one job.

    Raises:
        UnknownNameError: There is none of this name.
    """
    known = {job.name: job for job in jobs_in(folder)}
    if name not in known:
        raise UnknownNameError(f"no job {name!r} in {folder}.", hint=did_you_mean(name, known, what="jobs"))
    return known[name]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file; a reader sees all of the old or all of the new."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _wait(is_done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _children_of(pid: int) -> list[tuple[int, str]]:
    """Return pid and command line of a process's children."""
    if Path(f"/proc/{pid}/task").is_dir():
        pids = [int(each) for file in Path(f"/proc/{pid}/task").glob("*/children") for each in _text(file).split()]
        return [(child, _text(Path(f"/proc/{child}/cmdline")).replace("\0", " ")) for child in pids]
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=False)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [(int(row[0]), row[2]) for row in rows if len(row) == 3 and row[1] == str(pid)]


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _seconds(duration: float | str) -> float:
    return parse_duration(duration) / 1_000_000 if isinstance(duration, str) else float(duration)
