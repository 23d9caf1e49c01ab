"""The kernels of a step, in order.

Scope: the kernels that a step over so many rows needs, and their launches on PyTorch's current stream with the buffers they
read and write. Knows no graphs, no requests and no Row.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import BARRIER_COUNTERS, MAX_SPLITS, RING, Buffers
from qlora_chat.engines.cuda.decode.fused_layers import THREADS as FUSED_THREADS
from qlora_chat.engines.cuda.decode.fused_layers import FusedLayers, fused_layers_arguments, fused_layers_for
from qlora_chat.engines.cuda.decode.rows import COLUMNS, MAX_ROWS
from qlora_chat.engines.cuda.kernels import KernelKey, Kernels
from qlora_chat.engines.cuda.runtime.arguments import (
    ADD_TO_RESIDUAL,
    ROPE_AND_CACHE,
    SILU_TIMES_UP,
    STORE,
    STORE_QKV,
    AttentionArguments,
    EmbedArguments,
    HeadNormsArguments,
    ProductArguments,
    QuantizeKVArguments,
    RowsArguments,
    SampleArguments,
)
from qlora_chat.engines.cuda.runtime.driver import Kernel, KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import WARPS as LORA_WARPS
from qlora_chat.engines.cuda.weights.lora_tiles import LoraTable, sharing_blocks
from qlora_chat.engines.cuda.weights.model import CudaLayer, CudaWeights, Product, ceil_div
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Card, Defines, Tiling

ATTENTION_WARPS = 4
"""Warps of a block of attention.cu."""
FEW_ROWS = 8
"""Rows of one mma instruction: steps with more split their sums differently."""


@dataclass(frozen=True)
class Launches:
    """The kernels of a step over so many rows."""

    weights: CudaWeights
    cache: KVCache
    buffers: Buffers
    kernels: Kernels
    card: Card
    rows: int
    """One of rows.BUCKETS."""
    lora: LoraTable | None
    """Unmerged adapters that rows may have; None: a step without adapters."""

    def load(self) -> None:
        """Compile and load all that `run` launches. What is the same for any number of rows is loaded with one row's."""
        self.kernels.load(self._keys())

    @property
    def compiled(self) -> bool:
        """True if all kernels are compiled."""
        return not self.kernels.missing(self._keys())

    def compile_one(self) -> None:
        """Compile one of the missing kernels, on any thread."""
        self.kernels.compile_one(self._keys())

    def fit(self) -> bool:
        """True if all kernels fit into this card's shared memory."""
        try:
            return bool(self._keys())
        except KernelError:
            return False

    @property
    def rounding(self) -> tuple[int, ...]:
        """Everything about the order of sums that depends on the number of rows: steps where this is equal give a row the same
        bits."""
        head = self._tiling(self.weights.head.packed, None)[0].warps
        if self._fused:
            return 0, head
        products = self.weights.layers[0].products
        few = self.lora is not None and self.rows <= FEW_ROWS  # A x is added by each warp, or by all together
        return self._max_splits, few, *(self._tiling(each.packed, self.lora)[0].warps for each in products), head

    def run(self) -> None:
        """Launch every kernel of a step, in order."""
        partials = self._embed()
        partials = self._run_fused(self._fused) if self._fused else self._run_layers(partials)
        buffers = self.buffers
        self.product(
            self.weights.head, STORE, x=buffers.x, squares_in=buffers.squares[0], squares_count=partials, out=buffers.logits,
            outputs=self.weights.shape.vocabulary,
        )  # fmt: skip
        self.sample()

    # --- compilation ---------------------------------------------------------------------------------------------------

    def _keys(self) -> list[KernelKey]:
        keys: dict[KernelKey, None] = {}
        if self._fused:
            keys["decode_layers.cu", "layers", self._fused.defines] = None
        for product in () if self._fused else self.weights.layers[0].products:
            keys["gemv.cu", "product", self._tiling(product.packed, self.lora)[1]] = None
        keys["gemv.cu", "product", self._tiling(self.weights.head.packed, None)[1]] = None
        if self.rows == 1:
            if self.weights.shape.head_norms:
                keys["head_norms.cu", "norm_and_rope", self._head_norm_defines] = None
            for name in ("quantize_kv", "attention") if self._kv8 else ("attention",):
                keys["attention.cu", name, self._attention_defines] = None
            for name in ("embed", "sample"):
                keys["sampling.cu", name, self._sampling_defines] = None
        return list(keys)

    def _tiling(self, packed: Packed, lora: LoraTable | None) -> tuple[Tiling, Defines]:
        layout = lora.layout if lora else None
        tiling = Tiling.of(packed, self.rows, self.card, layout)
        return tiling, tiling.defines(packed, layout.rank if layout else 0, kv8=self._kv8)

    @property
    def _kv8(self) -> bool:
        return self.cache.key_scales is not None

    @property
    def _attention_defines(self) -> Defines:
        shape = self.weights.shape
        return ("GROUP", shape.heads // shape.kv_heads), ("HEAD_DIM", shape.head_dim), ("KV8", int(self._kv8))

    @property
    def _head_norm_defines(self) -> Defines:
        return ("HEAD_DIM", self.weights.shape.head_dim), ("KV8", int(self._kv8))

    @property
    def _sampling_defines(self) -> Defines:
        return (("VOCABULARY", self.weights.shape.vocabulary),)

    # --- the layers ----------------------------------------------------------------------------------------------------

    @cached_property
    def _fused(self) -> FusedLayers | None:
        """One kernel for all layers of a narrow step with adapters; without them, a kernel per product takes no longer."""
        card = self.card
        if not card.dependent_launch or self.lora is None:
            return None
        return fused_layers_for(self.weights, self.lora, self.rows, card.processors, card.shared_limit, kv8=self._kv8)

    @property
    def _max_splits(self) -> int:
        """Splits of a head's positions: many where few rows leave processors idle, the same up to FEW_ROWS and beyond."""
        few = self.rows <= FEW_ROWS
        return self._blocks_a_head(self.weights.shape.kv_heads * (1 if few else 2 * FEW_ROWS))

    def _run_fused(self, fused: FusedLayers) -> int:
        """Launch all layers in one kernel; returns the number of partial sums of squares that it leaves."""
        card, rows, lora = self.card, self._row_arguments(), self._lora_arguments(fused.lora, fused.prefetched)
        arguments = fused_layers_arguments(fused, self.weights, self.cache, self.buffers, rows, lora, card.processors)
        kernel = self.kernels.get("decode_layers.cu", "layers", fused.defines)
        self._launch(kernel, (card.processors, 1, 1), FUSED_THREADS, arguments, fused.shared_bytes)
        return self.weights.layers[-1].mlp_down.packed.row_tiles

    def _run_layers(self, partials: int) -> int:
        """Launch a kernel per product."""
        layers = self.weights.layers
        norms = [*(layer.attention_norm for layer in layers[1:]), self.weights.norm]
        for index, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            partials = self._layer(index, layer, next_norm, partials)
        return partials

    def _layer(self, index: int, layer: CudaLayer, next_norm: Tensor, partials: int) -> int:
        """Launch one layer; returns the number of partial sums of squares that its last product leaves."""
        buffers, hidden, with_norms = self.buffers, self.weights.shape.hidden, self.weights.shape.head_norms
        self.product(
            layer.qkv, STORE_QKV if with_norms else ROPE_AND_CACHE, x=buffers.x, squares_in=buffers.squares[0],
            squares_count=partials, out=buffers.qkv if with_norms else buffers.queries, outputs=layer.qkv.packed.outputs,
            cache_layer=index, lora_target=(index, 0),
        )  # fmt: skip
        if with_norms:
            self._norm_and_rope(index, layer)
        if self._kv8:
            self._quantize_kv(index)
        self._attention(index)
        partials = self.product(
            layer.attention_out, ADD_TO_RESIDUAL, x=buffers.attended, squares_out=buffers.squares[1], norm=layer.mlp_norm,
            outputs=hidden, lora_target=(index, 1),
        )  # fmt: skip
        self.product(
            layer.gate_up, SILU_TIMES_UP, x=buffers.x, squares_in=buffers.squares[1], squares_count=partials,
            x_out=buffers.activated, outputs=self.weights.shape.feed_forward, lora_target=(index, 2),
        )  # fmt: skip
        return self.product(
            layer.mlp_down, ADD_TO_RESIDUAL, x=buffers.activated, squares_out=buffers.squares[0], norm=next_norm,
            outputs=hidden, lora_target=(index, 3),
        )  # fmt: skip

    # --- one kernel each -----------------------------------------------------------------------------------------------

    def _embed(self) -> int:
        weights, first, buffers = self.weights, self.weights.layers[0], self.buffers
        counters = self.lora.counters(self.rows) if self.lora else 0
        arguments = EmbedArguments(
            embeddings=address(weights.embeddings.rows), scales=address(weights.embeddings.scales),
            tokens=buffers.column("tokens"), norm=address(first.attention_norm), residual=address(buffers.residual),
            x=address(buffers.x), squares=address(buffers.squares[0]), arrivals=address(buffers.counters),
            hidden=weights.shape.hidden, arrival_count=BARRIER_COUNTERS + counters,
        )  # fmt: skip
        kernel = self.kernels.get("sampling.cu", "embed", self._sampling_defines)
        self._launch(kernel, (self.rows, 1, 1), 256, arguments)
        return 1

    def product(
        self, product: Product, epilogue: int, *, x: Tensor, outputs: int, squares_in: Tensor | None = None,
        squares_count: int = 0, squares_out: Tensor | None = None, norm: Tensor | None = None, out: Tensor | None = None,
        x_out: Tensor | None = None, cache_layer: int | None = None, lora_target: tuple[int, int] | None = None,
    ) -> int:  # fmt: skip
        """Launch one product. `lora_target`: layer and number of the product whose adapters apply, None for none. Returns the
        number of partial sums of squares that ADD_TO_RESIDUAL leaves."""
        packed, shape, buffers = product.packed, self.weights.shape, self.buffers
        keys, values = self._key_value_output(cache_layer)
        arguments = ProductArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), bias=address(packed.bias), x=address(x), squares_in=address(squares_in),
            squares_out=address(squares_out), residual=address(buffers.residual), norm=address(norm),
            x_out=address(buffers.x if x_out is None else x_out), out=address(out), keys=address(keys), values=address(values),
            rope_cos_sin=address(buffers.rope_cos_sin), rows=self._row_arguments(), row_tiles=packed.row_tiles,
            k_blocks=packed.blocks, outputs=outputs, count=self.rows, squares_count=squares_count, epilogue=epilogue,
            heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, window=shape.window, eps=shape.norm_eps,
            inverse_hidden=1.0 / shape.hidden,
        )  # fmt: skip
        lora = self.lora if lora_target else None
        tiling, defines = self._tiling(packed, lora)
        blocks = min(self.card.processors, ceil_div(packed.row_tiles, tiling.tiles))
        if lora and lora_target:
            sharing = sharing_blocks(packed, self.card.processors)
            arguments.lora = self._lora_arguments(lora, lora.layout.prefetched(lora_target[1], sharing))
            arguments.lora_product = lora.product_arguments(*lora_target, sharing)
        threads = (tiling.warps + (LORA_WARPS if lora else 0)) * 32
        kernel = self.kernels.get("gemv.cu", "product", defines)
        self._launch(kernel, (blocks, 1, 1), threads, arguments, tiling.shared_bytes)
        return packed.row_tiles

    def _key_value_output(self, cache_layer: int | None) -> tuple[Tensor | None, Tensor | None]:
        """Tensors that the qkv product writes keys and values to: the cache, or the buffer that quantize_kv reads."""
        if cache_layer is None:
            return None, None
        if (new_kv := self.buffers.new_kv) is not None:
            return new_kv[0], new_kv[1]
        return self.cache.keys[cache_layer], self.cache.values[cache_layer]

    def _norm_and_rope(self, index: int, layer: CudaLayer) -> None:
        """Normalize the heads of a step's queries and keys, apply RoPE, and write keys and values as ROPE_AND_CACHE does."""
        shape, buffers = self.weights.shape, self.buffers
        keys, values = self._key_value_output(index)
        arguments = HeadNormsArguments(
            qkv=address(buffers.qkv), query_norm=address(layer.query_norm), key_norm=address(layer.key_norm),
            rope_cos_sin=address(buffers.rope_cos_sin), queries=address(buffers.queries), keys=address(keys),
            values=address(values), rows=self._row_arguments(), heads=shape.heads, kv_heads=shape.kv_heads,
            window=shape.window, eps=shape.norm_eps,
        )  # fmt: skip
        kernel = self.kernels.get("head_norms.cu", "norm_and_rope", self._head_norm_defines)
        self._launch(kernel, (shape.heads + 2 * shape.kv_heads, self.rows, 1), 32, arguments)

    def _quantize_kv(self, index: int) -> None:
        """Quantize a step's keys and values into an int8 cache, all before attention, since rows may be of one chat."""
        shape, cache = self.weights.shape, self.cache.layer(index)
        arguments = QuantizeKVArguments(
            new_kv=address(self.buffers.new_kv), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), rows=self._row_arguments(),
            max_rows=MAX_ROWS, kv_heads=shape.kv_heads, window=shape.window,
        )  # fmt: skip
        kernel = self.kernels.get("attention.cu", "quantize_kv", self._attention_defines)
        self._launch(kernel, (shape.kv_heads, self.rows, 1), 64, arguments)

    def _attention(self, index: int) -> None:
        shape, buffers, cache = self.weights.shape, self.buffers, self.cache.layer(index)
        blocks = self._blocks_a_head(shape.kv_heads * self.rows)
        arguments = AttentionArguments(
            queries=address(buffers.queries), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), out=address(buffers.attended),
            partials=address(buffers.partials), arrived=address(buffers.arrived),
            rows=self._row_arguments(), kv_heads=shape.kv_heads, window=shape.window, max_splits=self._max_splits,
            scale=1.4426950408889634 / shape.head_dim**0.5,
        )  # fmt: skip
        kernel = self.kernels.get("attention.cu", "attention", self._attention_defines)
        self._launch(kernel, (blocks, shape.kv_heads, self.rows), ATTENTION_WARPS * 32, arguments)

    def _blocks_a_head(self, heads: int) -> int:
        """Thread blocks that share the positions of each of so many heads."""
        return max(1, min(MAX_SPLITS, ceil_div(2 * self.card.processors, heads)))

    def sample(self) -> None:
        """Sample the next token of the rows that have sampling settings, and advance those rows to their next position."""
        buffers = self.buffers
        columns = {name: buffers.column(name) for name, *_ in SampleArguments._fields_ if name in COLUMNS}
        arguments = SampleArguments(
            logits=address(buffers.logits), seen=address(buffers.seen), sampled=buffers.sampled.data_ptr(), ring=RING, **columns
        )
        kernel = self.kernels.get("sampling.cu", "sample", self._sampling_defines)
        self._launch(kernel, (self.rows, 1, 1), 1024, arguments)

    def _row_arguments(self) -> ctypes.Structure:
        return RowsArguments(slots=self.buffers.column("slots"), positions=self.buffers.column("positions"))

    def _lora_arguments(self, lora: LoraTable, prefetched: int) -> ctypes.Structure:
        return lora.arguments(self.buffers.counters[BARRIER_COUNTERS:], self.buffers.column("adapters"), prefetched)

    def _launch(
        self, kernel: Kernel, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure, shared_bytes: int = 0
    ) -> None:
        kernel(grid, threads, arguments, shared_bytes=shared_bytes, dependent_launch=self.card.dependent_launch)
