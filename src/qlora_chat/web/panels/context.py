"""The use of the window on the page: how much of it the next prompt takes, which turns go, which are pinned.

Scope: from the tab's conversation to the value of static/context.js, and pins. Computed in a worker thread, at each pause in
typing and after each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.context import ContextUse
from qlora_chat.history import HistoryError
from qlora_chat.history.pinned_turns import pinned_turns
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.handlers import Handlers, Updates
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import Busy, ConversationRef

LISTED = 12
"""Exchanges that are listed one by one."""
EXCERPT = 80
"""Characters of each."""


class ContextHandlers:
    """One method per event."""

    def __init__(self, chat: Chat, handlers: Handlers, parts: Parts) -> None:
        self._chat, self._handlers, self._parts = chat, handlers, parts

    def connect(self, options: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        parts = self._parts
        inputs, counted = [parts.box, parts.conversation, parts.system, parts.sampling], [parts.context]
        latest = {**options, "trigger_mode": "always_last"}
        parts.context.input(self.count, inputs, counted, **latest)
        # The status changes when an answer ends, which the conversation's id and head do not.
        gr.on([parts.conversation.change, parts.status.change], self.count, inputs, counted, **latest)
        parts.sampling.input(self.count, inputs, counted, **latest)
        parts.context.select(self.pin, inputs, [parts.context, parts.notice], **options)

    def count(self, draft: Any, ref: Any, system: Any, settings: Any, request: gr.Request) -> Updates:
        """Count the tokens of what would be sent now.

        The event may be older than what the tab shows by now, so it reads the session and never makes it catch up.
        """
        session = self._handlers.session(request)
        if session.conversation.id != ConversationRef.parse(ref).conversation_id:
            return {self._parts.context: gr.skip()}
        conversation = replace(session.conversation, system=replace_surrogates(system).strip() or None)
        try:
            sampling = parse_settings(settings).sampling
        except ValueError:
            sampling = Sampling()  # the settings' own event says what is wrong with them
        return {self._parts.context: context_value(self._chat, conversation, replace_surrogates(draft), sampling)}

    def pin(self, draft: Any, ref: Any, system: Any, settings: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """Let the model always see an exchange, or not any more."""
        session, sent = self._handlers.session(request, ref), event._data
        try:
            session.pin(str(sent.get("id")), pinned=sent.get("pinned") is True)
        except (Busy, HistoryError) as problem:
            return {self._parts.notice: render.problem(str(problem))}
        return {**self.count(draft, ref, system, settings, request), self._parts.notice: ""}


def context_value(chat: Chat, conversation: Conversation, draft: str, sampling: Sampling) -> dict[str, Any]:
    """The value of static/context.js: tokens, where the model's memory begins, the turns that go, and the pinned ones."""
    use = chat.context_use(conversation, draft, sampling.max_new_tokens)
    unseen, pinned = _questions(conversation, use.dropped), pinned_turns(conversation.tags)
    kept = [index for index, each in enumerate(conversation.messages) if each.id in pinned]
    return {
        **{name: value for name, value in asdict(use).items() if name != "dropped"},
        "begins": _memory_begins(conversation, use),
        "unseen": len(unseen),
        "going": [_entry(conversation, index) for index in unseen[-LISTED:]],
        "pinned": [_entry(conversation, index - index % 2) for index in kept],
    }


def _questions(conversation: Conversation, indices: Sequence[int]) -> list[int]:
    """Those of the indices that are questions."""
    return [index for index in indices if conversation.messages[index].role == "user"]


def _entry(conversation: Conversation, index: int) -> dict[str, str]:
    message = conversation.messages[index]
    text = " ".join(message.content.split())
    return {"id": message.id, "text": text if len(text) <= EXCERPT else text[: EXCERPT - 1].rstrip() + "…"}


def _memory_begins(conversation: Conversation, use: ContextUse) -> str | None:
    """Id of the first message after the newest one that is not seen; None where all are seen, or none is."""
    after = use.dropped[-1] + 1 if use.dropped else len(conversation.messages)
    return conversation.messages[after].id if after < len(conversation.messages) else None
