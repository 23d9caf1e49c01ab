"""Cross-entropy over a vocabulary without ever holding the logits of more than a chunk of tokens.

Scope: hidden states, a frozen head, targets. The head is not trained, so the gradient of each chunk's hidden states is
made at once, while its logits are there, and kept instead of them (as in Liger's fused linear cross-entropy, Hsu 2024).

Shapes: N tokens, M of them under the loss, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 256 * 2**20
"""Of float32 logits at once."""
IGNORED = -100


def summed_loss(hidden: Tensor, head: Tensor, targets: Tensor, weight: float) -> Tensor:
    """weight * the sum of the targets' negative log-likelihoods, a float32 scalar; (N, H), (V, H), (N,)."""
    under = torch.nonzero(targets != IGNORED).squeeze(1)  # (M,)
    return _Loss.apply(hidden, head, targets[under], under, weight)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, under: Tensor, weight: float) -> Tensor:
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk, wanted in zip(under.split(rows), targets.split(rows), strict=True):
            logits = (hidden[chunk] @ head.t()).float()  # (rows, V)
            at = wanted[:, None]
            norm = logits.logsumexp(dim=1, keepdim=True)
            total += (norm - logits.gather(1, at)).sum()
            if gradient is None:
                continue
            slope = logits.sub_(norm).exp_()
            slope.scatter_add_(1, at, torch.full_like(norm, -1.0))
            gradient[chunk] = slope.mul_(weight).to(hidden.dtype) @ head
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total * weight

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None, None
