"""Adapters over the API and a real engine: loaded, listed, named by requests, unloaded, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_chat.chat import Chat
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import ModelSettings
from tests.web.serving import serving_chat

QUESTION = "What is the capital of France?"
TUNED = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(demo_cache: Path) -> Iterator[httpx.Client]:
    """A server over the bundled base, started without any adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        engine = LocalEngine(lambda: load(ModelSettings(base=str(BUNDLED / "base")), lambda line: None), slots=2)
    with (
        serving_chat(Chat(engine, DEFAULT_FORMAT, MemoryHistory())) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as client,
    ):
        yield client
    engine.close()


def listed(client: httpx.Client) -> list[str]:
    return [each["id"] for each in client.get("/models").json()["data"]]


def ask(client: httpx.Client, model: str) -> httpx.Response:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}
    return client.post("/chat/completions", json=body | {"model": model})


def text_of(answer: httpx.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def test_one_comes_is_named_in_one_batch_with_the_base_and_goes_without_a_restart(client: httpx.Client) -> None:
    (base,) = listed(client)
    assert ask(client, "chat").status_code == 404
    loaded = client.post("/load_lora_adapter", json={"lora_name": "chat", "lora_path": str(BUNDLED / "adapter")})
    assert loaded.status_code == 200
    assert listed(client) == [base, "chat"]
    with ThreadPoolExecutor(2) as pool:
        tuned, plain = pool.map(lambda model: text_of(ask(client, model)), ["chat", base])
    assert tuned == TUNED
    assert plain != TUNED
    again = client.post("/load_lora_adapter", json={"lora_name": "chat", "lora_path": str(BUNDLED / "adapter")})
    assert again.status_code == 400
    assert "there is a model called 'chat' already" in again.json()["error"]["message"]
    assert client.post("/unload_lora_adapter", json={"lora_name": "chat"}).status_code == 200
    assert listed(client) == [base]
    gone = ask(client, "chat")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(client, base).status_code == 200
