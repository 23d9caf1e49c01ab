"""Metadata of an answer as plain JSON: stored with the answer, and part of payload version 2.

Scope: numbers and names. No text of question, prompt or answer, though the answer's token ids can be decoded into it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qlora_chat import __version__
from qlora_chat.history import ModelUsed, TurnRecord, Usage
from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS, Sampling

ORIGINAL_KWARGS = ("top_k", "top_p", "temperature", "repetition_penalty")
"""Settings that the original demo logged, in its order."""


def answer_metadata(turn: TurnRecord) -> dict[str, Any]:
    """Settings, token ids and counts, times and model of an answer."""
    usage = turn.usage or Usage(len(turn.prompt_ids), None, len(turn.answer_ids), None, None)
    return {
        "generate_kwargs": generate_kwargs(turn.sampling),
        "answer_ids": list(turn.answer_ids),
        "finish_reason": turn.answer.finish_reason,
        "seed": turn.sampling.seed,
        "max_new_tokens": turn.sampling.max_new_tokens,
        **{name: None if value is None else round(value, 2) for name, value in asdict(usage).items()},
        "settings_changes": [
            {
                "at_token": change.at_token,
                "at_character": change.at_character,
                "generate_kwargs": generate_kwargs(change.sampling),
                "max_new_tokens": change.sampling.max_new_tokens,
            }
            for change in turn.changes
        ],
        "model": turn.model and _model(turn.model),
        **({"stop_texts": list(turn.stop_texts)} if turn.stop_texts else {}),
        **({"answer_schema": asdict(turn.schema)} if turn.schema else {}),
        **({"continues": asdict(turn.continues)} if turn.continues else {}),
    }


def _model(model: ModelUsed) -> dict[str, Any]:
    """The model, with the form of its base where there is one, so that earlier receivers see their fields."""
    fields = {**asdict(model), "version": __version__}
    return fields if model.base_form else {name: value for name, value in fields.items() if name != "base_form"}


def generate_kwargs(sampling: Sampling) -> dict[str, Any]:
    """Logits processors: the original's four always, later ones where they are on, so that its receivers see its fields."""
    later = (name for name in LOGITS_PROCESSORS if name not in ORIGINAL_KWARGS)
    names = (*ORIGINAL_KWARGS, *(name for name in later if getattr(sampling, name) != SAMPLING_SETTINGS[name].default))
    return {name: getattr(sampling, name) for name in names}
