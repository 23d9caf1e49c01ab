"""Adapters beside the weights on a card: each chat through its own, in one step with the others.

Scope: who is held, in which two forms: in tiles for the steps (low_rank.py), by matrices for the passes over prompts. Which
chat has which is in the cache's slots. Belongs to the engine's thread.

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

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import TABLE, Fused, LowRank, Matrices, filled_up
from qlora_chat.engines.cuda.weights.model import CudaWeights
from qlora_chat.engines.cuda.weights.packing import ROWS, CannotPack
from qlora_chat.models import ModelError
from qlora_chat.models.weights.shape import PROJECTIONS

Q, K, V, OUT, GATE, UP, DOWN = PROJECTIONS
FUSED = ((Q, K, V), (OUT,), (GATE, UP), (DOWN,))
"""The linears of a layer's products, by the ends of Hugging Face's names."""
OF_QKV, OF_OUT, OF_GATE_UP, OF_DOWN = 0, 1, (2, 3), 4
"""Where what is added to a product stands in CudaAdapter.added: gate and up come in two halves."""


@dataclass(frozen=True)
class Added:
    """What an adapter adds to one product of a pass over prompts."""

    down: Tensor
    """(the parts' r together, K): each part's A, one below the other."""
    parts: tuple[tuple[slice, slice, Tensor], ...]
    """Columns of the output, columns of A x, and B^T (r, outputs)."""
    scaling: float

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """y (N, outputs) += scaling * (x A^T) B^T, x (N, K). Few launches: a short prompt waits for nothing else."""
        low_rank = linear(x, self.down)
        for columns, ranks, b in self.parts:
            y[:, columns].addmm_(low_rank[:, ranks], b, alpha=self.scaling)


@dataclass(frozen=True, eq=False)
class CudaAdapter:
    """One adapter on the card. Compared by identity: an adapter that is loaded again is another one."""

    number: int
    """In the steps' table."""
    scaling: float
    layers: tuple[tuple[Matrices, ...], ...]
    added: tuple[tuple[Added | None, ...], ...]
    """Of each layer, in the order of OF_QKV to OF_DOWN; None: nothing."""


class Adapting(Protocol):
    """Of the Decoder, what adapters need."""

    def adapt(self, low_rank: LowRank) -> None:
        """KernelError if this card cannot."""
        ...

    def catch_up(self) -> None: ...


class CudaAdapters:
    """All that are held, and the model's own where it came with one unmerged."""

    copies = 2.5
    """Of an adapter's bytes: its matrices, the same in tiles, and each A once more for prompts."""

    def __init__(self, weights: CudaWeights, decoder: Adapting, cache: KVCache) -> None:
        self._weights, self._decoder, self._cache = weights, decoder, cache
        self._held: dict[int, weakref.ref[CudaAdapter]] = {}
        self._low_rank: LowRank | None = None
        self._own = self._kept(weights.own, weights.own_scaling) if weights.own else None

    def hold(self, parts: Mapping[str, tuple[Tensor, Tensor]], scaling: float) -> CudaAdapter:
        """For slots to name, for as long as anybody does; A (r, in) and B (out, r) by the linear's Hugging Face name.
        ModelError for one that the kernels do not take."""

        def matrices(index: int, names: Sequence[str]) -> Matrices:
            found = [parts.get(f"model.layers.{index}.{name}") for name in names]
            return Matrices(*(tuple(each and each[side].bfloat16() for each in found) for side in (0, 1)))

        layers = tuple(tuple(matrices(index, names) for names in FUSED) for index in range(len(self._weights.layers)))
        try:
            return self._kept(layers, scaling)
        except (CannotPack, KernelError) as problem:
            raise ModelError(f"the adapter cannot be held beside this model: {problem}") from problem

    def of(self, slot: int) -> CudaAdapter | None:
        """What a slot's chat goes through."""
        adapter = self._cache.slots[slot].adapter
        return adapter if isinstance(adapter, CudaAdapter) else self._own

    @property
    def used(self) -> tuple[bool, ...]:
        """Whether the rows of steps may have an adapter: every chat has where the model came with its own, some where others
        are held."""
        if self._own:
            return (True,)
        return (False, True) if self._held else (False,)

    def number(self, slot: int) -> int:
        """The same for a step's row; -1: the base alone."""
        adapter = self.of(slot)
        return -1 if adapter is None else adapter.number

    def _kept(self, layers: tuple[tuple[Matrices, ...], ...], scaling: float) -> CudaAdapter:
        number = next((each for each in range(TABLE) if each not in self._held), None)
        if number is None:
            raise CannotPack(f"{TABLE} are held already; unload another first")
        rank = filled_up(max(len(a) for layer in layers for product in layer for a in product.a if a is not None))
        low_rank = self._low_rank
        if low_rank is None or low_rank.layout.rank < rank:
            low_rank = self._low_rank = self._with_rank(rank)
        products = low_rank.layout.products
        adapter = CudaAdapter(number, scaling, layers, tuple(_added(layer, products, scaling) for layer in layers))
        low_rank.put(number, low_rank.layout.tiles(layers), scaling)  # last: what there is no memory for leaves nothing behind
        self._decoder.catch_up()
        self._held[number] = weakref.ref(adapter)
        weakref.finalize(adapter, self._forget, number)
        return adapter

    def _with_rank(self, rank: int) -> LowRank:
        """A table for a larger rank, with all that are held."""
        made = LowRank(self._weights.layout(rank), self._weights.norm.device)
        for number, held in list(self._held.items()):
            if adapter := held():
                made.put(number, made.layout.tiles(adapter.layers), adapter.scaling)
        self._decoder.adapt(made)
        return made

    def _forget(self, number: int) -> None:
        """Nobody names it any more: no request, no slot, no list of those loaded."""
        if self._low_rank is not None:
            self._low_rank.drop(number)
        del self._held[number]


def own_bytes(weights: CudaWeights) -> int:
    """Of the matrices of the model's own adapter."""
    found = (each for layer in weights.own or () for product in layer for each in (*product.a, *product.b))
    return sum(each.nbytes for each in found if each is not None)


def _added(layer: Sequence[Matrices], products: Sequence[Fused], scaling: float) -> tuple[Added | None, ...]:
    qkv, out, gate_up, down = (
        _added_to(matrices, product.outputs, scaling) for matrices, product in zip(layer, products, strict=True)
    )
    feed_forward = products[2].outputs[0]
    middle = feed_forward // ROWS * 8  # prompts.py unpacks gate and up by halves of their tiles
    return qkv, out, *(_half(gate_up, feed_forward, half) for half in (slice(middle), slice(middle, feed_forward))), down


def _added_to(product: Matrices, outputs: Sequence[int], scaling: float) -> Added | None:
    ends = pairwise(accumulate(outputs, initial=0))
    matrices = zip(ends, product.a, product.b, strict=True)
    present = [(slice(*columns), a, b) for columns, a, b in matrices if a is not None and b is not None]
    if not present:
        return None
    ranks = pairwise(accumulate((len(a) for _, a, _ in present), initial=0))
    parts = tuple((columns, slice(*rank), b.T) for (columns, _, b), rank in zip(present, ranks, strict=True))
    return Added(torch.cat([a for _, a, _ in present]), parts, scaling)


def _half(gate_up: Added | None, feed_forward: int, half: slice) -> Added | None:
    """For these outputs of gate, and the same of up behind them."""
    if gate_up is None:
        return None
    size = len(range(feed_forward)[half])
    parts = tuple((slice(0, size) if columns.start == 0 else slice(size, 2 * size), ranks, b[:, half])
                  for columns, ranks, b in gate_up.parts)  # fmt: skip
    return Added(gate_up.down, parts, gate_up.scaling)
