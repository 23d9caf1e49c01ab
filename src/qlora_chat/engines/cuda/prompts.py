"""Reading prompts on a card: many tokens at once, only for what they leave in the cache.

Scope: the pass over prompts, with one kernel of ours for whatever lies between two products. It can be run in parts, a product
each, with anything else between them. It gives no logits: a prompt's last token goes with the decode steps. What follows the
last layer's keys and values would be read by nobody and is left out.

Shapes: N tokens of all spans together, H hidden, F feed-forward, Q and K query and key-value heads, D head dimension, T tokens
of a span, P positions that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.cuda.adapters import OF_DOWN, OF_GATE_UP, OF_OUT, OF_QKV, CudaAdapter
from qlora_chat.engines.cuda.driver import address
from qlora_chat.engines.cuda.kernels import Kernels
from qlora_chat.engines.cuda.packing import Packed
from qlora_chat.engines.cuda.structures import AddNormArguments, RotateArguments, RowsArguments, SiluTimesUpArguments
from qlora_chat.engines.cuda.weights import CudaLayer, CudaWeights, many_rows
from qlora_chat.engines.llama import Span

THREADS = 256
"""Of a block, as in prompt.cu."""
_Adapted = Sequence[tuple[CudaAdapter, slice]]
"""Whose adapter which rows of a pass go through."""


@dataclass(frozen=True)
class _Layer:
    """A decoder layer for many rows. Gate and up come in two halves: unpacked as a whole, they would double the workspace."""

    attention_norm: Tensor
    qkv: Packed
    attention_out: Packed
    mlp_norm: Tensor
    gate_up: tuple[Packed, Packed]
    mlp_down: Packed
    feed_forward: int

    @staticmethod
    def of(layer: CudaLayer, unpack: Callable[[Packed], Tensor]) -> _Layer:
        tiles = layer.gate_up.packed.row_tiles
        halves = slice(0, tiles // 2), slice(tiles // 2, tiles)
        first, second = (many_rows(layer.gate_up, unpack, each) for each in halves)
        return _Layer(
            layer.attention_norm, many_rows(layer.qkv, unpack), many_rows(layer.attention_out, unpack), layer.mlp_norm,
            (first, second), many_rows(layer.mlp_down, unpack), layer.mlp_down.packed.inputs,
        )  # fmt: skip


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
        unpack: Callable[[Packed], Tensor],
        cache: KVCache,
        kernels: Kernels,
        turns: Tensor,
        adapter_of: Callable[[int], CudaAdapter | None] = lambda slot: None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """`turns` (window, D / 2, 2) float32: cos and sin; `adapter_of`: a slot's; `stream` as in Pass. KernelError where the
        kernels cannot be compiled."""
        self._shape, self._embeddings, self._cache, self._turns = weights.shape, weights.embeddings, cache, turns
        self._layers = [_Layer.of(each, unpack) for each in weights.layers]
        self._adapter_of, self._stream = adapter_of, stream
        _has_flash(turns.device)  # now, where there is memory for it
        defines = ("HEAD_DIM", weights.shape.head_dim), ("KV8", int(cache.key_scales is not None))
        self._add_norm, self._rotate, self._silu_times_up = (
            kernels.get("prompt.cu", name, defines) for name in ("add_norm", "rotate", "silu_times_up")
        )

    def __call__(self, spans: Sequence[Span]) -> None:
        """Read them, all at once."""
        self.begin(spans).run()

    def begin(self, spans: Sequence[Span]) -> Pass:
        """A pass over them of which nothing has been launched. Their slots' adapters are looked up when it first runs."""
        return Pass(self._parts(spans), self._stream)

    def _parts(self, spans: Sequence[Span]) -> Iterator[int]:
        """The pass, with a stop before each product: the number of its weights."""
        ids, slots, positions = self._laid_out(spans)
        residual = self._embeddings(ids)  # (N, H)
        x = torch.empty_like(residual, dtype=torch.bfloat16)
        rows = RowsArguments(slots=address(slots), positions=address(positions))
        added: Tensor | None = None
        adapted = self._adapted(spans)
        for index, layer in enumerate(self._layers):
            yield _size(layer.qkv)
            self._norm(added, layer.attention_norm, residual, x)
            queries = self._rotated(_product(layer.qkv, index, OF_QKV, x, adapted), index, rows)
            if index == len(self._layers) - 1:
                return
            yield _size(layer.attention_out)
            attended = self._attended(queries, index, spans)
            self._norm(_product(layer.attention_out, index, OF_OUT, attended, adapted), layer.mlp_norm, residual, x)
            added = yield from self._fed_forward(layer, index, x, adapted)

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
        return found

    def _laid_out(self, spans: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, slots and positions of all tokens, (N,) int32 each, in one copy."""
        ids = [each for span in spans for each in span.ids]
        slots = [span.slot for span in spans for _ in span.ids]
        positions = [at for span in spans for at in range(span.start, span.start + len(span.ids))]
        together = torch.tensor((ids, slots, positions), dtype=torch.int32).pin_memory()
        first, second, third = together.to(self._turns.device, non_blocking=True)
        return first, second, third

    def _norm(self, added: Tensor | None, weight: Tensor, residual: Tensor, x: Tensor) -> None:
        """residual += added (N, H); x becomes its norm."""
        arguments = AddNormArguments(
            addend=address(added), weight=address(weight), residual=address(residual), x=address(x), hidden=x.shape[1],
            eps=self._shape.norm_eps,
        )  # fmt: skip
        self._add_norm((len(x), 1, 1), THREADS, arguments)

    def _rotated(self, qkv: Tensor, index: int, rows: RowsArguments) -> Tensor:
        """Keys and values into the cache -> queries (N, Q, D)."""
        shape, cache = self._shape, self._cache.layer(index)
        queries = torch.empty((len(qkv), shape.heads, shape.head_dim), dtype=torch.bfloat16, device=qkv.device)
        arguments = RotateArguments(
            qkv=address(qkv), turns=address(self._turns), queries=address(queries), keys=address(cache.keys),
            values=address(cache.values), key_scales=address(cache.key_scales), value_scales=address(cache.value_scales),
            rows=rows, heads=shape.heads, kv_heads=shape.kv_heads, window=shape.window,
        )  # fmt: skip
        self._rotate((len(qkv), 1, 1), THREADS, arguments)
        return queries

    def _attended(self, queries: Tensor, index: int, spans: Sequence[Span]) -> Tensor:
        """(N, Q, D) -> (N, Q * D): each span over exactly its own positions."""
        done, outputs, cache = 0, [], self._cache.layer(index)
        for span in spans:
            count, seen = len(span.ids), span.start + len(span.ids)
            mine = queries[done : done + count].transpose(0, 1).unsqueeze(0)
            outputs.append(_causal(mine, *cache.seen(span.slot, seen))[0].transpose(0, 1))
            done += count
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return together.reshape(len(queries), -1)

    def _fed_forward(self, layer: _Layer, index: int, x: Tensor, adapted: _Adapted) -> Generator[int, None, Tensor]:
        """(N, H) -> (N, H), with the same stops."""
        activated = torch.empty((len(x), layer.feed_forward), dtype=torch.bfloat16, device=x.device)
        done = 0
        for product, place in zip(layer.gate_up, OF_GATE_UP, strict=True):
            yield _size(product)
            gate_up = _product(product, index, place, x, adapted)  # (N, 2 * some of F)
            count = gate_up.shape[1] // 2
            arguments = SiluTimesUpArguments(
                gate_up=address(gate_up), out=address(activated[:, done:]), feed_forward=count, stride=layer.feed_forward
            )
            self._silu_times_up((-(-count // (2 * THREADS)), len(x), 1), THREADS, arguments)
            done += count
        yield _size(layer.mlp_down)
        return _product(layer.mlp_down, index, OF_DOWN, activated, adapted)


def _size(product: Packed) -> int:
    return product.outputs * product.inputs


def _product(product: Packed, index: int, place: int, x: Tensor, adapted: _Adapted) -> Tensor:
    """With what the rows' adapters add, in layer `index`."""
    y = product(x)
    for adapter, rows in adapted:
        if added := adapter.added[index][place]:
            added(x[rows], y[rows])
    return y


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries (1, Q, T, D) of the last T of P positions over keys and values (1, K, P, D) -> (1, Q, T, D).

    Where there are positions before the queries, the public way is scaled_dot_product_attention with causal_lower_right, which
    calls the same operation after 0.3 ms of Python: 8 ms of a prompt's 20.
    """
    count, seen, group = queries.shape[2], keys.shape[2], queries.shape[1] // keys.shape[1]
    if count == seen:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
    if _has_flash(queries.device):
        return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]
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
