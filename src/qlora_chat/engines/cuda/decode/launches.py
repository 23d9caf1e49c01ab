"""The kernels of a step, in order.

Scope: which kernels a step over so many rows needs compiled, and their launches on PyTorch's current stream with the buffers
they read and write. Knows no graphs, no requests and no host's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.buffers import BARRIER, MOST_SPLITS, RING, Buffers
from qlora_chat.engines.cuda.decode.fused_layers import THREADS as STACK_THREADS
from qlora_chat.engines.cuda.decode.fused_layers import Stack, stack_arguments, stack_for
from qlora_chat.engines.cuda.decode.rows import MOST_ROWS
from qlora_chat.engines.cuda.kernels import Kernels, Wanted
from qlora_chat.engines.cuda.runtime.arguments import (
    ADD_TO_RESIDUAL,
    ROTATE_AND_CACHE,
    SILU_TIMES_UP,
    STORE,
    AttendArguments,
    ChooseArguments,
    EmbedArguments,
    ProductArguments,
    RowsArguments,
    SettleArguments,
)
from qlora_chat.engines.cuda.runtime.driver import KernelError, address
from qlora_chat.engines.cuda.weights.lora_tiles import WARPS as LORA_WARPS
from qlora_chat.engines.cuda.weights.lora_tiles import LowRank, rank_of, sharing_of
from qlora_chat.engines.cuda.weights.model import CudaLayer, CudaWeights, Product, divided
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Card, Defines, Geometry

ATTEND_WARPS = 4
"""Of a block of attention.cu."""
FEW_ROWS = 8
"""What a product multiplies at once: steps of more split their sums otherwise."""


@dataclass(frozen=True)
class Launches:
    """Of a step over so many rows."""

    weights: CudaWeights
    cache: KVCache
    buffers: Buffers
    kernels: Kernels
    card: Card
    rows: int
    """One of rows.BUCKETS."""
    low_rank: LowRank | None
    """The adapters that rows may have beside the layers' products; None: the step knows of none."""

    def prepare(self) -> None:
        """Compile all that `run` launches, side by side. What is the same for any number of rows comes with one row's."""
        self.kernels.prepare(self._wanted())

    @property
    def compiled(self) -> bool:
        """Whether all of them have been."""
        return self.kernels.compiled(self._wanted())

    def compile(self) -> None:
        """One of those that have not been; on any thread."""
        self.kernels.compile(self._wanted())

    def fit(self) -> bool:
        """Whether this card's shared memory has room for all of them."""
        try:
            return bool(self._wanted())
        except KernelError:
            return False

    @property
    def rounding(self) -> tuple[int, ...]:
        """How what is summed is split, which is how it rounds: steps where this is equal compute a row alike, to the bit.
        Nothing else that is summed depends on the rows' number."""
        head = self._cut(self.weights.head.packed, None)[0].warps
        if self._stack:
            return 0, head
        products = self.weights.layers[0].products
        few = self.low_rank is not None and self.rows <= FEW_ROWS  # A x is added up by each warp, or by all together
        return self._most_splits, few, *(self._cut(each.packed, self.low_rank)[0].warps for each in products), head

    def run(self) -> None:
        """Every kernel of a step, in order."""
        partials = self._embed()
        partials = self._run_stack(self._stack) if self._stack else self._run_layers(partials)
        buffers = self.buffers
        self.product(
            self.weights.head, STORE, x=buffers.x, squares_in=buffers.squares[0], squares_count=partials, out=buffers.logits,
            outputs=self.weights.shape.vocabulary,
        )  # fmt: skip
        self.choose()

    # --- what has to be compiled ---------------------------------------------------------------------------------------

    def _wanted(self) -> list[Wanted]:
        found: dict[Wanted, None] = {}
        if self._stack:
            found["decode_layers.cu", "layers", self._stack.defines] = None
        for product in () if self._stack else self.weights.layers[0].products:
            found["gemv.cu", "product", self._cut(product.packed, self.low_rank)[1]] = None
        found["gemv.cu", "product", self._cut(self.weights.head.packed, None)[1]] = None
        if self.rows == 1:
            for name in ("settle", "attend") if self._kv8 else ("attend",):
                found["attention.cu", name, self._attend_defines] = None
            for name in ("embed", "choose"):
                found["sampling.cu", name, self._choose_defines] = None
        return list(found)

    def _cut(self, packed: Packed, low_rank: LowRank | None) -> tuple[Geometry, Defines]:
        geometry = Geometry.of(packed, self.rows, self.card, low_rank.layout if low_rank else None)
        return geometry, geometry.defines(packed, rank_of(low_rank), kv8=self._kv8)

    @property
    def _kv8(self) -> bool:
        return self.cache.key_scales is not None

    @property
    def _attend_defines(self) -> Defines:
        shape = self.weights.shape
        return ("GROUP", shape.heads // shape.kv_heads), ("HEAD_DIM", shape.head_dim), ("KV8", int(self._kv8))

    @property
    def _choose_defines(self) -> Defines:
        return (("VOCABULARY", self.weights.shape.vocabulary),)

    # --- the layers ----------------------------------------------------------------------------------------------------

    @cached_property
    def _stack(self) -> Stack | None:
        """For narrow steps beside adapters; without, a kernel a product takes no longer."""
        card = self.card
        if not card.early or self.low_rank is None:
            return None
        return stack_for(self.weights, self.low_rank, self.rows, card.processors, card.shared_limit, kv8=self._kv8)

    @property
    def _most_splits(self) -> int:
        """In which a head's past is attended to: many where few rows leave processors idle, the same for all of a kind."""
        few = self.rows <= FEW_ROWS
        return self._blocks_a_head(self.weights.shape.kv_heads * (1 if few else 2 * FEW_ROWS))

    def _run_stack(self, stack: Stack) -> int:
        """All layers in one kernel. Returns how many partial sums of squares it leaves, as the layers' products do."""
        of_step, card = self.buffers, self.card
        buffers = {
            "turns": of_step.turns, "x": of_step.x, "activated": of_step.activated, "residual": of_step.residual,
            "queries": of_step.queries, "partials": of_step.partials, "squares": of_step.squares,
            "arrived": of_step.counters, "newest": of_step.newest,
        }  # fmt: skip
        rows, lora = self._row_arguments(), stack.low_rank.arguments(*self._of_adapters, stack.prefetched)
        arguments = stack_arguments(stack, self.weights, self.cache, buffers, rows, lora, card.processors, MOST_ROWS)
        kernel = self.kernels.get("decode_layers.cu", "layers", stack.defines)
        kernel((card.processors, 1, 1), STACK_THREADS, arguments, shared_bytes=stack.shared_bytes, early=card.early)
        return self.weights.layers[-1].mlp_down.packed.row_tiles

    def _run_layers(self, partials: int) -> int:
        """A kernel a product."""
        layers = self.weights.layers
        norms = [*(layer.attention_norm for layer in layers[1:]), self.weights.norm]
        for index, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            partials = self._layer(index, layer, next_norm, partials)
        return partials

    def _layer(self, index: int, layer: CudaLayer, next_norm: Tensor, partials: int) -> int:
        """Returns how many partial sums of squares the last product leaves."""
        buffers, hidden = self.buffers, self.weights.shape.hidden
        self.product(
            layer.qkv, ROTATE_AND_CACHE, x=buffers.x, squares_in=buffers.squares[0], squares_count=partials,
            out=buffers.queries, outputs=layer.qkv.packed.outputs, cache_layer=index, place=(index, 0),
        )  # fmt: skip
        if self._kv8:
            self._settle(index)
        self._attend(index)
        partials = self.product(
            layer.attention_out, ADD_TO_RESIDUAL, x=buffers.attended, squares_out=buffers.squares[1], norm=layer.mlp_norm,
            outputs=hidden, place=(index, 1),
        )  # fmt: skip
        self.product(
            layer.gate_up, SILU_TIMES_UP, x=buffers.x, squares_in=buffers.squares[1], squares_count=partials,
            x_out=buffers.activated, outputs=self.weights.feed_forward, place=(index, 2),
        )  # fmt: skip
        return self.product(
            layer.mlp_down, ADD_TO_RESIDUAL, x=buffers.activated, squares_out=buffers.squares[0], norm=next_norm,
            outputs=hidden, place=(index, 3),
        )  # fmt: skip

    # --- one kernel each -----------------------------------------------------------------------------------------------

    def _embed(self) -> int:
        weights, first, buffers = self.weights, self.weights.layers[0], self.buffers
        counted = self.low_rank.counters(self.rows) if self.low_rank else 0
        arguments = EmbedArguments(
            embeddings=address(weights.embeddings.rows), scales=address(weights.embeddings.scales),
            tokens=buffers.field("tokens"), norm=address(first.attention_norm), residual=address(buffers.residual),
            x=address(buffers.x), squares=address(buffers.squares[0]), arrivals=address(buffers.counters),
            hidden=weights.shape.hidden, arrival_count=BARRIER + counted,
        )  # fmt: skip
        kernel = self.kernels.get("sampling.cu", "embed", self._choose_defines)
        kernel((self.rows, 1, 1), 256, arguments, early=self.card.early)
        return 1

    def product(
        self, product: Product, epilogue: int, *, x: Tensor, outputs: int, squares_in: Tensor | None = None,
        squares_count: int = 0, squares_out: Tensor | None = None, norm: Tensor | None = None, out: Tensor | None = None,
        x_out: Tensor | None = None, cache_layer: int | None = None, place: tuple[int, int] | None = None,
    ) -> int:  # fmt: skip
        """Launch one product, which is the `place`'s layer's product of that number and may have adapters; returns how many
        partial sums of squares it leaves, if any."""
        packed, shape, buffers = product.packed, self.weights.shape, self.buffers
        keys, values = self._newest_in(cache_layer)
        arguments = ProductArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), bias=address(packed.bias), x=address(x), squares_in=address(squares_in),
            squares_out=address(squares_out), residual=address(buffers.residual), norm=address(norm),
            x_out=address(buffers.x if x_out is None else x_out), out=address(out),
            keys=address(keys), values=address(values),
            turns=address(buffers.turns), rows=self._row_arguments(), row_tiles=packed.row_tiles, k_blocks=packed.blocks,
            outputs=outputs, count=self.rows, squares_count=squares_count, epilogue=epilogue, heads=shape.heads,
            kv_heads=shape.kv_heads, head_dim=shape.head_dim, window=shape.window, eps=shape.norm_eps,
            inverse_hidden=1.0 / shape.hidden,
        )  # fmt: skip
        low_rank = self.low_rank if place else None
        geometry, defines = self._cut(packed, low_rank)
        blocks = min(self.card.processors, divided(packed.row_tiles, geometry.tiles))
        if low_rank and place:
            sharing = sharing_of(packed, self.card.processors)
            arguments.lora = low_rank.arguments(*self._of_adapters, low_rank.layout.share(place[1], sharing))
            arguments.part = low_rank.part(*place, sharing)
        threads = (geometry.warps + (LORA_WARPS if low_rank else 0)) * 32
        kernel = self.kernels.get("gemv.cu", "product", defines)
        kernel((blocks, 1, 1), threads, arguments, shared_bytes=geometry.shared_bytes, early=self.card.early)
        return packed.row_tiles

    def _newest_in(self, cache_layer: int | None) -> tuple[Tensor | None, Tensor | None]:
        """Where a product leaves keys and values: in the cache, or where `settle` takes them from."""
        if cache_layer is None:
            return None, None
        if (newest := self.buffers.newest) is not None:
            return newest[0], newest[1]
        return self.cache.keys[cache_layer], self.cache.values[cache_layer]

    def _settle(self, index: int) -> None:
        """A step's keys and values into an 8-bit cache: all of them before anybody attends, as rows may be of one chat."""
        shape, cache = self.weights.shape, self.cache.layer(index)
        arguments = SettleArguments(
            newest=address(self.buffers.newest), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), rows=self._row_arguments(),
            most_rows=MOST_ROWS, kv_heads=shape.kv_heads, window=shape.window,
        )  # fmt: skip
        kernel = self.kernels.get("attention.cu", "settle", self._attend_defines)
        kernel((shape.kv_heads, self.rows, 1), 64, arguments, early=self.card.early)

    def _attend(self, index: int) -> None:
        shape, buffers, cache = self.weights.shape, self.buffers, self.cache.layer(index)
        blocks = self._blocks_a_head(shape.kv_heads * self.rows)
        arguments = AttendArguments(
            queries=address(buffers.queries), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), out=address(buffers.attended),
            partials=address(buffers.partials), arrived=address(buffers.arrived),
            rows=self._row_arguments(), kv_heads=shape.kv_heads, window=shape.window, most_splits=self._most_splits,
            scale=1.4426950408889634 / shape.head_dim**0.5,
        )  # fmt: skip
        kernel = self.kernels.get("attention.cu", "attend", self._attend_defines)
        kernel((blocks, shape.kv_heads, self.rows), ATTEND_WARPS * 32, arguments, early=self.card.early)

    def _blocks_a_head(self, heads: int) -> int:
        """That attend to the past of each of so many heads side by side."""
        return max(1, min(MOST_SPLITS, divided(2 * self.card.processors, heads)))

    def choose(self) -> None:
        """From the logits, the next token of the rows that are ready; each row goes on to its next position."""
        buffers = self.buffers
        fields = {name: buffers.field(name) for name in ("tokens", "positions", "counts", "slots", "ready", "temperatures",
                                                          "top_ps", "penalties", "top_ks", "seeds")}  # fmt: skip
        arguments = ChooseArguments(
            logits=address(buffers.logits), seen=address(buffers.seen), drawn=buffers.drawn.data_ptr(), ring=RING, **fields
        )
        kernel = self.kernels.get("sampling.cu", "choose", self._choose_defines)
        kernel((self.rows, 1, 1), 1024, arguments, early=self.card.early)

    def _row_arguments(self) -> RowsArguments:
        return RowsArguments(slots=self.buffers.field("slots"), positions=self.buffers.field("positions"))

    @property
    def _of_adapters(self) -> tuple[Tensor, int]:
        """What a step sums with, and the rows' numbers."""
        return self.buffers.counters[BARRIER:], self.buffers.field("adapters")
