"""The remote engine against a real peer: `transformers serve` with the merged demo: text in, settings nested."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import Engine
from qlora_chat.engines.local import LocalEngine
from qlora_chat.engines.open import open_engine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import ModelSettings, Sampling, engine_settings

SERVE = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
GREEDY = Sampling(temperature=0.0, max_new_tokens=60)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
]  # the first of them waits for the server, which takes a minute on a busy machine


@pytest.fixture(scope="module")
def url(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model name of a server of fp32 weights, those of the local engine."""
    merged = [each for each in (demo_cache / "merged").iterdir() if "bf16" in each.name]
    folder = min(merged, key=lambda each: each.stat().st_mtime)  # the demo's; tests of merging leave others beside it
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf")), "OMP_NUM_THREADS": "1"}
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", str(folder), *options],
        env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _await(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        server.terminate()
        server.wait(60)


def _await(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 100
    while time.monotonic() < until:
        assert server.poll() is None, "transformers serve did not start"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("transformers serve did not answer within 100 s")


@pytest.fixture(scope="module")
def remote(url: tuple[str, str]) -> Iterator[Engine]:
    address, name = url
    engine = open_engine(ModelSettings(model="demo"), lambda line: None, engine_settings(address, name))
    yield engine
    engine.close()


def chatted(engine: Engine, *questions: str) -> list[str]:
    chat, conversation, answers = Chat(engine, DEFAULT_FORMAT, MemoryHistory()), Conversation(), []
    for question in questions:
        turn = chat.reply(conversation, question, AnswerOptions(GREEDY))
        list(turn)
        conversation = turn.conversation
        answers.append(turn.answer)
    return answers


def test_a_conversation_is_word_for_word_the_local_engines(remote: Engine, shared_engine: LocalEngine) -> None:
    questions = ("What is the capital of France?", "Tell me a short story.")
    assert chatted(remote, *questions) == chatted(shared_engine, *questions)


def test_settings_reach_it_though_it_takes_none_at_the_top(remote: Engine) -> None:
    """top-k 1 is greedy whatever the temperature; without it, this temperature babbles."""
    chat = Chat(remote, DEFAULT_FORMAT, MemoryHistory())
    wild = Sampling(temperature=2.0, top_p=1.0, top_k=1, seed=1, max_new_tokens=12)
    turn = chat.reply(Conversation(), "What is the capital of France?", AnswerOptions(wild))
    list(turn)
    assert turn.answer == "The capital of France is Paris."


def test_greedy_from_mid_answer_on(remote: Engine, shared_engine: LocalEngine) -> None:
    question, wild = "Tell me a short story.", Sampling(temperature=1.0, seed=3, max_new_tokens=40)
    turn = Chat(remote, DEFAULT_FORMAT, MemoryHistory()).reply(Conversation(), question, AnswerOptions(wild))
    for index, _ in enumerate(turn):
        if index == 8:
            turn.update(GREEDY.changed(max_new_tokens=40))
    assert turn.finish is not None
    assert turn.finish.reason in ("stop", "length")
    assert "  " not in turn.answer
    assert turn.answer.count(" ") > 20, "words are still apart"
