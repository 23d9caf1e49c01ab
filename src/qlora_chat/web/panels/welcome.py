"""An empty conversation's page: the model that will answer, how it was made, and four questions that suit it.

Scope: a model's description to the words of static/welcome.js. Knows no Gradio and no session.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelInfo

QUESTIONS = Path(__file__).with_name("example_questions.json")
"""By a part of the name of the model, its adapter or its base; "" for every other model."""
MADE = {
    "bf16": "The adapter was merged into the base, in bf16.",
    "fp32": "The adapter was merged into the base, in float32.",
    "nf4": "The adapter was merged into the base, which was then quantized to NF4.",
    "nf4+adapter": "The base is in NF4, and the adapter is applied to it unmerged, as in its training.",
    "remote": "Another server computes the answers.",
}
"""Sentence on how a model was made, by ModelInfo.precision."""


def describe_model(info: ModelInfo) -> dict[str, Any]:
    """Names, facts and example questions of a model."""
    facts = [
        ("Base", info.base),
        ("Adapter", info.adapter or "none"),
        ("Precision", info.precision),
        ("Computed on", info.device),
        ("Window", f"{info.window:,} tokens for question, history and answer"),
    ]
    return {"name": info.name, "facts": facts, "made": _made(info), "questions": example_questions(info)}


def example_questions(info: ModelInfo) -> list[str]:
    """Four questions that suit a model."""
    names = " ".join(filter(None, (info.name, info.adapter, info.base))).lower()
    by_name = _questions()
    return next(questions for name, questions in by_name.items() if name.lower() in names)


def _made(info: ModelInfo) -> list[str]:
    """Sentences on how the model was made and what that cost, as the merge measured it."""
    made = (
        MADE.get(info.precision)
        if info.adapter or info.precision == "remote"
        else f"The base answers alone, in {info.precision}."
    )
    return [*([made] if made else []), *info.notices]


@cache
def _questions() -> dict[str, list[str]]:
    return json.loads(QUESTIONS.read_text(encoding="utf-8"))
