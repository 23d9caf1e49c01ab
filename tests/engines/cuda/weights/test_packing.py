"""Packing: every weight is where the kernels read it, and dequantizes to the values of bitsandbytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qlora_chat.engines.cuda.weights.packing import (
    CannotPack,
    Packed,
    check_parts,
    interleaved_order,
    natural_order,
    pack,
    pack_bf16,
    pack_int8,
    rotary_order,
)
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Dense
from qlora_chat.models.weights.nf4 import NF4


def lanes(packed: Packed, bytes_a_lane: int, steps: int, dtype: torch.dtype) -> Tensor:
    """What each lane of a warp reads of a tile: (T, B, steps, g, t, values)."""
    return packed.tiles.view(dtype).view(packed.row_tiles, packed.blocks, steps, 8, 4, bytes_a_lane // dtype.itemsize)


def test_bf16_tiles_are_the_operands_of_the_tensor_cores() -> None:
    weight = torch.randn(32, 96).bfloat16()
    read = lanes(pack_bf16(weight, torch.tensor(natural_order(32), dtype=torch.int32)), 16, 2, torch.bfloat16)
    for tile, block, step, g, t in ((0, 0, 0, 0, 0), (1, 2, 1, 7, 3), (1, 1, 0, 4, 2)):
        k = block * 32 + 8 * t + 4 * step
        rows = weight[tile * 16 + g], weight[tile * 16 + g + 8]
        expected = [
            rows[0][k],
            rows[0][k + 1],
            rows[1][k],
            rows[1][k + 1],
            rows[0][k + 2],
            rows[0][k + 3],
            rows[1][k + 2],
            rows[1][k + 3],
        ]
        assert read[tile, block, step, g, t].tolist() == [each.item() for each in expected]


def test_int8_tiles_are_within_half_a_step_of_the_weights() -> None:
    weight = torch.randn(16, 128)
    packed = pack_int8(weight, torch.tensor(natural_order(16), dtype=torch.int32))
    assert packed.row_scales is not None
    codes = packed.tiles.view(torch.int8).view(1, 2, 2, 8, 4, 2, 2, 4)  # T, B, half, g, t, step, row half, element
    rows = codes.permute(0, 6, 3, 1, 4, 2, 5, 7).reshape(16, 128)
    assert ((rows * packed.row_scales[:, None] - weight).abs() <= packed.row_scales[:, None] * 0.5001).all()


@pytest.fixture(scope="module")
def stored() -> NF4:
    checkpoint, name = Checkpoint(BUNDLED / "base"), "model.layers.3.mlp.down_proj.weight"
    return NF4.read(checkpoint, name, torch.device("cpu"), torch.bfloat16)


def dequantized(packed: Packed) -> Tensor:
    """(N, K) float32, as gemv.cu reads a tile: codes, absmax codes, and the factor of the block that the row is in."""
    assert packed.nested is not None
    assert packed.code is not None
    blocks, together = packed.blocks, 2 if packed.paired else 1
    records = packed.tiles.view(packed.row_tiles, blocks // together, together * 528)
    codes = records[..., : together * 512].reshape(packed.row_tiles, blocks, 8, 4, 2, 8)  # T, B, g, t, row half, bytes
    codes = codes.permute(0, 4, 2, 1, 3, 5).reshape(packed.row_tiles * 16, blocks, 32)
    nibbles = torch.stack((codes >> 4, codes & 15), dim=-1).reshape(packed.row_tiles * 16, blocks, 64)
    absmax = records[..., together * 512 :].reshape(packed.row_tiles, blocks, 16).transpose(1, 2).reshape(-1, blocks)
    later = torch.arange(blocks) >= packed.nested[:, 2:3]
    factor = torch.where(later, packed.nested[:, 1:2], packed.nested[:, 0:1])
    scale = packed.code[16:][absmax.int()] * factor + packed.nested[:, 3:4]
    rows = (packed.code[:16][nibbles.int()] * scale[..., None]).reshape(packed.row_tiles * 16, packed.inputs)
    values = torch.empty(packed.outputs, packed.inputs)
    values[packed.row_of.long()] = rows
    return values


@pytest.mark.filterwarnings("ignore")
def test_nf4_tiles_stand_for_what_bitsandbytes_dequantises(stored: NF4) -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    checkpoint, name = Checkpoint(BUNDLED / "base"), "model.layers.3.mlp.down_proj.weight"
    parts = {key: checkpoint[key] for key in checkpoint if key.startswith(f"{name}.")}
    state: Any = QuantState.from_dict(parts, torch.device("cpu"))
    state.dtype = torch.float32
    expected = dequantize_4bit(stored.packed, state)
    assert torch.equal(dequantized(pack([stored], natural_order(stored.outputs))), expected), (
        "double-quantised scales included, to the bit"
    )


def test_paired_blocks_hold_the_same_values(stored: NF4) -> None:
    outputs, inputs = 16, 2048
    blocks = outputs * inputs // 64
    wide = NF4(
        outputs, inputs, stored.packed.flatten()[: outputs * inputs // 2], stored.code, stored.absmax[:blocks],
        torch.rand(2) + 0.5, stored.nested_code, stored.offset, torch.bfloat16, stored.state,
    )  # fmt: skip
    packed = pack([wide], natural_order(outputs))
    assert packed.paired
    bytes_ = wide.packed.view(outputs, inputs // 2)
    nibbles = torch.stack((bytes_ >> 4, bytes_ & 15), dim=-1).view(-1, 64)
    assert wide.nested_code is not None
    assert wide.nested_absmax is not None
    scales = wide.nested_code[wide.absmax.int()] * wide.nested_absmax.repeat_interleave(256) + wide.offset
    assert torch.equal(dequantized(packed), (wide.code[nibbles.int()] * scales[:, None]).view(outputs, inputs))


def test_rope_partners_share_a_tile() -> None:
    order = rotary_order(heads=2, kv_heads=1, head_dim=64)
    assert order[:16] == [*range(8), *range(32, 40)]
    assert order[128 : 128 + 16] == [*range(128, 136), *range(160, 168)], "the key"
    assert order[192:] == list(range(192, 256)), "values are in the checkpoint's order"
    assert sorted(order) == list(range(256))


def test_gate_and_up_of_the_same_output_share_a_tile() -> None:
    order = interleaved_order(24)
    assert order[:16] == [*range(8), *range(24, 32)]
    assert sorted(order) == list(range(48))


def test_weights_that_do_not_fit_are_refused_with_a_reason(stored: NF4) -> None:
    with pytest.raises(CannotPack, match="not whole blocks of 32"):
        pack_bf16(torch.zeros(16, 40), torch.tensor(natural_order(16), dtype=torch.int32))
    with pytest.raises(CannotPack, match="NF4 and dense"):
        pack([stored, Dense(torch.zeros(stored.outputs, stored.inputs))], natural_order(2 * stored.outputs))


def test_a_product_too_wide_for_the_tiles_is_refused_before_anything_is_packed(stored: NF4) -> None:
    """A 33B's last product: the others of its layer would have been packed, and freed, before it."""
    from dataclasses import replace

    check_parts([stored])
    with pytest.raises(CannotPack, match="17920 inputs in NF4 are not whole tiles, or wider than 16384"):
        check_parts([replace(stored, inputs=17_920)])
