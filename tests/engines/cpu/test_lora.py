"""Chats with different adapters, or none, share a compiled pass: each gets its own and does not depend on the others."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from torch import Tensor

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu.forward import CpuForward, PackedLora
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.weights.llama import Adapter, LlamaWeights, build
from qlora_chat.models.weights.shape import PROJECTIONS, LlamaShape
from tests.engines.cpu.test_forward import CPU, ODD, ULP, assert_near, compiled, in_float32, in_four_bits, random_tensors

RANKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "wide": (40, PROJECTIONS),
    "narrow": (5, PROJECTIONS),
    "attention": (16, PROJECTIONS[:4:2]),
    "last": (33, PROJECTIONS[-1:]),
}
"""Ranks that fill no panel, and one that fills it; everything, queries and values, one product's only."""


def random_adapter(rank: int, modules: tuple[str, ...], base: dict[str, Tensor], dtype: torch.dtype) -> Adapter:
    """Strong enough to change the answers."""
    tensors = {}
    for index in range(ODD["num_hidden_layers"]):
        for module in modules:
            rows, inputs = base[f"model.layers.{index}.{module}.weight"].shape
            prefix = f"base_model.model.model.layers.{index}.{module}.lora_"
            tensors[f"{prefix}A.weight"] = (torch.randn(rank, inputs) / inputs**0.5).to(dtype)
            tensors[f"{prefix}B.weight"] = (torch.randn(rows, rank) / rank**0.5).to(dtype)
    return Adapter(tensors, 0.7)


def matrices(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the linear's name."""
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in adapter.tensors.items()}
    names = [name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name]
    return {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}


def pack(forward: CpuForward, adapter: Adapter) -> PackedLora:
    return forward.pack(matrices(adapter), adapter.scaling)


class Host:
    """Odd sizes in one form of weights, compiled, with every adapter of RANKS and the reference of each in float32."""

    def __init__(self, kind: str, isa: str) -> None:
        torch.manual_seed(6)
        tensors, shape = random_tensors(ODD), LlamaShape.from_config(ODD)
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        adapters = {name: random_adapter(*each, tensors, dtype) for name, each in RANKS.items()}
        stored = in_four_bits(tensors) if kind == "four bits" else tensors

        def weights(adapter: Adapter | None) -> LlamaWeights:
            return build(stored, shape, CPU, dtype, adapter)

        self.tolerance = {"float32": ULP * 5, "bf16": 0.03, "four bits": 0.08}[
            kind
        ]  # adapters as strong as the base, in 8 bits
        self.forward = compiled(weights(None), 33, isa)
        self.exact: dict[str | None, Forward] = {
            name: Forward(in_float32(weights(adapter)), KVCache(weights(None), 1))
            for name, adapter in [(None, None), *adapters.items()]
        }
        self.packed: dict[str | None, PackedLora | None] = {
            None: None,
            **{name: pack(self.forward, each) for name, each in adapters.items()},
        }

    def run(self, spans: list[Span], names: list[str | None]) -> Tensor:
        """The pass with each span's chat under its own adapter."""
        for span, name in zip(spans, names, strict=True):
            self.forward.cache.slots[span.slot].adapter = self.packed[name]
        return self.forward(spans)


@pytest.fixture(scope="module", params=["four bits", "bf16", "float32"])
def host(request: pytest.FixtureRequest, compiled_isa: str) -> Host:
    return Host(request.param, compiled_isa)


def texts_of(count: int, least: int = 3) -> list[list[int]]:
    return [torch.randint(0, 101, (least + slot % 7,)).tolist() for slot in range(count)]


NAMES: list[str | None] = [None, "wide", "narrow", "narrow", "attention", None, "last", "wide", "wide"]


