"""Activations of a prefill pass, and the launches of prefill.cu between its matrix products.

Scope: everything that a pass computes itself but attention; products get views to read and to write. Launches are built once
per pass, not once per layer: for a short prompt the host would take longer than the card.

Shapes: N tokens of all spans together, M rows of buffers (N and padding), H hidden, F feed-forward, Q and K query and key-value
heads, D head dimension, W window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.core.kv_cache import CachedLayer, KVCache
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.runtime.arguments import (
    AddNormArguments,
    RopeAndCacheArguments,
    RowsArguments,
    SiluTimesUpArguments,
)
from qlora_chat.engines.cuda.weights.model import ceil_div
from qlora_chat.models.weights.llama import LlamaShape

THREADS = 256
"""Threads of a block, as in prefill.cu."""
PADDING = (64, 256), (128, math.inf)
"""Multiples of which the rows are, up to so many tokens. Unpadded, nearly every prompt would have a number of rows that is new
to cuBLAS, which takes 7 to 25 ms to load its kernels; the card takes hardly longer for the padding."""


def padded_rows(tokens: int) -> int:
    """Rows of a pass over so many tokens, with padding."""
    multiple = next(multiple for multiple, limit in PADDING if tokens <= limit)
    return ceil_div(tokens, multiple) * multiple


def padded_row_counts(limit: int) -> list[int]:
    """All values of `padded_rows` for up to `limit` tokens."""
    return sorted({padded_rows(tokens) for tokens in range(1, limit + 1)})


class PrefillKernels:
    """The kernels of prefill.cu, compiled for a model and its cache."""

    def __init__(self, shape: LlamaShape, cache: KVCache, kernels: Kernels, rope_cos_sin: Tensor) -> None:
        """`rope_cos_sin` (W, D / 2, 2) float32. KernelError where they cannot be compiled."""
        self.shape, self.rope_cos_sin = shape, rope_cos_sin
        self.layers: Sequence[CachedLayer] = [cache.layer(index) for index in range(shape.layers)]
        defines = ("HEAD_DIM", shape.head_dim), ("KV8", int(cache.key_scales is not None))
        self.add_norm, self.rope_and_cache, self.silu_times_up = (
            kernels.get("prefill.cu", name, defines) for name in ("add_norm", "rope_and_cache", "silu_times_up")
        )


class Activations:
    """The N rows of a pass and the operations between two products. In buffers of M rows, those from N on have any value."""

    def __init__(
        self, kernels: PrefillKernels, residual: Tensor, slots: Tensor, positions: Tensor, max_outputs: int, stream: int
    ) -> None:
        """`residual` (N, H) float32, the embeddings; `slots` and `positions` (N,) int32; `max_outputs`: columns that
        `projected` may have; `stream`: the driver's handle of PyTorch's current one."""
        shape, count, rows = kernels.shape, len(residual), padded_rows(len(residual))
        self._kernels, self._stream, self._count, self._rows = kernels, stream, count, rows
        self._references = residual, slots, positions  # the kernels have their addresses

        def empty(rows: int, *columns: int) -> Tensor:
            return torch.empty((rows, *columns), dtype=torch.bfloat16, device=residual.device)

        self.x = empty(rows, shape.hidden)
        """(M, H): output of the last norm."""
        self.addend = empty(rows, shape.hidden)
        """(M, H): output of a product, which the next norm adds to the residual."""
        self.queries = empty(count, shape.heads, shape.head_dim)
        """(N, Q, D): output of `rope_and_cache`."""
        self.attended = empty(rows, shape.queries)
        """(M, Q * D): output of attention."""
        self.activated = empty(rows, kernels.shape.feed_forward)
        """(M, F): output of `silu_times_up`."""
        self._projected = empty(rows * max_outputs)
        self._norm_arguments = AddNormArguments(
            residual=address(residual), x=address(self.x), hidden=shape.hidden, eps=shape.norm_eps
        )
        self._rope_arguments = RopeAndCacheArguments(
            qkv=address(self._projected), rope_cos_sin=address(kernels.rope_cos_sin), queries=address(self.queries),
            rows=RowsArguments(slots=address(slots), positions=address(positions)),
            heads=shape.heads, kv_heads=shape.kv_heads, window=shape.window, eps=shape.norm_eps,
        )  # fmt: skip
        self._silu_arguments = SiluTimesUpArguments(gate_up=address(self._projected), stride=kernels.shape.feed_forward)
        self._add_norm = kernels.add_norm.bind(THREADS, self._norm_arguments)
        self._rope_and_cache = kernels.rope_and_cache.bind(THREADS, self._rope_arguments)
        self._silu_times_up = kernels.silu_times_up.bind(THREADS, self._silu_arguments)

    def projected(self, outputs: int) -> Tensor:
        """(M, outputs): output of the product before `rope_and_cache` or `silu_times_up`."""
        return self._projected[: self._rows * outputs].view(self._rows, outputs)

    def norm(self, weight: Tensor, *, add: bool) -> None:
        """Compute residual += addend (with `add`) and x = its RMS norm."""
        self._norm_arguments.weight = address(weight)
        self._norm_arguments.addend = address(self.addend) if add else None
        self._add_norm((self._count, 1, 1), self._stream)

    def rope_and_cache(self, index: int, query_norm: Tensor | None, key_norm: Tensor | None) -> None:
        """Apply the norms of heads (Qwen3; None in families without) and RoPE to q and k of layer `index` in `projected`; write
        `queries`, and keys and values to the cache."""
        layer, arguments = self._kernels.layers[index], self._rope_arguments
        arguments.keys, arguments.values = address(layer.keys), address(layer.values)
        arguments.key_scales, arguments.value_scales = address(layer.key_scales), address(layer.value_scales)
        arguments.query_norm, arguments.key_norm = address(query_norm), address(key_norm)
        self._rope_and_cache((self._count, 1, 1), self._stream)

    def silu_times_up(self, first: int, count: int) -> None:
        """Compute columns `first` to `first + count` of `activated` from the gate and up outputs in `projected`."""
        self._silu_arguments.out = self.activated.data_ptr() + 2 * first
        self._silu_arguments.feed_forward = count
        self._silu_times_up((ceil_div(count, 2 * THREADS), self._count, 1), self._stream)
