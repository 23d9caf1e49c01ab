"""One request to /v1/responses: what it continues, its prompt, and what is remembered of it.

Scope: input items and earlier answers become a conversation. What follows from there is shared with chat completions.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from qlora_chat.api.errors import invalid
from qlora_chat.api.parsing import SEPARATOR, ParsedRequest, parse_conversation, to_conversation
from qlora_chat.api.request_schemas import ChatMessage
from qlora_chat.api.responses.earlier_answers import AnswerId, EarlierAnswers, RememberedAnswers
from qlora_chat.api.responses.request_schema import ResponsesRequest
from qlora_chat.chat import Chat, Turn
from qlora_chat.engines import Stream
from qlora_chat.messages import Conversation, Message, new_id


class Exchange:
    """A request, and its answer once that has ended."""

    def __init__(
        self, body: ResponsesRequest, remembered: RememberedAnswers, owner: str | None, *, history_on: bool = False
    ) -> None:
        self.body, self._remembered, self._owner, self._history_on = body, remembered, owner, history_on
        self._turn: Turn | None = None
        before = AnswerId.parse(body.previous_response_id or "")
        self.name = before.name if before else str(uuid.uuid4())
        """Name of the conversation that the turn belongs to."""
        self.id = AnswerId(self.name, new_id())
        self._conversation = Conversation()

    def parse(self, body: ResponsesRequest, chat: Chat, max_tokens: int | None) -> ParsedRequest:
        """ApiError 400 for input that is no conversation, continues nothing, or leaves no room. Reads the history."""
        earlier = EarlierAnswers(chat, self._remembered, self._owner, self._history_on)
        sent = to_conversation(self._messages(earlier), "input")
        before, carried = Conversation(), ""
        if body.previous_response_id is not None:
            before, answer_id = earlier.conversation(body.previous_response_id)
            carried = (before.system or "")[-answer_id.carried :] if answer_id.carried else ""
            if not sent.messages[0].content and len(sent.messages) > 1:
                raise invalid("after previous_response_id the input must begin with the user's message", "input")
        lasting = SEPARATOR.join(filter(None, (carried, sent.system)))
        system = SEPARATOR.join(filter(None, (body.instructions, lasting))) or None
        self.id = replace(self.id, carried=len(lasting))
        self._conversation = replace(sent, messages=(*before.messages, *sent.messages), system=system)
        return parse_conversation(self._conversation, body, chat, max_tokens, "input", "max_output_tokens")

    def _messages(self, earlier: EarlierAnswers) -> list[ChatMessage]:
        if isinstance(self.body.input, str):
            return [ChatMessage(role="user", content=self.body.input)]
        return [
            ChatMessage(role="assistant", content=earlier.answer_text(item.id, f"input.{index}.id"))
            if item.type == "item_reference"
            else ChatMessage(role=item.speaker, content=item.text)
            for index, item in enumerate(self.body.input)
        ]

    def started(self, stream: Stream) -> None:
        """Note the stream of the answer: a stored turn has an id already."""
        if isinstance(stream, Turn):
            self._turn = stream
            self.id = replace(self.id, answer=stream.answer_id)

    @property
    def is_stored(self) -> bool:
        """True if the history has the turn, or is to have it."""
        return self._turn is not None and self._turn.save_error is None

    def ended(self, text: str) -> None:
        """Remember the answer, unless the history has it or the client wants nothing to be remembered."""
        if self.body.store is None and not self.is_stored:
            answer = Message("assistant", text, finish_reason="stop", id=self.id.answer)
            self._remembered.add(self._owner, self._conversation.adding(answer))
