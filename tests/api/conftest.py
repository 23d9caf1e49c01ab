"""The API over the bundled demo, and over an engine that follows a script."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from qlora_chat.chat import Chat
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedEngine
from tests.web.serving import Served, serving, serving_chat


@pytest.fixture(scope="session")
def demo_url(shared_engine: LocalEngine) -> Iterator[str]:
    """Page and API over the real demo."""
    with serving_chat(Chat(shared_engine, DEFAULT_FORMAT, MemoryHistory())) as url:
        yield url


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[Served]:
    with serving(ScriptedEngine()) as served:
        yield served


@pytest.fixture
def scripted(scripted_server: Served) -> Served:
    """The API over a scripted engine, as new."""
    return scripted_server.as_new()


@pytest.fixture
def client(demo_url: str) -> Iterator[openai.OpenAI]:
    """The real client, with the demo behind it."""
    with openai.OpenAI(base_url=f"{demo_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    """The id under which the demo is listed."""
    return client.models.list().data[0].id
