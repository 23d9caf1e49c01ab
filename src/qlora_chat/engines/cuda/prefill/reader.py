"""Reading prompts on a card: many tokens at once, only for what they leave in the cache.

Scope: the pass over prompts: which product follows which, and attention; what lies between two products is prompt_rows.py's.
It can be run in parts, a product each, with anything else between them. It gives no logits: a prompt's last token goes with the
decode steps. What follows the last layer's keys and values would be read by nobody and is left out.

Shapes: N tokens of all spans together, M rows of the products (see prompt_rows.py), Q and K query and key-value heads, D head
dimension, T tokens of a span, P positions that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.prefill.activations import PromptKernels, PromptRows
from qlora_chat.engines.cuda.prefill.dequantize import Unpacker, Unpacking
from qlora_chat.engines.cuda.weights.adapters import OF_DOWN, OF_GATE_UP, OF_OUT, OF_QKV, CudaAdapter
from qlora_chat.engines.cuda.weights.model import CudaLayer, CudaWeights
from qlora_chat.engines.cuda.weights.packing import Packed, some_tiles
from qlora_chat.engines.eager.forward import Span

_Adapted = Sequence[tuple[CudaAdapter, slice | None]]
"""Whose adapter which rows of a pass go through; None: all of them, as in most passes: slicing takes the host its time."""


@dataclass(frozen=True)
class _Product:
    """A product for many rows, without adapters: its weights are unpacked each time."""

    unpack: Unpacking
    outputs: int
    weights: int
    """How many it multiplies with."""
    bias: Tensor | None
    """(outputs,) bf16"""

    @staticmethod
    def of(packed: Packed, unpacker: Unpacker) -> _Product:
        bias = None
        if packed.bias is not None:
            there = packed.row_of >= 0
            bias = torch.empty(packed.outputs, dtype=torch.bfloat16, device=packed.bias.device)
            bias[packed.row_of[there].long()] = packed.bias[there].bfloat16()
        return _Product(Unpacking(packed, unpacker), packed.outputs, packed.outputs * packed.inputs, bias)

    def __call__(self, x: Tensor, y: Tensor, stream: int) -> None:
        """y (M, outputs) = the product with x (M, inputs)."""
        weight = self.unpack(stream)
        if self.bias is None:
            torch.mm(x, weight, out=y)
        else:
            torch.addmm(self.bias, x, weight, out=y)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer for many rows. Gate and up come in two halves: unpacked as a whole, they would double the workspace."""

    attention_norm: Tensor
    qkv: _Product
    attention_out: _Product
    mlp_norm: Tensor
    gate_up: tuple[_Product, _Product]
    mlp_down: _Product

    @staticmethod
    def of(layer: CudaLayer, unpacker: Unpacker) -> _Layer:
        gate_up = layer.gate_up.packed
        middle = gate_up.row_tiles // 2
        halves = (some_tiles(gate_up, each) for each in (slice(0, middle), slice(middle, gate_up.row_tiles)))
        qkv, out, first, second, down = (
            _Product.of(packed, unpacker)
            for packed in (layer.qkv.packed, layer.attention_out.packed, *halves, layer.mlp_down.packed)
        )
        return _Layer(layer.attention_norm, qkv, out, layer.mlp_norm, (first, second), down)


class Pass:
    """Spans on their way through the weights: as much of it at a time as the caller likes, with anything on the same stream
    between. Whoever leaves one unfinished leaves keys and values of some layers behind its spans' beginnings, nothing else."""

    def __init__(self, parts: Iterator[int], stream: torch.cuda.Stream | None = None) -> None:
        """Before each of its `parts` comes the number of weights that it multiplies with. `stream`: PyTorch's current one
        where it is not given."""
        self._parts, self._stream = parts, stream
        self._next: int | None = None

    @property
    def ended(self) -> bool:
        """Whether all of it has been launched."""
        return self._next == 0

    def run(self, weights: float = math.inf) -> int:
        """Launch parts that multiply with up to so many weights, one part at least; the number that it was."""
        done = 0
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._next is None:
                self._next = next(self._parts, 0)
            while self._next and (not done or done + self._next <= weights):
                done += self._next
                self._next = next(self._parts, 0)
        return done


