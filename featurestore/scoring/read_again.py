"""What is read from files that may change while it is used: keys, certificates."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
_LOG = logging.getLogger("featurestore.scoring")
LOOK_AGAIN_S = 1.0
"""How old may be what is known of the files."""


class ReadAgain(Generic[T]):
    """What some files hold. It is read again when one of them has changed, which is looked at once a second at most.

    Files that cannot be used any more leave what was read before, and one line in the log.

    Args:
        files: The files.
        read: Reads them. Raises ConfigError where they cannot be used.
        clock: Seconds.

    Raises:
        ConfigError: They cannot be used now.
    """

    def __init__(
        self, files: Sequence[str | Path], read: Callable[[], T], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = tuple(Path(file) for file in files)
        self._read, self._clock = read, clock
        self._looked, self._stamps = clock(), self._stamps_now()
        self._value = read()

    def now(self) -> T:
        """Return what they hold: as of a second ago at the latest, and the same object while they do not change."""
        now = self._clock()
        if now - self._looked > LOOK_AGAIN_S:
            self._looked = now
            stamps = self._stamps_now()
            if stamps != self._stamps:
                self._stamps = stamps
                names = ", ".join(map(str, self._files))
                try:
                    self._value = self._read()
                    _LOG.warning("%s: changed, and read again", names)
                except ConfigError as error:
                    _LOG.error("%s: changed, and refused; what was read before stays: %s", names, error)
        return self._value

    def _stamps_now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None where it cannot be looked at."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
