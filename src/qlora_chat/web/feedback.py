"""Feedback on answers: thumbs next to each, and a panel for a comment and a better answer.

Scope: the panel, and the way from Gradio's events to the session of the tab. The thumbs are the chatbot's own.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from qlora_chat.history import HistoryError
from qlora_chat.messages import Message
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import Session

EXCERPT_CHARACTERS = 80
RATINGS = {"up": 1, "down": -1, "": None}
"""By the value of FeedbackPanel.rating; "" is a thumb that was withdrawn."""


class FeedbackHandlers:
    """One method per event."""

    def __init__(self, handlers: Handlers, parts: Parts) -> None:
        self._handlers, self._parts, self._panel = handlers, parts, parts.feedback

    def connect(self, options: dict[str, Any]) -> None:
        """Attach the events; `options` are those of every event that is not queued."""
        panel, notice = self._panel, self._parts.notice
        outputs = [panel.box, panel.about, panel.comment, panel.edited, panel.turn, panel.rating, notice]
        self._parts.chatbot.like(self.rate, [self._parts.conversation, self._parts.logged], outputs, **options)
        values = [self._parts.conversation, panel.turn, panel.rating, panel.comment, panel.edited, self._parts.logged]
        gr.on([panel.save.click, panel.comment.submit], self.save, values, [panel.box, notice], **options)
        panel.close.click(self.close, None, [panel.box], **options)

    def rate(self, ref: Any, logged: Any, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        """A thumb was pressed: save it, and open the panel."""
        session, panel = self._handlers.session(request, ref), self._panel
        pressed = event._data if isinstance(event._data, dict) else {}
        answer = render.message_at(session.conversation, pressed.get("index"))
        if answer is None or session.running:
            return {self._parts.notice: render.problem("Only an answer that is finished and still shown can be rated.")}
        rating = {"True": "up", "False": "down"}.get(str(pressed.get("liked")), "")  # "": pressed again
        if problem := self._save(session, answer, rating, "", answer.content, logged):
            return {self._parts.notice: render.problem(problem)}
        if not rating:
            return {panel.box: gr.update(visible=False), self._parts.notice: ""}
        return {
            panel.box: gr.update(visible=True),
            panel.about: _about(answer, rating),
            panel.comment: "",
            panel.edited: answer.content,
            panel.turn: answer.id,
            panel.rating: rating,
            self._parts.notice: "",
        }

    def save(
        self, ref: Any, turn_id: Any, rating: Any, comment: Any, edited: Any, logged: Any, request: gr.Request
    ) -> dict[Any, Any]:
        """Save the comment and the better answer along with the thumb."""
        session = self._handlers.session(request, ref)
        answer = next((each for each in session.conversation.messages if each.role == "assistant" and each.id == turn_id), None)
        if answer is None or not isinstance(rating, str) or rating not in RATINGS:
            return {self._parts.notice: render.problem("That answer is no longer shown, so nothing was saved.")}
        if problem := self._save(session, answer, rating, comment, edited, logged):
            return {self._parts.notice: render.problem(problem)}
        return {self._panel.box: gr.update(visible=False), self._parts.notice: render.notice("Saved. Thank you.")}

    def close(self) -> dict[Any, Any]:
        """Hide the panel; the thumb stays."""
        return {self._panel.box: gr.update(visible=False)}

    def _save(self, session: Session, answer: Message, rating: str, comment: Any, edited: Any, logged: Any) -> str | None:
        """User-facing reason why it was not saved; None if it was. An edit that changes nothing is none."""
        edited, comment = replace_surrogates(edited).strip(), replace_surrogates(comment).strip()
        if edited == answer.content.strip():
            edited = None
        try:
            saved = session.feedback(answer.id, RATINGS[rating], edited or None, comment or None, logged=logged is not False)
        except HistoryError as problem:
            return str(problem)
        return None if saved else "That answer is not in the history, so nothing was saved."


def _about(answer: Message, rating: str) -> str:
    thumb = "Thumbs up" if rating == "up" else "Thumbs down"
    line = " ".join(answer.content.split())
    excerpt = line if len(line) <= EXCERPT_CHARACTERS else f"{line[: EXCERPT_CHARACTERS - 1]}…"
    return f'<p class="about" role="status">{thumb} saved for “{escape(excerpt)}”</p>'
