"""How an answer came about, as plain JSON: kept beside the answer, and part of what version 2 of the log sends.

Scope: numbers and names; no words of question, prompt or answer, though an answer's ids can be turned into them.
"""

from __future__ import annotations

from typing import Any

from qlora_chat import __version__
from qlora_chat.history import ModelUsed, TurnRecord
from qlora_chat.settings import Sampling


def answer_metadata(turn: TurnRecord) -> dict[str, Any]:
    """How an answer came about, without its words or the prompt's."""
    spent = turn.spent
    return {
        "answer_ids": list(turn.answer_ids),
        "finish_reason": turn.answer.finish_reason,
        "seed": turn.sampling.seed,
        "max_new_tokens": turn.sampling.max_new_tokens,
        "prompt_tokens": spent.prompt_tokens if spent else len(turn.prompt_ids),
        "cached_tokens": spent.cached_tokens if spent else None,
        "completion_tokens": spent.completion_tokens if spent else len(turn.answer_ids),
        "ttft_ms": _rounded(spent.ttft_ms) if spent else None,
        "tokens_per_s": _rounded(spent.tokens_per_s) if spent else None,
        "settings_changes": [
            {
                "at_token": change.at_token,
                "generate_kwargs": generate_kwargs(change.sampling),
                "max_new_tokens": change.sampling.max_new_tokens,
            }
            for change in turn.changes
        ],
        "model": _model(turn.model),
    }


def generate_kwargs(sampling: Sampling) -> dict[str, Any]:
    """The four settings that the original logged."""
    return {
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "temperature": sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _model(model: ModelUsed | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "name": model.name,
        "base": model.base,
        "adapter": model.adapter,
        "precision": model.precision,
        "device": model.device,
        "prompt_format": model.prompt_format,
        "base_sha256": model.base_sha256,
        "adapter_sha256": model.adapter_sha256,
        "computed_by": model.computed_by,
        "version": __version__,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
