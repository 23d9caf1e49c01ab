"""Dequantization of one matrix at a time to bf16, for products with many rows.

Scope: the `dequantize` kernel of gemv.cu and the workspace that it fills. Knows no prompts and no steps.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.runtime.arguments import DequantizeArguments
from qlora_chat.engines.cuda.weights.model import ceil_div
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Card, Tiling

THREADS = 256
"""Threads of a block: eight warps, each with one block of inputs of a tile."""


class Dequantizer:
    """The workspace that all matrices share."""

    def __init__(self, kernels: Kernels, card: Card, device: torch.device, *, kv8: bool) -> None:
        """`kv8`: the cache is int8, which gemv.cu is compiled for."""
        self.kernels, self.card, self.kv8 = kernels, card, kv8
        self._workspace = torch.zeros(0, dtype=torch.bfloat16, device=device)

    def __call__(self, packed: Packed) -> Tensor:
        """(N, K) bf16 in the checkpoint's order, on PyTorch's current stream; the next call overwrites it."""
        return DequantizeLaunch(packed, self)(torch.cuda.current_stream(packed.tiles.device).cuda_stream).t()

    def workspace(self, size: int) -> Tensor:
        """At least `size` elements; another tensor than before where that was too small."""
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.bfloat16, device=self._workspace.device)
        return self._workspace


class DequantizeLaunch:
    """The launch for one matrix, built once, since every pass needs it."""

    def __init__(self, packed: Packed, dequantizer: Dequantizer) -> None:
        """KernelError where the kernel cannot be compiled."""
        self._packed, self._dequantizer = packed, dequantizer
        self._size = packed.outputs * packed.inputs
        self._grid = ceil_div(packed.row_tiles * packed.blocks, THREADS // 32), 1, 1
        self._arguments = DequantizeArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), row_of=address(packed.row_of), row_tiles=packed.row_tiles,
            k_blocks=packed.blocks,
        )  # fmt: skip
        defines = Tiling.of(packed, 1, dequantizer.card).defines(packed, kv8=dequantizer.kv8)
        self._launch = dequantizer.kernels.get("gemv.cu", "dequantize", defines).bind(THREADS, self._arguments)
        self._workspace: Tensor | None = None
        self._weight = torch.empty(0)

    def __call__(self, stream: int) -> Tensor:
        """(K, N) bf16, a transposed view in the checkpoint's order; the next call, for any matrix, overwrites it."""
        workspace = self._dequantizer.workspace(self._size)
        if workspace is not self._workspace:
            self._workspace, self._arguments.out = workspace, address(workspace)
            self._weight = workspace[: self._size].view(self._packed.outputs, self._packed.inputs).t()
        self._launch(self._grid, stream)
        return self._weight
