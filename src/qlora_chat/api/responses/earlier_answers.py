"""Earlier answers by their ids: in the history if the client had them stored, else in this process's memory for a while.

Scope: from an id to the conversation up to that answer. An id opens nothing for another owner than the one it was made for.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, replace

from qlora_chat.api.errors import ApiError, invalid
from qlora_chat.api.stored_turns import NAME_KEY, StoreOptions
from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation

MAX_ANSWERS = 1000
MAX_CHARACTERS = 16_000_000
_ID = re.compile(r"(?:resp|msg)_([0-9a-f]{32})([0-9a-f]{32})([0-9a-f]{1,7})")


@dataclass(frozen=True)
class AnswerId:
    """Id of an answer. Clients see it as `resp_...` and, for its one message, as `msg_...`."""

    name: str
    """Name of the conversation, an UUID."""
    answer: str
    """Id of the answer's turn, an UUID."""
    carried: int = 0
    """Characters at the end of the system text that hold for the next request, too: `instructions` come first and do not."""

    @staticmethod
    def parse(text: str) -> AnswerId | None:
        """The id in a `resp_...` or `msg_...`; None if the text is no such id."""
        found = _ID.fullmatch(text)
        return found and AnswerId(str(uuid.UUID(found[1])), str(uuid.UUID(found[2])), int(found[3], 16))

    def text(self, prefix: str) -> str:
        """The id as clients see it."""
        return f"{prefix}_{uuid.UUID(self.name).hex}{uuid.UUID(self.answer).hex}{self.carried:x}"


class RememberedAnswers:
    """Conversations up to each answer, in memory alone. The oldest go first."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_answers, self._max_characters = max_answers, max_characters
        self._lock = threading.Lock()
        self._characters = 0
        self._conversations: OrderedDict[tuple[str | None, str], Conversation] = OrderedDict()

    def add(self, owner: str | None, conversation: Conversation) -> None:
        """Remember a conversation that ends with an answer."""
        with self._lock:
            self._conversations[owner, conversation.messages[-1].id] = conversation
            self._characters += _characters(conversation)
            while len(self._conversations) > self._max_answers or self._characters > self._max_characters:
                _, oldest = self._conversations.popitem(last=False)
                self._characters -= _characters(oldest)

    def find(self, owner: str | None, answer: str) -> Conversation | None:
        """The conversation that ends with this answer."""
        with self._lock:
            return self._conversations.get((owner, answer))


@dataclass(frozen=True)
class EarlierAnswers:
    """Answers that one client may refer to."""

    chat: Chat
    remembered: RememberedAnswers
    owner: str | None
    history_on: bool = False
    """True if the history outlives the process."""

    def conversation(self, response_id: str) -> tuple[Conversation, AnswerId]:
        """Conversation up to the answer of an id. ApiError 400 if there is none for this client."""
        answer = AnswerId.parse(response_id)
        found = answer and self._find(answer)
        if not answer or not found:
            raise self._not_found("previous_response_id", "response")
        if found.messages[-1].finish_reason == "partial":
            raise invalid("This response is still being written. Wait for its end.", "previous_response_id")
        return found, answer

    def answer_text(self, item_id: str, param: str) -> str:
        """Text of the message with an id. ApiError 400 if there is none for this client."""
        answer = AnswerId.parse(item_id)
        found = answer and self._find(answer)
        if not found:
            raise self._not_found(param, "item")
        return found.messages[-1].content

    def _find(self, answer: AnswerId) -> Conversation | None:
        if found := self.remembered.find(self.owner, answer.answer):
            return found
        conversation_id = StoreOptions.of({NAME_KEY: answer.name}, self.owner).find_id(self.chat.history)
        stored = self.chat.history.read(conversation_id) if conversation_id else None
        if stored is None or not stored.has_turn(answer.answer):
            return None
        conversation = replace(stored, head_id=answer.answer).conversation()
        return conversation if conversation.messages[-1].role == "assistant" else None

    def _not_found(self, param: str, kind: str) -> ApiError:
        reason = (
            "It was sent with store=false or another token, or is erased."
            if self.history_on
            else "This server has no history, so it has the newest since its start alone; --history keeps them."
        )
        text = f"There is no such {kind} here. {reason} Send the whole conversation as input instead."
        return invalid(text, param, f"previous_{kind}_not_found")


def _characters(conversation: Conversation) -> int:
    return len(conversation.system or "") + sum(len(each.content) for each in conversation.messages)
