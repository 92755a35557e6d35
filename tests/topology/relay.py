"""A relay in front of a server: speaks TLS for one that cannot, or changes what it says.

None of the servers that come as Python packages is built with TLS; see also `test_tls`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self


class Relay:
    """Accepts connections on 127.0.0.1 and passes them on to a unix socket; a context manager.

    Args:
        path: the server's socket.
        tls: how to speak TLS with clients; ``None``: not at all.
        change: what to make of each piece that the server says.

    Attributes:
        port: where it listens.
        refused: connections that failed before the first byte, such as by a bad certificate.
        served: connections that were passed on.
    """

    def __init__(
        self,
        path: str,
        tls: ssl.SSLContext | None = None,
        change: Callable[[bytes], bytes] = lambda piece: piece,
    ) -> None:
        self._path = path
        self._tls = tls
        self._change = change
        self.refused = self.served = 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # Wakes the thread that accepts.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            pass
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ended.is_set():
                client.close()
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(10)
        try:
            client = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
        except OSError:
            self.refused += 1
            plain.close()
            return
        self.served += 1
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._path)
            while not self._ended.is_set():
                waiting = isinstance(client, ssl.SSLSocket) and client.pending()
                ready = [client] if waiting else select.select([client, server], [], [], 0.05)[0]
                if client in ready:
                    piece = client.recv(65_536)
                    server.sendall(piece)
                elif server in ready:
                    piece = server.recv(65_536)
                    client.sendall(self._change(piece))
                else:
                    continue
                if not piece:
                    return
