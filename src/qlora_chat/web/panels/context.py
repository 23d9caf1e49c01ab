"""The use of the window on the page: how much of it the next prompt takes, which turns go, which are pinned.

Scope: from the tab's conversation to the HTML of static/context.js, and pins. Computed in a worker thread, at each pause in
typing and after each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.context import ContextUse
from qlora_chat.errors import UserError
from qlora_chat.history.pinned_turns import pinned_turns
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.handlers import Handlers, Updates
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.parts import Parts
from qlora_chat.web.session import ConversationRef

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
        except UserError as problem:
            return {self._parts.notice: render.problem(str(problem))}
        return {**self.count(draft, ref, system, settings, request), self._parts.notice: ""}


def context_value(chat: Chat, conversation: Conversation, draft: str, sampling: Sampling) -> dict[str, Any]:
    """The value of static/context.js: HTML of the bar and of the panel, where the model's memory begins, and pinned turns."""
    use = chat.context_use(conversation, draft, sampling.max_new_tokens)
    unseen = [index for index in use.dropped if conversation.messages[index].role == "user"]
    pinned = pinned_turns(conversation.tags)
    kept = [index - index % 2 for index, each in enumerate(conversation.messages) if each.id in pinned]
    going = "" if use.problem else _going(conversation, unseen)
    always = f"<h3>Always seen</h3>{_list(conversation, kept, pinned=True)}" if kept else ""
    return {
        "bar": _bar(use),
        "panel": f"{_tokens(use)}{_problem(use)}{going}{always}",
        "begins": _memory_begins(conversation, use),
        "line": _memory_line(len(unseen)),
        "pinned": [conversation.messages[index].id for index in kept],
    }


def _bar(use: ContextUse) -> str:
    """The window as a gauge, and the tokens of the next prompt."""
    widths = {"history": use.history, "draft": use.draft, "answer": use.answer}
    parts = "".join(
        f'<i class="part {name}" style="width: {min(100.0, 100 * tokens / use.window):.4g}%"></i>'
        for name, tokens in widths.items()
    )
    used = f"{use.history:,} of {use.window:,}"
    if use.draft:
        used = f"{use.history:,} + {use.draft:,} of {use.window:,}"
    return (
        f'<span class="use-of-window{" over" if use.problem else ""}"><span class="gauge" aria-hidden="true">{parts}</span>'
        f'<span class="use">{used}</span></span>'
    )


def _tokens(use: ContextUse) -> str:
    """The tokens of each part of the window."""
    rows = {
        "Conversation": use.history,
        "Your message": use.draft,
        "Kept free for the answer": use.answer,
        "Still free": max(0, use.window - use.history - use.draft - use.answer),
        "Window": use.window,
    }
    return render.facts((name, f"{tokens:,}") for name, tokens in rows.items())


def _problem(use: ContextUse) -> str:
    return f'<p class="form-problem" role="alert">{escape(use.problem)}</p>' if use.problem else ""


def _going(conversation: Conversation, unseen: Sequence[int]) -> str:
    """The newest exchanges that the model does not see, with buttons that keep them; "" where it sees all."""
    if not unseen:
        return ""
    count, more = len(unseen), len(unseen) - LISTED
    title = f"{count:,} exchanges are not seen by the model" if count > 1 else f"{count} exchange is not seen by the model"
    before = f'<li class="more">and {more:,} before these</li>' if more > 0 else ""
    return f"<h3>{title}</h3>{_list(conversation, unseen[-LISTED:], before)}"


def _memory_line(unseen: int) -> str:
    """Sentence of the line where the model's memory begins; "" where it sees all."""
    if unseen == 1:
        return f"the model's memory begins here: {unseen} exchange is not seen"
    return f"the model's memory begins here: {unseen:,} exchanges are not seen" if unseen else ""


def _list(conversation: Conversation, indices: Sequence[int], before: str = "", *, pinned: bool = False) -> str:
    """Questions, each with a button that pins it or lets it go, whose name has the question in it."""
    rows, label = [], "Let go" if pinned else "Keep"
    for index in indices:
        turn_id, text = escape(conversation.messages[index].id), escape(_excerpt(conversation, index))
        rows.append(
            f'<li><span class="own" dir="auto" id="context-{turn_id}">{text}</span><button class="plain" id="pin-{turn_id}" '
            f'value="{turn_id}"{" data-pinned" if pinned else ""} aria-labelledby="pin-{turn_id} context-{turn_id}">{label}'
            "</button></li>"
        )
    return f"<ul>{before}{''.join(rows)}</ul>"


def _excerpt(conversation: Conversation, index: int) -> str:
    text = " ".join(conversation.messages[index].content.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1].rstrip() + "…"


def _memory_begins(conversation: Conversation, use: ContextUse) -> str | None:
    """Id of the first message after the newest one that is not seen; None where all are seen, or none is."""
    after = use.dropped[-1] + 1 if use.dropped else len(conversation.messages)
    return conversation.messages[after].id if after < len(conversation.messages) else None
