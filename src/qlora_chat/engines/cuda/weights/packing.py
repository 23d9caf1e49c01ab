"""Weights in the tiles that gemv.cu reads.

Scope: the layout. A tile is 16 outputs by 64 (bf16: 32) inputs, in the order of the tensor cores' lanes, so that a warp reads
contiguous memory; a decoder layer's outputs are ordered so that the two halves of a head (RoPE), or gate and up, share a tile.
Packing a 7B takes a fraction of a second on the card, so the tiles are not cached on disk.

Shapes: N outputs, K inputs, T row tiles of 16, B blocks of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlora_chat.models.weights.llama import Dense
from qlora_chat.models.weights.nf4 import NF4

KINDS = {"nf4": 0, "bf16": 1, "int8": 2}
"""WEIGHTS in gemv.cu."""
BLOCK_INPUTS = {"nf4": 64, "bf16": 32, "int8": 64}
TILE_ROWS = 16
"""Outputs of a tile."""
INT8_CHUNK_ROWS = 4096
"""Rows quantized at a time: in float32 a whole head would take half a gigabyte, twice."""
MAX_NF4_BLOCKS = 256
"""A row has two absmax factors, enough for 256 blocks of 64."""


class CannotPack(ValueError):
    """These weights do not fit the tiles; the engine does without its own kernels."""


@dataclass(frozen=True)
class Packed:
    """One matrix in tiles."""

    kind: str
    outputs: int
    inputs: int
    tiles: Tensor
    """(T, bytes) uint8."""
    row_of: Tensor
    """(T * 16,) int32: output in each row of the tiles; -1 for padding."""
    nested: Tensor | None = None
    """NF4: (T * 16, 4) float32: absmax factor of the row's first blocks, of its later ones, first later block, offset."""
    code: Tensor | None = None
    """NF4: (16 + 256,) float32: values of the weights' codes, then of the absmax codes."""
    row_scales: Tensor | None = None
    """int8: (T * 16,) float32."""
    bias: Tensor | None = None
    """(T * 16,) float32, in the tiles' order."""
    paired: bool = False
    """Two blocks of inputs are one record: both codes, then both absmax codes; a warp fetches them together."""

    @property
    def row_tiles(self) -> int:
        """T."""
        return len(self.row_of) // TILE_ROWS

    @property
    def blocks(self) -> int:
        """B."""
        return self.inputs // BLOCK_INPUTS[self.kind]


def natural_order(outputs: int) -> list[int]:
    """Outputs in the checkpoint's order, padded to whole tiles with -1."""
    return [*range(outputs), *([-1] * (-outputs % TILE_ROWS))]


def rotary_order(heads: int, kv_heads: int, head_dim: int) -> list[int]:
    """Outputs of q, k and v: a tile of a query or key head has dimensions d to d + 7 and their RoPE partners half a head on."""
    if head_dim % TILE_ROWS:
        raise CannotPack(f"heads of {head_dim} dimensions are not whole tiles")
    half, order = head_dim // 2, []
    for head in range(heads + kv_heads):
        for first in range(head * head_dim, head * head_dim + half, 8):
            order += [*range(first, first + 8), *range(first + half, first + half + 8)]
    values = (heads + kv_heads) * head_dim
    return [*order, *range(values, values + kv_heads * head_dim)]


def interleaved_order(feed_forward: int) -> list[int]:
    """Outputs of gate and up: eight of gate, then the same eight of up."""
    if feed_forward % 8:
        raise CannotPack(f"a feed-forward size of {feed_forward} is not whole tiles")
    order = []
    for first in range(0, feed_forward, 8):
        order += [*range(first, first + 8), *range(feed_forward + first, feed_forward + first + 8)]
    return order


