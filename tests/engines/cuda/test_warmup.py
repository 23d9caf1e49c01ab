"""Warm-up of an idle engine on a card, so that no request waits for it later."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.engines import cuda
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda import kernels
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.cuda.warmup import Warmup
from qlora_chat.engines.cuda.weights.lora_tiles import LoraTable
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.cuda.card import RecordingCard, fake_weights
from tests.fakes import NumberedAdapters, PlainDecoder, single_part_pass

ROWS = 8


class Idle:
    """An engine on a card with nothing to do."""

    def __init__(self, card: RecordingCard, monkeypatch: pytest.MonkeyPatch) -> None:
        card.install(monkeypatch)
        self.card, self.weights = card, fake_weights()
        like: Any = SimpleNamespace(shape=self.weights.shape, device=torch.device("cpu"))
        self.decoder = Decoder(self.weights, KVCache(like, 2, torch.bfloat16), None)
        self.lengths: list[int] = []
        self.memory_for = 1000
        """Tokens of a pass."""
        self.adapters: Any = SimpleNamespace(used=(False,))
        self.warmup = Warmup(self.decoder, self.adapters, ROWS, self.warm_up, (64, 128))

    def warm_up(self, tokens: int) -> None:
        if tokens > self.memory_for:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.lengths.append(tokens)

    def finish(self) -> int:
        """Warm up until nothing is missing; returns the number of captured graphs."""
        before, until = self.graphs, time.monotonic() + 60
        while self.warmup():
            assert time.monotonic() < until, "it never ends"
        return self.graphs - before

    @property
    def graphs(self) -> int:
        return sum(each.startswith("begin") for each in self.card.events)

    def step(self, rows: int, adapter: int = -1) -> None:
        self.decoder.set_rows([Row(0, at, 1, adapter=adapter) for at in range(rows)])
        self.decoder.start(rows)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Idle:
    return Idle(RecordingCard(major=9), monkeypatch)


def test_no_width_of_steps_is_captured_later(idle: Idle) -> None:
    assert idle.finish() == 4, "of 1, 2, 4 and 8 rows"
    idle.card.events.clear()
    for rows in (1, 2, 3, 5, 8):
        idle.step(rows)
    assert all(each.startswith("replay") for each in idle.card.events)


def test_graphs_of_earlier_steps_are_not_captured_again(idle: Idle) -> None:
    idle.step(2)
    assert idle.finish() == 3
    assert not idle.warmup()


def test_kernels_are_compiled_while_the_engine_does_other_work(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, compiled = threading.Event(), driver.load_or_compile

    def slow(*rest: Any) -> bytes:
        assert go_on.wait(60)
        return compiled(*rest)

    monkeypatch.setattr(driver, "load_or_compile", slow)
    for _ in range(20):
        assert idle.warmup(), "there is more, and it does not wait for it"
    idle.step(1)
    go_on.set()
    assert idle.finish()


def test_libraries_load_their_prefill_kernels_before_the_first_prompt(idle: Idle) -> None:
    idle.finish()
    idle.finish()
    assert idle.lengths == [64, 128]


def test_short_memory_for_long_prompts_leaves_out_only_those(idle: Idle) -> None:
    idle.memory_for = 100
    assert idle.finish() == 4
    assert not idle.warmup()


def test_new_adapters_have_graphs_of_their_own(idle: Idle) -> None:
    idle.finish()
    idle.decoder.set_lora(LoraTable(idle.weights.layout(16), torch.device("cpu")))
    idle.adapters.used = False, True
    assert idle.finish() == 8, "those without adapters are captured again: their counters have moved"
    idle.card.events.clear()
    idle.step(3, adapter=0)
    assert idle.card.events[-1].startswith("replay")


def test_widths_that_cannot_be_compiled_are_left_out(idle: Idle) -> None:
    idle.card.failures += [("compile gemv.cu", KernelError("too many registers"))] * 2
    idle.finish()
    assert idle.decoder.max_rows < ROWS
    assert not idle.warmup(), "and not tried again"
    idle.step(1)


def test_a_graph_captured_by_a_step_meanwhile_is_not_confused_with_the_compiled_one(idle: Idle) -> None:
    idle.warmup._rows = 16
    while not idle.warmup._compiling:
        assert idle.warmup()
    (rows, _), compiling = idle.warmup._compiling
    compiling.result()
    idle.step(rows)
    assert idle.warmup()
    assert idle.warmup._compiling is not None, "the next one is compiled on the other thread too"


def test_briefly_short_memory_costs_no_width(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = kernels.Kernels.get, True

    def get(self: kernels.Kernels, *key: Any) -> Any:
        if full:
            raise KernelError("loading product: out of memory")
        return real(self, *key)

    monkeypatch.setattr(kernels.Kernels, "get", get)
    assert idle.finish() == 0
    assert idle.decoder.max_rows == 64
    full = False
    assert idle.finish() > 0, "after the next answer"


def test_a_request_goes_before_the_rest_of_the_warm_up(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up never ends, and fails once."""
    cache, calls = KVCache(demo_fp32.weights, 2), list[int]()
    forward = Forward(demo_fp32.weights, cache)

    def warm_up() -> bool:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory")
        return True

    decoder: Any = PlainDecoder(forward, Span)
    adapters: Any = NumberedAdapters(cache)
    scheduler = CudaScheduler(decoder, lambda spans: single_part_pass(lambda: forward(spans)), cache, adapters, warm_up=warm_up)
    monkeypatch.setattr(cuda, "open_cuda", lambda *_: (scheduler, cache))
    model = replace(demo_fp32, weights=replace(demo_fp32.weights, device=torch.device("cuda")))
    engine = LocalEngine(lambda: model)
    while not calls:
        time.sleep(0.01)
    for _ in range(2):
        stream = engine.stream(Prompt("", (1, 5, 6)), Sampling(temperature=0.0, max_new_tokens=3), Stops())
        assert len(list(stream)) == 3
    engine.close()
