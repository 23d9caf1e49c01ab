"""An empty conversation's page: the model that will answer, how it was made, and four questions that suit it.

Scope: a model's description to the words of static/welcome.js. Knows no Gradio and no session.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelInfo
from qlora_chat.web.panels.model import Measured, making, model_facts

QUESTIONS = Path(__file__).with_name("example_questions.json")
"""By a part of the name of the model, its adapter or its base; "" for every other model."""


def describe_model(info: ModelInfo, measured: Measured) -> dict[str, Any]:
    """Names, facts and example questions of a model."""
    facts, made = model_facts(info, measured), making(info)
    return {"name": info.name, "facts": facts, "made": made, "questions": example_questions(info)}


def example_questions(info: ModelInfo) -> list[str]:
    """Four questions that suit a model."""
    names = " ".join(filter(None, (info.name, info.adapter, info.base))).lower()
    by_name = _questions()
    return next(questions for name, questions in by_name.items() if name.lower() in names)


@cache
def _questions() -> dict[str, list[str]]:
    return json.loads(QUESTIONS.read_text(encoding="utf-8"))