def test_each_chat_gets_what_its_own_adapter_computes(host: Host) -> None:
    """Prompts, then single tokens, in one pass: against W x + 0.7 B (A x) in float32."""
    texts = texts_of(len(NAMES), 20)
    got = host.run([Span(slot, 0, ids) for slot, ids in enumerate(texts)], NAMES)
    expected = {name: host.exact[name]([Span(0, 0, texts[NAMES.index(name)])]) for name in host.exact}
    for name, logits in expected.items():
        assert_near(got[NAMES.index(name)][None], logits, host.tolerance)
        assert name is None or (logits - expected[None]).std() > 0.3 * logits.std(), "a chat without it would show"
    got = host.run([Span(slot, len(ids), [slot]) for slot, ids in enumerate(texts)], NAMES)
    for slot, (name, ids) in enumerate(zip(NAMES, texts, strict=True)):
        assert_near(got[slot][None], host.exact[name]([Span(0, 0, [*ids, slot])]), host.tolerance)


@pytest.mark.parametrize("count", [2, 3, 5, 9, 32])
def test_a_row_is_the_same_bit_for_bit_whatever_adapters_its_company_has(count: int, host: Host) -> None:
    texts, names = texts_of(count), (NAMES * 4)[:count]
    alone = [host.run([Span(32, 0, ids)], [name])[0] for ids, name in zip(texts, names, strict=True)]
    assert torch.equal(host.run([Span(slot, 0, ids) for slot, ids in enumerate(texts)], names), torch.stack(alone))
    writing = [Span(slot, len(ids), [slot]) for slot, ids in enumerate(texts)]
    ends = [host.run([span], [name])[0] for span, name in zip(writing, names, strict=True)]
    assert torch.equal(host.run(writing, names), torch.stack(ends))


@pytest.mark.parametrize("name", ["wide", "last"])
def test_a_prompt_under_an_adapter_gives_the_same_bits_in_any_chunks(name: str, host: Host) -> None:
    ids = torch.randint(0, 101, (150,)).tolist()
    whole = host.run([Span(0, 0, ids, logits=20)], [name])
    host.run([Span(1, 0, ids[:70])], [name])
    host.run([Span(1, 70, ids[70:130])], [name])
    one_by_one = [host.run([Span(1, at, ids[at : at + 1])], [name])[0] for at in range(130, 150)]
    assert torch.equal(torch.stack(one_by_one), whole)


def test_adapters_come_and_go_beside_the_same_packed_base() -> None:
    """A chat without one stays the same to the bit, and 150 loads leave no memory behind."""
    torch.manual_seed(7)
    tensors = random_tensors(ODD)
    forward = compiled(build(tensors, LlamaShape.from_config(ODD), CPU), 2)
    adapter = random_adapter(64, PROJECTIONS, tensors, torch.bfloat16)
    spans = [Span(0, 0, [1, 2, 3]), Span(1, 0, [1, 2, 3])]
    plain, packed = forward(spans)[0], forward.bytes_packed
    forward.cache.slots[1].adapter = pack(forward, adapter)
    first = forward(spans)
    assert torch.equal(first[0], plain)
    assert not torch.equal(first[1], plain)
    before = 0
    for turn in range(150):
        if turn == 30:
            gc.collect()
            before = psutil.Process().memory_info().rss
        forward.cache.slots[1].adapter = pack(forward, adapter)
        assert torch.equal(forward(spans), first)
    each = sum(tensor.nbytes for tensor in adapter.tensors.values())
    assert psutil.Process().memory_info().rss - before < 30 * each, f"of {120 * each} that were packed"
    forward.cache.slots[1].adapter = None
    assert torch.equal(forward(spans)[1], plain)
    assert forward.bytes_packed == packed


def test_a_damaged_adapter_shows_in_its_own_chats_only(host: Host) -> None:
    spans, names = [Span(slot, 0, [4, 5, 6]) for slot in range(3)], ["narrow", "damaged", None]
    broken = random_adapter(*RANKS["narrow"], random_tensors(ODD), torch.float32)
    next(iter(broken.tensors.values()))[2, 3] = float("nan")
    host.packed["damaged"] = pack(host.forward, broken)
    logits = host.run(spans, names)
    assert torch.isnan(logits[1]).all()
    assert torch.equal(logits[::2], host.run(spans[::2], names[::2]))
