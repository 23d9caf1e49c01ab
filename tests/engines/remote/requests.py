"""Requests to the remote engine in tests, and helpers that read its answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from qlora_chat.engines import Finish, Stream
from qlora_chat.engines.remote.server import Timeouts
from qlora_chat.messages import Conversation
from qlora_chat.models.identity import identify
from qlora_chat.prompt import DEFAULT_FORMAT, render
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops
from tests.fakes import demo_tokens

DEMO = ModelSettings(model="demo")
TOKENIZER = identify(DEMO, lambda line: None).tokenizer
TEXT = " Paris is the capital of France, and a good place to sit by the river with a cup of tea."
STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)
QUICK = Timeouts(connect=2.0, first=2.0, following=2.0, busy=1.0, health=1.0)
"""Short, but long enough for a healthy server on a busy machine."""
GREEDY = Sampling(temperature=0.0, max_new_tokens=200)


ANSWER = demo_tokens(TEXT)
PROMPT = render(Conversation(), DEFAULT_FORMAT, TOKENIZER)


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def finish_of(stream: Stream) -> Finish:
    finish = list(stream)[-1].finish
    assert finish is not None
    return finish


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
