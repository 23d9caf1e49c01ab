"""Unmerged adapters as a step reads them: the tiles of each, and where in them a product's A and B lie.

Scope: layout and device tables for lora.cuh. Knows no names, no chats and no prompts: those who read prompts multiply with the
same matrices by other means.

Shapes: L layers, r rank, N outputs and K inputs of a product, T its row tiles of 16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.engines.cuda.runtime.arguments import LowRankArguments, LowRankPartArguments
from qlora_chat.engines.cuda.runtime.driver import address
from qlora_chat.engines.cuda.weights.packing import ROWS, CannotPack, Packed

STEP = 16
"""Inputs of one instruction of the tensor cores: ranks are filled up to a multiple of it."""
BLOCK_INPUTS, BLOCK_BYTES = 64, 2048
"""A block of A: 16 of its outputs by 64 inputs."""
MOST_PREFETCHED = 6
"""Blocks of A that shared memory is given room for: what a block of threads has of any product of a 7B."""
MOST_RANK = 256
WARPS, GROUPS_BYTES = 4, 1392
"""Of a block of threads, for adapters, and what LowRankShared in lora.cuh takes."""
SHARED_TILES = 2
"""Row tiles of a product for each block that shares its A x, at the least; as in decode_layers.cu."""
BUFFERS = 3
"""Of sums, as in lora.cuh."""
TABLE = 32
"""Adapters at a time."""


@dataclass(frozen=True)
class Matrices:
    """An adapter's part of one fused product, by the parts that the product is fused from; None: that part has none."""

    a: tuple[Tensor | None, ...]
    """(r, K) each."""
    b: tuple[Tensor | None, ...]
    """(its outputs, r) each."""


@dataclass(frozen=True)
class Fused:
    """What the layout must know of a product, the same in every layer."""

    outputs: tuple[int, ...]
    """Of its parts."""
    inputs: int
    row_of: Tensor
    """(T * 16,) its tiles' order of outputs."""


