"""An adapter as the compiled pass takes it: packed once, beside weights that are not touched.

Scope: the way of A and B into the library and back to the system. Which chat has which is in the cache's slots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models.shape import PROJECTIONS

AB = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""
Q, K, V, OUT, GATE, UP, DOWN = PROJECTIONS


def beside_products(layers: int) -> list[tuple[str, ...]]:
    """The linears by Hugging Face's names as the pass fuses them, in its order: four products a layer, and the head."""
    products = ((Q, K, V), (OUT,), (GATE, UP), (DOWN,))
    named = [tuple(f"model.layers.{index}.{name}" for name in names) for index in range(layers) for names in products]
    return [*named, ("lm_head",)]


class PackedLora:
    """One adapter in the library's memory, until this goes. Compared by identity: what is loaded again is another one."""

    def __init__(self, library: Any, products: Sequence[tuple[Sequence[AB | None], float]]) -> None:
        """`products`: in the pass's order, for each of a product's linears what it gets or None, and the scaling. MemoryError
        if there is no room."""
        self._library = library
        self.pointer: int = library.lora_new(len(products)) or _no_room()
        for place, (parts, scaling) in enumerate(products):
            present = [part for part in parts if part]
            if not present:
                continue
            a = self._packed(torch.cat([a for a, _ in present]))
            b = (ctypes.c_void_p * len(parts))(*[self._packed(part[1]) if part else None for part in parts])
            if not library.lora_product(self.pointer, place, a, b, len(parts), scaling):
                _no_room()

    def _packed(self, matrix: Tensor) -> int:
        matrix = matrix.contiguous()
        is_bf16 = int(matrix.dtype == torch.bfloat16)
        return self._library.piece_dense(is_bf16, matrix.data_ptr(), *matrix.shape, None) or _no_room()

    def __del__(self) -> None:
        if pointer := getattr(self, "pointer", None):
            self._library.lora_free(pointer)


def _no_room() -> int:
    raise MemoryError("no memory for the packed adapter")
