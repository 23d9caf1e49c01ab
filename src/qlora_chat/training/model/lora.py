"""Products of a frozen weight and a LoRA, forward and backward, that store only what the gradients need.

Scope: y = x W^T + scaling * (drop(x) A^T) B^T for linears that share an input (query, key, value; gate, up), in one pass
over it; LoRA (Hu 2021) as PEFT computes it. A weight in NF4 (models/weights/nf4.py) is dequantized for each product and freed
again. Knows no layers.

Shapes: N tokens, in and out features (out of all linears together), G linears, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlora_chat.models.weights.llama import Dense, Linear, parts_of
from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.training import TrainError


@dataclass(frozen=True)
class LoraShape:
    """Shape of an adapter."""

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scaling(self) -> float:
        """Factor of the adapter's product."""
        return self.alpha / self.r


@dataclass(frozen=True)
class FrozenLinears:
    """Linears of one input, stacked; their weights are in NF4, or dequantized once if memory allows."""

    parts: tuple[NF4 | Tensor, ...]
    dtype: torch.dtype
    bias: Tensor | None = None
    """(out of all parts,); None for linears without biases."""

    @staticmethod
    def of(product: Linear, dtype: torch.dtype) -> FrozenLinears:
        """Return the linears that a product is fused from. TrainError if only some of them have a bias."""
        linears = [each for each in parts_of(product) if isinstance(each, NF4 | Dense)]
        biases = [each.bias for each in linears if each.bias is not None]
        if 0 < len(biases) < len(linears):
            raise TrainError("the base has biases on some of its query, key and value projections only; training cannot use it")
        parts = tuple(each if isinstance(each, NF4) else each.weight for each in linears)
        return FrozenLinears(parts, dtype, torch.cat(biases) if biases else None)

    def dense(self) -> Tensor:
        """Return the weights in the type of the products, (out of all parts, in)."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Tensor):
            return self.parts[0]
        outs = [part.shape[0] for part in self.parts]
        whole = torch.empty((sum(outs), self.ins), dtype=self.dtype, device=self.device)
        for part, rows in zip(self.parts, whole.split(outs), strict=True):
            part.dequantize_into(rows) if isinstance(part, NF4) else rows.copy_(part)
        return whole

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        part = self.parts[0]
        return part.packed.device if isinstance(part, NF4) else part.device

    @property
    def ins(self) -> int:
        """In features."""
        return self.parts[0].shape[1]

    def dequantized(self) -> FrozenLinears:
        """Return the same with its weights dequantized once."""
        return FrozenLinears((self.dense(),), self.dtype, self.bias)


class LoraLinears(nn.Module):
    """Linears of one input, some or all with an adapter; parameters in float32."""

    def __init__(self, frozen: FrozenLinears, outs: Sequence[int], adapted: Sequence[bool], lora: LoraShape) -> None:
        """`outs` are the linears' out features in the order of `frozen`; `adapted` marks those with an adapter."""
        super().__init__()
        self.frozen, self.scaling, self.dropout, self.r = frozen, lora.scaling, lora.dropout, lora.r
        starts = [sum(outs[:index]) for index in range(len(outs))]
        self.columns = [(start, start + out) for start, out, with_a in zip(starts, outs, adapted, strict=True) if with_a]
        r, device, count = lora.r, frozen.device, len(self.columns)
        self.a = nn.Parameter(torch.zeros(count * r, frozen.ins, device=device)) if count else None  # (G r, in)
        self.bs = nn.ParameterList([nn.Parameter(torch.zeros(end - begin, r, device=device)) for begin, end in self.columns])

    def initialize(self, generator: torch.Generator) -> None:
        """Draw A as PEFT does (Kaiming uniform with a = sqrt 5); B stays zero, so that training starts at the base."""
        if self.a is None:
            return
        bound = 1 / math.sqrt(self.a.shape[1])
        self.a.data.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator))

    def matrices(self) -> list[tuple[Tensor, Tensor]]:
        """Return (A (r, in), B (out, r)) of each linear with an adapter: views of the parameters."""
        if self.a is None:
            return []
        return list(zip(self.a.data.split(self.r), (b.data for b in self.bs), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        if self.a is None:
            return _FrozenProduct.apply(x, self.frozen)  # type: ignore[no-any-return]
        dropout = self.dropout if self.training else 0.0
        return _Product.apply(x, self.a, self, dropout, *self.bs)  # type: ignore[no-any-return]


def _frozen_product(x: Tensor, frozen: FrozenLinears) -> Tensor:
    return torch.nn.functional.linear(x, frozen.dense(), frozen.bias)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b without an adapter; stores nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenLinears) -> Tensor:
        ctx.frozen = frozen
        return _frozen_product(x, frozen)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return dy @ ctx.frozen.dense(), None


class _Product(torch.autograd.Function):
    """x W^T + b + scaling * (drop(x) A^T) B^T; stores x, the mask and drop(x) A^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, linears: LoraLinears, dropout: float, *bs: Tensor) -> Tensor:
        r = linears.r
        y = _frozen_product(x, linears.frozen)
        dropped, mask = torch.native_dropout(x, dropout, True) if dropout else (x, None)
        low = dropped @ a.to(x.dtype).t()  # (N, G r)
        for index, ((begin, end), b) in enumerate(zip(linears.columns, bs, strict=True)):
            y[:, begin:end].addmm_(low[:, index * r : (index + 1) * r], b.to(x.dtype).t(), alpha=linears.scaling)
        ctx.save_for_backward(x, mask, low, a, *bs)
        ctx.linears, ctx.dropout = linears, dropout
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, mask, low, a, *bs = ctx.saved_tensors
        linears, r, scaling = ctx.linears, ctx.linears.r, ctx.linears.scaling
        dlow, dbs = torch.empty_like(low), []
        for index, ((begin, end), b) in enumerate(zip(linears.columns, bs, strict=True)):
            part, rows = dy[:, begin:end], slice(index * r, (index + 1) * r)
            torch.mm(part, b.to(dy.dtype), out=dlow[:, rows]) if dy.is_cuda else dlow[:, rows].copy_(part @ b.to(dy.dtype))
            dbs.append((part.t() @ low[:, rows]).float().mul_(scaling))
        dlow.mul_(scaling)
        dropped = x if mask is None else torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - ctx.dropout))
        da = (dlow.t() @ dropped).float()
        del dropped
        dx = _input_gradient(ctx, dy, dlow, a.to(dy.dtype), mask) if ctx.needs_input_grad[0] else None
        return (dx, da, None, None, *dbs)


def _input_gradient(ctx: Any, dy: Tensor, dlow: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    dx = dy @ ctx.linears.frozen.dense()
    if mask is None:
        return dx.addmm_(dlow, a)
    return dx.add_(torch.ops.aten.native_dropout_backward(dlow @ a, mask, 1 / (1 - ctx.dropout)))