class PromptReader:
    """Runs spans through the weights, writing keys and values into the cache."""

    def __init__(
        self,
        weights: CudaWeights,
        unpacker: Unpacker,
        cache: KVCache,
        kernels: Kernels,
        turns: Tensor,
        adapter_of: Callable[[int], CudaAdapter | None] = lambda slot: None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """`turns` (window, D / 2, 2) float32: cos and sin; `adapter_of`: a slot's; `stream` as in Pass. KernelError where the
        kernels cannot be compiled."""
        self._embeddings, self._device = weights.embeddings, turns.device
        self._layers = [_Layer.of(each, unpacker) for each in weights.layers]
        self._widest = max(product.outputs for each in self._layers for product in (each.qkv, *each.gate_up))
        self._kernels = PromptKernels(weights.shape, weights.feed_forward, cache, kernels, turns)
        self._adapter_of, self._stream = adapter_of, stream
        _has_flash(turns.device)  # now, where there is memory for it

    def __call__(self, spans: Sequence[Span]) -> None:
        """Read them, all at once."""
        self.begin(spans).run()

    def begin(self, spans: Sequence[Span]) -> Pass:
        """A pass over them of which nothing has been launched. Their slots' adapters are looked up when it first runs."""
        return Pass(self._parts(spans), self._stream)

    def rehearse(self, tokens: int) -> None:
        """Ask libraries for all that a pass over so many tokens does, on nothing, for one layer: what they load at the first
        call of a kind takes from 7 ms to a second. The cache is only read."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            shape, kernels, layer = self._kernels.shape, self._kernels, self._layers[0]
            stream = torch.cuda.current_stream(self._device).cuda_stream
            residual = torch.zeros((tokens, shape.hidden), device=self._device)
            nowhere = torch.zeros(tokens, dtype=torch.int32, device=self._device)
            rows = PromptRows(kernels, residual, nowhere, nowhere, self._widest, stream)
            for each in (rows.x, rows.queries, rows.attended, rows.activated):
                each.zero_()
            layer.qkv(rows.x, rows.wide(layer.qkv.outputs), stream)
            for seen in {min(tokens, shape.window), shape.window}:
                queries = rows.queries[:seen].transpose(0, 1).unsqueeze(0)
                _causal(queries, *kernels.layers[0].seen(0, seen))
            layer.attention_out(rows.attended, rows.added, stream)
            for product in layer.gate_up:
                product(rows.x, rows.wide(product.outputs), stream)
            layer.mlp_down(rows.activated, rows.added, stream)

    def _parts(self, spans: Sequence[Span]) -> Iterator[int]:
        """The pass, with a stop before each product: the number of its weights."""
        ids, slots, positions = self._laid_out(spans)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        rows = PromptRows(self._kernels, self._embeddings(ids), slots, positions, self._widest, stream)
        adapted = self._adapted(spans)

        def multiply(product: _Product, place: int, x: Tensor, y: Tensor) -> None:
            """With what the rows' adapters add."""
            product(x, y, stream)
            for adapter, some in adapted:
                if added := adapter.added[index][place]:
                    added(*(x, y) if some is None else (x[some], y[some]))

        for index, layer in enumerate(self._layers):
            yield layer.qkv.weights
            rows.norm(layer.attention_norm, add=index > 0)
            multiply(layer.qkv, OF_QKV, rows.x, rows.wide(layer.qkv.outputs))
            rows.rotate(index)
            if index == len(self._layers) - 1:
                return
            yield layer.attention_out.weights
            self._attend(rows, index, spans)
            multiply(layer.attention_out, OF_OUT, rows.attended, rows.added)
            rows.norm(layer.mlp_norm, add=True)
            done = 0
            for product, place in zip(layer.gate_up, OF_GATE_UP, strict=True):
                yield product.weights
                multiply(product, place, rows.x, rows.wide(product.outputs))
                rows.silu_times_up(done, product.outputs // 2)
                done += product.outputs // 2
            yield layer.mlp_down.weights
            multiply(layer.mlp_down, OF_DOWN, rows.activated, rows.added)

    def _adapted(self, spans: Sequence[Span]) -> _Adapted:
        """Neighbours with the same adapter as one run of rows."""
        found: list[tuple[CudaAdapter, slice]] = []
        begin = 0
        for span in spans:
            adapter, end = self._adapter_of(span.slot), begin + len(span.ids)
            if adapter and found and found[-1][0] is adapter and found[-1][1].stop == begin:
                found[-1] = adapter, slice(found[-1][1].start, end)
            elif adapter:
                found.append((adapter, slice(begin, end)))
            begin = end
        return [(adapter, None if rows == slice(0, begin) else rows) for adapter, rows in found]

    def _laid_out(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, slots and positions of all tokens, (N,) int32 each, in one copy."""
        together, done = np.empty((3, sum(len(each.ids) for each in spans)), dtype=np.int32), 0
        for span in spans:
            mine = slice(done, done := done + len(span.ids))
            together[0, mine], together[1, mine] = span.ids, span.slot
            together[2, mine] = np.arange(span.start, span.start + len(span.ids))
        first, second, third = torch.from_numpy(together).pin_memory().to(self._device, non_blocking=True)
        return first, second, third

    def _attend(self, rows: PromptRows, index: int, spans: Sequence[Span]) -> None:
        """Each span over exactly its own positions."""
        done, layer, heads = 0, self._kernels.layers[index], rows.queries.shape[1:]
        for span in spans:
            mine = slice(done, done := done + len(span.ids))
            queries = rows.queries[mine].transpose(0, 1).unsqueeze(0)
            found = _causal(queries, *layer.seen(span.slot, span.start + len(span.ids)))
            rows.attended[mine].unflatten(1, heads).copy_(found[0].transpose(0, 1))


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries (1, Q, T, D) of the last T of P positions over keys and values (1, K, P, D) -> (1, Q, T, D).

    The public ways to the operation are slower: scaled_dot_product_attention takes cuDNN's on a Hopper, which plans each new T
    for 50 ms, and with causal_lower_right it spends 0.3 ms a layer in Python.
    """
    if _has_flash(queries.device):
        return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]
    count, seen, group = queries.shape[2], keys.shape[2], queries.shape[1] // keys.shape[1]
    if count == seen:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
    mask = torch.ones((count, seen), dtype=torch.bool, device=queries.device).tril(seen - count)
    if group > 1:  # what is left for fewer key heads than query heads would hold every score at once
        keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether this build of PyTorch has that operation for this card: not all for Windows have it."""
    tiny = torch.zeros((1, 1, 8, 64), dtype=torch.bfloat16, device=device)
    try:
        torch.ops.aten._scaled_dot_product_flash_attention(tiny, tiny, tiny, 0.0, True)
    except RuntimeError:
        return False
    return True
