"""What an engine on a card makes while nobody asks, so that nobody waits for it later."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.engines import cuda
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda import kernels
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.cuda.warmup import Preparing
from qlora_chat.engines.cuda.weights.lora_tiles import LowRank
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.cuda.card import NotedCard, weights_of_sizes
from tests.fakes import NumberedAdapters, PlainDecoder, in_one_part

ROWS = 8


class Idle:
    """An engine on a card with nothing to do."""

    def __init__(self, card: NotedCard, monkeypatch: pytest.MonkeyPatch) -> None:
        card.install(monkeypatch)
        self.card, self.weights = card, weights_of_sizes()
        like: Any = SimpleNamespace(shape=self.weights.shape, device=torch.device("cpu"))
        self.decoder = Decoder(self.weights, KVCache(like, 2, torch.bfloat16), None)
        self.rehearsed: list[int] = []
        self.memory_for = 1000
        """Tokens of a prompt."""
        self.adapters: Any = SimpleNamespace(used=(False,))
        self.preparing = Preparing(self.decoder, self.adapters, ROWS, self.rehearse, (64, 128))

    def rehearse(self, tokens: int) -> None:
        if tokens > self.memory_for:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.rehearsed.append(tokens)

    def prepare(self) -> int:
        """Until nothing is missing; how many graphs were made."""
        before, until = self.graphs, time.monotonic() + 60
        while self.preparing():
            assert time.monotonic() < until, "it never ends"
        return self.graphs - before

    @property
    def graphs(self) -> int:
        return sum(each.startswith("begin") for each in self.card.did)

    def step(self, rows: int, adapter: int = -1) -> None:
        self.decoder.put([Row(0, at, 1, adapter=adapter) for at in range(rows)])
        self.decoder.start(rows)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Idle:
    return Idle(NotedCard(major=9), monkeypatch)


def test_no_width_of_steps_has_to_be_made_later(idle: Idle) -> None:
    assert idle.prepare() == 4, "of 1, 2, 4 and 8 rows"
    idle.card.did.clear()
    for rows in (1, 2, 3, 5, 8):
        idle.step(rows)
    assert all(each.startswith("replay") for each in idle.card.did)


def test_what_steps_have_met_already_is_not_made_again(idle: Idle) -> None:
    idle.step(2)
    assert idle.prepare() == 3
    assert not idle.preparing()


def test_kernels_are_compiled_beside_whatever_else_the_engine_does(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, compiled = threading.Event(), driver.compiled

    def slow(*rest: Any) -> bytes:
        assert go_on.wait(60)
        return compiled(*rest)

    monkeypatch.setattr(driver, "compiled", slow)
    for _ in range(20):
        assert idle.preparing(), "there is more to make, and it does not wait for it"
    idle.step(1)
    go_on.set()
    assert idle.prepare()


def test_what_libraries_load_for_prompts_is_loaded_before_anybody_asks(idle: Idle) -> None:
    idle.prepare()
    idle.prepare()
    assert idle.rehearsed == [64, 128]


def test_where_memory_is_short_for_long_prompts_the_rest_is_prepared_all_the_same(idle: Idle) -> None:
    idle.memory_for = 100
    assert idle.prepare() == 4
    assert not idle.preparing()


def test_adapters_that_come_have_steps_of_their_own(idle: Idle) -> None:
    idle.prepare()
    idle.decoder.adapt(LowRank(idle.weights.layout(16), torch.device("cpu")))
    idle.adapters.used = False, True
    assert idle.prepare() == 8, "and those without are made again: what they count with has moved"
    idle.card.did.clear()
    idle.step(3, adapter=0)
    assert idle.card.did[-1].startswith("replay")


def test_widths_that_the_card_cannot_have_are_done_without(idle: Idle) -> None:
    idle.card.fails += [("compile gemv.cu", KernelError("too many registers"))] * 2
    idle.prepare()
    assert idle.decoder.most_rows < ROWS
    assert not idle.preparing(), "nor tried again"
    idle.step(1)


def test_what_a_step_has_made_meanwhile_is_not_taken_for_what_was_compiled_beside(idle: Idle) -> None:
    idle.preparing._rows = 16
    while not idle.preparing._compiling:
        assert idle.preparing()
    (rows, _), compiling = idle.preparing._compiling
    compiling.result()
    idle.step(rows)
    assert idle.preparing()
    assert idle.preparing._compiling is not None, "what comes next is compiled beside, too"


def test_memory_that_is_short_for_a_moment_costs_no_width(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = kernels.Kernels.get, True

    def get(self: kernels.Kernels, *key: Any) -> Any:
        if full:
            raise KernelError("loading product: out of memory")
        return real(self, *key)

    monkeypatch.setattr(kernels.Kernels, "get", get)
    assert idle.prepare() == 0
    assert idle.decoder.most_rows == 64
    full = False
    assert idle.prepare() > 0, "after the next answer"


def test_a_question_goes_before_what_is_being_prepared(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with more to prepare than it will ever be done with, and one thing that goes wrong."""
    cache, prepared = KVCache(demo_fp32.weights, 2), list[int]()
    forward = Forward(demo_fp32.weights, cache)

    def prepare() -> bool:
        prepared.append(1)
        if len(prepared) == 3:
            raise RuntimeError("CUDA out of memory")
        return True

    decoder: Any = PlainDecoder(forward, Span)
    adapters: Any = NumberedAdapters(cache)
    scheduler = CudaScheduler(decoder, lambda spans: in_one_part(lambda: forward(spans)), cache, adapters, prepare=prepare)
    monkeypatch.setattr(cuda, "open_cuda", lambda *_: (scheduler, cache))
    model = replace(demo_fp32, weights=replace(demo_fp32.weights, device=torch.device("cuda")))
    engine = LocalEngine(lambda: model)
    while not prepared:
        time.sleep(0.01)
    for _ in range(2):
        stream = engine.stream(Prompt("", (1, 5, 6)), Sampling(temperature=0.0, max_new_tokens=3), Stops())
        assert len(list(stream)) == 3
    engine.close()
