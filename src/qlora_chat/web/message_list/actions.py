"""Events of single messages: edit, retry, continue, switch between versions.

Scope: from the component's events to the session of the tab. The session decides what its conversation allows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from qlora_chat.errors import UserError
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.answering import Answering, Updates
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.message_list.view import answer_of
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import Session


class MessageActions:
    """One method per event. `options` of an answer are adapter, system text, logging switch and sliders."""

    def __init__(self, handlers: Handlers, answering: Answering, parts: Parts) -> None:
        self._handlers, self._answering, self._parts = handlers, answering, parts

    async def edit(self, ref: Any, event: gr.EventData, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Branch at a message: a question is answered anew, an answer is replaced by a person's words."""
        session, turn_id = self._handlers.session(request, ref), str(event._data.get("id"))
        text = replace_surrogates(event._data.get("text")).strip()
        if not text:
            yield {self._parts.notice: render.problem("An empty message cannot be sent.")}
            return
        if answer_of(session.conversation, turn_id):
            yield self._changed(session, partial(session.rewrite, turn_id, text))
            return
        async for each in self._answering.run(session, partial(session.edit, turn_id, text), options):
            yield each

    async def retry(self, ref: Any, event: gr.EventData, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Write another version of an answer, with the settings as they are now."""
        session = self._handlers.session(request, ref)
        begin = partial(session.retry, str(event._data.get("id")))
        async for each in self._answering.run(session, begin, options):
            yield each

    async def go_on(self, ref: Any, event: gr.EventData, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Continue an answer that was cut."""
        session = self._handlers.session(request, ref)
        begin = partial(session.go_on, str(event._data.get("id")))
        async for each in self._answering.run(session, begin, options):
            yield each

    def select(self, ref: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """Show another version of a message, with what followed it."""
        session = self._handlers.session(request, ref)
        return self._changed(session, partial(session.select, str(event._data.get("id"))))

    def _changed(self, session: Session, change: partial[bool]) -> Updates:
        try:
            changed = change()
        except UserError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        idle = self._answering.idle(session)
        return idle if changed else {**idle, self._parts.notice: render.notice("That message is not there any more.")}
