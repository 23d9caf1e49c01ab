"""Adapters of the CUDA path, without a card: what they add in prefill, their numbers, and their tables."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights import adapters as adapters_module
from qlora_chat.engines.cuda.weights.adapters import OF_DOWN, OF_GATE_UP, OF_OUT, OF_QKV, CudaAdapters
from qlora_chat.engines.cuda.weights.lora_tiles import MAX_ADAPTERS, LoraLayout, LoraTable
from qlora_chat.engines.cuda.weights.model import CudaWeights, pack_weights
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.weights.shape import FUSED
from tests.fakes import AdaptedDecoder

Parts = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def packed(demo_fp32: LoadedModel) -> CudaWeights:
    return pack_weights(demo_fp32.weights, release=False)


@pytest.fixture
def decoder() -> AdaptedDecoder:
    return AdaptedDecoder()


@pytest.fixture
def adapters(packed: CudaWeights, demo_fp32: LoadedModel, decoder: AdaptedDecoder) -> CudaAdapters:
    return CudaAdapters(packed, decoder, KVCache(demo_fp32.weights, 2))


def random_adapter(packed: CudaWeights, rank: int = 4, without: str = "") -> Parts:
    """A random adapter on every linear of the first layer except `without`."""
    layout, parts = packed.layout(16), {}
    for names, product in zip(FUSED, layout.products, strict=True):
        for name, outputs in zip(names, product.outputs, strict=True):
            if name != without:
                pair = torch.randn(rank, product.inputs).bfloat16(), torch.randn(outputs, rank).bfloat16()
                parts[f"model.layers.0.{name}"] = pair
    return parts


def added(parts: Parts, name: str, x: Tensor, scaling: float) -> Tensor:
    a, b = parts[f"model.layers.0.{name}"]
    return linear(linear(x, a), b) * scaling


def near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() < 1e-2 * expected.norm())


def test_prefill_adds_the_delta_of_each_projection(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = random_adapter(packed)
    adapter = adapters.pack(parts, 0.5)
    for kind, names in ((OF_QKV, FUSED[0]), (OF_OUT, FUSED[1]), (OF_DOWN, FUSED[3])):
        delta = adapter.deltas[0][kind]
        assert delta
        x = torch.randn(3, delta.a.shape[1]).bfloat16()
        expected = torch.cat([added(parts, name, x, 0.5) for name in names], dim=1)
        y = torch.zeros_like(expected)
        delta(x, y)
        assert near(y, expected)
    assert adapter.deltas[1] == (None,) * 5, "the other layers have none"


def test_gate_and_up_are_halved_like_their_dequantized_weights(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = random_adapter(packed)
    adapter, halves = adapters.pack(parts, 2.0), packed.shape.feed_forward // 16 * 8
    first, second = (adapter.deltas[0][kind] for kind in OF_GATE_UP)
    assert first
    assert second
    x = torch.randn(2, first.a.shape[1]).bfloat16()
    gate, up = (added(parts, name, x, 2.0) for name in FUSED[2])
    for of_half, columns in ((first, slice(halves)), (second, slice(halves, None))):
        expected = torch.cat((gate[:, columns], up[:, columns]), dim=1)
        y = torch.zeros_like(expected)
        of_half(x, y)
        assert near(y, expected)


def test_a_projection_without_an_adapter_is_unchanged(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = random_adapter(packed, without=FUSED[0][1])
    of_qkv = adapters.pack(parts, 1.0).deltas[0][OF_QKV]
    assert of_qkv
    queries, keys, _ = packed.layout(16).products[0].outputs
    y = torch.zeros(1, sum(packed.layout(16).products[0].outputs)).bfloat16()
    of_qkv(torch.randn(1, of_qkv.a.shape[1]).bfloat16(), y)
    assert y[:, queries : queries + keys].count_nonzero() == 0
    assert y[:, queries + keys :].count_nonzero() > 0


def test_a_number_is_reused_once_its_adapter_is_unreferenced(packed: CudaWeights, adapters: CudaAdapters) -> None:
    first, second = adapters.pack(random_adapter(packed), 1.0), adapters.pack(random_adapter(packed), 1.0)
    assert (first.number, second.number) == (0, 1)
    adapters._cache.slots[0].adapter = first
    assert (adapters.number(0), adapters.number(1)) == (0, -1)
    adapters._cache.slots[0].adapter = None
    del first
    gc.collect()
    assert adapters.pack(random_adapter(packed), 1.0).number == 0


def test_a_larger_rank_needs_a_new_table_with_all_adapters(
    packed: CudaWeights, adapters: CudaAdapters, decoder: AdaptedDecoder
) -> None:
    small = adapters.pack(random_adapter(packed, rank=8), 1.0)
    large = adapters.pack(random_adapter(packed, rank=20), 1.0)
    assert [table.layout.rank for table in decoder.tables] == [16, 32]
    assert set(decoder.tables[-1]._tiles) == {small.number, large.number}
    adapters.pack(random_adapter(packed, rank=4), 1.0)
    assert len(decoder.tables) == 2, "no new kernels for a smaller one"


def test_too_many_adapters_are_refused_with_a_reason(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = {name: pair for name, pair in random_adapter(packed).items() if name.endswith("q_proj")}
    adapter = [adapters.pack(parts, 1.0) for _ in range(MAX_ADAPTERS)]
    with pytest.raises(ModelError, match="32 are loaded already; unload another first"):
        adapters.pack(parts, 1.0)
    assert len({each.number for each in adapter}) == MAX_ADAPTERS


def test_the_models_own_adapter_is_that_of_every_chat(
    demo_fp32: LoadedModel, packed: CudaWeights, decoder: AdaptedDecoder
) -> None:
    from dataclasses import replace

    from qlora_chat.engines.cuda.weights.lora_tiles import FusedLora

    down = packed.layers[0].mlp_down
    own = FusedLora((torch.randn(8, down.packed.inputs).bfloat16(),), (torch.randn(down.packed.outputs, 8).bfloat16(),))
    first = replace(packed.layers[0], mlp_down=replace(down, own=own))
    weights = replace(packed, layers=(first, *packed.layers[1:]), own_scaling=0.25)
    adapters = CudaAdapters(weights, decoder, KVCache(demo_fp32.weights, 2))
    assert [adapters.number(slot) for slot in (0, 1)] == [0, 0]
    assert len(decoder.tables) == 1


def test_an_adapter_without_shared_memory_is_refused_with_a_reason(
    packed: CudaWeights, adapters: CudaAdapters, decoder: AdaptedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(lora: LoraTable) -> None:
        raise KernelError("40,960 bytes of shared memory a block are too few for a step of one row")

    adapter = adapters.pack(random_adapter(packed, rank=8), 1.0)
    monkeypatch.setattr(decoder, "set_lora", too_few)
    with pytest.raises(ModelError, match="cannot be loaded next to this model: 40,960 bytes of shared memory"):
        adapters.pack(random_adapter(packed, rank=20), 1.0)
    monkeypatch.undo()
    assert adapters.pack(random_adapter(packed, rank=8), 1.0).number != adapter.number, "those that fit still do"


def test_an_adapter_without_memory_leaves_nothing_behind(
    packed: CudaWeights, adapters: CudaAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapters.pack(random_adapter(packed), 1.0)

    def none_left(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for module, name in ((LoraLayout, "tiles"), (adapters_module, "_deltas")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(torch.OutOfMemoryError):
                adapters.pack(random_adapter(packed), 1.0)
        assert adapters._lora is not None
        assert set(adapters._lora._tiles) == set(adapters._loaded) == {adapter.number}


def test_an_adapter_takes_the_memory_that_is_reserved_for_it(packed: CudaWeights, adapters: CudaAdapters) -> None:
    layout = packed.layout(16)
    parts: Parts = {}
    for index in range(len(packed.layers)):
        for names, product in zip(FUSED, layout.products, strict=True):
            for name, outputs in zip(names, product.outputs, strict=True):
                pair = torch.zeros(16, product.inputs).bfloat16(), torch.zeros(outputs, 16).bfloat16()
                parts[f"model.layers.{index}.{name}"] = pair
    adapter = adapters.pack(parts, 1.0)
    assert adapters._lora is not None
    prefill_a = {id(each.a): each.a for layer in adapter.deltas for each in layer if each}
    used = sum(each.nbytes for pair in parts.values() for each in pair)
    used += adapters._lora._tiles[adapter.number].nbytes + sum(each.nbytes for each in prefill_a.values())
    alone = sum(each.nbytes for pair in parts.values() for each in pair)
    assert 0.9 * CudaAdapters.copies < used / alone <= CudaAdapters.copies
