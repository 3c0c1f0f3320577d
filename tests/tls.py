"""TLS in front of a server that has none: it ends here, and what it carried is passed on."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading

_CHUNK = 1 << 16
_HANDSHAKE = b"\x16"


class TlsFront:
    """Listens on loopback with a certificate, and passes everything on to ``port``.

    Args:
        port: Where the server listens.
        context: Certificate and settings.
        plain_too: Who does not begin a handshake is passed on too: servers among themselves, as Sentinels and their master.
    """

    def __init__(self, port, context, *, plain_too=False):
        self._target, self._context, self._plain_too = port, context, plain_too
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.handshakes = 0
        self._open, self._closing = set(), False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                client.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
            self._threads[-1].start()

    def _serve(self, client):
        onward = None
        self._open.add(client)
        try:
            if not self._plain_too or client.recv(1, socket.MSG_PEEK) == _HANDSHAKE:
                self._open.discard(client)
                client = self._context.wrap_socket(client, server_side=True)
                self._open.add(client)
                self.handshakes += 1
            onward = socket.create_connection(("127.0.0.1", self._target))
            self._open.add(onward)
            if not self._closing:
                carry(client, onward)
        except (OSError, ValueError):  # refused, or closed under our hands
            pass
        finally:
            for each in (client, onward):
                if each is not None:
                    self._open.discard(each)
                    each.close()

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._closing = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the one that accepts
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)


def carry(client, onward):
    """Pass bytes on in both directions until one side ends."""
    while True:
        ready = [client] if isinstance(client, ssl.SSLSocket) and client.pending() else []
        for side in ready or select.select([client, onward], [], [])[0]:
            received = side.recv(_CHUNK)
            if not received:
                return
            (onward if side is client else client).sendall(received)


def server_context(authority, *names, client_authority=None):
    """Return the settings of a server with a certificate for these names, which may ask for one of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        client_authority.configure_trust(context)
    return context
