"""Events of the list of conversations: one is opened, and the list follows what the tab shows.

Scope: from the component's events to the session of the tab. Everything else that the list does goes over its routes.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.errors import UserError
from qlora_chat.history import HistoryError
from qlora_chat.web import render
from qlora_chat.web.answering import Updates
from qlora_chat.web.chats import listing, view
from qlora_chat.web.chats.route import GONE
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.parts import Parts, js_call
from qlora_chat.web.session import ConversationRef


class ChatEvents:
    """One method per event."""

    def __init__(self, chat: Chat, handlers: Handlers, parts: Parts) -> None:
        self._chat, self._handlers, self._parts = chat, handlers, parts

    def connect(self, options: dict[str, Any]) -> None:
        """Connect the events, in the open Blocks."""
        parts = self._parts
        shown = [parts.messages, parts.box, parts.notice, parts.status, parts.conversation, parts.adapter, parts.system]
        left = parts.chats.select(self.open, None, shown, js=js_call("leave", module="messages"), **options)
        left.then(None, [parts.conversation], js=js_call("arrived", module="messages"))
        parts.conversation.change(self.shown, [parts.conversation], [parts.chats], **options)

    def open(self, event: gr.EventData, request: gr.Request) -> Updates:
        """Show a conversation of the list in this tab."""
        session, notice = self._handlers.session(request), self._parts.notice
        try:
            if not session.open(str(event._data.get("id"))):
                return {notice: render.problem(GONE)}
        except UserError as problem:
            return {notice: render.problem(str(problem))}
        return {**self._handlers.opened(session), notice: ""}

    def shown(self, ref: Any, request: gr.Request) -> Updates:
        """Value of the list when the tab shows another conversation, or has a turn more: its id, title, row and state."""
        name, owner = ConversationRef.parse(ref).conversation_id, self._handlers.session(request).owner
        try:
            summary = self._chat.history.summary(name, owner=owner) if name else None
        except HistoryError:
            summary = None
        shown = {"open": "", "title": "", "row": ""}
        if summary:
            shown = {"open": summary.id, "title": summary.title, "row": view.row(listing.Entry(summary))}
        return {self._parts.chats: {**shown, "state": str(ref)}}
