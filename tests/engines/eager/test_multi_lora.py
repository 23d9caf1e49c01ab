"""The eager pass over chats with different adapters: where there is no compiler, and on cards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import build as cpu_build
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.eager.multi_lora import MultiLoraForward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.weights.llama import build
from qlora_chat.models.weights.shape import PROJECTIONS, LlamaShape
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.cpu.test_forward import CPU, ODD, random_tensors
from tests.engines.cpu.test_lora import matrices, random_adapter


def test_each_row_gets_its_own_adapter() -> None:
    torch.manual_seed(8)
    tensors, shape = random_tensors(ODD), LlamaShape.from_config(ODD)
    plain = build(tensors, shape, CPU, torch.float32)
    adapters = [
        random_adapter(rank, modules, tensors, torch.float32) for rank, modules in ((8, PROJECTIONS), (3, PROJECTIONS[2:4]))
    ]
    cache = KVCache(plain, 4)
    forward = MultiLoraForward(plain, cache)
    packed = [forward.pack(matrices(adapter), adapter.scaling) for adapter in adapters]
    for slot, lora in enumerate((packed[0], None, packed[1], packed[0])):
        cache.slots[slot].adapter = lora
    texts = [torch.randint(0, 101, (5 + slot,)).tolist() for slot in range(4)]
    got = forward([Span(slot, 0, ids) for slot, ids in enumerate(texts)])
    for row, adapter in enumerate((adapters[0], None, adapters[1], adapters[0])):
        alone = build(tensors, shape, CPU, torch.float32, adapter)
        expected = Forward(alone, KVCache(alone, 1))([Span(0, 0, texts[row])])[0]
        torch.testing.assert_close(got[row], expected, atol=1e-3, rtol=1e-3)


def test_without_a_compiler_adapters_still_switch_by_request(
    base_fp32: LoadedModel, prompt_for: Callable[..., Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same greedy tokens as the compiled pass, in fp32."""
    prompt, greedy = prompt_for("What is the capital of France?"), Sampling(temperature=0.0, max_new_tokens=16)

    def answers() -> tuple[str | None, list[list[int | None]]]:
        engine = LocalEngine(lambda: base_fp32, slots=2)
        engine.load_adapter("chat", BUNDLED / "adapter")
        streams = [engine.stream(prompt, greedy, Stops(frozenset({2})), name) for name in ("chat", None)]
        tokens = [[piece.token_id for piece in stream] for stream in streams]
        engine.close()
        return engine.info.computed_by, tokens

    _, compiled = answers()
    monkeypatch.setattr(cpu_build, "find_compiler", lambda: None)
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(tmp_path))
    by, tokens = answers()
    assert by == "torch"
    assert tokens == compiled
    assert tokens[0] != tokens[1]