def check_parts(parts: Sequence[NF4 | Dense]) -> None:
    """CannotPack for a product that does not fit the tiles, before anything is packed."""
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        raise CannotPack("NF4 and dense weights in one product")
    inputs = _inputs(parts[0])
    if kinds == {Dense} and inputs % BLOCK_INPUTS["bf16"]:
        raise CannotPack(f"{inputs} inputs are not whole blocks of {BLOCK_INPUTS['bf16']}")
    if kinds == {NF4} and (inputs % 64 or inputs // 64 > MAX_NF4_BLOCKS):
        raise CannotPack(f"{inputs} inputs in NF4 are not whole tiles, or wider than {MAX_NF4_BLOCKS * 64}")
    if any(isinstance(part, NF4) and (part.nested_absmax is None or part.nested_code is None) for part in parts):
        raise CannotPack("the weights are in NF4 without double quantisation")


def pack(parts: Sequence[NF4 | Dense], order: Sequence[int]) -> Packed:
    """Pack the concatenated parts of one product in this order of outputs. CannotPack says why it does not fit."""
    check_parts(parts)
    row_of = torch.tensor(order, dtype=torch.int32, device=_weight(parts[0]).device)
    if all(isinstance(part, NF4) for part in parts):
        packed = _pack_nf4([part for part in parts if isinstance(part, NF4)], row_of)
    else:
        packed = pack_bf16(torch.cat([part.weight for part in parts if isinstance(part, Dense)]), row_of)
    return _with_bias(packed, parts)


def is_paired(blocks: int) -> bool:
    """True if 16 warps can share a row of tiles, two blocks at a time."""
    return blocks % 2 == 0 and blocks >= 32


def pack_bf16(weight: Tensor, row_of: Tensor) -> Packed:
    """Pack weights (N, K)."""
    outputs, inputs = weight.shape
    if inputs % BLOCK_INPUTS["bf16"]:
        raise CannotPack(f"{inputs} inputs are not whole blocks of {BLOCK_INPUTS['bf16']}")
    rows = _rows(weight.bfloat16(), row_of)  # (T * 16, K)
    tiles = rows.view(-1, 2, 8, inputs // 32, 4, 2, 2, 2).permute(0, 3, 5, 2, 4, 6, 1, 7).contiguous()
    tiles = tiles.view(torch.uint8).view(len(row_of) // TILE_ROWS, -1)
    return Packed("bf16", outputs, inputs, tiles, row_of, paired=is_paired(inputs // 32))


def pack_int8(weight: Tensor, row_of: Tensor) -> Packed:
    """Quantize weights (N, K) to int8, round to nearest, and pack them. One scale per output: largest magnitude / 127."""
    outputs, inputs = weight.shape
    if inputs % BLOCK_INPUTS["int8"]:
        raise CannotPack(f"{inputs} inputs are not whole blocks of {BLOCK_INPUTS['int8']}")
    scales = torch.empty(len(row_of), device=weight.device)
    packed = torch.empty((len(row_of) // TILE_ROWS, TILE_ROWS * inputs), dtype=torch.uint8, device=weight.device)
    for first in range(0, len(row_of), INT8_CHUNK_ROWS):
        part = slice(first, min(first + INT8_CHUNK_ROWS, len(row_of)))
        rows = _rows(weight, row_of[part]).float()
        scales[part] = rows.abs().amax(dim=1) / 127
        codes = (rows / scales[part].clamp_min(1e-30)[:, None]).round().to(torch.int8)
        tiles = codes.view(-1, 2, 8, inputs // 64, 4, 2, 2, 4).permute(0, 3, 5, 2, 4, 6, 1, 7).contiguous()
        packed[part.start // TILE_ROWS : part.stop // TILE_ROWS] = tiles.view(torch.uint8).view(-1, TILE_ROWS * inputs)
    return Packed("int8", outputs, inputs, packed, row_of, row_scales=scales, paired=is_paired(inputs // 64))


def select_tiles(packed: Packed, tiles: slice) -> Packed:
    """A matrix of some tiles of gate and up: gate's outputs of these tiles, then up's."""
    rows = slice(tiles.start * TILE_ROWS, tiles.stop * TILE_ROWS)
    half, count = packed.outputs // 2, (tiles.stop - tiles.start) * TILE_ROWS
    row_of, first = packed.row_of[rows], tiles.start * TILE_ROWS // 2
    row_of = torch.where(row_of < half, row_of - first, row_of - half - first + count // 2).contiguous()
    return replace(
        packed, outputs=count, tiles=packed.tiles[tiles], row_of=row_of, nested=_part(packed.nested, rows),
        row_scales=_part(packed.row_scales, rows), bias=_part(packed.bias, rows),
    )  # fmt: skip


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _pack_nf4(parts: Sequence[NF4], row_of: Tensor) -> Packed:
    inputs, blocks, outputs = parts[0].inputs, parts[0].inputs // 64, sum(part.outputs for part in parts)
    if len(row_of) != outputs:
        raise CannotPack(f"{outputs} outputs in NF4 are not whole tiles")
    packed = torch.cat([part.packed.view(part.outputs, inputs // 2) for part in parts])[row_of.long()]
    tiles, paired = len(row_of) // TILE_ROWS, is_paired(blocks)
    together = 2 if paired else 1
    codes = packed.view(-1, 2, 8, blocks, 4, 8).permute(0, 3, 2, 4, 1, 5).reshape(tiles, blocks // together, -1)
    absmax = torch.cat([part.absmax.view(part.outputs, blocks) for part in parts])[row_of.long()]
    absmax = absmax.view(-1, TILE_ROWS, blocks).transpose(1, 2).reshape(tiles, blocks // together, -1)
    nested = torch.cat([_nested_rows(part) for part in parts])[row_of.long()].contiguous()
    first = parts[0]
    assert first.nested_code is not None
    code = torch.cat((first.code.float(), first.nested_code.float()))
    records = torch.cat((codes, absmax), dim=2).view(tiles, -1)
    return Packed("nf4", outputs, inputs, records, row_of, nested, code, paired=paired)


def _nested_rows(part: NF4) -> Tensor:
    """(N, 4): see Packed.nested. Blocks are counted through the whole matrix; 256 of them share a factor."""
    assert part.nested_absmax is not None
    blocks = part.inputs // 64
    first = torch.arange(part.outputs, device=part.packed.device) * blocks
    factors = part.nested_absmax.float()
    boundary = 256 - first % 256  # first block of the row with the next factor
    later = factors[torch.minimum(first // 256 + 1, torch.tensor(len(factors) - 1, device=first.device))]
    return torch.stack((factors[first // 256], later, boundary.float(), torch.full_like(later, part.offset)), dim=1)


def _with_bias(packed: Packed, parts: Sequence[NF4 | Dense]) -> Packed:
    if all(part.bias is None for part in parts):
        return packed
    device = packed.tiles.device
    biases = [torch.zeros(_outputs(part), device=device) if part.bias is None else part.bias.float() for part in parts]
    ordered = _rows(torch.cat(biases)[:, None], packed.row_of)[:, 0].contiguous()
    return replace(packed, bias=ordered)


def _rows(matrix: Tensor, row_of: Tensor) -> Tensor:
    """Rows in the tiles' order, zeros for padding."""
    return matrix[row_of.clamp_min(0).long()] * (row_of >= 0).to(matrix.dtype)[:, None]


def _weight(part: NF4 | Dense) -> Tensor:
    return part.packed if isinstance(part, NF4) else part.weight


def _inputs(part: NF4 | Dense) -> int:
    return part.inputs if isinstance(part, NF4) else part.weight.shape[1]


def _outputs(part: NF4 | Dense) -> int:
    return part.outputs if isinstance(part, NF4) else len(part.weight)
