"""A copy of the samples for each test, and the command line over it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qlora_chat.cli import app
from tests.fakes import ScriptedServer, demo_tokens

SAMPLES = Path(__file__).parent / "samples"
OURS = ("QLORA_CHAT_", "LOGGING_", "HF_", "OTEL_")

Run = Callable[..., Result]


@pytest.fixture
def samples(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the samples as the working folder, its cache the one in use, in UTC, with nothing else set."""
    folder = tmp_path / "samples"
    shutil.copytree(SAMPLES, folder)
    for name in [each for each in os.environ if each.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    compiled = own_cache / "kernels"  # compiled once for all tests; in a folder of its own a test waits for them
    compiled.mkdir(exist_ok=True)
    (folder / "cache" / "kernels").symlink_to(compiled)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.chdir(folder)
    time.tzset()
    return folder


@pytest.fixture(autouse=True, scope="module")
def zone_as_before() -> Iterator[None]:
    """Back in the machine's own time zone."""
    yield
    time.tzset()


@pytest.fixture
def run(samples: Path) -> Run:
    """`qlora-chat ARGUMENTS` in the copy; an error that a person would be told is raised."""

    def run(*arguments: str, typed: str | None = None, code: int = 0) -> Result:
        done = CliRunner().invoke(app, list(arguments), input=typed)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.stdout + done.stderr
        return done

    return run


@contextmanager
def receiving(status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """A receiver that takes everything; -> its address, and the bodies that came."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/log", bodies
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def answering() -> Iterator[ScriptedServer]:
    """A server that answers every question alike."""
    server = ScriptedServer(demo_tokens(" Schön, a scripted answer."))
    yield server
    server.stop()
