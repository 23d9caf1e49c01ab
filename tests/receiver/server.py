"""A receiver on a real port: in a thread for most tests, in a process of its own where it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from qlora_chat.receiver.app import server_config
from qlora_chat.receiver.store import RecordStore
from qlora_chat.settings import ReceiverSettings


@contextlib.contextmanager
def receiving(store: RecordStore, settings: ReceiverSettings | None = None) -> Iterator[str]:
    """Serve a store's receiver; -> http://127.0.0.1:PORT."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = server_config(store, settings or ReceiverSettings())
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()


@dataclass
class Program:
    """`qlora-chat logs serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        """As if the power went."""
        self.process.kill()
        self.process.wait(60)


@contextlib.contextmanager
def program(*arguments: str | Path, code: str | None = None, environ: dict[str, str] | None = None) -> Iterator[Program]:
    """Start `qlora-chat logs serve` with arguments, or Python `code` that serves; wait until it says where it listens."""
    started = [sys.executable, "-c", code] if code else [sys.executable, "-m", "qlora_chat", "logs", "serve"]
    process = subprocess.Popen(
        [*started, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env={**os.environ, **(environ or {})}
    )
    assert process.stderr
    try:
        line = process.stderr.readline()
        found = re.search(r"LOGGING_URL=(\S+)/log", line)
        assert found, line + process.stderr.read()
        yield Program(process, found.group(1))
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
