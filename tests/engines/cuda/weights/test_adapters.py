"""Adapters on a card, without one: what they add to prompts, their numbers, and tables that grow."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights import adapters as of_cards
from qlora_chat.engines.cuda.weights.adapters import FUSED, OF_DOWN, OF_GATE_UP, OF_OUT, OF_QKV, CudaAdapters
from qlora_chat.engines.cuda.weights.lora_tiles import TABLE, Layout, LowRank
from qlora_chat.engines.cuda.weights.model import CudaWeights, packed_weights
from qlora_chat.models import LoadedModel, ModelError
from tests.fakes import AdaptedDecoder

Parts = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def packed(demo_fp32: LoadedModel) -> CudaWeights:
    return packed_weights(demo_fp32.weights, release=False)


@pytest.fixture
def decoder() -> AdaptedDecoder:
    return AdaptedDecoder()


@pytest.fixture
def adapters(packed: CudaWeights, demo_fp32: LoadedModel, decoder: AdaptedDecoder) -> CudaAdapters:
    return CudaAdapters(packed, decoder, KVCache(demo_fp32.weights, 2))


def made_up(packed: CudaWeights, rank: int = 4, without: str = "") -> Parts:
    """A random adapter on every linear of the first layer but one."""
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


def test_a_prompt_gets_what_each_projection_adds(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = made_up(packed)
    held = adapters.hold(parts, 0.5)
    for place, names in ((OF_QKV, FUSED[0]), (OF_OUT, FUSED[1]), (OF_DOWN, FUSED[3])):
        of_place = held.added[0][place]
        assert of_place
        x = torch.randn(3, of_place.down.shape[1]).bfloat16()
        expected = torch.cat([added(parts, name, x, 0.5) for name in names], dim=1)
        y = torch.zeros_like(expected)
        of_place(x, y)
        assert near(y, expected)
    assert held.added[1] == (None,) * 5, "the other layers have none"


def test_gate_and_up_are_halved_as_their_weights_are_unpacked(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = made_up(packed)
    held, halves = adapters.hold(parts, 2.0), packed.feed_forward // 16 * 8
    first, second = (held.added[0][place] for place in OF_GATE_UP)
    assert first
    assert second
    x = torch.randn(2, first.down.shape[1]).bfloat16()
    gate, up = (added(parts, name, x, 2.0) for name in FUSED[2])
    for of_half, columns in ((first, slice(halves)), (second, slice(halves, None))):
        expected = torch.cat((gate[:, columns], up[:, columns]), dim=1)
        y = torch.zeros_like(expected)
        of_half(x, y)
        assert near(y, expected)


def test_a_projection_without_an_adapter_is_left_alone(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = made_up(packed, without=FUSED[0][1])
    of_qkv = adapters.hold(parts, 1.0).added[0][OF_QKV]
    assert of_qkv
    queries, keys, _ = packed.layout(16).products[0].outputs
    y = torch.zeros(1, sum(packed.layout(16).products[0].outputs)).bfloat16()
    of_qkv(torch.randn(1, of_qkv.down.shape[1]).bfloat16(), y)
    assert y[:, queries : queries + keys].count_nonzero() == 0
    assert y[:, queries + keys :].count_nonzero() > 0


def test_a_number_is_given_again_once_nobody_names_its_adapter(packed: CudaWeights, adapters: CudaAdapters) -> None:
    first, second = adapters.hold(made_up(packed), 1.0), adapters.hold(made_up(packed), 1.0)
    assert (first.number, second.number) == (0, 1)
    adapters._cache.slots[0].adapter = first
    assert (adapters.number(0), adapters.number(1)) == (0, -1)
    adapters._cache.slots[0].adapter = None
    del first
    gc.collect()
    assert adapters.hold(made_up(packed), 1.0).number == 0


def test_a_larger_rank_makes_a_wider_table_that_has_the_others_too(
    packed: CudaWeights, adapters: CudaAdapters, decoder: AdaptedDecoder
) -> None:
    small = adapters.hold(made_up(packed, rank=8), 1.0)
    large = adapters.hold(made_up(packed, rank=20), 1.0)
    assert [table.layout.rank for table in decoder.adapted] == [16, 32]
    assert set(decoder.adapted[-1]._tiles) == {small.number, large.number}
    adapters.hold(made_up(packed, rank=4), 1.0)
    assert len(decoder.adapted) == 2, "no new kernels for a smaller one"


def test_more_than_the_table_takes_are_refused_in_words(packed: CudaWeights, adapters: CudaAdapters) -> None:
    parts = {name: pair for name, pair in made_up(packed).items() if name.endswith("q_proj")}
    held = [adapters.hold(parts, 1.0) for _ in range(TABLE)]
    with pytest.raises(ModelError, match="32 are held already; unload another first"):
        adapters.hold(parts, 1.0)
    assert len({each.number for each in held}) == TABLE


def test_the_models_own_adapter_is_everybodys(demo_fp32: LoadedModel, packed: CudaWeights, decoder: AdaptedDecoder) -> None:
    from dataclasses import replace

    from qlora_chat.engines.cuda.weights.lora_tiles import Matrices

    down = packed.layers[0].mlp_down
    own = Matrices((torch.randn(8, down.packed.inputs).bfloat16(),), (torch.randn(down.packed.outputs, 8).bfloat16(),))
    first = replace(packed.layers[0], mlp_down=replace(down, own=own))
    weights = replace(packed, layers=(first, *packed.layers[1:]), own_scaling=0.25)
    adapters = CudaAdapters(weights, decoder, KVCache(demo_fp32.weights, 2))
    assert [adapters.number(slot) for slot in (0, 1)] == [0, 0]
    assert len(decoder.adapted) == 1


def test_one_that_this_card_has_no_room_for_is_refused_in_words(
    packed: CudaWeights, adapters: CudaAdapters, decoder: AdaptedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(low_rank: LowRank) -> None:
        raise KernelError("40,960 bytes of shared memory a block are too few for a step of one row")

    held = adapters.hold(made_up(packed, rank=8), 1.0)
    monkeypatch.setattr(decoder, "adapt", too_few)
    with pytest.raises(ModelError, match="cannot be held beside this model: 40,960 bytes of shared memory"):
        adapters.hold(made_up(packed, rank=20), 1.0)
    monkeypatch.undo()
    assert adapters.hold(made_up(packed, rank=8), 1.0).number != held.number, "those that fit still do"


def test_one_that_there_is_no_memory_for_leaves_nothing_behind(
    packed: CudaWeights, adapters: CudaAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = adapters.hold(made_up(packed), 1.0)

    def none_left(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for module, name in ((Layout, "tiles"), (of_cards, "_added")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(torch.OutOfMemoryError):
                adapters.hold(made_up(packed), 1.0)
        assert adapters._low_rank is not None
        assert set(adapters._low_rank._tiles) == set(adapters._held) == {held.number}


def test_an_adapter_takes_as_much_as_it_is_said_to(packed: CudaWeights, adapters: CudaAdapters) -> None:
    layout = packed.layout(16)
    parts: Parts = {}
    for index in range(len(packed.layers)):
        for names, product in zip(FUSED, layout.products, strict=True):
            for name, outputs in zip(names, product.outputs, strict=True):
                pair = torch.zeros(16, product.inputs).bfloat16(), torch.zeros(outputs, 16).bfloat16()
                parts[f"model.layers.{index}.{name}"] = pair
    held = adapters.hold(parts, 1.0)
    assert adapters._low_rank is not None
    downs = {id(each.down): each.down for layer in held.added for each in layer if each}
    taken = sum(each.nbytes for pair in parts.values() for each in pair)
    taken += adapters._low_rank._tiles[held.number].nbytes + sum(each.nbytes for each in downs.values())
    alone = sum(each.nbytes for pair in parts.values() for each in pair)
    assert 0.9 * CudaAdapters.copies < taken / alone <= CudaAdapters.copies
