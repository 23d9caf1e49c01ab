"""An empty conversation's page: the model that will answer, how it was made, and four questions that suit it.

Scope: a model's description to HTML that is safe to show. Knows no Gradio and no session.
"""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path

from qlora_chat.models import ModelInfo
from qlora_chat.web.panels.model import Measured, description

QUESTIONS = Path(__file__).with_name("example_questions.json")
"""By a part of the name of the model, its adapter or its base; "" for every other model."""


def welcome_card(info: ModelInfo, measured: Measured) -> str:
    """The HTML of an empty conversation: name, facts and making of the model, and questions, which messages.js asks."""
    questions = "".join(f"<button>{escape(each)}</button>" for each in example_questions(info))
    return (
        f'<div class="welcome"><h2 class="own" dir="auto">{escape(info.name)}</h2>{description(info, measured)}'
        f'<h3>Begin with one of these</h3><div class="examples own">{questions}</div></div>'
    )


def example_questions(info: ModelInfo) -> list[str]:
    """Four questions that suit a model."""
    names = " ".join(filter(None, (info.name, info.adapter, info.base))).lower()
    by_name = _questions()
    return next(questions for name, questions in by_name.items() if name.lower() in names)


@cache
def _questions() -> dict[str, list[str]]:
    return json.loads(QUESTIONS.read_text(encoding="utf-8"))
