"""Sampler: logits in, next tokens out, each row with its own settings.

Scope: the arithmetic of sampling. Same results as Transformers' processors in Transformers' order: repetition penalty,
temperature, top-k, top-p, min-p. Knows no model and no text.

Shapes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qlora_chat.engines import NO_LOGPROBS, TokenLogprobs
from qlora_chat.settings import Sampling

NOT_FINITE = -1
"""Returned instead of a token for a row whose logits are NaN or infinite: damaged weights spoil their own row only."""
TOP_CANDIDATES = 256
"""Candidates tried first: finding them takes a twentieth of the time that sorting a vocabulary does."""


@dataclass(frozen=True)
class SamplerInput:
    """Everything that one row needs besides its logits."""

    sampling: Sampling
    seen: Tensor | None
    """(V,) bool: tokens in prompt or answer; None where the repetition penalty is off."""
    draw: float
    """Uniform in [0, 1), from the chat's own generator, so that other rows in the batch change nothing."""


Sampler = Callable[[Tensor, Sequence[SamplerInput]], list[int]]
"""As `sample`, on whatever device."""


def token_logprobs(logits: Tensor, token: int, sampling: Sampling) -> TokenLogprobs:
    """Log probabilities from a row's logits (V,) as the model returned them: before penalty, temperature and filters."""
    if sampling.logprobs is None:
        return NO_LOGPROBS
    logprobs = logits.log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(sampling.logprobs, len(logprobs)))
    return TokenLogprobs(float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def sample(logits: Tensor, inputs: Sequence[SamplerInput]) -> list[int]:
    """Next token of each row of logits (R, V) float32, or NOT_FINITE."""
    logits = _penalized(logits, inputs)
    best, tokens = logits.max(dim=-1)
    random = [row for row, each in enumerate(inputs) if each.sampling.temperature > 0]
    if random:
        tokens[random] = _sample(logits[random], [inputs[row] for row in random])
    return tokens.masked_fill(~best.isfinite(), NOT_FINITE).tolist()


def sample_from(ids: np.ndarray, logits: Tensor, row: SamplerInput, sample: Sampler = sample) -> int:
    """Next token of a row of logits (V,) as if the vocabulary were `ids` alone, or NOT_FINITE.

    With NumPy, since torch's threads would go on spinning on the core that the next pass needs.
    """
    narrowed = torch.from_numpy(logits.float().cpu().numpy()[ids][None])
    seen = None if row.seen is None else torch.from_numpy(row.seen.cpu().numpy()[ids])
    (index,) = sample(narrowed, [replace(row, seen=seen)])
    return NOT_FINITE if index == NOT_FINITE else int(ids[index])


def _penalized(logits: Tensor, inputs: Sequence[SamplerInput]) -> Tensor:
    rows = [row for row, each in enumerate(inputs) if each.seen is not None]
    if not rows:
        return logits
    seen = torch.stack([each.seen for each in inputs if each.seen is not None])
    penalty = _column([inputs[row].sampling.repetition_penalty for row in rows], logits)
    affected = logits[rows]
    logits = logits.clone()
    logits[rows] = torch.where(seen, torch.where(affected < 0, affected * penalty, affected / penalty), affected)
    return logits


def _sample(logits: Tensor, inputs: Sequence[SamplerInput]) -> Tensor:
    """Draw from the tokens that temperature, top-k, top-p and min-p leave. Returns (R,)."""
    scaled = logits / _column([each.sampling.temperature for each in inputs], logits)
    candidates = filter_candidates(scaled, [each.sampling for each in inputs], TOP_CANDIDATES)
    tokens = _draw(candidates, inputs)
    incomplete = (~candidates.complete).nonzero().flatten().tolist()
    if incomplete:
        rest = [inputs[row] for row in incomplete]
        candidates = filter_candidates(scaled[incomplete], [each.sampling for each in rest], scaled.shape[-1])
        tokens[incomplete] = _draw(candidates, rest)
    return tokens


@dataclass(frozen=True)
class Candidates:
    """Best tokens of each row in descending order."""

    logits: Tensor
    """(R, C) over temperature; -inf where top-k, top-p or min-p removed the token."""
    tokens: Tensor
    """(R, C)."""
    complete: Tensor
    """(R,) bool: the candidates include every token that top-k, top-p and min-p leave."""


def filter_candidates(scaled: Tensor, samplings: Sequence[Sampling], size: int) -> Candidates:
    """Apply top-k, then top-p, then min-p to logits over temperature (R, V), considering the best `size` tokens."""
    vocabulary = scaled.shape[-1]
    size = min(size, vocabulary)
    ordered, tokens = scaled.topk(size, dim=-1)
    top_k = [sampling.top_k if 0 < sampling.top_k < size else size for sampling in samplings]
    limited = torch.tensor([0 < sampling.top_k < size for sampling in samplings], device=scaled.device)
    weakest = ordered.gather(-1, torch.tensor(top_k, device=scaled.device)[:, None] - 1)
    ordered = ordered.masked_fill(ordered < weakest, -torch.inf)
    total = torch.where(limited, ordered.logsumexp(dim=-1), scaled.logsumexp(dim=-1))
    probabilities = (ordered - total[:, None]).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = _column([sampling.top_p if sampling.top_p < 1 else torch.inf for sampling in samplings], scaled)
    removed = before >= top_p
    removed[:, 0] = False  # the best token always stays
    if any(sampling.min_p for sampling in samplings):
        removed |= ordered < ordered[:, :1] + _column([sampling.min_p for sampling in samplings], scaled).log()
    complete = limited | removed[:, -1] | (size == vocabulary)
    return Candidates(ordered.masked_fill(removed, -torch.inf), tokens, complete)


def _draw(candidates: Candidates, inputs: Sequence[SamplerInput]) -> Tensor:
    """Invert each row's cumulative distribution at its own draw. Returns (R,)."""
    cumulative = candidates.logits.softmax(dim=-1).double().cumsum(dim=-1)
    target = _column([each.draw for each in inputs], cumulative) * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=-1, keepdim=True)
    last = candidates.logits.isfinite().sum(dim=-1, keepdim=True) - 1
    return candidates.tokens.gather(-1, index.minimum(last).clamp_min(0)).squeeze(-1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