@dataclass(frozen=True)
class Layout:
    """Where everything is in an adapter's tiles."""

    rank: int
    products: tuple[Fused, ...]
    """Of one layer."""

    @property
    def stride(self) -> int:
        """Most outputs of A in a product."""
        return max(len(each.outputs) for each in self.products) * self.rank

    @property
    def sizes(self) -> list[int]:
        """Bytes of A, then of B, of each product in turn."""
        sizes = []
        for each in self.products:
            sizes += [len(each.outputs) * self.rank * each.inputs * 2, len(each.row_of) * self.rank * 2]
        return sizes

    @property
    def offsets(self) -> list[int]:
        """Where they begin in a layer, and where the layer ends."""
        found = [0]
        for size in self.sizes:
            found.append(found[-1] + size)
        return found

    def share(self, kind: int, blocks: int) -> int:
        """Most blocks of A that one of so many blocks of threads has to multiply with, as lora.cuh shares them out."""
        product = self.products[kind]
        shares = max(1, blocks // (len(product.outputs) * self.rank // ROWS))
        return min(MOST_PREFETCHED, -(-product.inputs // BLOCK_INPUTS // shares))

    def shared_bytes(self, rows: int, prefetched: int) -> int:
        """Of shared memory: who has what, the blocks of A that are fetched ahead, parts of A x, and A x of every row."""
        return GROUPS_BYTES + prefetched * BLOCK_BYTES + WARPS * ROWS * max(8, rows) * 4 + rows * self.stride * 2

    def tiles(self, layers: Sequence[Sequence[Matrices]]) -> Tensor:
        """An adapter's tiles, (bytes,) uint8, from its matrices by layer and product. CannotPack for a larger rank."""
        offsets = self.offsets
        made = torch.empty(len(layers) * offsets[-1], dtype=torch.uint8, device=self.products[0].row_of.device)
        for index, layer in enumerate(layers):  # each into its place: a list of them would take as much again
            of_layer = made[index * offsets[-1] : (index + 1) * offsets[-1]]
            for kind, (product, matrices) in enumerate(zip(self.products, layer, strict=True)):
                of_layer[offsets[2 * kind] : offsets[2 * kind + 1]] = self._down(product, matrices)
                of_layer[offsets[2 * kind + 1] : offsets[2 * kind + 2]] = self._up(product, matrices)
        return made

    def _down(self, product: Fused, matrices: Matrices) -> Tensor:
        device = product.row_of.device
        a = torch.zeros(len(product.outputs), self.rank, product.inputs, dtype=torch.bfloat16, device=device)
        for part, each in zip(a, matrices.a, strict=True):
            if each is not None:
                self._check(len(each))
                part[: len(each)] = each
        tiles = a.view(-1, 2, 8, product.inputs // BLOCK_INPUTS, 4, 4, 2, 2).permute(0, 3, 5, 2, 4, 6, 1, 7)
        return tiles.contiguous().view(torch.uint8).flatten()

    def _up(self, product: Fused, matrices: Matrices) -> Tensor:
        b = torch.zeros(sum(product.outputs), self.rank, dtype=torch.bfloat16, device=product.row_of.device)
        for part, each in zip(b.split(product.outputs), matrices.b, strict=True):
            if each is not None:
                part[:, : each.shape[1]] = each
        tiles = b[product.row_of.long()].view(-1, 2, 8, self.rank // STEP, 4, 2, 2).permute(0, 3, 2, 4, 5, 1, 6)
        return tiles.contiguous().view(torch.uint8).flatten()

    def _check(self, rank: int) -> None:
        if rank > self.rank:
            raise CannotPack(f"an adapter of rank {rank}; the kernels are made for {self.rank}")


def filled_up(rank: int) -> int:
    """The rank that the kernels are compiled for. CannotPack if it is too large for them."""
    if rank > MOST_RANK:
        raise CannotPack(f"an adapter of rank {rank}; the kernels take up to {MOST_RANK}")
    return -(-rank // STEP) * STEP


def rank_of(low_rank: LowRank | None) -> int:
    """What kernels are compiled for; 0 without adapters."""
    return low_rank.layout.rank if low_rank else 0


def sharing_of(packed: Packed, processors: int) -> int:
    """Blocks of threads that share a product's A x, however the product is cut: shares round by themselves."""
    return min(processors, -(-packed.row_tiles // SHARED_TILES))


class LowRank:
    """The adapters on the card, by number."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self._tiles: dict[int, Tensor] = {}
        self._pointers = torch.zeros(TABLE, dtype=torch.int64, device=device)
        self._scales = torch.zeros(TABLE, device=device)

    def put(self, number: int, tiles: Tensor, scale: float) -> None:
        """Rows may have it from the next step on."""
        self._tiles[number] = tiles
        self._pointers[number], self._scales[number] = tiles.data_ptr(), scale

    def drop(self, number: int) -> None:
        """Forget it; no row of a step that is still to run may have it."""
        self._tiles.pop(number, None)

    def counters(self, rows: int) -> int:
        """Int32 that a step of so many rows sums with, all zero before it."""
        return BUFFERS * rows * self.layout.stride * 2

    def arguments(self, counters: Tensor, of_rows: int, prefetched: int) -> ctypes.Structure:
        """LowRank in lora.cuh; `counters` has what `counters` says, `of_rows` is the address of the rows' numbers."""
        return LowRankArguments(
            tiles=address(self._pointers), scales=address(self._scales), of_rows=of_rows, sums=address(counters),
            stride=self.layout.stride, prefetched=prefetched,
        )  # fmt: skip

    def part(self, index: int, kind: int, sharing: int) -> ctypes.Structure:
        """LowRankPart in lora.cuh, of a product in a layer, whose A x so many blocks of threads share."""
        offsets, product = self.layout.offsets, self.layout.products[kind]
        layer = index * offsets[-1]
        return LowRankPartArguments(
            a=layer + offsets[2 * kind], b=layer + offsets[2 * kind + 1], number=4 * index + kind,
            outputs=len(product.outputs) * self.layout.rank, blocks=product.inputs // BLOCK_INPUTS, sharing=sharing,
        )  # fmt: skip
