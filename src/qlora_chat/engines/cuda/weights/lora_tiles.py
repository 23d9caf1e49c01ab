"""Unmerged LoRA adapters as decode steps read them: the tiles of each, and the offsets of a product's A and B in them.

Scope: layout and device tables for lora.cuh. Knows no names, no chats and no prefill, which has the matrices in another form.

Shapes: L layers, r rank, N outputs and K inputs of a product, T its row tiles of 16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.cuda.runtime.arguments import LoraArguments, LoraProductArguments
from qlora_chat.engines.cuda.weights.packing import TILE_ROWS, CannotPack, Packed

STEP = 16
"""Inputs of one mma instruction: ranks are padded to a multiple of it."""
BLOCK_INPUTS, BLOCK_BYTES = 64, 2048
"""A block of A: 16 of its outputs by 64 inputs."""
MAX_PREFETCHED = 6
"""Blocks of A that fit in shared memory: a thread block's share of any product of a 7B."""
MAX_RANK = 256
WARPS, GROUPS_BYTES = 4, 1392
"""Adapter warps of a thread block in gemv.cu, and the size of LoraShared in lora.cuh."""
SHARED_TILES = 2
"""Row tiles per thread block that shares a product's A x, at least; as in decode_layers.cu."""
BUFFERS = 3
"""Buffers of sums of A x, as in lora.cuh."""
MAX_ADAPTERS = 32
"""Adapters that may be loaded at a time."""


@dataclass(frozen=True)
class FusedLora:
    """An adapter's matrices for one fused product, by the product's parts; None where it changes nothing."""

    a: tuple[Tensor | None, ...]
    """(r, K) each."""
    b: tuple[Tensor | None, ...]
    """(outputs of the part, r) each."""


@dataclass(frozen=True)
class FusedProduct:
    """Sizes of a fused product, the same in every layer."""

    outputs: tuple[int, ...]
    """Outputs of each part."""
    inputs: int
    row_of: Tensor
    """(T * 16,) order of outputs in its tiles."""


