"""The Model panel: everything on the page that says which model answers, and the events that bring it up to date.

Scope: from the engine's model to the parts that describe it. Knows no conversation.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation, Message
from qlora_chat.serving.shared_engine import SharedEngine
from qlora_chat.web import render
from qlora_chat.web.panels.model import Measured, model_card
from qlora_chat.web.panels.welcome import describe_model
from qlora_chat.web.parts import Parts

QUESTION = Conversation(messages=(Message("user", "What is the capital of France?"),))


class ModelPanel:
    """The model's description on the page."""

    def __init__(self, chat: Chat, parts: Parts) -> None:
        self._chat, self._parts = chat, parts
        self._measure_speed()

    def connect(self, options: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        self._parts.open_model.click(self.card, None, [self._parts.model], **options)

    @property
    def outputs(self) -> list[Any]:
        """Parts that describe the model."""
        parts = self._parts
        return [parts.open_model, parts.banner, parts.welcome, parts.model]

    def described(self) -> dict[Any, Any]:
        """The parts of a page that opens, or whose model has changed."""
        info, measured, parts = self._chat.engine.info, Measured.of(self._chat.engine), self._parts
        return {
            parts.open_model: gr.update(value=info.name),
            parts.banner: render.banner(info, self._chat.prompt_format.notices),
            parts.welcome: describe_model(info, measured),
            parts.model: model_card(info, measured),
        }

    def _measure_speed(self) -> None:
        """Time a short answer in the background, so that a first visitor sees a figure."""
        engine = self._chat.engine
        if isinstance(engine, SharedEngine):
            with suppress(ValueError):  # a window that is too small for a question
                engine.speed.measure(engine.inner, self._chat.prompt_for(QUESTION, max_new_tokens=1))

    def card(self) -> dict[Any, Any]:
        """The panel, with what was measured since."""
        return {self._parts.model: model_card(self._chat.engine.info, Measured.of(self._chat.engine))}
