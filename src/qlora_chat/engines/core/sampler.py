"""Logits -> next tokens, each chat with its own settings.

Scope: the arithmetic of choosing. Same results as Transformers' processors in its order: repetition penalty,
temperature, top-k, top-p, min-p. Knows no model and no text.

Shapes: R rows (one a chat), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.settings import Sampling


@dataclass(frozen=True)
class SamplerInput:
    """What one row needs to choose its token."""

    sampling: Sampling
    seen: Tensor | None
    """(V,) bool: tokens in prompt or answer; None where the repetition penalty is off."""
    draw: float
    """Uniform in [0, 1), from the chat's own generator, so that company in the batch changes nothing."""


NOT_FINITE = -1
"""Instead of a token, for a row whose logits are NaN or infinite: its weights are damaged, its neighbours' are not."""


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was to the model itself; empty where nobody asked."""

    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log probability) of the likeliest, best first."""


NO_LOGPROBS = TokenLogprobs()


def token_logprobs(logits: Tensor, token: int, sampling: Sampling) -> TokenLogprobs:
    """Log probabilities from a row's logits (V,) as they left the model: before penalty, temperature and cuts."""
    if sampling.logprobs is None:
        return NO_LOGPROBS
    logprobs = logits.log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(sampling.logprobs, len(logprobs)))
    return TokenLogprobs(float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def sample(logits: Tensor, choices: Sequence[SamplerInput]) -> list[int]:
    """The next token of each row of logits (R, V) float32, or NOT_FINITE."""
    logits = _penalised(logits, choices)
    best, tokens = logits.max(dim=-1)
    sampled = [row for row, choice in enumerate(choices) if choice.sampling.temperature > 0]
    if sampled:
        tokens[sampled] = _sample(logits[sampled], [choices[row] for row in sampled])
    return tokens.masked_fill(~best.isfinite(), NOT_FINITE).tolist()


def _penalised(logits: Tensor, choices: Sequence[SamplerInput]) -> Tensor:
    rows = [row for row, choice in enumerate(choices) if choice.seen is not None]
    if not rows:
        return logits
    seen = torch.stack([choice.seen for choice in choices if choice.seen is not None])
    factor = _column([choices[row].sampling.repetition_penalty for row in rows], logits)
    chosen = logits[rows]
    logits = logits.clone()
    logits[rows] = torch.where(seen, torch.where(chosen < 0, chosen * factor, chosen / factor), chosen)
    return logits


def _sample(logits: Tensor, choices: Sequence[SamplerInput]) -> Tensor:
    """Draw from what temperature, top-k, top-p and min-p leave. -> (R,)."""
    scaled = logits / _column([choice.sampling.temperature for choice in choices], logits)
    candidates = filter_candidates(scaled, [choice.sampling for choice in choices], HEAD)
    drawn = _draw(candidates, choices)
    wide = (~candidates.complete).nonzero().flatten().tolist()
    if wide:
        chosen = [choices[row] for row in wide]
        everything = filter_candidates(scaled[wide], [choice.sampling for choice in chosen], scaled.shape[-1])
        drawn[wide] = _draw(everything, chosen)
    return drawn


def _draw(candidates: Candidates, choices: Sequence[SamplerInput]) -> Tensor:
    """Invert each row's cumulative distribution at its own draw. -> (R,)."""
    cumulative = candidates.logits.softmax(dim=-1).double().cumsum(dim=-1)
    target = _column([choice.draw for choice in choices], cumulative) * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=-1, keepdim=True)
    last_kept = candidates.logits.isfinite().sum(dim=-1, keepdim=True) - 1
    return candidates.tokens.gather(-1, index.minimum(last_kept).clamp_min(0)).squeeze(-1)


HEAD = 256
"""Candidates looked at first: finding them takes a twentieth of the time that sorting a vocabulary does."""


@dataclass(frozen=True)
class Candidates:
    """The best tokens of each row in descending order."""

    logits: Tensor
    """(R, size) over temperature; -inf where top-k, top-p or min-p cut."""
    tokens: Tensor
    """(R, size)."""
    complete: Tensor
    """(R,) bool: everything that top-k, top-p and min-p leave is among them."""


def filter_candidates(scaled: Tensor, samplings: Sequence[Sampling], size: int) -> Candidates:
    """What top-k, then top-p, then min-p leave of logits over temperature (R, V), looking at the best `size` tokens."""
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
    outside = before >= top_p
    outside[:, 0] = False  # the best token always stays
    if any(sampling.min_p for sampling in samplings):
        outside |= ordered < ordered[:, :1] + _column([sampling.min_p for sampling in samplings], scaled).log()
    complete = limited | outside[:, -1] | (size == vocabulary)
    return Candidates(ordered.masked_fill(outside, -torch.inf), tokens, complete)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
