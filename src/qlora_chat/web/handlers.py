"""Handlers of the page's events.

Scope: from Gradio's events to the session of the tab they came from, and from there to updates of the page's parts. Holds no
state of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import gradio as gr

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError
from qlora_chat.history import HistoryError, StaleConversation
from qlora_chat.messages import Conversation
from qlora_chat.settings import SLIDERS, Sampling, SettingsError
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.adapter_chooser import AdapterChooser
from qlora_chat.web.parts import Parts
from qlora_chat.web.past_conversations import PastConversations, list_update
from qlora_chat.web.running_answer import RunningAnswer
from qlora_chat.web.session import Busy, ConversationRef, Session
from qlora_chat.web.sessions import PageFeatures, Sessions

Updates = dict[Any, Any]
"""New values of parts of the page."""
SLIDERS_BY_POSITION = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
"""As browsers remember them that last moved a slider before values had names."""
GONE = "The process that was answering is gone. What it had written is saved; Retry answers again."


class Handlers:
    """One method per event. Each returns updates of some of `parts`."""

    def __init__(self, chat: Chat, sessions: Sessions, parts: Parts, features: PageFeatures) -> None:
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
            **self._idle(session),
            parts.system: system if isinstance(system, str) else "",
            parts.adapter: self._chooser.update(memory.get("adapter"), self._chooser.used_in(conversation)),
            parts.logged: memory.get("logged") is not False,
            **self._sliders(memory.get("sampling")),
        }

    async def send(
        self, text: str, ref: str, adapter: Any, system: str, logged: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Updates]:
        """Answer the message in the box."""
        text = replace_surrogates(text)
        if not text.strip():
            yield {self._parts.notice: render.notice("")}
            return
        session = self.session(request, ref)
        begin = partial(_begin, partial(session.send, text), adapter, system, logged, values)
        async for each in self._answer(session, begin, clear_box=True):
            yield each

    async def retry(
        self, ref: str, adapter: Any, system: str, logged: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Updates]:
        """Answer the last question again."""
        session = self.session(request, ref)
        begin = partial(_begin, session.retry, adapter, system, logged, values)
        async for each in self._answer(session, begin, clear_box=False):
            yield each

    def end_answer(self, typed: str, ref: str, request: gr.Request) -> Updates:
        """An answer's event is over, however it ended: a failed question goes back into the box, unless something new was typed
        meanwhile. Where another process was answering and is gone, the page shows what the history has."""
        session = self._sessions.find(_name(request))
        if session is None:
            return {**self._idle(self.session(request, ref)), self._parts.notice: render.problem(GONE)}
        question = session.take_failed_question()
        return {self._parts.box: question if question and not typed else gr.skip()}

    def stop(self, request: gr.Request) -> None:
        """End the answer; the page learns of it from the answer's own event."""
        if session := self._sessions.find(_name(request)):
            session.stop()

    def undo(self, typed: str, ref: str, request: gr.Request) -> Updates:
        """Take the last exchange out and put its question back into the box."""
        session = self.session(request, ref)
        text = session.undo()
        if text is None:
            return {self._parts.notice: render.notice("")}
        return {**self._idle(session), self._parts.box: "\n".join(each for each in (text, typed) if each)}

    def clear(self, request: gr.Request) -> Updates:
        """Begin an empty conversation; an answer being written stops."""
        session = self.session(request)
        session.clear()
        return self._idle(session)

    def sample(self, request: gr.Request, *values: Any) -> Updates:
        """A slider moved: it acts on the answer being written from its next token."""
        try:
            sampling = _sampling(values)
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
        return {**self._idle(session), parts.past.title: title, parts.adapter: adapter, parts.system: conversation.system or ""}

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
        return {**self._list(query, session), **self._idle(session), self._parts.past.title: "", self._parts.notice: notice}

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
        """Owner of a browser's conversations where several people use the page: the secret that it drew for itself. page.js
        sends it when a page opens, and leaves it in a cookie for other processes.

        Stored as a hash, so that a reader of the history cannot use it. A client without a secret sees nothing.
        """
        if not self._features.shared:
            return None
        port = str(request.headers.get("host", "")).rpartition("]")[2].partition(":")[2]
        known = (browser, request.cookies.get(f"qlora_chat_owner{port}"))
        secret = next((each for each in known if isinstance(each, str) and len(each) >= 32), secrets.token_hex())
        return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()

    async def _answer(
        self, session: Session, begin: Callable[[], RunningAnswer | None], clear_box: bool
    ) -> AsyncIterator[Updates]:
        try:
            answer = await asyncio.to_thread(begin)
        except StaleConversation as problem:
            yield {**await asyncio.to_thread(self._idle, session), self._parts.notice: render.problem(str(problem))}
            return
        except (ValueError, EngineError, HistoryError, Busy) as problem:  # PromptTooLong and SettingsError are ValueErrors
            yield {self._parts.notice: render.problem(str(problem))}
            return
        if answer is None:
            yield {self._parts.notice: render.notice("There is nothing to retry yet.")}
            return
        try:
            async for each in self._watch(session, answer, clear_box):
                yield each
        finally:
            answer.turn.cancel()
            answer.unwatched.set()

    async def _watch(self, session: Session, answer: RunningAnswer, clear_box: bool) -> AsyncIterator[Updates]:
        parts, question = self._parts, render.messages(answer.turn.conversation)
        note = render.notice(render.dropped(answer.turn.prompt.dropped, self._info.window))
        yield {
            **({parts.box: ""} if clear_box else {}),
            **_buttons(parts, answering=True, empty=False),
            parts.feedback.box: gr.update(visible=False),
            parts.chatbot: question,
            parts.notice: note,
            parts.status: self._status(answer),
            parts.conversation: str(ConversationRef.of(answer.turn.conversation)),
        }
        async for has_new_text in answer.changes():
            if not session.shows(answer):
                return
            if not has_new_text:
                yield {parts.notice: gr.skip()}
                continue
            rendered = render.answer(answer.turn.answer)
            yield {parts.chatbot: [*question, rendered] if rendered else question, parts.status: self._status(answer)}
        if session.shows(answer):
            idle = await asyncio.to_thread(self._idle, session, answer)
            yield {**idle, parts.notice: _final_notice(answer, note)}

    def _idle(self, session: Session, answer: RunningAnswer | None = None) -> Updates:
        """The page when no answer is being written."""
        parts, conversation = self._parts, session.conversation
        return {
            **_buttons(parts, answering=False, empty=not conversation.messages),
            parts.feedback.box: gr.update(visible=False),
            parts.chatbot: gr.update(
                value=render.messages(conversation), feedback_value=render.thumbs(conversation, session.ratings())
            ),
            parts.notice: "",
            parts.status: self._status(answer, conversation),
            parts.conversation: str(ConversationRef.of(conversation)),
        }

    def _status(self, answer: RunningAnswer | None, conversation: Conversation | None = None) -> str:
        if answer is None:
            return render.status(self._info, used=self._chat.context_used(conversation) if conversation else None)
        if finish := answer.turn.finish:
            used = finish.prompt_tokens + finish.completion_tokens
            return render.status(self._info, used, finish.tokens_per_s, finish.ttft_ms)
        used = len(answer.turn.prompt.ids) + answer.tokens
        return render.status(self._info, used, answer.tokens_per_s, answer.ttft_ms)

    def _sliders(self, remembered: Any) -> Updates:
        """Values that the browser remembers, unless one of them is out of its range by now."""
        if isinstance(remembered, list):
            remembered = dict(zip(SLIDERS_BY_POSITION, remembered, strict=False))
        if not isinstance(remembered, dict):
            return {}
        values = {name: value for name, value in remembered.items() if name in SLIDERS}
        try:
            Sampling(**values)
        except SettingsError:
            return {}
        sliders = zip(SLIDERS, self._parts.sliders, strict=True)
        return {slider: min(values[name], slider.maximum) for name, slider in sliders if name in values}


