"""What happens when something on the page is pressed, moved or left.

Scope: from Gradio's events to the session of the tab they came from, and from there to what the parts of the page
show next. Holds no state of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError
from qlora_chat.history import HistoryError, StaleConversation
from qlora_chat.messages import Conversation
from qlora_chat.settings import SLIDERS, Sampling, SettingsError
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.adapter_chooser import AdapterChooser
from qlora_chat.web.features import PageFeatures
from qlora_chat.web.parts import Parts
from qlora_chat.web.past_conversations import PastConversations, listed
from qlora_chat.web.running_answer import Answering
from qlora_chat.web.session import AnswerOptions, Busy, ConversationRef, Session
from qlora_chat.web.sessions import Sessions

Shown = dict[Any, Any]
"""What each part of the page becomes."""
SLIDERS_BY_POSITION = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
"""As browsers remember them that last moved a slider before values had names."""
GONE = "The process that was answering is gone. What it had written is kept; Retry asks again."


class Handlers:
    """One method an event. `parts` are the outputs that every method may set."""

    def __init__(self, chat: Chat, sessions: Sessions, parts: Parts, keeps: PageFeatures) -> None:
        self._chat, self._keeps, self._past = chat, keeps, PastConversations(chat)
        self._info, self._chooser = chat.engine.info, AdapterChooser(chat)
        self._sessions = sessions
        self._parts = parts

    def load(self, remembered: str, request: gr.Request) -> Shown:
        """A page was opened or reloaded: go on where its tab was."""
        memory = _read_memory(remembered)
        place, reloaded = ConversationRef.read(memory.get("conversation")), memory.get("reloaded") is True
        session = self._sessions.open(_name(request), place.conversation_id, reloaded)
        if self._keeps.shared:
            session.owner = _owner(memory.get("browser"))
        conversation = session.conversation
        parts = self._parts
        system = memory.get("system", conversation.system)  # typed but not sent yet, or what the conversation has
        return {
            **self._idle(session),
            parts.system: system if isinstance(system, str) else "",
            parts.adapter: self._chooser.shown(memory.get("adapter"), self._chooser.used_in(conversation)),
            parts.logged: memory.get("logged") is not False,
            **self._sliders(memory.get("sampling")),
        }

    async def send(
        self, text: str, place: str, adapter: Any, system: str, logged: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Shown]:
        """Answer what was typed."""
        text = replace_surrogates(text)
        if not text.strip():
            yield {self._parts.notice: render.notice("")}
            return
        session = self.session(request, place)
        asked = (adapter, system, logged, values)
        async for each in self._answer(session, lambda: session.send(text, _asking(*asked)), clear_box=True):
            yield each

    async def retry(
        self, place: str, adapter: Any, system: str, logged: bool, request: gr.Request, *values: Any
    ) -> AsyncIterator[Shown]:
        """Answer the last question again."""
        session = self.session(request, place)
        asked = (adapter, system, logged, values)
        async for each in self._answer(session, lambda: session.retry(_asking(*asked)), clear_box=False):
            yield each

    def settle(self, typed: str, place: str, request: gr.Request) -> Shown:
        """An answer's event is over, however it ended: a question that failed goes back into the box, unless something new was
        typed meanwhile. Where another process was answering and is gone, the page is shown what the history holds."""
        session = self._sessions.find(_name(request))
        if session is None:
            return {**self._idle(self.session(request, place)), self._parts.notice: render.problem(GONE)}
        returned = session.take_returned()
        return {self._parts.box: returned if returned and not typed else gr.skip()}

    def stop(self, request: gr.Request) -> None:
        """End the answer; the page learns of it from the answer's own event."""
        if session := self._sessions.find(_name(request)):
            session.stop()

    def undo(self, typed: str, place: str, request: gr.Request) -> Shown:
        """Take the last exchange out and put its question back into the box."""
        session = self.session(request, place)
        text = session.undo()
        if text is None:
            return {self._parts.notice: render.notice("")}
        return {**self._idle(session), self._parts.box: "\n".join(each for each in (text, typed) if each)}

    def clear(self, request: gr.Request) -> Shown:
        """Begin an empty conversation; an answer being written stops."""
        session = self.session(request)
        session.clear()
        return self._idle(session)

    def sample(self, request: gr.Request, *values: Any) -> Shown:
        """A slider moved: it acts on the answer being written from its next token."""
        try:
            sampling = _sampling(values)
        except ValueError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        if session := self._sessions.find(_name(request)):
            session.update(sampling)
        return {self._parts.notice: gr.skip()}

    def find(self, asked: Any, chosen: Any, request: gr.Request) -> Shown:
        """List past conversations, or those that a search finds."""
        return self._listed(asked, self.session(request), chosen)

    def open_past(self, chosen: Any, request: gr.Request) -> Shown:
        """Show a past conversation in this tab."""
        session, parts = self.session(request), self._parts
        try:
            title = self._past.open(chosen, session)
        except (Busy, HistoryError) as problem:
            return {parts.notice: render.problem(str(problem))}
        if title is None:
            return {parts.notice: render.notice("That conversation is not there any more.")}
        conversation = session.conversation
        adapter = self._chooser.shown(self._chooser.used_in(conversation))
        return {**self._idle(session), parts.title: title, parts.adapter: adapter, parts.system: conversation.system or ""}

    def rename_past(self, chosen: Any, title: Any, asked: Any, request: gr.Request) -> Shown:
        """Give the chosen conversation another name."""
        session = self.session(request)
        try:
            self._past.rename(chosen, title, session)
        except HistoryError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        return self._listed(asked, session, chosen)

    def delete_past(self, chosen: Any, asked: Any, request: gr.Request) -> Shown:
        """Erase the chosen conversation."""
        session = self.session(request)
        try:
            deleted = self._past.delete(chosen, session)
        except (Busy, HistoryError) as problem:
            return {self._parts.notice: render.problem(str(problem))}
        said = render.notice("Deleted, here and wherever it was sent." if deleted and self._keeps.logged else "Deleted.")
        told = {self._parts.title: "", **self._idle(session), self._parts.notice: said} if deleted else {}
        return {**self._listed(asked, session), **told}

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self._sessions.close(_name(request))

    def _listed(self, asked: Any, session: Session, chosen: Any = None) -> Shown:
        choices = self._past.choices(asked, session.owner)
        return {self._parts.found: listed(choices, chosen if isinstance(chosen, str) else None)}

    def session(self, request: gr.Request, place: str = "") -> Session:
        """The tab that an event came from, at the place that its page shows; "" where that does not matter."""
        shows = ConversationRef.read(place)
        session = self._sessions.open(_name(request), shows.conversation_id, reloaded=True)
        if self._keeps.shared and session.owner is None:
            session.owner = _owner(None)  # a page that was loaded from another process: it lists nothing here
        session.catch_up(shows)
        return session

    async def _answer(self, session: Session, begin: Callable[[], Answering | None], clear_box: bool) -> AsyncIterator[Shown]:
        try:
            answering = await asyncio.to_thread(begin)
        except StaleConversation as problem:
            yield {**self._idle(session), self._parts.notice: render.problem(str(problem))}
            return
        except (ValueError, EngineError, HistoryError, Busy) as problem:  # PromptTooLong and SettingsError are ValueErrors
            yield {self._parts.notice: render.problem(str(problem))}
            return
        if answering is None:
            yield {self._parts.notice: render.notice("There is nothing to retry yet.")}
            return
        try:
            async for each in self._watch(session, answering, clear_box):
                yield each
        finally:
            answering.turn.cancel()
            answering.unwatched.set()

    async def _watch(self, session: Session, answering: Answering, clear_box: bool) -> AsyncIterator[Shown]:
        parts, asked = self._parts, render.messages(answering.turn.conversation)
        note = render.notice(render.dropped(answering.turn.prompt.dropped, self._info.window))
        yield {
            **({parts.box: ""} if clear_box else {}),
            **_buttons(parts, answering=True, empty=False),
            parts.feedback: gr.update(visible=False),
            parts.chatbot: asked,
            parts.notice: note,
            parts.status: self._status(answering),
            parts.conversation: str(ConversationRef.of(answering.turn.conversation)),
        }
        async for grown in answering.changes():
            if not session.shows(answering):
                return
            if not grown:
                yield {parts.notice: gr.skip()}
                continue
            partial = render.answer(answering.turn.answer)
            yield {parts.chatbot: [*asked, partial] if partial else asked, parts.status: self._status(answering)}
        if session.shows(answering):
            yield {**self._idle(session, answering), parts.notice: _ending(answering, note)}

    def _idle(self, session: Session, answering: Answering | None = None) -> Shown:
        """The page when no answer is being written."""
        parts, conversation = self._parts, session.conversation
        return {
            **_buttons(parts, answering=False, empty=not conversation.messages),
            parts.feedback: gr.update(visible=False),
            parts.chatbot: gr.update(
                value=render.messages(conversation), feedback_value=render.thumbs(conversation, session.ratings())
            ),
            parts.notice: "",
            parts.status: self._status(answering, conversation),
            parts.conversation: str(ConversationRef.of(conversation)),
        }

    def _status(self, answering: Answering | None, conversation: Conversation | None = None) -> str:
        if answering is None:
            return render.status(self._info, used=self._chat.context_used(conversation) if conversation else None)
        if finish := answering.turn.finish:
            used = finish.prompt_tokens + finish.completion_tokens
            return render.status(self._info, used, finish.tokens_per_s, finish.ttft_ms)
        return render.status(
            self._info, len(answering.turn.prompt.ids) + answering.tokens, answering.tokens_per_s, answering.ttft_ms
        )

    def _sliders(self, remembered: Any) -> Shown:
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


