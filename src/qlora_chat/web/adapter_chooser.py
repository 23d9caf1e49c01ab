"""The list from which a person chooses the adapter that answers.

Scope: the list's entries and value. Knows no engine's kind and no layout.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation


class AdapterChooser:
    """Adapters may come and go while the program runs, so every page that opens reads them anew."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, then the model's own name for the model without them; () with nothing to choose."""
        info = self._chat.engine.info
        return (*info.adapters, info.name) if info.adapters else ()

    def update(self, *preferred: Any) -> Any:
        """Update of the list: selects the first preferred name that exists, else the default of the engine."""
        names, info = self.names, self._chat.engine.info
        default = info.adapter if info.adapter in names else info.name
        value = next((each for each in preferred if isinstance(each, str) and each in names), default)
        return gr.update(choices=list(names), value=value if names else None, visible=bool(names))

    def used_in(self, conversation: Conversation) -> str | None:
        """Name of what gave the newest answer of a conversation; None where that is not known."""
        if not self.names or not conversation.messages:
            return None
        try:
            stored = self._chat.history.read(conversation.id)
        except HistoryError:
            return None
        shown = {message.id for message in conversation.messages}
        models = [turn.details.get("model") for turn in stored.turns if turn.message.id in shown] if stored else []
        used = next((each for each in reversed(models) if isinstance(each, dict)), {})
        return used.get("adapter") or used.get("name")
