"""The tokens of an answer with their probabilities, and an answer that branches at one of them.

Scope: from the events of static/tokens.js to the engine and the session.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.context import with_own_ids
from qlora_chat.engines import EngineError
from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import Prompt
from qlora_chat.replay.tokens import MOST_TOKENS, ExaminedToken, examine_tokens
from qlora_chat.settings import Sampling
from qlora_chat.web.answering import Answering, Updates
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.parts import Parts

PROGRESS_S = 0.5
GONE = "That answer is not shown any more."
NO_IDS = "The token ids of this answer are not known: it was imported, or written by a person."


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
            yield self._value(turn_id, problem=NO_IDS if answer and not session.running else GONE)
            return
        prompt, adapter = self._recorded_prompt(session.conversation, answer)
        found: list[ExaminedToken] = []
        total, reported = min(len(answer.ids), MOST_TOKENS), time.monotonic()
        try:
            for each in examine_tokens(self._chat.engine, prompt.ids, answer.ids, adapter):
                found.append(each)
                if time.monotonic() - reported > PROGRESS_S:
                    reported = time.monotonic()
                    yield self._value(turn_id, done=len(found), total=total)
        except (EngineError, ValueError) as problem:
            yield self._value(turn_id, problem=str(problem))
            return
        yield self._value(turn_id, tokens=[_token(each) for each in found], cut=len(answer.ids) > MOST_TOKENS)

    async def branch(self, ref: Any, event: gr.EventData, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        """Write the rest of an answer anew after another token."""
        session, sent = self._handlers.session(request, ref), event._data
        at, token = _index(sent.get("at")), _index(sent.get("token"))
        begin = partial(session.branch, str(sent.get("id")), at, token)
        async for each in self._answering.run(session, begin, options):
            yield each

    def _value(self, turn_id: str, **fields: Any) -> Updates:
        return {self._parts.tokens: {"id": turn_id, **fields}}

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


def _token(examined: ExaminedToken) -> dict[str, Any]:
    probability = examined.probability
    return {
        "text": examined.text,
        "p": None if probability is None else round(probability, 4),
        "instead": [
            [each.id, each.text, round(each.probability, 4)] for each in examined.alternatives if each.id != examined.id
        ],
    }
