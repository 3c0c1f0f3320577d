"""The load of scripts/bench score: a process that sends prepared requests over keep-alive connections and times the answers.

Reads one JSON order a line from standard input and answers with one. Two kinds of load:

    closed   every connection sends its next request as soon as it has its answer: how much is done at most. A slow answer holds
             back the requests behind it, so these times say nothing of what a caller would have waited (coordinated omission)
    open     requests are due at a fixed rate whatever the answers do; one that finds no free connection waits, and its time
             counts from when it was due. What the event loop's timer is late by itself, up to a millisecond, is not counted

One answer in fifty is read and its score compared; every answer has to be a 200.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

_COMPARED = 50


@dataclass
class Load:
    """One order: where to, what to send, how."""

    port: int
    requests: list[bytes]
    scores: list[float] | None
    connections: int
    seconds: float
    rate: float | None = None
    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    until: float = 0.0
    free: deque[Caller] = field(default_factory=deque)
    due: deque[float] = field(default_factory=deque)

    def answered(self, caller: Caller, status: bytes, body: bytes) -> None:
        """Note an answer and give the connection its next request, if one is due."""
        now = time.perf_counter()
        if status != b"200":
            self.wrong.append(f"{status.decode()}: {body[:200]!r}")
        elif self.scores is not None and len(self.took) % _COMPARED == 0:
            score, wanted = json.loads(body)["score"], self.scores[caller.number % len(self.scores)]
            if abs(score - wanted) > 1e-5:
                self.wrong.append(f"score {score}, not {wanted}")
        self.took.append(now - caller.began)
        if self.rate is None:
            if now < self.until:
                self.send(caller, now)
            else:
                self.free.append(caller)
        elif self.due:
            self.send(caller, self.due.popleft())
        else:
            self.free.append(caller)

    def send(self, caller: Caller, began: float) -> None:
        """Send the next request."""
        caller.number, caller.began = self.sent, began
        self.sent += 1
        caller.transport.write(self.requests[caller.number % len(self.requests)])


class Caller(asyncio.Protocol):
    """A keep-alive connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self.transport: Any = None
        self.number = 0
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Read one answer of known length."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length):
            self._buffer = b""
            self._load.answered(self, head[9:12], body)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the server hung up."""
        if not self._load.until or time.perf_counter() < self._load.until:
            self._load.wrong.append(f"connection lost: {error}")


async def run(load: Load) -> dict[str, Any]:
    """Carry out one order."""
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(load), "127.0.0.1", load.port))[1] for _ in range(load.connections)
    ]
    load.free.extend(callers)
    began = time.perf_counter()
    load.until = began + load.seconds
    if load.rate is None:
        for _ in callers:
            load.send(load.free.popleft(), time.perf_counter())
    else:
        number = 0
        while (at := began + number / load.rate) < load.until:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            now = time.perf_counter()
            while (at := began + number / load.rate) <= now and at < load.until:
                number += 1
                if load.free:
                    load.send(load.free.popleft(), now)
                else:
                    load.due.append(now)
    patience = load.until + 5.0
    while len(load.took) < load.sent and time.perf_counter() < patience:  # noqa: ASYNC110 - nothing is gained by an event here
        await asyncio.sleep(0.001)
    ended = time.perf_counter()
    for caller in callers:
        caller.transport.close()
    return {
        "answers": len(load.took),
        "unanswered": load.sent - len(load.took) + len(load.due),
        "wall_s": ended - began,
        "took_us": [round(each * 1e6) for each in load.took],
        "wrong": load.wrong[:3],
        "wrongs": len(load.wrong),
    }


def request(path: str, body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> None:
    """Answer until standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        for line in sys.stdin:
            order = json.loads(line)
            requests = [request(order["path"], body.encode()) for body in order.pop("bodies")]
            order.pop("path")
            print(json.dumps(runner.run(run(Load(requests=requests, **order)))), flush=True)


if __name__ == "__main__":
    main()
