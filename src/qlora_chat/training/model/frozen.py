"""Frozen weights of stacked linears, dense or in NF4 and dequantized for each product.

Scope: the weights of a layer's products. The NF4 layout is in models/weights/nf4.py. Knows no adapters.

Shapes: out and in features of one linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.training import TrainError


@dataclass(frozen=True)
class FrozenLinears:
    """Linears of one input, stacked; their weights are in NF4, or dequantized once if memory allows."""

    parts: tuple[NF4 | Tensor, ...]
    dtype: torch.dtype
    bias: Tensor | None = None
    """(out of all parts,); None for linears without biases."""

    def dense(self) -> Tensor:
        """Return the weights in the type of the products, (out of all parts, in)."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Tensor):
            return self.parts[0]
        outs = self.outs
        columns = self.parts[0].shape[1]
        whole = torch.empty((sum(outs), columns), dtype=self.dtype, device=_device(self.parts[0]))
        for part, rows in zip(self.parts, whole.split(outs), strict=True):
            part.dequantize_into(rows) if isinstance(part, NF4) else rows.copy_(part)
        return whole

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return _device(self.parts[0])

    @property
    def outs(self) -> list[int]:
        """Out features of each part."""
        return [part.shape[0] for part in self.parts]

    def dequantized(self) -> FrozenLinears:
        """Return the same with its weights dequantized once."""
        return FrozenLinears((self.dense(),), self.dtype, self.bias)


def _device(part: NF4 | Tensor) -> torch.device:
    return part.packed.device if isinstance(part, NF4) else part.device


def stack_biases(biases: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate the biases of stacked linears; None if none has one. TrainError if only some do."""
    present = [each for each in biases if each is not None]
    if not present:
        return None
    if len(present) < len(biases):
        raise TrainError("the base has biases on some of its query, key and value projections only, which cannot be trained on")
    return torch.cat(present)
