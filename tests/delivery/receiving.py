"""A receiver on a real port that does what a test tells it, and an outbox to send from."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qlora_chat.history import OutboxRecord
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.outbox.recovery import open_outbox_file
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.settings import LogSettings


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return self.headers["Idempotency-Key"]


@dataclass
class Reply:
    """What a receiver does with a request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reset: bool = False
    """Reset the connection with no answer."""


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted and answers as `reply` says."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.received: list[Request] = []
        self.reply: Callable[[Request], Reply] = lambda request: Reply()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/log"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hung up is no error of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._handle(Request(self.command, dict(self.headers), body))

    def do_GET(self) -> None:
        self._handle(Request(self.command, dict(self.headers), b""))

    def _handle(self, request: Request) -> None:
        self.server.received.append(request)
        reply = self.server.reply(request)
        time.sleep(reply.delay)
        if reply.reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a RST
            self.connection.close()
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """A receiver that runs until the block ends."""
    server = Receiver(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent(drip: bool, accepted: threading.Event | None = None) -> Iterator[str]:
    """A receiver that accepts, which sets `accepted`, and never answers, or sends a letter of its headers now and then."""
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection:
            if drip:
                for letter in "HTTP/1.1 200 OK\r\nX: " + "x" * 10_000:
                    if ended.wait(0.05):
                        return
                    try:
                        connection.sendall(letter.encode())
                    except OSError:
                        return
            ended.wait(600)

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            if accepted:
                accepted.set()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        ended.set()
        listening.close()


def outbox_in(folder: Path, cap_bytes: int = LogSettings().cap_bytes) -> Outbox:
    """The outbox of a program without a store."""
    return open_outbox_file(folder / "outbox.db", Cipher(None), cap_bytes)


def record(text: str = "Hi", conversation_id: str = "an-id") -> OutboxRecord:
    """Something to deliver."""
    return OutboxRecord("turn", conversation_id, json.dumps({"conversation_id": conversation_id, "messages": text}).encode())


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
