"""Free ports on the loopback interface."""

from __future__ import annotations

import random
import socket

_RANGE = range(20_000, 32_000)
"""Below the ports that Linux and macOS hand to outgoing connections, so that none of those takes one in between."""


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that nothing listens on right now.

    Nothing reserves them: a server that finds its port taken has to be started again on another.
    """
    held: list[socket.socket] = []
    try:
        for port in random.sample(_RANGE, len(_RANGE)):
            if len(held) == count:
                break
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                candidate.close()
            else:
                held.append(candidate)
        return [candidate.getsockname()[1] for candidate in held]
    finally:
        for candidate in held:
            candidate.close()
