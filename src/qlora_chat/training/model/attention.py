"""Causal attention within each dialogue of a micro-batch, never across dialogues.

Scope: queries, keys and values of concatenated dialogues. On a card, variable-length flash attention; elsewhere, dialogues
of similar length are padded at their end, which causal attention never reads.

Shapes: N tokens, Q query heads, K key-value heads, D head dimension, B dialogues of a group, T their padded length.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Layout:
    """Positions of the dialogues in a micro-batch."""

    positions: Tensor  # (N,) int64, each token's position in its dialogue
    lengths: tuple[int, ...]
    boundaries: Tensor  # (dialogues + 1,) int32
    groups: tuple[tuple[Tensor, Tensor], ...]
    """For padded attention: (B, T) indices into N, and for each real token its index into N and into B * T, (2, tokens)."""

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Layout:
        """Return the layout of concatenated dialogues of these lengths."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        groups = () if _varlen() and device.type == "cuda" else tuple(_groups(lengths))
        moved = tuple((rows.to(device), tokens.to(device)) for rows, tokens in groups)
        return Layout(positions.to(device), tuple(lengths), boundaries.to(device), moved)


def _groups(lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Group dialogues by power-of-two length and pad each group to its longest: at most half of it is padding."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    classes: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        classes.setdefault((length - 1).bit_length(), []).append(index)
    groups = []
    for members in classes.values():
        width = max(lengths[index] for index in members)
        rows = torch.stack([(starts[i] + torch.arange(width)).clamp(max=starts[i] + lengths[i] - 1) for i in members])
        padded = [torch.stack((starts[i] + torch.arange(lengths[i]), row * width + torch.arange(lengths[i])))
                  for row, i in enumerate(members)]  # fmt: skip
        groups.append((rows, torch.cat(padded, dim=1)))
    return groups


def attend(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """(N, Q, D), (N, K, D), (N, K, D) -> (N, Q, D)."""
    varlen = _varlen()
    if varlen and queries.device.type == "cuda" and queries.dtype in (torch.bfloat16, torch.float16):
        return varlen(queries, keys, values, layout.boundaries, max(layout.lengths))
    if len(layout.lengths) == 1:
        return _causal(queries[None], keys[None], values[None])[0]
    return _Padded.apply(queries, keys, values, layout)  # type: ignore[no-any-return]


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, T, Q, D), (B, T, K, D) twice -> (B, T, Q, D)."""
    grouped = queries.shape[2] != keys.shape[2]
    q, k, v = (each.transpose(1, 2) for each in (queries, keys, values))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


class _Padded(torch.autograd.Function):
    """Attention per group. Copies in and out are plain gathers in both directions, so that results never depend on the
    order in which threads add."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
        ctx.groups = layout.groups or _groups(layout.lengths)
        ctx.save_for_backward(queries, keys, values)
        out = torch.empty_like(queries)
        for rows, (tokens, padded) in ctx.groups:
            attended = _causal(*(each[rows] for each in (queries, keys, values)))  # (B, T, Q, D)
            out[tokens] = attended.flatten(0, 1)[padded]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors
        results = [torch.empty_like(each) for each in inputs]
        for rows, (tokens, padded) in ctx.groups:
            with torch.enable_grad():  # recomputed, so that only queries, keys and values are stored
                parts = [each.detach()[rows].requires_grad_() for each in inputs]
                attended = _causal(*parts)
            outer = attended.new_zeros(attended.shape)
            outer.view(-1, *attended.shape[2:])[padded] = gradient[tokens]
            for result, part in zip(results, torch.autograd.grad(attended, parts, outer), strict=True):
                result[tokens] = part.flatten(0, 1)[padded]
        return (*results, None)


Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@cache
def _varlen() -> Varlen | None:
    """Return torch's variable-length flash attention if build and card support it; its arguments changed between versions."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    parameters = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}

    def attention(queries: Tensor, keys: Tensor, values: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        extra = dict(causal)
        if queries.shape[1] != keys.shape[1]:
            if "enable_gqa" in parameters:
                extra["enable_gqa"] = True
            else:
                shared = queries.shape[1] // keys.shape[1]
                keys, values = (each.repeat_interleave(shared, dim=1) for each in (keys, values))
        return varlen_attn(queries, keys, values, boundaries, boundaries, longest, longest, **extra)  # type: ignore[return-value]

    return attention if _is_supported(attention) else None


def _is_supported(attention: Varlen) -> bool:
    """Run forward and backward on two short dialogues: an old card refuses only at run time."""
    try:
        with torch.enable_grad():
            x = torch.ones(4, 2, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            attention(x, x, x, torch.tensor([0, 1, 4], dtype=torch.int32, device="cuda"), 3).sum().backward()
        torch.cuda.synchronize()
    except Exception:  # whatever the error is, padded attention computes the same
        return False
    return True
