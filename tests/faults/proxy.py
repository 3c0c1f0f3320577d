"""A TCP proxy before a real store that holds back some commands: a network that is slow at the wrong moment."""

from __future__ import annotations

import contextlib
import socket
import threading


class HoldingProxy:
    """Passes everything on; a request that contains ``word`` is held back for ``seconds`` first, or until it is let go."""

    def __init__(self, port, *, word, seconds=0.0):
        self._target, self._word, self.seconds = ("127.0.0.1", port), word, seconds
        self._go = threading.Event()
        self._sockets = set()
        self.held = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [self._start(self._accept)]

    def _start(self, work, *args):
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        return thread

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads = [each for each in self._threads if each.is_alive()]
                self._threads.append(self._start(self._carry, client))

    def _carry(self, client):
        try:
            server = socket.create_connection(self._target)
        except OSError:  # nobody is there at the moment
            client.close()
            return
        ends = {client, server}
        self._sockets |= ends
        answers = self._start(self._pass, server, client, False)
        self._pass(client, server, True)
        answers.join()
        self._sockets -= ends
        for each in ends:
            each.close()

    def _pass(self, source, sink, requests):
        with contextlib.suppress(OSError):
            while received := source.recv(1 << 16):
                if requests and self.seconds and self._word in received:
                    self.held += 1
                    self._go.wait(self.seconds)
                sink.sendall(received)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self, seconds):
        """Hold back so long from now on."""
        self._go, self.seconds = threading.Event(), seconds

    def let_go(self):
        """Pass on what is held, also of whoever no longer waits for an answer, and hold nothing more."""
        self.seconds = 0.0
        self._go.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.let_go()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
