"""How an engine on a card begins, goes without what the card cannot have, and ends: stand-ins for kernels, a real engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from qlora_chat.engines import EngineError, cuda
from qlora_chat.engines.core.kv_cache import SPARE_BYTES, KVCache, fitting_slots, slot_bytes
from qlora_chat.engines.cuda.prefill.reader import Pass
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import NumberedAdapters, PlainDecoder, in_one_part

GREEDY = Sampling(temperature=0.0, max_new_tokens=3)


@pytest.fixture
def on_a_card(demo_fp32: LoadedModel) -> LoadedModel:
    return replace(demo_fp32, weights=replace(demo_fp32.weights, device=torch.device("cuda")))


def asked(engine: LocalEngine) -> int:
    return len(list(engine.stream(Prompt("", (1, 5, 6)), GREEDY, Stops())))


def test_what_the_kernels_could_not_have_after_all_is_read_again(
    demo_fp32: LoadedModel, on_a_card: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, did, said = [on_a_card, demo_fp32], [], []

    def spends(*_: object) -> None:
        raise cuda.WeightsConsumed("its adapter is scaled differently in different places")

    def load() -> LoadedModel:
        did.append("load")
        return models.pop(0)

    monkeypatch.setattr(cuda, "open_cuda", spends)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: did.append("give back"))
    engine = LocalEngine(load, slots=1, notify=said.append)
    assert asked(engine) == 3
    engine.close()
    assert "without the fast kernels: its adapter is scaled differently" in said[0]
    assert did == ["load", "give back", "load"], "a second plan would not count what PyTorch keeps as free"


def test_a_model_that_runs_out_of_memory_as_it_is_opened_says_what_to_try(
    on_a_card: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100.00 MiB")

    monkeypatch.setattr(cuda, "open_cuda", full)
    with pytest.raises(ModelError, match="ran out of memory while the model was opened; .* try --slots 1"):
        LocalEngine(lambda: on_a_card)


@pytest.fixture
def decoder(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> PlainDecoder:
    """Of an engine that takes the demo to be on a card."""
    cache = KVCache(demo_fp32.weights, 2)
    forward = Forward(demo_fp32.weights, cache)
    decoder = PlainDecoder(forward, Span)

    def begin(spans: Sequence[Span]) -> Pass:
        return in_one_part(lambda: forward(spans))

    scheduler = CudaScheduler(decoder, begin, cache, NumberedAdapters(cache))  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "open_cuda", lambda *_: (scheduler, cache))
    return decoder


def test_a_card_that_is_lost_is_said_to_be_at_once_from_then_on(
    on_a_card: LoadedModel, decoder: PlainDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported asynchronously")

    engine = LocalEngine(lambda: on_a_card)
    decoder.fail_at = 2
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    said = r"the graphics card has stopped \(CUDA error: unspecified launch failure\); start qlora-chat again"
    with pytest.raises(EngineError, match=said):
        asked(engine)
    started = decoder.started
    with pytest.raises(EngineError, match=said):
        asked(engine)
    assert decoder.started == started, "nothing is tried on it any more"
    engine.close()


def test_a_step_that_failed_on_a_card_that_goes_on_ends_its_answers_alone(
    on_a_card: LoadedModel, decoder: PlainDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    engine = LocalEngine(lambda: on_a_card)
    decoder.fail_at = 2
    with pytest.raises(EngineError, match="fallen out"):
        asked(engine)
    assert asked(engine) == 3
    engine.close()


def test_slots_leave_room_for_adapters_that_are_still_to_come(demo_fp32: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what PyTorch keeps of what was freed is room."""
    weights = replace(demo_fp32.weights, device=torch.device("cuda"), dtype=torch.bfloat16)
    each = slot_bytes(weights)
    free = SPARE_BYTES + 5 * each
    has: dict[str, Callable[[torch.device], object]] = {
        "mem_get_info": lambda device: (free - each, 0), "memory_reserved": lambda device: 3 * each,
        "memory_allocated": lambda device: 2 * each,
    }  # fmt: skip
    for name, value in has.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert fitting_slots(weights) == 5
    assert fitting_slots(weights, beside=2 * each) == 3
    assert fitting_slots(weights, beside=20 * each) == 1


def test_weights_that_are_to_be_computed_with_in_float32_are_left_to_the_plain_pass(demo_fp32: LoadedModel) -> None:
    from qlora_chat.engines.cuda.weights.packing import CannotPack

    with pytest.raises(CannotPack, match=r"in torch\.float32; the kernels do so in bfloat16"):
        cuda.open_cuda(demo_fp32.weights, 1, None)
