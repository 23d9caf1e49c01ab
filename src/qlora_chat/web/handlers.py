"""Handlers of the page's events.

Scope: from Gradio's events to the session of the tab they came from, and from there to updates of the page's parts. Holds no
state of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.adapter_chooser import AdapterChooser
from qlora_chat.web.answering import Answering, Updates
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.parts import Parts
from qlora_chat.web.past_conversations import PastConversations, list_update
from qlora_chat.web.session import Busy, ConversationRef, Session
from qlora_chat.web.sessions import PageFeatures, Sessions, owner_of

GONE = "The process that was answering is gone. What it had written is saved; Retry answers again."


class Handlers:
    """One method per event. Each returns updates of some of `parts`."""

    def __init__(self, chat: Chat, sessions: Sessions, parts: Parts, features: PageFeatures, answering: Answering) -> None:
        self._answering = answering
        self._chat, self._features, self._past = chat, features, PastConversations(chat)
        self._info, self._chooser = chat.engine.info, AdapterChooser(chat)
        self._sessions = sessions
        self._parts = parts

    def load(self, remembered: str, request: gr.Request) -> Updates:
        """A page was opened or reloaded: go on where its tab was."""
        memory = _read_memory(remembered)
        ref, reloaded = ConversationRef.parse(memory.get("conversation")), memory.get("reloaded") is True
        owner = self._owner(request, memory.get("browser"))
        session = self._sessions.open(_name(request), ref.conversation_id, reloaded, owner)
        session.owner = owner
        conversation = session.conversation
        parts = self._parts
        system = memory.get("system", conversation.system)  # typed but not sent yet, or the conversation's
        return {
            **self._answering.idle(session),
            parts.system: system if isinstance(system, str) else "",
            parts.adapter: self._chooser.update(memory.get("adapter"), self._chooser.used_in(conversation)),
            parts.logged: memory.get("logged") is not False,
        }

    async def send(self, text: str, ref: str, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Answer the message in the box."""
        text = replace_surrogates(text)
        if not text.strip():
            yield {self._parts.notice: render.notice("")}
            return
        session = self.session(request, ref)
        async for each in self._answering.run(session, partial(session.send, text), options, clear_box=True):
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

    def find(self, query: Any, selected: Any, request: gr.Request) -> Updates:
        """List past conversations, or those that a search finds."""
        return self._list(query, self.session(request), selected)

    def open_past(self, selected: Any, request: gr.Request) -> Updates:
        """Show a past conversation in this tab."""
        session, parts = self.session(request), self._parts
        try:
            title = self._past.open(selected, session)
        except (Busy, HistoryError) as problem:
            return {parts.notice: render.problem(str(problem))}
        if title is None:
            return {parts.notice: render.notice("That conversation is not there any more.")}
        conversation = session.conversation
        adapter = self._chooser.update(self._chooser.used_in(conversation))
        return {
            **self._answering.idle(session),
            parts.past.title: title,
            parts.adapter: adapter,
            parts.system: conversation.system or "",
        }

    def rename_past(self, selected: Any, title: Any, query: Any, request: gr.Request) -> Updates:
        """Change the title of the selected conversation."""
        session = self.session(request)
        try:
            self._past.rename(selected, title, session)
        except HistoryError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        return self._list(query, session, selected)

    def delete_past(self, selected: Any, query: Any, request: gr.Request) -> Updates:
        """Erase the selected conversation."""
        session = self.session(request)
        try:
            deleted = self._past.delete(selected, session)
        except (Busy, HistoryError) as problem:
            return {self._parts.notice: render.problem(str(problem))}
        if not deleted:
            return self._list(query, session)
        notice = render.notice("Deleted, here and wherever it was sent." if self._features.logged else "Deleted.")
        return {
            **self._list(query, session),
            **self._answering.idle(session),
            self._parts.past.title: "",
            self._parts.notice: notice,
        }

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self._sessions.close(_name(request))

    def _list(self, query: Any, session: Session, selected: Any = None) -> Updates:
        return {self._parts.past.found: list_update(self._past.choices(query, session.owner), selected)}

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
        if not self._features.shared:
            return None
        port = str(request.headers.get("host", "")).rpartition("]")[2].partition(":")[2]
        return owner_of(browser, request.cookies.get(f"qlora_chat_owner{port}"))


def _read_memory(remembered: Any) -> dict[str, Any]:
    """page.js's memory of the tab; {} for anything that page.js does not write."""
    try:
        memory = json.loads(remembered)
    except (TypeError, ValueError, RecursionError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _name(request: gr.Request) -> str:
    return str(request.session_hash)
