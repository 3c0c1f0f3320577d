"""The process of one consumer: it runs until it is told to stop, and says what it has done, line by line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.jobs.realtime import RealtimeConsumer

_REPORT_EVERY_S = 0.25


class _Reports(threading.Thread):
    """Writes what a consumer has done as JSON lines: counts since the last line, lag, error, offsets."""

    def __init__(self, consumer: RealtimeConsumer, write: Callable[[str], Any], stop: threading.Event) -> None:
        super().__init__(name="reports", daemon=True)
        self._consumer, self._write, self._stop = consumer, write, stop
        self._told: Counter[str] = Counter()

    def run(self) -> None:
        while not self._stop.wait(_REPORT_EVERY_S):
            self.tell()

    def tell(self) -> None:
        """Write one line."""
        counts = Counter(self._consumer.counts)
        new = {name: counts[name] - self._told[name] for name in counts}
        self._told = counts
        told = {name: getattr(self._consumer, name) for name in ("lag", "error", "reached", "acknowledged", "client")}
        self._write(json.dumps({"counts": new, **told}) + "\n")


def run_consumer(connect: Callable[[], RealtimeConsumer]) -> int:
    """Be the process of one consumer, until SIGTERM or until standard input ends: then whoever started it is gone.

    What it has done goes to standard output, one JSON line after the other.

    Args:
        connect: Makes the consumer; it is closed at the end.

    Returns:
        0 after a stop, 3 for what trying again does not mend; the reason is the last line on standard error.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def wait_for_the_end() -> None:
        while os.read(0, 65_536):  # not by way of sys.stdin, whose lock the interpreter wants at its end
            pass
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()

    def write(line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(line)
            sys.stdout.flush()

    try:
        consumer = connect()
        reports = _Reports(consumer, write, stop)
        try:
            reports.start()
            consumer.run(stop)
        finally:
            consumer.close()
            reports.tell()
    except FeatureStoreError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0
