"""An adapter as the compiled pass takes it: packed once, next to base weights that stay unchanged.

Scope: packs A and B into the library's memory, and frees it. The KV-cache slots say which chat uses which adapter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models.weights.shape import PROJECTIONS

AB = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""
MIN_SCALE = 1e-30
"""Divisor instead of a scale of 0."""
Q, K, V, OUT, GATE, UP, DOWN = PROJECTIONS


def product_names(layers: int) -> list[tuple[str, ...]]:
    """Hugging Face names of the linears that each product is fused from, in the pass's order: four a layer, and the head."""
    products = ((Q, K, V), (OUT,), (GATE, UP), (DOWN,))
    names = [tuple(f"model.layers.{index}.{name}" for name in fused) for index in range(layers) for fused in products]
    return [*names, ("lm_head",)]


class PackedLora:
    """One adapter in the library's memory, freed with this object. Compared by identity: a reloaded one is another one."""

    def __init__(self, library: Any, products: Sequence[tuple[Sequence[AB | None], float]], int8: bool) -> None:
        """`products`: in the pass's order, the matrices of each product's linears (None where it has none), and the scaling.
        MemoryError without room."""
        self._library = library
        self.pointer: int = library.lora_new(len(products)) or _out_of_memory()
        for index, (parts, scaling) in enumerate(products):
            if any(parts):
                self._add(index, [_scaled(part, scaling, int8) if part else None for part in parts])

    def _add(self, product: int, parts: Sequence[tuple[Tensor, Tensor, Tensor] | None]) -> None:
        a, scales = (torch.cat([part[index] for part in parts if part]) for index in (0, 2))
        b = (ctypes.c_void_p * len(parts))(*[self._packed(part[1]) if part else None for part in parts])
        if not self._library.lora_product(self.pointer, product, self._packed(a), b, len(parts), scales.data_ptr()):
            _out_of_memory()

    def _packed(self, matrix: Tensor) -> int:
        matrix = matrix.contiguous()
        return self._library.matrix_dense(matrix.element_size(), matrix.data_ptr(), *matrix.shape, None) or _out_of_memory()

    def __del__(self) -> None:
        if pointer := getattr(self, "pointer", None):
            self._library.lora_free(pointer)


def _scaled(part: AB, scaling: float, int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and a factor for each rank (r). In int8 each row of A and each column of B is scaled to integers up to 127."""
    a, b = part
    if not int8:
        return a, b, torch.full((len(a),), scaling)
    a, b = a.float(), b.float()
    rows, columns = a.abs().amax(1) / 127, b.abs().amax(0) / 127  # a NaN stays, and reaches the logits through the factor
    quotients = [a / rows[:, None].clamp(min=MIN_SCALE), b / columns.clamp(min=MIN_SCALE)]
    a, b = (each.round().nan_to_num().to(torch.int8) for each in quotients)
    return a, b, rows * columns * scaling


def _out_of_memory() -> int:
    raise MemoryError("no memory for the packed adapter")
