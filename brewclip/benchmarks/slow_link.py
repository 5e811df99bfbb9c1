"""A link with latency and limited bandwidth in front of a server on loopback, as to an object store far away.

A process of its own forwards connections in threads, so that it takes no turns of the Python lock of what is measured.
"""

import contextlib
import multiprocessing
import socket
import threading
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

_LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 2**16
_MOST_BURST_SECONDS = 0.01  # what a sleep that takes too long may catch up
_START_SECONDS = 60.0


class SlowLink:
    """A context manager with the link's port, open until it is left.

    A request waits `latency_seconds` before it is passed on: the first bytes on a connection from the client since the
    last ones from the server. Answers of all connections share `bytes_per_second`; requests are not slowed.

    Args:
        port: of the server, on loopback.
        latency_seconds: of each request.
        bytes_per_second: of all answers together.
    """

    def __init__(self, port: int, latency_seconds: float, bytes_per_second: float) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self._pipe, theirs = context.Pipe()
        settings = (theirs, port, latency_seconds, bytes_per_second)
        self._process = context.Process(target=_serve, args=settings, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._process.start()
        if not self._pipe.poll(_START_SECONDS):
            raise TimeoutError(f"the slow link did not start in {_START_SECONDS:.0f} s")
        self.port = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


class _Bandwidth:
    """Bytes per second that several threads share."""

    def __init__(self, bytes_per_second: float) -> None:
        self._seconds_per_byte = 1 / bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait_for(self, num_bytes: int) -> None:
        """Sleep until these bytes have passed."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _MOST_BURST_SECONDS) + num_bytes * self._seconds_per_byte
            seconds = self._free_at - now
        if seconds > 0:
            time.sleep(seconds)


class _Pair:
    """A client's connection and the one to the server, each read by a thread."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client, self._server = client, server
        self._answered = True  # the next bytes from the client are a new request

    def pass_requests(self, latency_seconds: float) -> None:
        with contextlib.suppress(OSError):
            while piece := self._client.recv(_PIECE_BYTES):
                if self._answered:
                    self._answered = False
                    time.sleep(latency_seconds)
                self._server.sendall(piece)
        _end(self._server)

    def pass_answers(self, bandwidth: _Bandwidth) -> None:
        with contextlib.suppress(OSError):
            while piece := self._server.recv(_PIECE_BYTES):
                self._answered = True
                bandwidth.wait_for(len(piece))
                self._client.sendall(piece)
        _end(self._client)


def _end(connection: socket.socket) -> None:
    """Say that nothing more comes; what is read from the other side still does."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def _serve(pipe: Connection, port: int, latency_seconds: float, bytes_per_second: float) -> None:
    """Accept connections until the process is ended; the pipe gets the port."""
    bandwidth = _Bandwidth(bytes_per_second)
    with socket.create_server((_LOOPBACK, 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection((_LOOPBACK, port))
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            threading.Thread(target=pair.pass_requests, args=(latency_seconds,), daemon=True).start()
            threading.Thread(target=pair.pass_answers, args=(bandwidth,), daemon=True).start()