def _sampling(values: tuple[Any, ...]) -> Sampling:
    """SettingsError for what no slider sends, but a hostile client may."""
    if len(values) != len(SLIDERS):
        raise ValueError(f"{len(values)} sampling values came; expected {', '.join(SLIDERS)}")
    return Sampling(**dict(zip(SLIDERS, values, strict=True)))


def _begin(
    begin: Callable[[AnswerOptions, str | None], RunningAnswer | None],
    adapter: Any,
    system: Any,
    logged: Any,
    values: tuple[Any, ...],
) -> RunningAnswer | None:
    """Begin an answer with the values of the page's options. SettingsError for what no slider sends."""
    options = AnswerOptions(_sampling(values), AdapterChooser.parse(adapter), logged=logged is not False)
    return begin(options, replace_surrogates(system).strip() or None)


def _final_notice(answer: RunningAnswer, note: str) -> str:
    if answer.problem:
        return render.problem(answer.problem)
    if answer.turn.save_error:
        return note + render.problem(f"This answer is not saved: {answer.turn.save_error}.")
    return note


def _buttons(parts: Parts, answering: bool, empty: bool) -> Updates:
    return {
        parts.send: gr.update(interactive=not answering),
        parts.stop: gr.update(interactive=answering),
        parts.retry: gr.update(interactive=not answering and not empty),
        parts.undo: gr.update(interactive=not answering and not empty),
    }


def _read_memory(remembered: Any) -> dict[str, Any]:
    """page.js's memory of the tab; {} for anything that page.js does not write."""
    try:
        memory = json.loads(remembered)
    except (TypeError, ValueError, RecursionError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _name(request: gr.Request) -> str:
    return str(request.session_hash)
