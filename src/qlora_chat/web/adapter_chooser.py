"""Which of several adapters answers in a conversation: the list on the page, and what was chosen before.

Scope: the chooser's choices and its value. Knows no engine's kind and no layout.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation


class AdapterChooser:
    """Adapters may come and go while the program runs, so every page that opens asks anew."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    @property
    def names(self) -> tuple[str, ...]:
        """What can be chosen: the adapters, and the model's own name for the model without them. () with nothing to choose."""
        info = self._chat.engine.info
        return (*info.adapters, info.name) if info.adapters else ()

    def shown(self, *wanted: Any) -> Any:
        """What becomes of the list: the first of the wanted names that there is, or the one that answers unasked."""
        names, info = self.names, self._chat.engine.info
        usual = info.adapter if info.adapter in names else info.name
        value = next((each for each in wanted if isinstance(each, str) and each in names), usual)
        return gr.update(choices=list(names), value=value if names else None, visible=bool(names))

    @staticmethod
    def asked(chosen: Any) -> str | None:
        """The name as the engine is asked for it, whether it has it or not; None where nothing was chosen."""
        return chosen if isinstance(chosen, str) and chosen else None

    def used_in(self, conversation: Conversation) -> str | None:
        """What gave the newest answer of a conversation; None where that is not known."""
        if not self.names or not conversation.messages:
            return None
        try:
            kept = self._chat.history.read(conversation.id)
        except HistoryError:
            return None
        shown = {message.id for message in conversation.messages}
        models = [turn.details.get("model") for turn in kept.turns if turn.message.id in shown] if kept else []
        used = next((each for each in reversed(models) if isinstance(each, dict)), {})
        return used.get("adapter") or used.get("name")
