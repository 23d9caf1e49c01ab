"""Words for servers that give no answer."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable

import pytest

from qlora_chat.engines import EngineError
from qlora_chat.engines.open import open_engine
from qlora_chat.engines.remote.reasons import status_text
from qlora_chat.settings import engine_settings
from tests.engines.remote.requests import DEMO
from tests.fakes import ScriptedServer


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/v1", "cannot be reached: nothing listens on that host and port. Start it"),
        ("http://no-such-host.invalid/v1", "cannot be reached: there is no host of that name: check --engine"),
    ],
)
def test_a_server_that_is_not_there(url: str, said: str) -> None:
    assert said in opening_error(url)


def test_a_server_without_tls(server: ScriptedServer) -> None:
    assert "no TLS connection, so its address may begin with http://" in opening_error(server.url.replace("http:", "https:"))


def test_something_that_is_no_http_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        error = opening_error(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", lambda: listening.accept()[0].close())
    assert "broke the connection off" in error


def opening_error(url: str, serve: Callable[[], None] | None = None) -> str:
    thread = threading.Thread(target=serve or (lambda: None), daemon=True)
    thread.start()
    with pytest.raises(EngineError) as raised:
        open_engine(DEMO, lambda line: None, engine_settings(url))
    assert not re.search(r"[A-Z]\w+Error|attempts failed", str(raised.value))
    return str(raised.value)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 413, 418, 429, 500, 502, 503])
def test_a_status_has_the_servers_words_or_a_next_step(status: int) -> None:
    assert "; " in status_text(status, "")
    assert "(too long)" in status_text(status, "too long")
