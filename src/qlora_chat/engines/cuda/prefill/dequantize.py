"""One matrix at a time as bf16, for those who multiply many rows with it: prompts.

Scope: the `unpack` kernel of gemv.cu and the workspace that it fills. Knows no prompts and no steps.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.runtime.arguments import UnpackArguments
from qlora_chat.engines.cuda.runtime.driver import address
from qlora_chat.engines.cuda.weights.model import divided
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Card, Geometry

THREADS = 256
"""Of a block of `unpack`: eight warps, a tile's block of inputs each."""


class Unpacker:
    """The workspace that all matrices share."""

    def __init__(self, kernels: Kernels, card: Card, device: torch.device, *, kv8: bool) -> None:
        """`kv8`: the cache has 8 bits, for which the products' source is compiled."""
        self.kernels, self.card, self.kv8 = kernels, card, kv8
        self._workspace = torch.zeros(0, dtype=torch.bfloat16, device=device)

    def __call__(self, packed: Packed) -> Tensor:
        """(N, K) bf16 in the checkpoint's order, on PyTorch's current stream; the next call overwrites it."""
        return Unpacking(packed, self)(torch.cuda.current_stream(packed.tiles.device).cuda_stream).t()

    def workspace(self, size: int) -> Tensor:
        """Of so many elements and more. Another tensor than the last time where that was too small."""
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.bfloat16, device=self._workspace.device)
        return self._workspace


class Unpacking:
    """One matrix's launch, made once: every prompt meets every matrix of the model."""

    def __init__(self, packed: Packed, unpacker: Unpacker) -> None:
        """KernelError where the kernel cannot be compiled."""
        self._packed, self._unpacker = packed, unpacker
        self._size = packed.outputs * packed.inputs
        self._grid = divided(packed.row_tiles * packed.blocks, THREADS // 32), 1, 1
        self._arguments = UnpackArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), row_of=address(packed.row_of), row_tiles=packed.row_tiles,
            k_blocks=packed.blocks,
        )  # fmt: skip
        defines = Geometry.of(packed, 1, unpacker.card).defines(packed, kv8=unpacker.kv8)
        self._launch = unpacker.kernels.get("gemv.cu", "unpack", defines).bound(THREADS, self._arguments)
        self._workspace: Tensor | None = None
        self._weight = torch.empty(0)

    def __call__(self, stream: int) -> Tensor:
        """(K, N) bf16 in the checkpoint's order, as what is multiplied from the left wants it; the next call, of whichever
        matrix, overwrites it."""
        workspace = self._unpacker.workspace(self._size)
        if workspace is not self._workspace:
            self._workspace, self._arguments.out = workspace, address(workspace)
            self._weight = workspace[: self._size].view(self._packed.outputs, self._packed.inputs).t()
        self._launch(self._grid, stream)
        return self._weight
