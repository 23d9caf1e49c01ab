"""One matrix at a time as bf16, for those who multiply many rows with it: prompts.

Scope: the `unpack` kernel of product.cu and the workspace that it fills. Knows no prompts and no steps.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.engines.cuda.driver import Kernel, address
from qlora_chat.engines.cuda.geometry import Card, Geometry
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.packing import Packed
from qlora_chat.engines.cuda.structures import UnpackArguments
from qlora_chat.engines.cuda.weights import divided


@dataclass(frozen=True)
class _Unpacking:
    """A launch for one matrix, made once: a prompt meets every matrix of the model."""

    packed: Packed
    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: UnpackArguments
    out: Tensor


class Unpacker:
    """Called with a matrix, it launches on PyTorch's current stream and gives what the kernel writes."""

    def __init__(self, kernels: Kernels, card: Card, device: torch.device, *, kv8: bool) -> None:
        """`kv8`: the cache has 8 bits, for which the products' source is compiled."""
        self._kernels, self._card, self._kv8 = kernels, card, kv8
        self._workspace = torch.zeros(0, dtype=torch.bfloat16, device=device)
        self._unpackings: dict[tuple[int, int], _Unpacking] = {}

    def __call__(self, packed: Packed) -> Tensor:
        """(N, K) bf16 in the checkpoint's order, in a workspace that the next call overwrites."""
        key = packed.tiles.data_ptr(), packed.row_tiles
        known = self._unpackings.get(key)
        if known is None:
            known = self._unpackings[key] = self._unpacking(packed)
        known.kernel(known.grid, 256, known.arguments)
        return known.out

    def _unpacking(self, packed: Packed) -> _Unpacking:
        size = packed.outputs * packed.inputs
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.bfloat16, device=self._workspace.device)
            self._unpackings.clear()
        out = self._workspace[:size].view(packed.outputs, packed.inputs)
        arguments = UnpackArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), row_of=address(packed.row_of), out=address(out),
            row_tiles=packed.row_tiles, k_blocks=packed.blocks,
        )  # fmt: skip
        geometry = Geometry.of(packed, 1, self._card)
        kernel = self._kernels.get("product.cu", "unpack", geometry.defines(packed, kv8=self._kv8))
        return _Unpacking(packed, kernel, (divided(packed.row_tiles * packed.blocks, 8), 1, 1), arguments, out)
