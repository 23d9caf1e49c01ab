"""All decoder layers of a narrow step with unmerged adapters in one kernel: where it applies, its shared memory, its arguments.

Scope: decode_layers.cu. The order of a step's kernels is in launches.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import MAX_SPLITS, Buffers
from qlora_chat.engines.cuda.decode.rows import MAX_ROWS
from qlora_chat.engines.cuda.runtime.arguments import layers_arguments
from qlora_chat.engines.cuda.weights.lora_tiles import LoraTable, sharing_blocks
from qlora_chat.engines.cuda.weights.model import CudaWeights, ceil_div

MAX_FUSED_ROWS = 2
"""More rows leave too little shared memory for the ring: four take longer than eight with a kernel per product."""
MAX_LAYERS = 40
"""Their addresses are kernel arguments, which may have 4 KiB."""
WARPS, TILES, PAIR_BYTES, HEAD_DIM = 8, 2, 1056, 128
"""Constants of decode_layers.cu."""
THREADS = (WARPS + TILES) * 32
"""Threads of a block: one adapter warp for each tile of an item."""
MIN_STAGES, MAX_STAGES, MIN_STAGES_WIDE = 3, 7, 4
"""Stages of a warp's ring; with fewer than the last, a narrow NF4 table and a longer ring are faster than a wide table."""
SUM_BUFFERS = 4


@dataclass(frozen=True)
class FusedLayers:
    """Compilation and launch of decode_layers.cu for a number of rows."""

    rows: int
    layers: int
    stages: int
    wide: bool
    max_blocks: int
    """Blocks of inputs of the product with most."""
    shared_bytes: int
    lora: LoraTable
    prefetched: int
    """Blocks of an adapter's A that are prefetched."""
    kv8: bool
    """The cache is int8."""

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """Defines of decode_layers.cu."""
        return (
            ("KV8", int(self.kv8)), ("LAYERS", self.layers), ("LORA", self.lora.layout.rank), ("ROWS", self.rows),
            ("STAGES", self.stages), ("WIDE", int(self.wide)),
        )  # fmt: skip


def fused_layers_for(
    weights: CudaWeights, lora: LoraTable, rows: int, processors: int, limit: int, *, kv8: bool
) -> FusedLayers | None:
    """Parameters of the kernel; None where the model, the rows or the card's shared memory do not suit the kernel; each product
    has its own then."""
    shape = weights.shape
    products = [product for layer in weights.layers for product in layer.products]
    suits = (
        rows <= MAX_FUSED_ROWS
        and shape.layers <= MAX_LAYERS
        and (shape.head_dim, shape.kv_heads) == (HEAD_DIM, shape.heads)
        and not shape.head_norms
        and shape.queries == shape.hidden
        and all(each.packed.kind == "nf4" and each.packed.paired for each in products)
        and all(each.packed.row_tiles >= processors for each in products)
        and all(each.packed.bias is None for layer in weights.layers for each in layer.products[1:])
    )
    if not suits:
        return None
    max_blocks = max(each.packed.blocks for each in products)
    prefetched = max(
        lora.layout.prefetched(kind, sharing_blocks(each.packed, processors)) for kind, each in enumerate(products[:4])
    )
    lora_bytes = lora.layout.shared_bytes(rows, prefetched)
    for wide, min_stages in ((True, MIN_STAGES_WIDE), (False, MIN_STAGES)):
        for stages in range(MAX_STAGES, min_stages - 1, -1):
            size = _shared_bytes(rows, stages, wide, max_blocks) + lora_bytes
            if size <= limit:
                return FusedLayers(rows, shape.layers, stages, wide, max_blocks, size, lora, prefetched, kv8)
    return None


def _shared_bytes(rows: int, stages: int, wide: bool, max_blocks: int) -> int:
    table = 65_536 if wide else 32_768
    sums = SUM_BUFFERS * (WARPS + 1) * TILES * 16 * MAX_FUSED_ROWS * 4
    attention = ceil_div(THREADS // 32 * (HEAD_DIM + 2), 4) * 16
    ring = WARPS * stages * TILES * PAIR_BYTES
    return table + 1024 + ring + max(sums, attention) + 16 + 32 + 2 * SUM_BUFFERS * 8 + 16 + max_blocks * 128 * rows


def fused_layers_arguments(
    fused: FusedLayers, weights: CudaWeights, cache: KVCache, buffers: Buffers, rows: ctypes.Structure, lora: ctypes.Structure,
    processors: int,
) -> ctypes.Structure:  # fmt: skip
    """The kernel's arguments; `rows` is Rows in common.cuh, and `lora` Lora in lora.cuh."""
    shape, layers = weights.shape, weights.layers
    arguments = layers_arguments(fused.layers)()
    products = [product.packed for layer in layers for product in layer.products]
    _set(arguments.tiles, [each.tiles for each in products])
    _set(arguments.nested, [each.nested for each in products])
    _set(arguments.biases, [layer.qkv.packed.bias for layer in layers])
    next_norms = [*(layer.attention_norm for layer in layers[1:]), weights.norm]
    _set(arguments.norms, [norm for layer, after in zip(layers, next_norms, strict=True) for norm in (layer.mlp_norm, after)])
    arguments.code, arguments.keys, arguments.values = address(products[0].code), address(cache.keys), address(cache.values)
    for name in ("rope_cos_sin", "x", "activated", "residual", "queries", "partials", "squares", "new_kv"):
        setattr(arguments, name, address(getattr(buffers, name)))
    arguments.arrived = address(buffers.counters)
    arguments.rows = rows
    arguments.layer_elements = cache.keys[0].numel()
    arguments.key_scales, arguments.value_scales = address(cache.key_scales), address(cache.value_scales)
    arguments.row_tiles[:] = [each.row_tiles for each in products[:4]]
    arguments.k_blocks[:] = [each.blocks for each in products[:4]]
    arguments.heads, arguments.window = shape.heads, shape.window
    arguments.hidden, arguments.feed_forward = shape.hidden, shape.feed_forward
    arguments.max_splits = max(1, min(MAX_SPLITS, processors // shape.heads))
    arguments.first_squares, arguments.max_rows, arguments.max_blocks = 1, MAX_ROWS, fused.max_blocks
    arguments.eps, arguments.inverse_hidden = shape.norm_eps, 1.0 / shape.hidden
    arguments.softmax_scale = 1.4426950408889634 / HEAD_DIM**0.5
    parts = [fused.lora.product_arguments(0, kind, sharing_blocks(each, processors)) for kind, each in enumerate(products[:4])]
    arguments.lora, arguments.lora_layer = lora, fused.lora.layout.offsets[-1]
    arguments.lora_outputs[:] = [each.outputs for each in parts]
    arguments.lora_a[:], arguments.lora_b[:] = [each.a for each in parts], [each.b for each in parts]
    return arguments


def _set(array: ctypes.Array[ctypes.c_void_p], tensors: Sequence[Tensor | None]) -> None:
    array[:] = [address(each) for each in tensors]  # type: ignore[assignment]
