"""A decode step as one CUDA graph: tokens in, next tokens out, everything between on the device.

Scope: buffers, the order of the kernels, graphs of 1 to 64 rows. A row is one token of one chat: a chat's newest (which is
`ready` to choose the next) or one of a prompt that is being read. Sampling is part of the graph, so that a step needs
nothing from the host but to be started. Knows no requests and no text.

Shapes: R rows, H hidden, F feed-forward, V vocabulary, Q and K query and key-value heads, D head dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.cuda import driver
from qlora_chat.engines.cuda.driver import Kernel, address
from qlora_chat.engines.cuda.geometry import WARPS, Defines, Geometry
from qlora_chat.engines.cuda.kernels import Kernels, Wanted
from qlora_chat.engines.cuda.low_rank import WARPS as LORA_WARPS
from qlora_chat.engines.cuda.low_rank import LowRank, rank_of
from qlora_chat.engines.cuda.packing import Packed
from qlora_chat.engines.cuda.rows import BUCKETS, FIELDS, MOST_ROWS, Row, columns_of
from qlora_chat.engines.cuda.stack import Stack, stack_arguments, stack_for
from qlora_chat.engines.cuda.structures import (
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
    UnpackArguments,
)
from qlora_chat.engines.cuda.weights import CudaLayer, CudaWeights, Product, divided

MOST_PARTIALS = 256
"""As in common.cuh."""
RING = 64
"""Tokens of a row that the host may be behind."""
MOST_SPLITS = 16
BARRIER = 4
"""Int32 before the adapters' counters: the first is the barrier's in layers.cu."""


@dataclass(frozen=True)
class _Unpacking:
    """A launch of `unpack` for one matrix, made once: a prompt meets every matrix of the model."""

    packed: Packed
    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: UnpackArguments
    out: Tensor


class Decoder:
    """Runs rows through the weights, writing keys and values into the cache and choosing tokens."""

    def __init__(self, weights: CudaWeights, cache: KVCache, cache_folder: Path | None) -> None:
        """Compile what one to eight rows need; the rest is compiled when it is first asked for. KernelError says why not."""
        self.weights, self.cache = weights, cache
        self._device = weights.norm.device
        properties = torch.cuda.get_device_properties(self._device)
        self._processors = properties.multi_processor_count
        self._shared_limit = properties.shared_memory_per_block_optin
        self._early = properties.major >= 9
        self._kv8 = cache.key_scales is not None
        self.kernels = Kernels(cache_folder, self._shared_limit)
        self._low_rank: LowRank | None = None
        self._adapted = False
        """Whether a row has an adapter; steps without any have graphs of their own, which know of none."""
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(self._device)
        self._events = [torch.cuda.Event() for _ in range(RING)]
        self._steps = 0
        self._make_buffers()
        self._compile(1)

    # --- rows ----------------------------------------------------------------------------------------------------------

    def adapt(self, low_rank: LowRank) -> None:
        """Let rows have the adapters of this table from the next `put` on; nothing may be under way."""
        self.wait()
        now, self._low_rank, self._adapted = self._adapted, low_rank, True
        self._counters = torch.zeros(BARRIER + self._counted(MOST_ROWS), dtype=torch.int32, device=self._device)
        self._graphs.clear()  # the counters have moved
        self._compile(1)
        self._adapted = now

    def catch_up(self) -> None:
        """What PyTorch's current stream has been given comes before the steps that follow."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def put(self, rows: Sequence[Row]) -> None:
        """What the following steps work on; the device goes on from there by itself, a token a step."""
        self._adapted = any(row.adapter >= 0 for row in rows)
        packed = torch.from_numpy(columns_of(rows)).pin_memory()
        with torch.cuda.stream(self._stream):
            self._rows.copy_(packed, non_blocking=True)

    def see(self, slot: int, tokens: Sequence[int]) -> None:
        """The tokens, and only these, count as seen for the repetition penalty of the chat in a slot."""
        seen = np.zeros(self._seen.shape[1] * 32, dtype=np.uint8)
        seen[np.asarray(tokens, dtype=np.int64)] = 1
        words = torch.from_numpy(np.packbits(seen, bitorder="little").view(np.int32)).pin_memory()
        with torch.cuda.stream(self._stream):
            self._seen[slot].copy_(words, non_blocking=True)

    def start(self, count: int) -> int:
        """Begin a step over the first `count` rows; the number to give to `finish`."""
        bucket = next(each for each in BUCKETS if each >= count)
        graph = self._graphs.get((bucket, self._adapted)) or self._capture(bucket)
        with torch.cuda.stream(self._stream):
            graph.replay()
        number = self._steps
        self._events[number % RING].record(self._stream)
        self._steps += 1
        return number

    def finish(self, number: int) -> None:
        """Wait until a step has ended."""
        self._events[number % RING].synchronize()

    def wait(self) -> None:
        """Wait until everything that was begun on `stream` has ended, prompts included."""
        self._stream.synchronize()

    def drawn(self, row: int, count: int) -> int:
        """The token that a finished step chose for a row as its chat's draw number `count`; -1: logits are not finite."""
        return int(self._drawn_array[row, count % RING])

    @property
    def logits(self) -> Tensor:
        """(64, V) float32: of the step that ended last."""
        return self._logits

    @property
    def stream(self) -> torch.cuda.Stream:
        """On which steps run; a prompt must be read on it, too."""
        return self._stream

    def unpack(self, packed: Packed) -> Tensor:
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
            self._workspace = torch.empty(size, dtype=torch.bfloat16, device=self._device)
            self._unpackings.clear()
        out = self._workspace[:size].view(packed.outputs, packed.inputs)
        arguments = UnpackArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), row_of=address(packed.row_of), out=address(out),
            row_tiles=packed.row_tiles, k_blocks=packed.blocks,
        )  # fmt: skip
        geometry = Geometry.of(packed, 1, self._shared_limit)
        kernel = self.kernels.get("product.cu", "unpack", geometry.defines(packed, kv8=self._kv8))
        return _Unpacking(packed, kernel, (divided(packed.row_tiles * packed.blocks, 8), 1, 1), arguments, out)

    # --- buffers and kernels -------------------------------------------------------------------------------------------

    def _make_buffers(self) -> None:
        shape, device = self.weights.shape, self._device

        def floats(*size: int) -> Tensor:
            return torch.zeros(size, device=device)

        def halves(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.bfloat16, device=device)

        width = shape.heads * shape.head_dim
        self._residual, self._x = floats(MOST_ROWS, shape.hidden), halves(MOST_ROWS, shape.hidden)
        self._queries, self._attended = floats(MOST_ROWS, width), halves(MOST_ROWS, width)
        self._activated = halves(MOST_ROWS, self.weights.feed_forward)
        self._squares = floats(2, MOST_ROWS, MOST_PARTIALS)
        self._newest = floats(2, MOST_ROWS, shape.kv_heads, shape.head_dim) if self._kv8 else None  # keys and values of a step
        self._logits = floats(MOST_ROWS, shape.vocabulary)
        self._partials = floats(MOST_ROWS * shape.heads * MOST_SPLITS * (shape.head_dim + 2))
        self._arrived = torch.zeros(MOST_ROWS, shape.kv_heads, dtype=torch.int32, device=device)
        self._rows = torch.zeros((len(FIELDS) + 2) * MOST_ROWS, dtype=torch.int32, device=device)
        self._seen = torch.zeros(len(self.cache.slots), divided(shape.vocabulary, 32), dtype=torch.int32, device=device)
        self._drawn = torch.zeros(MOST_ROWS, RING, dtype=torch.int32).pin_memory()
        self._drawn_array = self._drawn.numpy()
        angles = torch.outer(torch.arange(shape.window).float(), shape.rope_frequencies())
        self.turns = torch.stack((angles.cos(), angles.sin()), dim=-1).to(device).contiguous()  # (W, D / 2, 2)
        self._workspace = halves(0)
        self._unpackings: dict[tuple[int, int], _Unpacking] = {}
        self._counters = torch.zeros(BARRIER, dtype=torch.int32, device=device)

    def _counted(self, rows: int) -> int:
        return low_rank.counters(rows) if (low_rank := self._beside) else 0

    @property
    def _beside(self) -> LowRank | None:
        return self._low_rank if self._adapted else None

    def _lora(self, prefetched: int) -> ctypes.Structure | None:
        if (low_rank := self._beside) is None:
            return None
        return low_rank.arguments(self._counters[BARRIER:], self._field("adapters"), prefetched)

    def _field(self, name: str) -> int:
        at = len(FIELDS) if name == "seeds" else FIELDS.index(name)
        return self._rows.data_ptr() + at * MOST_ROWS * 4

    def _compile(self, rows: int) -> None:
        """All kernels of a step."""
        self.kernels.prepare(self._wanted(rows))

    def _wanted(self, rows: int) -> list[Wanted]:
        found: dict[Wanted, None] = {}
        stack = self._stack(rows)
        if stack is not None:
            found["layers.cu", "layers", stack.defines] = None
        for product in (*(self.weights.layers[0].products if stack is None else ()), self.weights.head):
            low_rank = None if product is self.weights.head else self._beside
            geometry = Geometry.of(product.packed, rows, self._shared_limit, low_rank.layout if low_rank else None)
            found["product.cu", "product", geometry.defines(product.packed, rank_of(low_rank), kv8=self._kv8)] = None
        if rows == 1:
            for name in ("settle", "attend") if self._kv8 else ("attend",):
                found["attend.cu", name, self._attend_defines()] = None
            for name in ("embed", "choose"):
                found["choose.cu", name, self._choose_defines()] = None
        return list(found)

    def _attend_defines(self) -> Defines:
        shape = self.weights.shape
        group = shape.heads // shape.kv_heads
        return ("GROUP", group), ("HEAD_DIM", shape.head_dim), ("KV8", int(self._kv8))

    def _choose_defines(self) -> Defines:
        return (("VOCABULARY", self.weights.shape.vocabulary),)

    # --- the step ------------------------------------------------------------------------------------------------------

    def _capture(self, rows: int) -> torch.cuda.CUDAGraph:
        self._compile(rows)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local")
            self._launch(rows)
            graph.capture_end()
        self._graphs[rows, self._adapted] = graph
        return graph

    def _launch(self, rows: int) -> None:
        """Every kernel of a step, in order."""
        partials = self._embed(rows)
        stack = self._stack(rows)
        partials = self._run_stack(stack) if stack else self._run_layers(rows, partials)
        self._product(
            self.weights.head, rows, STORE, x=self._x, squares_in=self._squares[0], squares_count=partials, out=self._logits,
            outputs=self.weights.shape.vocabulary,
        )  # fmt: skip
        self._choose(rows)

    def _stack(self, rows: int) -> Stack | None:
        if not self._early:
            return None
        return stack_for(self.weights, self._beside, rows, self._processors, self._shared_limit, kv8=self._kv8)

    def _run_stack(self, stack: Stack) -> int:
        buffers = {
            "turns": self.turns, "x": self._x, "activated": self._activated, "residual": self._residual,
            "queries": self._queries, "partials": self._partials, "squares": self._squares, "arrived": self._counters,
            "newest": self._newest,
        }  # fmt: skip
        rows = self._row_arguments()
        lora = self._lora(stack.prefetched)
        arguments = stack_arguments(stack, self.weights, self.cache, buffers, rows, lora, self._processors, MOST_ROWS)
        kernel = self.kernels.get("layers.cu", "layers", stack.defines)
        kernel((self._processors, 1, 1), stack.threads, arguments, shared_bytes=stack.shared_bytes, early=self._early)
        return self._processors

    def _run_layers(self, rows: int, partials: int) -> int:
        layers = self.weights.layers
        norms = [*(layer.attention_norm for layer in layers[1:]), self.weights.norm]
        for index, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            partials = self._layer(index, layer, next_norm, rows, partials)
        return partials

    def _layer(self, index: int, layer: CudaLayer, next_norm: Tensor, rows: int, partials: int) -> int:
        """Returns how many partial sums of squares the last product leaves."""
        hidden = self.weights.shape.hidden
        self._product(
            layer.qkv, rows, ROTATE_AND_CACHE, x=self._x, squares_in=self._squares[0], squares_count=partials,
            out=self._queries, outputs=layer.qkv.packed.outputs, cache_layer=index, place=(index, 0),
        )  # fmt: skip
        if self._kv8:
            self._settle(index, rows)
        self._attend(index, rows)
        partials = self._product(
            layer.attention_out, rows, ADD_TO_RESIDUAL, x=self._attended, squares_out=self._squares[1], norm=layer.mlp_norm,
            outputs=hidden, place=(index, 1),
        )  # fmt: skip
        self._product(
            layer.gate_up, rows, SILU_TIMES_UP, x=self._x, squares_in=self._squares[1], squares_count=partials,
            x_out=self._activated, outputs=self.weights.feed_forward, place=(index, 2),
        )  # fmt: skip
        return self._product(
            layer.mlp_down, rows, ADD_TO_RESIDUAL, x=self._activated, squares_out=self._squares[0], norm=next_norm,
            outputs=hidden, place=(index, 3),
        )  # fmt: skip

    def _row_arguments(self) -> RowsArguments:
        return RowsArguments(slots=self._field("slots"), positions=self._field("positions"))

    def _embed(self, rows: int) -> int:
        weights, first = self.weights, self.weights.layers[0]
        arguments = EmbedArguments(
            embeddings=address(weights.embeddings.rows), scales=address(weights.embeddings.scales),
            tokens=self._field("tokens"), norm=address(first.attention_norm), residual=address(self._residual),
            x=address(self._x), squares=address(self._squares[0]), arrivals=address(self._counters),
            hidden=weights.shape.hidden, arrival_count=BARRIER + self._counted(rows),
        )  # fmt: skip
        self.kernels.get("choose.cu", "embed", self._choose_defines())((rows, 1, 1), 256, arguments, early=self._early)
        return 1

    def _product(
        self, product: Product, rows: int, epilogue: int, *, x: Tensor, outputs: int, squares_in: Tensor | None = None,
        squares_count: int = 0, squares_out: Tensor | None = None, norm: Tensor | None = None, out: Tensor | None = None,
        x_out: Tensor | None = None, cache_layer: int | None = None, place: tuple[int, int] | None = None,
    ) -> int:  # fmt: skip
        """Launch one product, which is the `place`'s layer's product of that number and may have adapters; returns its
        blocks, each of which leaves a partial sum of squares."""
        packed, shape, low_rank = product.packed, self.weights.shape, self._beside if place else None
        keys, values = self._newest_in(cache_layer)
        arguments = ProductArguments(
            tiles=address(packed.tiles), nested=address(packed.nested), code=address(packed.code),
            row_scales=address(packed.row_scales), bias=address(packed.bias), x=address(x), squares_in=address(squares_in),
            squares_out=address(squares_out), residual=address(self._residual), norm=address(norm),
            x_out=address(self._x if x_out is None else x_out), out=address(out),
            keys=address(keys), values=address(values),
            turns=address(self.turns), rows=self._row_arguments(), row_tiles=packed.row_tiles, k_blocks=packed.blocks,
            outputs=outputs, count=rows, squares_count=squares_count, epilogue=epilogue, heads=shape.heads,
            kv_heads=shape.kv_heads, head_dim=shape.head_dim, window=shape.window, eps=shape.norm_eps,
            inverse_hidden=1.0 / shape.hidden,
        )  # fmt: skip
        layout = low_rank.layout if low_rank else None
        geometry = Geometry.of(packed, rows, self._shared_limit, layout)
        blocks = min(self._processors, divided(packed.row_tiles, geometry.tiles))
        if low_rank and layout and place:
            arguments.lora, arguments.part = self._lora(layout.share(place[1], blocks)), low_rank.part(*place)
        kernel = self.kernels.get("product.cu", "product", geometry.defines(packed, rank_of(low_rank), kv8=self._kv8))
        threads = (WARPS + (LORA_WARPS if low_rank else 0)) * 32
        kernel((blocks, 1, 1), threads, arguments, shared_bytes=geometry.shared_bytes, early=self._early)
        return blocks

    def _newest_in(self, cache_layer: int | None) -> tuple[Tensor | None, Tensor | None]:
        """Where a product leaves keys and values: in the cache, or where `settle` takes them from."""
        if cache_layer is None:
            return None, None
        if self._newest is not None:
            return self._newest[0], self._newest[1]
        return self.cache.keys[cache_layer], self.cache.values[cache_layer]

    def _settle(self, index: int, rows: int) -> None:
        """A step's keys and values into an 8-bit cache: all of them before anybody attends, as rows may be of one chat."""
        shape, cache = self.weights.shape, self.cache.layer(index)
        arguments = SettleArguments(
            newest=address(self._newest), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), rows=self._row_arguments(),
            most_rows=MOST_ROWS, kv_heads=shape.kv_heads, window=shape.window,
        )  # fmt: skip
        kernel = self.kernels.get("attend.cu", "settle", self._attend_defines())
        kernel((shape.kv_heads, rows, 1), 64, arguments, early=self._early)

    def _attend(self, index: int, rows: int) -> None:
        shape = self.weights.shape
        splits = max(1, min(MOST_SPLITS, divided(2 * self._processors, shape.kv_heads * rows)))
        cache = self.cache.layer(index)
        arguments = AttendArguments(
            queries=address(self._queries), keys=address(cache.keys), values=address(cache.values),
            key_scales=address(cache.key_scales), value_scales=address(cache.value_scales), out=address(self._attended),
            partials=address(self._partials), arrived=address(self._arrived),
            rows=self._row_arguments(), kv_heads=shape.kv_heads, window=shape.window, splits=splits,
            scale=1.4426950408889634 / shape.head_dim**0.5,
        )  # fmt: skip
        kernel = self.kernels.get("attend.cu", "attend", self._attend_defines())
        kernel((splits, shape.kv_heads, rows), 128, arguments, early=self._early)

    def _choose(self, rows: int) -> None:
        fields = {name: self._field(name) for name in ("tokens", "positions", "counts", "slots", "ready", "temperatures",
                                                        "top_ps", "penalties", "top_ks", "seeds")}  # fmt: skip
        arguments = ChooseArguments(
            logits=address(self._logits), seen=address(self._seen), drawn=self._drawn.data_ptr(), ring=RING, **fields
        )
        self.kernels.get("choose.cu", "choose", self._choose_defines())((rows, 1, 1), 1024, arguments, early=self._early)


def try_kernels(cache_folder: Path | None) -> None:
    """Compile and load a small kernel. KernelError where this machine cannot; nothing has been changed then."""
    folder = cache_folder / "kernels" if cache_folder else None
    Kernel(driver.compiled("choose.cu", {"VOCABULARY": 1024}, driver.architecture(), folder), "embed")
