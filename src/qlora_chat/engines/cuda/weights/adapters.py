"""LoRA adapters on a card, unmerged: every chat uses its own, in one step with the others.

Scope: the loaded adapters in two forms, tiles for the decode steps (lora_tiles.py) and matrices for prefill. A chat's adapter
is in its cache slot. Belongs to the engine's thread.

Shapes: N tokens of a pass, r rank, K inputs of a product.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from qlora_chat.engines.core.forward_pass import fused_names
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import MAX_ADAPTERS, FusedLora, FusedProduct, LoraTable, padded_rank
from qlora_chat.engines.cuda.weights.model import CudaWeights
from qlora_chat.engines.cuda.weights.packing import TILE_ROWS, CannotPack
from qlora_chat.models import ModelError

OF_QKV, OF_OUT, OF_GATE_UP, OF_DOWN = 0, 1, (2, 3), 4
"""Indices into a layer of CudaAdapter.deltas: gate and up are two halves."""


@dataclass(frozen=True)
class LoraDelta:
    """Contribution of an adapter to one product of a prefill pass."""

    a: Tensor
    """(sum of the parts' r, K): A of each part, concatenated."""
    parts: tuple[tuple[slice, slice, Tensor], ...]
    """Columns of the output, columns of A x, and B^T (r, outputs)."""
    scaling: float

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Add scaling * (x A^T) B^T to y (N, outputs), x (N, K), in few launches: they bound the time of a short prompt."""
        ax = linear(x, self.a)
        for columns, ranks, b in self.parts:
            y[:, columns].addmm_(ax[:, ranks], b, alpha=self.scaling)


@dataclass(frozen=True, eq=False)
class CudaAdapter:
    """One adapter on the card. Compared by identity: an adapter that is loaded again is another one."""

    number: int
    """Index in the steps' table."""
    scaling: float
    layers: tuple[tuple[FusedLora, ...], ...]
    deltas: tuple[tuple[LoraDelta | None, ...], ...]
    """Deltas of each layer, in the order of OF_QKV to OF_DOWN; None where the adapter changes nothing."""


class LoraDecoder(Protocol):
    """The part of Decoder that adapters need."""

    def set_lora(self, lora: LoraTable) -> None:
        """KernelError if this card cannot."""
        ...

    def wait_for_current_stream(self) -> None: ...


class CudaAdapters:
    """All loaded adapters, and the model's own if it was opened with an unmerged one."""

    backend_name = "kernels"
    copies = 2.5
    """Memory relative to an adapter's own bytes: its matrices, the same in tiles, and each A once more for prefill."""

    def __init__(self, weights: CudaWeights, decoder: LoraDecoder, cache: KVCache) -> None:
        self._weights, self._decoder, self._cache = weights, decoder, cache
        self._loaded: dict[int, weakref.ref[CudaAdapter]] = {}
        self._lora: LoraTable | None = None
        self._own = self._add(weights.own, weights.own_scaling) if weights.own else None

    def pack(self, parts: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> CudaAdapter:
        """Pack an adapter for slots to name; it lives as long as one does. `parts`: A (r, in) and B (out, r) by the linear's
        Hugging Face name. ModelError for one that the kernels do not support."""

        def fused(names: Sequence[str]) -> FusedLora:
            pairs = [parts.get(name) for name in names]
            return FusedLora(*(tuple(pair and pair[side].bfloat16() for pair in pairs) for side in (0, 1)))

        layers = tuple(tuple(map(fused, fused_names(index))) for index in range(len(self._weights.layers)))
        try:
            return self._add(layers, scaling)
        except (CannotPack, KernelError) as problem:
            raise ModelError(f"the adapter cannot be loaded next to this model: {problem}") from problem

    def of_slot(self, slot: int) -> CudaAdapter | None:
        """Adapter of a slot's chat; None for the base alone."""
        adapter = self._cache.slots[slot].adapter
        return adapter if isinstance(adapter, CudaAdapter) else self._own

    def number(self, slot: int) -> int:
        """Number of a slot's adapter for a step's row; -1: the base alone."""
        adapter = self.of_slot(slot)
        return -1 if adapter is None else adapter.number

    @property
    def used(self) -> tuple[bool, ...]:
        """Kinds of steps to expect, without (False) and with adapters: every chat has one if the model was opened with its
        own."""
        if self._own:
            return (True,)
        return (False, True) if self._loaded else (False,)

    def _add(self, layers: tuple[tuple[FusedLora, ...], ...], scaling: float) -> CudaAdapter:
        number = next((each for each in range(MAX_ADAPTERS) if each not in self._loaded), None)
        if number is None:
            raise CannotPack(f"{MAX_ADAPTERS} are loaded already; unload another first")
        rank = padded_rank(max(len(a) for layer in layers for product in layer for a in product.a if a is not None))
        lora = self._lora
        if lora is None or lora.layout.rank < rank:
            lora = self._lora = self._with_rank(rank)
        products = lora.layout.products
        adapter = CudaAdapter(number, scaling, layers, tuple(_deltas(layer, products, scaling) for layer in layers))
        lora.put(number, lora.layout.tiles(layers), scaling)  # last: running out of memory before changes nothing
        self._decoder.wait_for_current_stream()
        self._loaded[number] = weakref.ref(adapter)
        weakref.finalize(adapter, self._remove, number)
        return adapter

    def _with_rank(self, rank: int) -> LoraTable:
        """A table for a larger rank, with all loaded adapters."""
        table = LoraTable(self._weights.layout(rank), self._weights.norm.device)
        for number, reference in list(self._loaded.items()):
            if adapter := reference():
                table.put(number, table.layout.tiles(adapter.layers), adapter.scaling)
        self._decoder.set_lora(table)
        return table

    def _remove(self, number: int) -> None:
        """Free the number of an adapter that no request, slot or registry refers to."""
        if self._lora is not None:
            self._lora.remove(number)
        del self._loaded[number]


def own_adapter_bytes(weights: CudaWeights) -> int:
    """Bytes of the matrices of the model's own adapter."""
    matrices = (each for layer in weights.own or () for product in layer for each in (*product.a, *product.b))
    return sum(each.nbytes for each in matrices if each is not None)


def _deltas(layer: Sequence[FusedLora], products: Sequence[FusedProduct], scaling: float) -> tuple[LoraDelta | None, ...]:
    qkv, out, gate_up, down = (_delta(lora, product.outputs, scaling) for lora, product in zip(layer, products, strict=True))
    feed_forward = products[2].outputs[0]
    middle = feed_forward // TILE_ROWS * 8  # prefill dequantizes gate and up by halves of their tiles
    return qkv, out, *(_half_delta(gate_up, feed_forward, half) for half in (slice(middle), slice(middle, feed_forward))), down


def _delta(lora: FusedLora, outputs: Sequence[int], scaling: float) -> LoraDelta | None:
    ends = pairwise(accumulate(outputs, initial=0))
    present = [
        (slice(*columns), a, b) for columns, a, b in zip(ends, lora.a, lora.b, strict=True) if a is not None and b is not None
    ]
    if not present:
        return None
    ranks = pairwise(accumulate((len(a) for _, a, _ in present), initial=0))
    parts = tuple((columns, slice(*rank), b.T) for (columns, _, b), rank in zip(present, ranks, strict=True))
    return LoraDelta(torch.cat([a for _, a, _ in present]), parts, scaling)


def _half_delta(gate_up: LoraDelta | None, feed_forward: int, half: slice) -> LoraDelta | None:
    """The delta for these outputs of gate, and the same outputs of up behind them."""
    if gate_up is None:
        return None
    size = len(range(feed_forward)[half])
    parts = tuple((slice(0, size) if columns.start == 0 else slice(size, 2 * size), ranks, b[:, half])
                  for columns, ranks, b in gate_up.parts)  # fmt: skip
    return LoraDelta(gate_up.a, parts, gate_up.scaling)
