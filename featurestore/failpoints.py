"""Failpoints: named places at which a test lets a process die as it would in a power cut.

FEATURESTORE_FAILPOINT="writer.bucket:3" sends the process SIGKILL when it reaches that place for the third time; without a
number, for the first. Where the variable is not set, a failpoint costs one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "FEATURESTORE_FAILPOINT"
NAMES: dict[str, str] = {
    "worker.decoded": "records are decoded, nothing else has happened",
    "writer.fences": "the fences are read",
    "writer.bucket": "one bucket has its append; while this is armed they are sent one by one",
    "writer.appended": "every bucket has its append, no tail is folded",
    "writer.ids": "the ids of its events are kept, the progress of ids is as before",
    "writer.folded": "tails are folded, the progress is as before",
    "writer.progress": "the progress is recorded",
    "archive.begin": "a batch is about to be written; the one before is in Spark's checkpoint",
    "archive.table": "one table has taken the batch",
    "archive.tables": "all tables have; Spark's checkpoint does not know of it",
    "consumer.polled": "records have come from Kafka",
    "consumer.committed": "the consumer group's offsets are committed",
}
"""Every place there is, and what has happened when it is reached."""


_armed: tuple[str, int] | None = None


def arm(text: str) -> None:
    """Let the process die at a place, written as in the variable.

    Raises:
        ValueError: There is no such place.
    """
    global _armed  # noqa: PLW0603 - one per process, as the variable is
    name, _, number = text.partition(":")
    if name not in NAMES or not (number or "1").isdecimal():
        raise ValueError(f"{VARIABLE}={text}: no such failpoint; there are {', '.join(NAMES)}.")
    _armed = name, int(number or 1)


def is_armed(name: str) -> bool:
    """Whether the process is to die at this place."""
    return _armed is not None and _armed[0] == name


def reach(name: str) -> None:
    """Die here, if this is the place and the time."""
    if _armed is not None:
        _count_down(name)


def _count_down(name: str) -> None:
    global _armed  # noqa: PLW0603
    if _armed is None or _armed[0] != name:
        return
    _armed = name, _armed[1] - 1
    if not _armed[1]:
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get(VARIABLE):
    arm(os.environ[VARIABLE])
