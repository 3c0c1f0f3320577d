"""The floors of scripts/bench score: one read of the store per request, over one pipelined connection.

``python -m scripts.benchmarks.score_floor JSON`` listens with an asyncio protocol of its own that reads just enough HTTP, and
gives a fixed answer: no decoding, no model. With a model it does the least that gives a score: what it reads is the row that the
model takes, computed before, and what the store answers at once is one run. ``create_app`` is the fixed answer as a raw ASGI
application for uvicorn.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from typing import Any

import hiredis
import numpy as np
import onnxruntime
import uvloop

_BODY = b'{"score":0.5}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Store(asyncio.Protocol):
    """A connection to the store; what is asked within one turn of the loop goes out in one write."""

    after: Any = None
    """Called when all replies that came at once have been handed out."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[Any] = deque()
        self._packed: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def get(self, key: bytes, answer: Any) -> None:
        """Call ``answer`` with the value once it is there."""
        command: Any = (b"GET", key)
        self._waiting.append(answer)
        self._packed.append(hiredis.pack_command(command))
        if len(self._packed) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._packed))
        self._packed.clear()

    def data_received(self, data: bytes) -> None:
        """Hand out the replies, in order."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft()(reply)
        if self.after is not None:
            self.after()


class Floor(asyncio.Protocol):
    """Answers every request whose body has come with the same bytes, after one GET."""

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store, self._prefix = store, prefix
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read a request."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if separator and len(body) >= int(length):  # every request has a length
            self._buffer = b""
            self._store.get(self._prefix + json.loads(body)["card_id"].encode(), self._answer)

    def _answer(self, _value: bytes | None) -> None:
        self._transport.write(_ANSWER)


class Scored(Floor):
    """Answers with the model's score of the row that the store has."""

    batch: Batch

    def _answer(self, value: bytes | None) -> None:
        self.batch.add(value, self._transport)


class Batch:
    """Runs the model once for all rows that came at once."""

    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[-1].name
        self._rows: list[bytes] = []
        self._callers: list[Any] = []

    def add(self, row: bytes | None, transport: Any) -> None:
        """Take a row and who gets its score."""
        self._rows.append(row or b"")
        self._callers.append(transport)

    def run(self) -> None:
        """Answer all."""
        matrix = np.frombuffer(b"".join(self._rows), np.float32).reshape(len(self._rows), -1)
        (scores,) = self._session.run([self._output], {self._input: matrix})
        for transport, score in zip(self._callers, scores[:, -1].tolist(), strict=True):
            body = f'{{"score":{score!r}}}'.encode()
            transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
        self._rows.clear()
        self._callers.clear()


async def connect(address: str) -> Store:
    """Return a connection to HOST:PORT."""
    host, _, port = address.rpartition(":")
    return (await asyncio.get_running_loop().create_connection(Store, host, int(port)))[1]


async def main(order: dict[str, Any]) -> None:
    """Listen until the process is ended."""
    store = await connect(order["redis"])
    loop = asyncio.get_running_loop()
    prefix = order["prefix"].encode()
    kind = Floor
    if order.get("model"):
        kind, Scored.batch = Scored, Batch(order["model"])
        store.after = Scored.batch.run
    server = await loop.create_server(lambda: kind(store, prefix), "127.0.0.1", order["port"])
    await server.serve_forever()


def create_app() -> Any:
    """Return the raw ASGI application."""
    order = json.loads(os.environ["SCORE_ORDER"])
    prefix = order["prefix"].encode()
    stores: list[Store] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        if not stores:
            stores.append(await connect(order["redis"]))
        done = asyncio.get_running_loop().create_future()
        stores[0].get(prefix + json.loads(body)["card_id"].encode(), done.set_result)
        await done
        length = str(len(_BODY)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _BODY})

    return app


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(json.loads(sys.argv[1])))