@dataclass(frozen=True)
class LoraLayout:
    """Layout of an adapter's tiles."""

    rank: int
    products: tuple[FusedProduct, ...]
    """Fused products of one layer."""

    @property
    def stride(self) -> int:
        """Outputs of A in the product with most parts."""
        return max(len(each.outputs) for each in self.products) * self.rank

    @property
    def sizes(self) -> list[int]:
        """Bytes of A and of B, for each product in turn."""
        sizes = []
        for each in self.products:
            sizes += [len(each.outputs) * self.rank * each.inputs * 2, len(each.row_of) * self.rank * 2]
        return sizes

    @property
    def offsets(self) -> list[int]:
        """Offsets of A and B in a layer, and the layer's size."""
        return list(accumulate(self.sizes, initial=0))

    def prefetched(self, kind: int, sharing: int) -> int:
        """Blocks of A to prefetch: the share of one of `sharing` thread blocks, as lora.cuh divides them."""
        product = self.products[kind]
        shares = max(1, sharing // (len(product.outputs) * self.rank // TILE_ROWS))
        return min(MAX_PREFETCHED, -(-product.inputs // BLOCK_INPUTS // shares))

    def shared_bytes(self, rows: int, prefetched: int) -> int:
        """Shared memory: groups of rows, prefetched blocks of A, partial sums of A x, and A x of every row."""
        return GROUPS_BYTES + prefetched * BLOCK_BYTES + WARPS * TILE_ROWS * max(8, rows) * 4 + rows * self.stride * 2

    def tiles(self, layers: Sequence[Sequence[FusedLora]]) -> Tensor:
        """An adapter's tiles, (bytes,) uint8, from its matrices by layer and product. CannotPack for a larger rank."""
        offsets = self.offsets
        tiles = torch.empty(len(layers) * offsets[-1], dtype=torch.uint8, device=self.products[0].row_of.device)
        for index, layer in enumerate(layers):  # in place: concatenating would double the memory
            of_layer = tiles[index * offsets[-1] : (index + 1) * offsets[-1]]
            for kind, (product, lora) in enumerate(zip(self.products, layer, strict=True)):
                of_layer[offsets[2 * kind] : offsets[2 * kind + 1]] = self._a_tiles(product, lora)
                of_layer[offsets[2 * kind + 1] : offsets[2 * kind + 2]] = self._b_tiles(product, lora)
        return tiles

    def _a_tiles(self, product: FusedProduct, lora: FusedLora) -> Tensor:
        device = product.row_of.device
        a = torch.zeros(len(product.outputs), self.rank, product.inputs, dtype=torch.bfloat16, device=device)
        for part, each in zip(a, lora.a, strict=True):
            if each is not None:
                if len(each) > self.rank:
                    raise CannotPack(f"an adapter of rank {len(each)}; the kernels are made for {self.rank}")
                part[: len(each)] = each
        tiles = a.view(-1, 2, 8, product.inputs // BLOCK_INPUTS, 4, 4, 2, 2).permute(0, 3, 5, 2, 4, 6, 1, 7)
        return tiles.contiguous().view(torch.uint8).flatten()

    def _b_tiles(self, product: FusedProduct, lora: FusedLora) -> Tensor:
        b = torch.zeros(sum(product.outputs), self.rank, dtype=torch.bfloat16, device=product.row_of.device)
        for part, each in zip(b.split(product.outputs), lora.b, strict=True):
            if each is not None:
                part[:, : each.shape[1]] = each
        tiles = b[product.row_of.long()].view(-1, 2, 8, self.rank // STEP, 4, 2, 2).permute(0, 3, 2, 4, 5, 1, 6)
        return tiles.contiguous().view(torch.uint8).flatten()


def padded_rank(rank: int) -> int:
    """Rank that the kernels are compiled for. CannotPack if it is too large."""
    if rank > MAX_RANK:
        raise CannotPack(f"an adapter of rank {rank}; the kernels take up to {MAX_RANK}")
    return -(-rank // STEP) * STEP


def sharing_blocks(packed: Packed, processors: int) -> int:
    """Thread blocks that share a product's A x, whatever its tiling: the shares determine the rounding."""
    return min(processors, -(-packed.row_tiles // SHARED_TILES))


class LoraTable:
    """Device tables of the loaded adapters, by number."""

    def __init__(self, layout: LoraLayout, device: torch.device) -> None:
        self.layout = layout
        self._tiles: dict[int, Tensor] = {}
        self._pointers = torch.zeros(MAX_ADAPTERS, dtype=torch.int64, device=device)
        self._scales = torch.zeros(MAX_ADAPTERS, device=device)

    def put(self, number: int, tiles: Tensor, scale: float) -> None:
        """Make an adapter available from the next step on."""
        self._tiles[number] = tiles
        self._pointers[number], self._scales[number] = tiles.data_ptr(), scale

    def remove(self, number: int) -> None:
        """Free an adapter; no row of a step still to run may have it."""
        self._tiles.pop(number, None)

    def counters(self, rows: int) -> int:
        """Int32 of the sums of a step of so many rows, zero before it."""
        return BUFFERS * rows * self.layout.stride * 2

    def arguments(self, counters: Tensor, row_adapters: int, prefetched: int) -> ctypes.Structure:
        """Lora in lora.cuh; `counters` of the size that `counters` says, `row_adapters`: address of the rows' adapter
        numbers."""
        return LoraArguments(
            tiles=address(self._pointers), scales=address(self._scales), row_adapters=row_adapters, sums=address(counters),
            stride=self.layout.stride, prefetched=prefetched,
        )  # fmt: skip

    def product_arguments(self, index: int, kind: int, sharing: int) -> ctypes.Structure:
        """LoraProduct in lora.cuh, of a layer's product whose A x so many thread blocks share."""
        offsets, product = self.layout.offsets, self.layout.products[kind]
        layer = index * offsets[-1]
        return LoraProductArguments(
            a=layer + offsets[2 * kind], b=layer + offsets[2 * kind + 1], number=4 * index + kind,
            outputs=len(product.outputs) * self.layout.rank, blocks=product.inputs // BLOCK_INPUTS, sharing=sharing,
        )  # fmt: skip
