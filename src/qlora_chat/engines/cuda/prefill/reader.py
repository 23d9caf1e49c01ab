"""Prefill on a card: many prompt tokens in one pass, which writes their keys and values to the cache.

Scope: the order of a pass's products, and attention; the operations between two products are in activations.py. A pass can be
run in parts, a product each, with other work between them. It computes no logits: a prompt's last token goes with the decode
steps. It ends with the keys and values of the last layer, since nothing reads what would follow.

Shapes: N tokens of all spans together, M rows of the products (see activations.py), Q and K query and key-value heads, D head
dimension, T tokens of a span, P positions that it attends to.
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

from qlora_chat.engines.core.forward_pass import Span, adapter_runs
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.prefill.activations import Activations, PrefillKernels
from qlora_chat.engines.cuda.prefill.dequantize import DequantizeLaunch, Dequantizer
from qlora_chat.engines.cuda.weights.adapters import OF_DOWN, OF_GATE_UP, OF_OUT, OF_QKV, CudaAdapter
from qlora_chat.engines.cuda.weights.model import CudaLayer, CudaWeights
from qlora_chat.engines.cuda.weights.packing import Packed, select_tiles


@dataclass(frozen=True)
class _Product:
    """A product for many rows, without adapters, which dequantizes its weights each time."""

    dequantize: DequantizeLaunch
    outputs: int
    weights: int
    """Number of its weights."""
    bias: Tensor | None
    """(outputs,) bf16"""

    @staticmethod
    def of(packed: Packed, dequantizer: Dequantizer) -> _Product:
        bias = None
        if packed.bias is not None:
            present = packed.row_of >= 0
            bias = torch.empty(packed.outputs, dtype=torch.bfloat16, device=packed.bias.device)
            bias[packed.row_of[present].long()] = packed.bias[present].bfloat16()
        return _Product(DequantizeLaunch(packed, dequantizer), packed.outputs, packed.outputs * packed.inputs, bias)

    def __call__(self, x: Tensor, y: Tensor, stream: int) -> None:
        """Compute y (M, outputs) from x (M, inputs)."""
        weight = self.dequantize(stream)
        if self.bias is None:
            torch.mm(x, weight, out=y)
        else:
            torch.addmm(self.bias, x, weight, out=y)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer for many rows. Gate and up are two halves: together they would double the workspace."""

    norms: CudaLayer
    """The layer for steps, which has the same norms."""
    qkv: _Product
    attention_out: _Product
    gate_up: tuple[_Product, _Product]
    mlp_down: _Product

    @staticmethod
    def of(layer: CudaLayer, dequantizer: Dequantizer) -> _Layer:
        gate_up = layer.gate_up.packed
        middle = gate_up.row_tiles // 2
        halves = (select_tiles(gate_up, each) for each in (slice(0, middle), slice(middle, gate_up.row_tiles)))
        qkv, out, first, second, down = (
            _Product.of(packed, dequantizer)
            for packed in (layer.qkv.packed, layer.attention_out.packed, *halves, layer.mlp_down.packed)
        )
        return _Layer(layer, qkv, out, (first, second), down)


class PrefillPass:
    """A pass over spans that the caller may run in parts, with other work on the same stream between them. An unfinished pass
    has written keys and values of some layers at its spans' positions, and nothing else."""

    def __init__(self, parts: Iterator[int], stream: torch.cuda.Stream | None = None) -> None:
        """`parts` yields the number of weights of each part before it runs. `stream`: None for PyTorch's current one."""
        self._parts, self._stream = parts, stream
        self._next: int | None = None

    @property
    def ended(self) -> bool:
        """True once all parts have been launched."""
        return self._next == 0

    def run(self, weights: float = math.inf) -> int:
        """Launch parts of up to so many weights in total, at least one part; returns the number of weights."""
        done = 0
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._next is None:
                self._next = next(self._parts, 0)
            while self._next and (not done or done + self._next <= weights):
                done += self._next
                self._next = next(self._parts, 0)
        return done


