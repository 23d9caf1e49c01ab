"""The rows of one pass over prompts between its products: their buffers, and the launches of prefill.cu over these.

Scope: everything a pass computes itself but attention; products are given views to read and to write. What Python makes for a
launch is made once a pass, not once a layer: a short prompt would take the host longer than the card.

Shapes: N tokens of all spans together, M rows of buffers, N and what it is filled up with, H hidden, F feed-forward, Q and K
query and key-value heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import CachedLayer, KVCache
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.runtime.arguments import AddNormArguments, RotateArguments, RowsArguments, SiluTimesUpArguments
from qlora_chat.engines.cuda.runtime.driver import address
from qlora_chat.engines.cuda.weights.model import divided
from qlora_chat.models.weights.llama import LlamaShape

THREADS = 256
"""Of a block, as in prefill.cu."""
MULTIPLES = (64, 256), (128, math.inf)
"""Of rows, up to so many: products over as many rows as a prompt happens to have would be new to cuBLAS nearly every time, and
what it loads for new ones takes 7 to 25 ms. The card takes hardly longer for the rows in between."""


def filled_up(tokens: int) -> int:
    """The rows that so many tokens are given."""
    multiple = next(each for each, most in MULTIPLES if tokens <= most)
    return divided(tokens, multiple) * multiple


def filled_up_to(most: int) -> list[int]:
    """All numbers of rows that up to so many tokens are given."""
    return sorted({filled_up(tokens) for tokens in range(1, most + 1)})


class PromptKernels:
    """The kernels of prefill.cu, compiled for a model and its cache."""

    def __init__(self, shape: LlamaShape, feed_forward: int, cache: KVCache, kernels: Kernels, turns: Tensor) -> None:
        """`turns` (window, D / 2, 2) float32: cos and sin. KernelError where they cannot be compiled."""
        self.shape, self.feed_forward, self.turns = shape, feed_forward, turns
        self.layers: Sequence[CachedLayer] = [cache.layer(index) for index in range(shape.layers)]
        defines = ("HEAD_DIM", shape.head_dim), ("KV8", int(cache.key_scales is not None))
        self.add_norm, self.rotate, self.silu_times_up = (
            kernels.get("prefill.cu", name, defines) for name in ("add_norm", "rotate", "silu_times_up")
        )


class PromptRows:
    """The N rows of a pass, and what is done to them between two products."""

    def __init__(
        self, kernels: PromptKernels, residual: Tensor, slots: Tensor, positions: Tensor, widest: int, stream: int
    ) -> None:
        """`residual` (N, H) float32, the embeddings; `slots` and `positions` (N,) int32; `widest`: most outputs that `wide` is
        asked for; `stream`: the driver's handle of PyTorch's current one."""
        shape, count, rows = kernels.shape, len(residual), filled_up(len(residual))
        self._kernels, self._stream, self._count, self._rows = kernels, stream, count, rows
        self._kept = residual, slots, positions  # whose addresses the kernels have

        def empty(rows: int, *columns: int) -> Tensor:
            return torch.empty((rows, *columns), dtype=torch.bfloat16, device=residual.device)

        self.x = empty(rows, shape.hidden)
        """(M, H): what the last norm gave. Here and below, rows from N on hold anything."""
        self.added = empty(rows, shape.hidden)
        """(M, H), for a product: what the next norm adds to the residual."""
        self.queries = empty(count, shape.heads, shape.head_dim)
        """(N, Q, D): what `rotate` gave."""
        self.attended = empty(rows, shape.heads * shape.head_dim)
        """(M, Q * D), for attention."""
        self.activated = empty(rows, kernels.feed_forward)
        """(M, F): what `silu_times_up` gave."""
        self._wide = empty(rows * widest)
        self._norm_arguments = AddNormArguments(
            residual=address(residual), x=address(self.x), hidden=shape.hidden, eps=shape.norm_eps
        )
        self._rotate_arguments = RotateArguments(
            qkv=address(self._wide), turns=address(kernels.turns), queries=address(self.queries),
            rows=RowsArguments(slots=address(slots), positions=address(positions)),
            heads=shape.heads, kv_heads=shape.kv_heads, window=shape.window,
        )  # fmt: skip
        self._silu_arguments = SiluTimesUpArguments(gate_up=address(self._wide), stride=kernels.feed_forward)
        self._add_norm = kernels.add_norm.bound(THREADS, self._norm_arguments)
        self._rotate = kernels.rotate.bound(THREADS, self._rotate_arguments)
        self._silu_times_up = kernels.silu_times_up.bound(THREADS, self._silu_arguments)

    def wide(self, outputs: int) -> Tensor:
        """(M, outputs), for the product that `rotate` or `silu_times_up` follows."""
        return self._wide[: self._rows * outputs].view(self._rows, outputs)

    def norm(self, weight: Tensor, *, add: bool) -> None:
        """residual += added, where that is asked for; x becomes its norm."""
        self._norm_arguments.weight = address(weight)
        self._norm_arguments.addend = address(self.added) if add else None
        self._add_norm((self._count, 1, 1), self._stream)

    def rotate(self, index: int) -> None:
        """q, k and v of layer `index` in `wide` -> keys and values in the cache, and `queries`."""
        layer, arguments = self._kernels.layers[index], self._rotate_arguments
        arguments.keys, arguments.values = address(layer.keys), address(layer.values)
        arguments.key_scales, arguments.value_scales = address(layer.key_scales), address(layer.value_scales)
        self._rotate((self._count, 1, 1), self._stream)

    def silu_times_up(self, first: int, count: int) -> None:
        """Gate and up of so many of F in `wide` -> these of `activated`, from `first` on."""
        self._silu_arguments.out = self.activated.data_ptr() + 2 * first
        self._silu_arguments.feed_forward = count
        self._silu_times_up((divided(count, 2 * THREADS), self._count, 1), self._stream)
