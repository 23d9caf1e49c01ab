"""Feedback on answers: a thumb, a comment and a better answer, given under the answer.

Scope: from the component's events to the session of the tab, and the note that the component shows under the answer.
"""

from __future__ import annotations

import itertools
from typing import Any

import gradio as gr

from qlora_chat.history import Feedback, HistoryError
from qlora_chat.messages import Message
from qlora_chat.text import replace_surrogates
from qlora_chat.web.handlers import Handlers, Updates
from qlora_chat.web.message_list.article import note_html, thumbs_of
from qlora_chat.web.message_list.view import answer_of, idle_value
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import Session

THUMBS = {1: "Thumbs up saved.", -1: "Thumbs down saved.", None: "Taken back."}
RATINGS = (1, -1)
"""Values of a rating; anything else takes the thumb back."""


class FeedbackHandlers:
    """One method per event."""

    def __init__(self, handlers: Handlers, parts: Parts) -> None:
        self._handlers, self._parts = handlers, parts
        self._numbers = itertools.count(1)

    def connect(self, options: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        messages, inputs = self._parts.messages, [self._parts.conversation, self._parts.logged]
        messages.like(self.rate, inputs, [messages], **options)
        messages.submit(self.save, inputs, [messages], **options)

    def rate(self, ref: Any, logged: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """A thumb was pressed: save it at once. Pressed again, it is taken back."""
        return self._save(ref, logged, event._data, request, THUMBS)

    def save(self, ref: Any, logged: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """Save the comment and the better answer along with the thumb."""
        return self._save(ref, logged, event._data, request, dict.fromkeys(THUMBS, "Saved. Thank you."))

    def _save(self, ref: Any, logged: Any, sent: dict[str, Any], request: gr.Request, words: dict[Any, str]) -> Updates:
        session = self._handlers.session(request, ref)
        answer, rating = answer_of(session.conversation, sent.get("id")), sent.get("rating")
        rating = rating if rating in RATINGS else None
        if session.running:
            return {self._parts.messages: gr.skip()}  # the answer's own event sets the value
        if answer is None:
            problem = "That answer is no longer shown, so nothing was saved."
        else:
            problem = _stored(session, answer, rating, sent, logged=logged is not False)
        html = note_html(problem, "alert") if problem else note_html(words[rating], "status")
        note = {
            "id": sent.get("id"), "html": html, "thumbs": None if problem else thumbs_of(rating), "rating": rating or 0,
            "form": words is THUMBS and rating is not None, "number": next(self._numbers),
        }  # fmt: skip
        return {self._parts.messages: idle_value(session, note)}


def _stored(session: Session, answer: Message, rating: int | None, sent: dict[str, Any], *, logged: bool) -> str | None:
    """User-facing reason why it was not saved; None if it was. An edit that changes nothing is none."""
    edited, comment = replace_surrogates(sent.get("edited")).strip(), replace_surrogates(sent.get("comment")).strip()
    if edited == answer.content.strip():
        edited = None
    try:
        saved = session.save_feedback(Feedback(answer.id, rating, edited or None, comment or None), logged=logged)
    except HistoryError as problem:
        return str(problem)
    return None if saved else "That answer is not in the history, so nothing was saved."
