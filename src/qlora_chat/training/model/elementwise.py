"""The elementwise steps of a layer, with as little memory traffic as plain torch allows.

Scope: rotary embedding and SwiGLU, forward and backward. On a card SwiGLU is one kernel each way, compiled at run time
by the NVRTC that torch brings; without it, and on a CPU, several torch calls compute the same.

Shapes: N tokens, D head dimension, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding with the halves of a head as pairs, as Hugging Face stores LLaMA.

    (N, heads, D); cos and sin (N, 1, D / 2).
    """
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (first, second), (one, two) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=one)
    one.addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=two)
    two.addcmul_(first, sin, value=direction)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(outer, cos, sin, -1.0), None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; (N, 2 F) -> (N, F)."""
    return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        kernels = _kernels() if gate_up.is_cuda else None
        return kernels[0](gate, up) if kernels else silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        gradient = torch.empty_like(gate_up)
        dgate, dup = gradient.chunk(2, dim=-1)
        if gate_up.is_cuda and (kernels := _kernels()):
            for part, result in zip((dgate, dup), kernels[1](gate, up, outer), strict=True):
                part.copy_(result)
            return gradient
        curve = torch.sigmoid(gate)
        torch.mul(outer, gate, out=dup).mul_(curve)
        torch.mul(outer, up, out=dgate).mul_(curve)
        dgate.mul_(curve.neg_().add_(1).mul_(gate).add_(1))
        return gradient


_FORWARD = """
template <typename T> T swiglu(T gate, T up) {
  float g = static_cast<float>(gate);
  return static_cast<T>(g / (1.0f + expf(-g)) * static_cast<float>(up));
}
"""
_BACKWARD = """
template <typename T> void swiglu_backward(T gate, T up, T outer, T& dgate, T& dup) {
  float g = static_cast<float>(gate), o = static_cast<float>(outer);
  float s = 1.0f / (1.0f + expf(-g));
  dgate = static_cast<T>(o * static_cast<float>(up) * s * (1.0f + g * (1.0f - s)));
  dup = static_cast<T>(o * g * s);
}
"""


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return (forward, backward) for this card, or None if they cannot be compiled."""
    try:
        from torch.cuda.jiterator import _create_jit_fn, _create_multi_output_jit_fn

        kernels = _create_jit_fn(_FORWARD), _create_multi_output_jit_fn(_BACKWARD, num_outputs=2)
        x = torch.ones(8, 2, dtype=torch.bfloat16, device="cuda")
        kernels[0](x, x)
        kernels[1](x, x, x)
        torch.cuda.synchronize()
    except Exception:  # a card or a build without it: whatever the error is, plain torch computes the same
        return None
    return kernels
