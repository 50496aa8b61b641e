"""A stretch of network between clients and the broker, on which answers can get lost."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIST_OFFSETS, METADATA, FIND_COORDINATOR, END_TXN = 2, 3, 10, 26
"""Numbers of Kafka's requests (https://kafka.apache.org/protocol)."""

Judge = Callable[[int], str]
"""Says what becomes of the answer to a request of that number: `pass`, `lose`, or `cut` the connection instead."""


class Proxy:
    """Passes requests and answers on. Clients that come in here are sent here again, wherever the broker says it is."""

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._broker = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._there = host.encode() + struct.pack(">i", int(port))
        self._here = host.encode() + struct.pack(">i", self._listener.getsockname()[1])
        self.judge: Judge = lambda request: "pass"
        self.lost = 0
        """Answers that did not arrive."""
        self._open: set[socket.socket] = set()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            for one in (self._listener, *self._open):
                _close(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(self._broker)
                self._open |= {client, broker}
                requests: dict[int, int] = {}
                threading.Thread(target=self._pass_on, args=(client, broker, requests), daemon=True).start()
                threading.Thread(target=self._answer, args=(broker, client, requests), daemon=True).start()

    def _pass_on(self, client: socket.socket, broker: socket.socket, requests: dict[int, int]) -> None:
        for frame in _frames(client):
            request, _, correlation = struct.unpack_from(">hhi", frame, 4)
            requests[correlation] = request
            with contextlib.suppress(OSError):
                broker.sendall(frame)
        _close(broker)

    def _answer(self, broker: socket.socket, client: socket.socket, requests: dict[int, int]) -> None:
        for frame in _frames(broker):
            request = requests.pop(struct.unpack_from(">i", frame, 4)[0])
            verdict = self.judge(request)
            self.lost += verdict != "pass"
            if verdict == "cut":
                break
            if verdict == "pass":
                if request in (METADATA, FIND_COORDINATOR):
                    frame = frame.replace(self._there, self._here)  # as long as it was
                with contextlib.suppress(OSError):
                    client.sendall(frame)
        _close(client)


def _frames(source: socket.socket) -> Iterator[bytes]:
    """Requests or answers, each with its length before it, until the connection ends."""
    with contextlib.suppress(OSError), source.makefile("rb") as stream:
        while len(size := stream.read(4)) == 4:
            length = int.from_bytes(size, "big")
            if len(body := stream.read(length)) < length:
                return
            yield size + body


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
