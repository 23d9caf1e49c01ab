"""LoRA tiles: read in the order of the tensor cores, they are A and B again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlora_chat.engines.cuda.weights.lora_tiles import FusedLora, FusedProduct, LoraLayout, LoraTable, padded_rank
from qlora_chat.engines.cuda.weights.packing import CannotPack, interleaved_order, natural_order, rotary_order

RANK, HIDDEN, WIDE = 16, 128, 192
LAYOUT = LoraLayout(
    RANK,
    (
        FusedProduct((128, 64, 64), HIDDEN, torch.tensor(rotary_order(2, 1, 64), dtype=torch.int32)),
        FusedProduct((HIDDEN,), 128, torch.tensor(natural_order(HIDDEN), dtype=torch.int32)),
        FusedProduct((WIDE, WIDE), HIDDEN, torch.tensor(interleaved_order(WIDE), dtype=torch.int32)),
        FusedProduct((HIDDEN,), WIDE, torch.tensor(natural_order(HIDDEN), dtype=torch.int32)),
    ),
)


def random_layer(rank: int = RANK) -> list[FusedLora]:
    return [
        FusedLora(
            tuple(torch.randn(rank, each.inputs).bfloat16() for _ in each.outputs),
            tuple(torch.randn(size, rank).bfloat16() for size in each.outputs),
        )
        for each in LAYOUT.products
    ]


def operand(registers: Tensor) -> Tensor:
    """The 16 x 16 operand of mma.m16n8k16 from what 32 lanes hold of it, (32, 4, 2): PTX's "fragments for A"."""
    matrix = torch.zeros(16, 16)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for register, (row, column) in enumerate(((g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8))):
            matrix[row, column : column + 2] = registers[lane, register]
    return matrix


def lane_inputs(x: Tensor, each: int) -> Tensor:
    """The 16 inputs (16,) of an mma step from x (4 lanes, `each`): a lane has four neighbours, two for columns 2 t and two 8
    on."""
    return torch.cat((x[:, 0:2].flatten(), x[:, 2:4].flatten()))


def as_bf16(part: Tensor) -> Tensor:
    return part.view(torch.bfloat16).float()


@pytest.mark.parametrize("kind", range(4))
def test_tiles_of_a_in_the_order_of_the_tensor_cores_are_a(kind: int) -> None:
    layer, product = random_layer(), LAYOUT.products[kind]
    at = LAYOUT.offsets[2 * kind]
    tiles = as_bf16(LAYOUT.tiles([layer])[at : at + LAYOUT.sizes[2 * kind]]).view(-1, product.inputs // 64, 4, 32, 4, 2)
    x = torch.randn(product.inputs)
    expected = torch.cat([a.float() @ x for a in layer[kind].a if a is not None])
    result = torch.zeros(len(expected))
    for tile in range(tiles.shape[0]):
        for block in range(tiles.shape[1]):
            of_lanes = x[block * 64 :][:64].view(4, 16)
            for step in range(4):
                columns = lane_inputs(of_lanes[:, 4 * step :], 4)
                result[tile * 16 : tile * 16 + 16] += operand(tiles[tile, block, step]) @ columns
    assert torch.allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("kind", range(4))
def test_tiles_of_b_in_the_order_of_the_tensor_cores_are_b(kind: int) -> None:
    layer, product = random_layer(), LAYOUT.products[kind]
    at = LAYOUT.offsets[2 * kind + 1]
    tiles = as_bf16(LAYOUT.tiles([layer])[at : at + LAYOUT.sizes[2 * kind + 1]]).view(-1, RANK // 16, 32, 4, 2)
    ax = torch.randn(RANK)
    expected = torch.cat([b.float() @ ax for b in layer[kind].b if b is not None])[product.row_of.long()]
    result = torch.zeros(len(expected))
    for tile in range(tiles.shape[0]):
        for step in range(RANK // 16):
            columns = lane_inputs(ax[16 * step :][:16].view(4, 4), 4)
            result[tile * 16 : tile * 16 + 16] += operand(tiles[tile, step]) @ columns
    assert torch.allclose(result, expected, atol=1e-3)


def test_a_smaller_rank_is_padded_rank_with_zeros() -> None:
    small = random_layer(rank=8)

    def padded(tensors: tuple[Tensor | None, ...], dimension: int) -> tuple[Tensor, ...]:
        return tuple(torch.cat((each, torch.zeros_like(each)), dimension) for each in tensors if each is not None)

    wide = [FusedLora(padded(each.a, 0), padded(each.b, 1)) for each in small]
    assert torch.equal(LAYOUT.tiles([small]), LAYOUT.tiles([wide]))
    assert padded_rank(8) == RANK


def test_a_part_without_an_adapter_adds_nothing() -> None:
    qkv, *others = random_layer()
    without = FusedLora((qkv.a[0], None, qkv.a[2]), (qkv.b[0], None, qkv.b[2]))
    tiles = as_bf16(LAYOUT.tiles([[without, *others]])[: LAYOUT.sizes[0]])
    assert tiles.view(3, -1)[1].count_nonzero() == 0
    assert tiles.view(3, -1)[2].count_nonzero() > 0


def test_an_unsupported_rank_is_refused() -> None:
    with pytest.raises(CannotPack, match="rank 1000"):
        padded_rank(1000)
    with pytest.raises(CannotPack, match="rank 32; the kernels are made for 16"):
        LAYOUT.tiles([random_layer(rank=32)])


def test_every_layer_and_product_has_its_own_offsets() -> None:
    layers = [random_layer(), random_layer()]
    tiles, lora = LAYOUT.tiles(layers), LoraTable(LAYOUT, torch.device("cpu"))
    for index, layer in enumerate(layers):
        for kind in range(4):
            part = lora.product_arguments(index, kind, 8)
            alone = LAYOUT.tiles([layer])[LAYOUT.offsets[2 * kind] :][: LAYOUT.sizes[2 * kind]]
            assert torch.equal(tiles[part.a :][: len(alone)], alone)
            assert part.number == 4 * index + kind
