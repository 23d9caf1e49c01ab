"""Opening an engine on a card, falling back, and failing: fake kernels, a real engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from qlora_chat.engines import EngineError, cuda
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import RESERVED_BYTES, KVCache, fitting_slots, slot_bytes
from qlora_chat.engines.cuda.prefill.reader import PrefillPass
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import NumberedAdapters, PlainDecoder, single_part_pass

GREEDY = Sampling(temperature=0.0, max_new_tokens=3)


@pytest.fixture
def on_a_card(demo_fp32: LoadedModel) -> LoadedModel:
    return replace(demo_fp32, weights=replace(demo_fp32.weights, device=torch.device("cuda")))


def answer_tokens(engine: LocalEngine) -> int:
    return len(list(engine.stream(Prompt("", (1, 5, 6)), GREEDY, Stops())))


def test_weights_consumed_before_a_failure_are_loaded_again(
    demo_fp32: LoadedModel, on_a_card: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, events, lines = [on_a_card, demo_fp32], [], []

    def consume(*_: object) -> None:
        raise cuda.WeightsConsumed("its adapter is scaled differently in different places")

    def load() -> LoadedModel:
        events.append("load")
        return models.pop(0)

    monkeypatch.setattr(cuda, "open_cuda", consume)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty cache"))
    engine = LocalEngine(load, slots=1, notify=lines.append)
    assert answer_tokens(engine) == 3
    engine.close()
    assert "without the fast kernels: its adapter is scaled differently" in lines[0]
    assert events == ["load", "empty cache", "load"], "or the next plan would not count memory cached by PyTorch as free"


def test_a_model_that_does_not_fit_says_what_to_try(on_a_card: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100.00 MiB")

    monkeypatch.setattr(cuda, "open_cuda", full)
    with pytest.raises(ModelError, match="ran out of memory while the model was opened; .* try --slots 1"):
        LocalEngine(lambda: on_a_card)


@pytest.fixture
def decoder(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> PlainDecoder:
    """The decoder of an engine with the demo on a fake card."""
    cache = KVCache(demo_fp32.weights, 2)
    forward = Forward(demo_fp32.weights, cache)
    decoder = PlainDecoder(forward, Span)

    def begin(spans: Sequence[Span]) -> PrefillPass:
        return single_part_pass(lambda: forward(spans))

    scheduler = CudaScheduler(decoder, begin, cache, NumberedAdapters(cache))  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "open_cuda", lambda *_: (scheduler, cache))
    return decoder


def test_a_lost_card_fails_every_later_request_at_once(
    on_a_card: LoadedModel, decoder: PlainDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported asynchronously")

    engine = LocalEngine(lambda: on_a_card)
    decoder.fail_at = 2
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    message = r"the graphics card has stopped \(CUDA error: unspecified launch failure\); start qlora-chat again"
    with pytest.raises(EngineError, match=message):
        answer_tokens(engine)
    started = decoder.started
    with pytest.raises(EngineError, match=message):
        answer_tokens(engine)
    assert decoder.started == started, "the card is not tried again"
    engine.close()


def test_a_failed_step_on_a_working_card_ends_only_its_answers(
    on_a_card: LoadedModel, decoder: PlainDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    engine = LocalEngine(lambda: on_a_card)
    decoder.fail_at = 2
    with pytest.raises(EngineError, match="fallen out"):
        answer_tokens(engine)
    assert answer_tokens(engine) == 3
    engine.close()


def test_slots_leave_room_for_adapters_still_to_be_loaded(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory cached by PyTorch counts as free."""
    weights = replace(demo_fp32.weights, device=torch.device("cuda"), dtype=torch.bfloat16)
    each = slot_bytes(weights)
    free = RESERVED_BYTES + 5 * each
    memory: dict[str, Callable[[torch.device], object]] = {
        "mem_get_info": lambda device: (free - each, 0), "memory_reserved": lambda device: 3 * each,
        "memory_allocated": lambda device: 2 * each,
    }  # fmt: skip
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert fitting_slots(weights) == 5
    assert fitting_slots(weights, reserve=2 * each) == 3
    assert fitting_slots(weights, reserve=20 * each) == 1


def test_a_float32_model_is_left_to_the_eager_pass(demo_fp32: LoadedModel) -> None:
    from qlora_chat.engines.cuda.weights.packing import CannotPack

    with pytest.raises(CannotPack, match=r"compute type is torch\.float32; the kernels compute in bfloat16"):
        cuda.open_cuda(demo_fp32.weights, 1, None)