class Prefill:
    """Runs spans through the weights and writes keys and values into the cache."""

    def __init__(
        self,
        weights: CudaWeights,
        dequantizer: Dequantizer,
        cache: KVCache,
        rope_cos_sin: Tensor,
        adapter_of: Callable[[int], CudaAdapter | None] = lambda slot: None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """`rope_cos_sin` (window, D / 2, 2) float32; `adapter_of`: a slot's; `stream` as in PrefillPass. KernelError where the
        kernels cannot be compiled."""
        self._embeddings, self._device = weights.embeddings, rope_cos_sin.device
        self._layers = [_Layer.of(each, dequantizer) for each in weights.layers]
        self._max_outputs = max(product.outputs for each in self._layers for product in (each.qkv, *each.gate_up))
        self._kernels = PrefillKernels(weights.shape, cache, dequantizer.kernels, rope_cos_sin)
        self._adapter_of, self._stream = adapter_of, stream
        _has_flash_attention(rope_cos_sin.device)  # while there is memory for it

    def __call__(self, spans: Sequence[Span]) -> None:
        """Run the whole pass."""
        self.begin(spans).run()

    def begin(self, spans: Sequence[Span]) -> PrefillPass:
        """A pass that has not launched anything. The slots' adapters are looked up when it first runs."""
        return PrefillPass(self._parts(spans), self._stream)

    def warm_up(self, tokens: int) -> None:
        """Run one layer of a pass over so many tokens on zeros: libraries take 7 ms to a second to load the kernels of a new
        size. The cache is only read."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            shape, kernels, layer = self._kernels.shape, self._kernels, self._layers[0]
            stream = torch.cuda.current_stream(self._device).cuda_stream
            residual = torch.zeros((tokens, shape.hidden), device=self._device)
            unused = torch.zeros(tokens, dtype=torch.int32, device=self._device)
            rows = Activations(kernels, residual, unused, unused, self._max_outputs, stream)
            for each in (rows.x, rows.queries, rows.attended, rows.activated):
                each.zero_()
            layer.qkv(rows.x, rows.projected(layer.qkv.outputs), stream)
            for seen in {min(tokens, shape.window), shape.window}:
                queries = rows.queries[:seen].transpose(0, 1).unsqueeze(0)
                causal_attention(queries, *kernels.layers[0].prefix(0, seen))
            layer.attention_out(rows.attended, rows.addend, stream)
            for product in layer.gate_up:
                product(rows.x, rows.projected(product.outputs), stream)
            layer.mlp_down(rows.activated, rows.addend, stream)

    def _parts(self, spans: Sequence[Span]) -> Iterator[int]:
        """The pass, which yields before each product the number of its weights."""
        ids, slots, positions = self._token_columns(spans)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        rows = Activations(self._kernels, self._embeddings(ids), slots, positions, self._max_outputs, stream)
        runs = adapter_runs(spans, self._adapter_of)
        row_adapters = [(adapter, None if some == slice(0, len(ids)) else some) for adapter, some in runs]
        """None: all rows, as in most passes, which saves the host the slicing."""

        def multiply(product: _Product, kind: int, x: Tensor, y: Tensor) -> None:
            """Run a product and add the rows' adapters."""
            product(x, y, stream)
            for adapter, some in row_adapters:
                if delta := adapter.deltas[index][kind]:
                    delta(*(x, y) if some is None else (x[some], y[some]))

        for index, layer in enumerate(self._layers):
            yield layer.qkv.weights
            rows.norm(layer.norms.attention_norm, add=index > 0)
            multiply(layer.qkv, OF_QKV, rows.x, rows.projected(layer.qkv.outputs))
            rows.rope_and_cache(index, layer.norms.query_norm, layer.norms.key_norm)
            if index == len(self._layers) - 1:
                return
            yield layer.attention_out.weights
            self._attention(rows, index, spans)
            multiply(layer.attention_out, OF_OUT, rows.attended, rows.addend)
            rows.norm(layer.norms.mlp_norm, add=True)
            done = 0
            for product, kind in zip(layer.gate_up, OF_GATE_UP, strict=True):
                yield product.weights
                multiply(product, kind, rows.x, rows.projected(product.outputs))
                rows.silu_times_up(done, product.outputs // 2)
                done += product.outputs // 2
            yield layer.mlp_down.weights
            multiply(layer.mlp_down, OF_DOWN, rows.activated, rows.addend)

    def _token_columns(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, slots and positions of all tokens, (N,) int32 each, in one copy."""
        columns, done = np.empty((3, sum(len(each.ids) for each in spans)), dtype=np.int32), 0
        for span in spans:
            mine = slice(done, done := done + len(span.ids))
            columns[0, mine], columns[1, mine] = span.ids, span.slot
            columns[2, mine] = np.arange(span.start, span.start + len(span.ids))
        ids, slots, positions = torch.from_numpy(columns).pin_memory().to(self._device, non_blocking=True)
        return ids, slots, positions

    def _attention(self, rows: Activations, index: int, spans: Sequence[Span]) -> None:
        """Attend over each span's own positions."""
        done, layer, heads = 0, self._kernels.layers[index], rows.queries.shape[1:]
        for span in spans:
            mine = slice(done, done := done + len(span.ids))
            queries = rows.queries[mine].transpose(0, 1).unsqueeze(0)
            attended = causal_attention(queries, *layer.prefix(span.slot, span.start + len(span.ids)))
            rows.attended[mine].unflatten(1, heads).copy_(attended[0].transpose(0, 1))


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention (1, Q, T, D) of queries (1, Q, T, D) of the last T of P positions over keys and values (1, K, P, D).

    Calls flash attention directly, since the public ways are slower: scaled_dot_product_attention uses cuDNN's on a Hopper,
    which plans each new T for 50 ms, and with causal_lower_right it spends 0.3 ms a layer in Python."""
    if _has_flash_attention(queries.device):
        return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]
    count, seen, group = queries.shape[2], keys.shape[2], queries.shape[1] // keys.shape[1]
    if count == seen:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
    mask = torch.ones((count, seen), dtype=torch.bool, device=queries.device).tril(seen - count)
    if group > 1:  # with enable_gqa the only kernel that takes a mask materializes every score
        keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


@cache
def _has_flash_attention(device: torch.device) -> bool:
    """True if this build of PyTorch has flash attention for this card: not all Windows builds have."""
    tiny = torch.zeros((1, 1, 8, 64), dtype=torch.bfloat16, device=device)
    try:
        torch.ops.aten._scaled_dot_product_flash_attention(tiny, tiny, tiny, 0.0, True)
    except RuntimeError:
        return False
    return True
