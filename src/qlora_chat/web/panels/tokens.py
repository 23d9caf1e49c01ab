"""The tokens of an answer with their probabilities, and an answer that branches at one of them.

Scope: from the events of static/tokens.js to the engine and the session, and back to the HTML that it shows.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.context import with_own_ids
from qlora_chat.engines import EngineError
from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import Prompt
from qlora_chat.replay.tokens import MOST_TOKENS, Alternative, ExaminedToken, examine_tokens
from qlora_chat.settings import Sampling
from qlora_chat.web.answering import Answering, Updates
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.parts import Parts

PROGRESS_S = 0.5
GONE = "That answer is not shown any more."
NO_IDS = "The token ids of this answer are not known: it was imported, or written by a person."
UNLIKELY = 0.2
LEVELS = ((0.8, "sure"), (0.5, "likely"), (UNLIKELY, "open"), (0.0, "unlikely"))
"""Looks of a token, by its least probability."""


class TokenHandlers:
    """One method per event."""

    def __init__(self, chat: Chat, handlers: Handlers, answering: Answering, parts: Parts) -> None:
        self._chat, self._handlers, self._answering, self._parts = chat, handlers, answering, parts

    def examine(self, ref: Any, event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        """Compute the probabilities of an answer's tokens, with reports on the way."""
        session, turn_id = self._handlers.session(request, ref), str(event._data.get("id"))
        shown = with_own_ids(session.conversation, self._chat.engine.tokenizer)
        answer = next((each for each in shown.messages if each.id == turn_id), None)
        if answer is None or not answer.ids or session.running:
            yield self._value(turn_id, NO_IDS if answer and not session.running else GONE)
            return
        prompt, adapter = self._recorded_prompt(session.conversation, answer)
        found: list[ExaminedToken] = []
        total, reported = min(len(answer.ids), MOST_TOKENS), time.monotonic()
        try:
            for each in examine_tokens(self._chat.engine, prompt.ids, answer.ids, adapter):
                found.append(each)
                if time.monotonic() - reported > PROGRESS_S:
                    reported = time.monotonic()
                    yield self._value(turn_id, f"Computing: {len(found):,} of {total:,} tokens")
        except (EngineError, ValueError) as problem:
            yield self._value(turn_id, str(problem))
            return
        said = summary(found, cut=len(answer.ids) > MOST_TOKENS), "Choose one to see what could have stood there."
        yield self._value(turn_id, *said, tokens=token_buttons(found), choices=[choice(each) for each in found])

    async def branch(self, ref: Any, event: gr.EventData, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Write the rest of an answer anew after another token."""
        session, sent = self._handlers.session(request, ref), event._data
        at, token = _index(sent.get("at")), _index(sent.get("token"))
        begin = partial(session.branch, str(sent.get("id")), at, token)
        async for each in self._answering.run(session, begin, options):
            yield each

    def _value(self, turn_id: str, *said: str, **fields: Any) -> Updates:
        status = " ".join(f"<span>{escape(each)}</span>" for each in said)
        return {self._parts.tokens: {"id": turn_id, "status": status, **fields}}

    def _recorded_prompt(self, conversation: Conversation, answer: Message) -> tuple[Prompt, str | None]:
        """The prompt of an answer, and the adapter that wrote it, as far as the history knows."""
        details: Any = {}
        try:
            stored = self._chat.history.read(conversation.id)
            details = next((turn.details for turn in stored.turns if turn.message.id == answer.id), {}) if stored else {}
        except HistoryError:
            pass
        before = conversation.before(answer.id) or conversation
        adapter = (details.get("model") or {}).get("adapter")
        known = adapter if adapter in self._chat.engine.info.adapters else None
        return self._chat.prompt_for(before, details.get("max_new_tokens") or Sampling().max_new_tokens), known


def _index(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else -1


def summary(tokens: Sequence[ExaminedToken], *, cut: bool) -> str:
    """Sentence on the number of tokens, and of the unlikely ones among them."""
    unlikely = sum((each.probability or 0) < UNLIKELY for each in tokens)
    if cut:
        return f"The first {len(tokens):,} tokens, {unlikely:,} of them below {UNLIKELY:.0%}."
    return f"{len(tokens):,} tokens, {unlikely:,} of them below {UNLIKELY:.0%}."


def token_buttons(tokens: Sequence[ExaminedToken]) -> str:
    """The tokens of an answer as HTML. The first can be reached by Tab, the others by arrow keys."""
    return "".join(_button(each, "-1" if index else "0") for index, each in enumerate(tokens))


def _button(token: ExaminedToken, tabindex: str) -> str:
    level = next(name for least, name in LEVELS if (token.probability or 0) >= least)
    line_end = "<br>" if "\n" in token.text else ""
    text = escape(token.text.replace("\n", "⏎"))
    shown = f'<span class="own">{text}</span>' if text else '<span role="img" aria-label="(end)">·</span>'
    return (
        f'<button type="button" class="token" data-level="{level}" tabindex="{tabindex}" '
        f'title="{percent(token.probability)}">{shown}</button>{line_end}'
    )


def choice(token: ExaminedToken) -> str:
    """A token with what could have stood there instead, as HTML; a button that has no text of its own cannot be chosen."""
    others = "".join(_alternative(each) for each in token.alternatives if each.id != token.id)
    had = f"had {percent(token.probability)}. Go on from another token instead:"
    return f'<p>{_code(token.text)} <span>{had}</span></p><div class="row">{others}</div>'


def _alternative(other: Alternative) -> str:
    has_text = other.text and "\N{REPLACEMENT CHARACTER}" not in other.text
    return (
        f'<button class="alternative" value="{other.id}"{"" if has_text else " disabled"}>{_code(other.text)} '
        f"<span>{percent(other.probability)}</span></button>"
    )


def _code(text: str) -> str:
    if not text:
        return "<code>(end)</code>"
    shown = escape(text.replace("\n", "⏎").replace(" ", "␣"))
    return f'<code class="own">{shown}</code>'


def percent(probability: float | None) -> str:
    """A probability as a person reads it."""
    if probability is None or probability < 0.01:
        return "under 1%"
    return "over 99%" if probability >= 0.995 else f"{probability:.0%}"
