"""Cross-entropy over a vocabulary with the logits of one chunk of tokens in memory at a time.

Scope: hidden states, a frozen head, targets. The head is not trained, so the gradient of a chunk's hidden states is
computed with its logits and stored in their stead (as in Liger's fused linear cross-entropy, Hsu 2024).

Shapes: N tokens, M of them with a loss, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlora_chat.training.data.batches import IGNORED

CHUNK_BYTES = 256 * 2**20
"""Bytes of a chunk's float32 logits."""


def summed_loss(hidden: Tensor, head: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Return weight * the sum of the targets' negative log-likelihoods, a float32 scalar; (N, H), (V, H), (N,)."""
    tokens = torch.nonzero(targets != IGNORED).squeeze(1)  # (M,)
    return _Loss.apply(hidden, head, targets[tokens], tokens, weight)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, tokens: Tensor, weight: float) -> Tensor:
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk, target in zip(tokens.split(rows), targets.split(rows), strict=True):
            logits = (hidden[chunk] @ head.t()).float()  # (rows, V)
            norm = logits.logsumexp(dim=1, keepdim=True)
            total += (norm - logits.gather(1, target[:, None])).sum()
            if gradient is None:
                continue
            dlogits = logits.sub_(norm).exp_()
            dlogits.scatter_add_(1, target[:, None], torch.full_like(norm, -1.0))
            gradient[chunk] = dlogits.mul_(weight).to(hidden.dtype) @ head
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total * weight

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None, None
