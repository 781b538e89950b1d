"""A proxy between a client and a server, which can lose the answers of the server, or all that passes."""

import contextlib
import socket
import threading
from typing import Iterator, List


class Proxy:
    """Passes bytes between clients and a server of the loopback."""

    def __init__(self, port: int) -> None:
        """Begin to listen.

        :param port: of the server
        """
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: List[socket.socket] = []
        #: Clear while the answers of the server are lost.
        self._answers = threading.Event()
        self._answers.set()
        #: Clear while what clients send is lost.
        self._requests = threading.Event()
        self._requests.set()
        self.lost_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()  # the server is not there now
                    continue
                self._open += [client, server]
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (self._answers if is_answer else self._requests).is_set():
                    self.lost_bytes += len(data)
                else:
                    target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def losing_answers(self) -> Iterator[None]:
        """Lose all answers during a block, and cut all connections at its end."""
        self._answers.clear()
        try:
            yield
        finally:
            self.cut()
            self._answers.set()

    @contextlib.contextmanager
    def losing_all(self) -> Iterator[None]:
        """Lose all that passes during a block, as a broken network does, and cut all connections at its end."""
        self._requests.clear()
        try:
            with self.losing_answers():
                yield
        finally:
            self._requests.set()

    def cut(self) -> None:
        """Cut all connections."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def close(self) -> None:
        """Listen no longer, and cut all connections."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
