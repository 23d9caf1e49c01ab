"""Servers that follow a script, and engines that are closed when a test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qlora_chat.engines.remote.engine import RemoteEngine, open_remote
from qlora_chat.engines.remote.server import Timeouts
from qlora_chat.settings import engine_settings
from tests.engines.remote.requests import ANSWER, DEMO, QUICK
from tests.fakes import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(ANSWER)
    yield server
    server.stop()


@pytest.fixture
def second() -> Iterator[ScriptedServer]:
    server = ScriptedServer(ANSWER)
    yield server
    server.stop()


@pytest.fixture
def open_to() -> Iterator[Callable[..., RemoteEngine]]:
    """Opens remote engines, and closes them when the test is over."""
    engines: list[RemoteEngine] = []

    def opened(*servers: ScriptedServer, model: str | None = None, timeouts: Timeouts = QUICK, **environ: str) -> RemoteEngine:
        where = engine_settings(",".join(each.url for each in servers), model, environ)
        engines.append(open_remote(DEMO, where, lambda line: None, timeouts))
        for each in servers:
            each.requests.clear()
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()
