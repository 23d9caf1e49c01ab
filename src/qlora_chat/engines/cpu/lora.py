"""An adapter as the compiled pass takes it: packed once, beside weights that are not touched.

Scope: the way of A and B into the library and back to the system. Which chat has which is in the cache's slots.
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
TINY = 1e-30
"""In the place of a scale of 0."""
Q, K, V, OUT, GATE, UP, DOWN = PROJECTIONS


def beside_products(layers: int) -> list[tuple[str, ...]]:
    """The linears by Hugging Face's names as the pass fuses them, in its order: four products a layer, and the head."""
    products = ((Q, K, V), (OUT,), (GATE, UP), (DOWN,))
    named = [tuple(f"model.layers.{index}.{name}" for name in names) for index in range(layers) for names in products]
    return [*named, ("lm_head",)]


class PackedLora:
    """One adapter in the library's memory, until this goes. Compared by identity: what is loaded again is another one."""

    def __init__(self, library: Any, products: Sequence[tuple[Sequence[AB | None], float]], eight_bits: bool) -> None:
        """`products`: in the pass's order, for each of a product's linears what it gets or None, and the scaling. MemoryError
        if there is no room."""
        self._library = library
        self.pointer: int = library.lora_new(len(products)) or _no_room()
        for place, (parts, scaling) in enumerate(products):
            if any(parts):
                self._add(place, [_scaled(part, scaling, eight_bits) if part else None for part in parts])

    def _add(self, place: int, parts: Sequence[tuple[Tensor, Tensor, Tensor] | None]) -> None:
        a, scales = (torch.cat([part[index] for part in parts if part]) for index in (0, 2))
        b = (ctypes.c_void_p * len(parts))(*[self._packed(part[1]) if part else None for part in parts])
        if not self._library.lora_product(self.pointer, place, self._packed(a), b, len(parts), scales.data_ptr()):
            _no_room()

    def _packed(self, matrix: Tensor) -> int:
        matrix = matrix.contiguous()
        return self._library.piece_dense(matrix.element_size(), matrix.data_ptr(), *matrix.shape, None) or _no_room()

    def __del__(self) -> None:
        if pointer := getattr(self, "pointer", None):
            self._library.lora_free(pointer)


def _scaled(part: AB, scaling: float, eight_bits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and a factor a rank (r). In eight bits each row of A and each column of B is scaled to whole numbers up to 127."""
    a, b = part
    if not eight_bits:
        return a, b, torch.full((len(a),), scaling)
    a, b = a.float(), b.float()
    rows, columns = a.abs().amax(1) / 127, b.abs().amax(0) / 127  # NaN stays: it reaches the logits through the factor
    whole = [(a / rows[:, None].clamp(min=TINY)), (b / columns.clamp(min=TINY))]
    a, b = (each.round().nan_to_num().to(torch.int8) for each in whole)
    return a, b, rows * columns * scaling


def _no_room() -> int:
    raise MemoryError("no memory for the packed adapter")
