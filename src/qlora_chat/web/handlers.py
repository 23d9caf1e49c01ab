"""Handlers of the page's events.

Scope: from Gradio's events to the session of the tab they came from, and from there to updates of the page's parts. Holds no
state of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.errors import UserError
from qlora_chat.text import json_object, replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.adapter_chooser import AdapterChooser
from qlora_chat.web.answering import Answering, Updates
from qlora_chat.web.panels.model_panel import ModelPanel
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import ConversationRef, Session
from qlora_chat.web.sessions import PageFeatures, Sessions

WRONG_ADDRESS = (
    "The address of this page names no conversation that you can see here: it was deleted, or belongs to somebody else. "
    "Choose one in the list, or begin a new one."
)
GONE = "The process that was answering is gone. What it had written is saved; Retry answers again."


class Handlers:
    """One method per event. Each returns updates of some of `parts`."""

    def __init__(
        self,
        chat: Chat,
        sessions: Sessions,
        parts: Parts,
        features: PageFeatures,
        answering: Answering,
        model: ModelPanel,
    ) -> None:
        self._answering, self._model = answering, model
        self._chat, self._features, self._chooser = chat, features, AdapterChooser(chat)
        self._sessions = sessions
        self._parts = parts

    def load(self, remembered: str, request: gr.Request) -> Updates:
        """A page was opened or reloaded: go on where its tab was."""
        memory = json_object(remembered) or {}  # of the tab, as memory.js writes it
        ref, reloaded = ConversationRef.parse(memory.get("conversation")), memory.get("reloaded") is True
        owner = self._owner(request, memory.get("browser"))
        session = self._sessions.open(_name(request), ref.conversation_id, reloaded, owner)
        session.owner = owner
        problem = self._follow_address(session, memory.get("address"))
        conversation = session.conversation
        parts = self._parts
        system = memory.get("system", conversation.system)  # typed but not sent yet, or the conversation's
        return {
            **self._model.described(),
            **self._answering.idle(session),
            parts.system: system if isinstance(system, str) else "",
            parts.adapter: self._chooser.update(memory.get("adapter"), self._chooser.used_in(conversation)),
            parts.logged: memory.get("logged") is not False,
            parts.notice: render.problem(problem) if problem else "",
        }

    def opened(self, session: Session) -> Updates:
        """The page after another conversation was opened in this tab."""
        conversation, parts = session.conversation, self._parts
        return {
            **self._answering.idle(session),
            parts.adapter: self._chooser.update(self._chooser.used_in(conversation)),
            parts.system: conversation.system or "",
        }

    def _follow_address(self, session: Session, address: Any) -> str:
        """Show the conversation that the page's address names. Returns the problem, or ""."""
        if not isinstance(address, str) or not address or address == session.conversation.id:
            return ""
        try:
            return "" if session.open(address) else WRONG_ADDRESS
        except UserError as problem:
            return str(problem)

    async def send(self, text: str, ref: str, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Answer the message in the box."""
        text = replace_surrogates(text)
        if not text.strip():
            yield {self._parts.notice: render.notice("")}
            return
        session = self.session(request, ref)
        async for each in self._answering.run(session, partial(session.send, text), options):
            yield each

    def end_answer(self, typed: str, ref: str, request: gr.Request) -> Updates:
        """An answer's event is over, however it ended: a failed question goes back into the box, unless something new was typed
        meanwhile. Where another process was answering and is gone, the page shows what the history has."""
        session = self._sessions.find(_name(request))
        if session is None:
            return {**self._answering.idle(self.session(request, ref)), self._parts.notice: render.problem(GONE)}
        question = session.take_failed_question()
        return {self._parts.box: question if question and not typed else gr.skip()}

    def stop(self, request: gr.Request) -> None:
        """End the answer; the page learns of it from the answer's own event."""
        if session := self._sessions.find(_name(request)):
            session.stop()

    def clear(self, request: gr.Request) -> Updates:
        """Begin an empty conversation; an answer being written stops."""
        session = self.session(request)
        session.clear()
        return self._answering.idle(session)

    def sample(self, settings: Any, request: gr.Request) -> Updates:
        """A setting changed: it acts on the answer being written from its next token."""
        try:
            sampling = parse_settings(settings).sampling
        except ValueError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        if session := self._sessions.find(_name(request)):
            session.update(sampling)
        return {self._parts.notice: gr.skip()}

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self._sessions.close(_name(request))

    def session(self, request: gr.Request, ref: str = "") -> Session:
        """The tab that an event came from, caught up with the ConversationRef its page shows; "" where that does not matter."""
        shown = ConversationRef.parse(ref)
        session = self._sessions.find(_name(request))
        if session is None:  # the page was loaded from another process
            owner = self._owner(request)
            session = self._sessions.open(_name(request), shown.conversation_id, reloaded=True, owner=owner)
        session.catch_up(shown)
        return session

    def _owner(self, request: gr.Request, browser: Any = None) -> str | None:
        """Owner of the conversations of the browser that an event came from; None where everybody sees all. memory.js sends
        its secret when a page opens, and leaves it in a cookie for other processes."""
        port = str(request.headers.get("host", "")).rpartition("]")[2].partition(":")[2]
        return self._features.owner(browser, request.cookies.get(f"qlora_chat_owner{port}"))


def _name(request: gr.Request) -> str:
    return str(request.session_hash)