def _asking(adapter: Any, system: Any, logged: Any, values: tuple[Any, ...]) -> AnswerOptions:
    text = replace_surrogates(system).strip()
    return AnswerOptions(_sampling(values), text or None, logged is not False, AdapterChooser.asked(adapter))


def _ending(answering: Answering, note: str) -> str:
    if answering.problem:
        return render.problem(answering.problem)
    if answering.turn.unkept:
        return note + render.problem(f"This answer is not kept: {answering.turn.unkept}.")
    return note


def _owner(browser: Any) -> str:
    """Whose conversations a browser sees where several people use the page: those of the secret it drew for itself.

    Kept as a hash, so that what the history holds lets nobody in. A client without one sees nothing.
    """
    secret = browser if isinstance(browser, str) and len(browser) >= 32 else secrets.token_hex()
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _buttons(parts: Parts, answering: bool, empty: bool) -> Shown:
    return {
        parts.send: gr.update(interactive=not answering),
        parts.stop: gr.update(interactive=answering),
        parts.retry: gr.update(interactive=not answering and not empty),
        parts.undo: gr.update(interactive=not answering and not empty),
    }


def _read_memory(remembered: Any) -> dict[str, Any]:
    """What page.js kept, or nothing where it is not what page.js writes."""
    try:
        memory = json.loads(remembered)
    except (TypeError, ValueError, RecursionError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _name(request: gr.Request) -> str:
    return str(request.session_hash)
