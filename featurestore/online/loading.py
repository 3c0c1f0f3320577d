"""Compiled code is loaded beside lookups: until it is there they are read in Python, with the same values.

1. One thread per process imports it, from the first opening of a view that it serves on. On a machine that has not compiled
   it yet that takes some 20 seconds, else one or two.
2. A fork waits for that thread: a child would find the locks of half an import held by nobody.
3. So does the end of the process, which must not pull the compiler's memory from under it; what it has compiled is kept.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


_LONGEST_S = 120.0


@cache
def kernel() -> ModuleType | None:
    """Return the compiled code, imported here and now; None where numba is missing, or can keep it nowhere."""
    try:
        from featurestore.online import kernel as found
    except (ImportError, RuntimeError):
        return None
    return found


class Loading:
    """The import of the compiled code in a thread of its own. Thread-safe and fork-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.code: ModuleType | None = None
        """The compiled code, as soon as it is there."""

    def begin(self) -> None:
        """Load it, if nobody has begun to."""
        with self._lock:
            if self._thread is None:
                assert logging.getLogger()  # noqa: S101 - it is imported, so its hook is registered: see rule 2
                os.register_at_fork(before=self.wait)
                self._thread = threading.Thread(target=self._load, name="featurestore-compiled")  # see rule 3
                self._thread.start()

    def wait(self) -> None:
        """Return when it is there, or cannot be; at once where nobody has begun to load it."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LONGEST_S)

    def _load(self) -> None:
        self.code = kernel()


LOADING = Loading()
