"""An answer from its event to the page: begun, watched while it grows, and shown as it ended.

Scope: updates of the parts that every answer changes, however it began. Knows the session, and no event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.errors import UserError
from qlora_chat.history import StaleConversation
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.message_list.view import idle_value, live_value
from qlora_chat.web.panels.model import Measured
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.parts import Parts
from qlora_chat.web.running_answer import RunningAnswer
from qlora_chat.web.session import ConversationRef, Session

Updates = dict[Any, Any]
"""New values of parts of the page."""
Begin = Callable[[AnswerOptions, str | None], RunningAnswer | None]
"""Begins an answer with these options and this system text; None where there is nothing to answer."""
LATEST_REF_SECONDS = 1.0
"""A page is told of the new turn with its first words, or after this long: what it then asks for keeps the model from them."""


class Answering:
    """Updates of the page from the beginning of an answer to its end."""

    def __init__(self, chat: Chat, parts: Parts) -> None:
        self._chat, self._parts = chat, parts

    async def run(self, session: Session, begin: Begin, options: tuple[Any, ...]) -> AsyncIterator[Updates]:
        """Begin an answer with the page's options (adapter, system text, logging switch, settings) and follow it."""
        notice = self._parts.notice
        try:
            answer = await asyncio.to_thread(_begin, begin, *options)
        except StaleConversation as problem:
            yield {**await asyncio.to_thread(self.idle, session), notice: render.problem(str(problem))}
            return
        except (UserError, ValueError) as problem:
            yield {notice: render.problem(str(problem))}
            return
        if answer is None:
            yield {**self.idle(session), notice: render.notice("That message is not shown any more.")}
            return
        try:
            async for each in self._watch(session, answer):
                yield each
        finally:
            answer.turn.cancel()
            answer.unwatched.set()

    async def _watch(self, session: Session, answer: RunningAnswer) -> AsyncIterator[Updates]:
        parts = self._parts
        note = render.notice(render.dropped(answer.turn.prompt.dropped, self._chat.engine.info.window))
        yield {parts.messages: live_value(answer), parts.notice: note}
        begun: Updates = {parts.conversation: str(ConversationRef.of(answer.turn.conversation))}
        async for has_new_text in answer.changes():
            if not session.shows(answer):
                return
            is_late = answer.turn.answer or time.perf_counter() - answer.began > LATEST_REF_SECONDS
            yield {parts.messages: live_value(answer) if has_new_text else gr.skip(), **(begun if is_late else {})}
            begun = {} if is_late else begun
        if session.shows(answer):
            idle = await asyncio.to_thread(self.idle, session, answer)
            yield {**idle, parts.notice: _final_notice(answer, note)}

    def idle(self, session: Session, answer: RunningAnswer | None = None) -> Updates:
        """The page when no answer is being written."""
        parts, conversation = self._parts, session.conversation
        return {
            parts.messages: idle_value(session),
            parts.notice: "",
            parts.status: self._status(answer),
            parts.conversation: str(ConversationRef.of(conversation)),
        }

    def _status(self, answer: RunningAnswer | None) -> str:
        info = self._chat.engine.info
        if answer and (finish := answer.turn.finish):
            return render.status(info, finish.tokens_per_s, finish.ttft_ms)
        measured = Measured.of(self._chat.engine)
        return render.status(info, measured.tokens_per_s, measured.ttft_ms)


def _begin(begin: Begin, adapter: Any, system: Any, logged: Any, settings: Any) -> RunningAnswer | None:
    options = replace(parse_settings(settings), adapter=adapter or None, logged=logged is not False)
    return begin(options, replace_surrogates(system).strip() or None)


def _final_notice(answer: RunningAnswer, note: str) -> str:
    if answer.problem:
        return render.problem(answer.problem)
    if answer.turn.save_error:
        return note + render.problem(f"This answer is not saved: {answer.turn.save_error}.")
    return note
