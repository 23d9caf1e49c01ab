"""Two `qlora-chat serve` processes over one store, a proxy in front: one user's chat, and nothing lost when one is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect
from sqlalchemy import NullPool, create_engine, select

from qlora_chat.history.storage.schema import TURNS
from tests.fakes import ScriptedServer, demo_tokens
from tests.postgres import new_database
from tests.server.proxy import Proxy, proxying
from tests.web.driving import answers, opened_at, ready, say, settled, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SERVE = "import sys; sys.modules['torch'] = None; from qlora_chat.cli import main; main()"
"""A page process in front of another engine needs no torch; here it could not even have it."""
LONG = " ".join(f"w{index}" for index in range(400))


@pytest.fixture
def upstream() -> Iterator[ScriptedServer]:
    server = ScriptedServer(demo_tokens(" I am here."))
    yield server
    server.stop()


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the processes share: a server's database, or a file."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'chats.db'}"
    return new_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def processes(upstream: ScriptedServer, store: str, tmp_path: Path) -> Iterator[tuple[list[subprocess.Popen[bytes]], Proxy]]:
    ports = [_free_port(), _free_port()]
    environ = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    options = ["serve", "--model", "demo", "--engine", upstream.url, "--history", store, "--port"]
    running = [
        subprocess.Popen([sys.executable, "-c", SERVE, *options, str(port)], env=environ, stderr=subprocess.PIPE)
        for port in ports
    ]
    try:
        for port, process in zip(ports, running, strict=True):
            _await(port, process)
        with proxying(ports) as proxy:
            yield running, proxy
    finally:
        for process in running:
            process.kill()
            process.wait(60)
            if process.stderr:
                process.stderr.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 150
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("a page process did not start")


def newest_turn(store: str) -> str:
    """What the shared store holds of the last turn, read without opening it as a history."""
    engine = create_engine(store.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(select(TURNS.c.content).order_by(TURNS.c.seq.desc()).limit(1)).scalar_one()


def test_a_chat_goes_on_in_the_other_process_when_its_own_is_killed(
    context: BrowserContext, processes: tuple[list[subprocess.Popen[bytes]], Proxy], upstream: ScriptedServer, store: str
) -> None:
    running, proxy = processes
    page = opened_at(context, f"http://127.0.0.1:{proxy.port}")
    mine = proxy.served[0]
    say(page, "Are you there?")
    expect(page.locator("#messages .answer")).to_have_count(1)
    settled(page)

    upstream.answer, upstream.delay = demo_tokens(" " + LONG), 0.05
    say(page, "Tell me everything.")
    expect(page.locator("#messages .answer").nth(1)).to_contain_text("w5")
    wait_for(page, lambda: "w5" in newest_turn(store))  # the store is a little behind
    running[mine].send_signal(signal.SIGKILL)

    expect(page.locator("#messages .answer").nth(1)).to_contain_text("Cut off")  # by itself: nothing was pressed
    settled(page, 2)
    assert set(proxy.served[-3:]) == {1 - mine}
    first, cut_off = answers(page)[:2]
    assert first.startswith("I am here.")
    assert cut_off.startswith("w0 w1 w2 w3 w4 w5"), "as far as it was written"
    upstream.answer, upstream.delay = demo_tokens(" Still here."), 0.0
    say(page, "And now?")
    expect(page.locator("#messages .answer").nth(2)).to_contain_text("Still here.")
    asked = page.locator("#messages .question .body").all_inner_texts()
    assert [each.strip() for each in asked] == ["Are you there?", "Tell me everything.", "And now?"]
    page.reload()
    ready(page)
    expect(page.locator("#messages .answer")).to_have_count(3)
    page.close()
