"""What a piece of work costs: wall time, CPU seconds and the peak memory of this process and all it started."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Cost:
    """The cost of one run; memory is resident, pages that processes share counted in each of them."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    python_peak_rss_mb: float = 0.0
    """Of the Python process that took the most: a Spark worker, where there are workers."""

    def to_dict(self) -> dict[str, float]:
        """Return the cost as data, rounded."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


class Meter:
    """Measures what happens inside a ``with`` block, sampling memory ten times a second; what that costs is left out."""

    def __init__(self) -> None:
        self.cost = Cost()
        self._cpu: dict[int, float] = {}
        self._done = threading.Event()
        self._own_s = 0.0

    def __enter__(self) -> Self:
        self._before = _cpu_of_tree()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cost.wall_s = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()
        self._look()
        self.cost.cpu_s = sum(self._cpu.values()) - sum(self._before.get(pid, 0.0) for pid in self._cpu) - self._own_s

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self._look()
        self._own_s = time.thread_time()

    def _look(self) -> None:
        self._cpu |= _cpu_of_tree()
        total = 0.0
        for pid in _tree():
            try:
                rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6
                name = Path(f"/proc/{pid}/comm").read_text()
            except OSError:
                continue
            total += rss
            if name.startswith("python") and pid != os.getpid():
                self.cost.python_peak_rss_mb = max(self.cost.python_peak_rss_mb, rss)
        self.cost.peak_rss_mb = max(self.cost.peak_rss_mb, total)


def _tree() -> list[int]:
    found, left = [], [os.getpid()]
    while left:
        pid = left.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                left += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _cpu_of_tree() -> dict[int, float]:
    """Return pid to CPU seconds so far; of children that have ended, their parent knows."""
    found = {}
    for pid in _tree():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = sum(int(field) for field in fields[11:13]) / _TICK
    return found
