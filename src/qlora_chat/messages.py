"""Messages and conversations.

Scope: plain, frozen values. Knows no prompts, no meaning of tokens, no storage and no pages.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "error", "partial"]
"""partial: still being written, or cut off because the program ended."""


def new_id() -> str:
    """A random id (uuid4, 36 characters)."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class AnswerSchema:
    """JSON Schema that an answer's text has to match."""

    text: str
    """As JSON."""
    strict: bool = True
    """False leaves out keywords that cannot be enforced; otherwise a schema with one of them is refused."""


@dataclass(frozen=True)
class Message:
    """One turn, exactly as typed or shown."""

    role: Role
    content: str
    ids: tuple[int, ...] = ()
    """Token ids as generated; () when the content was typed or its ids are not known.
    With them the next prompt matches the KV cache, which re-tokenised text might not."""
    finish_reason: FinishReason | None = None
    """None for a user's message."""
    id: str = field(default_factory=new_id, compare=False)
    """Id of the turn in the history and in logs; the same words twice are two turns."""


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate user, assistant, user, ... under one id and one system text."""

    id: str = field(default_factory=new_id)
    messages: tuple[Message, ...] = ()
    system: str | None = None
    """System text that leads the prompt; None takes the prompt format's own."""
    head: str | None = field(default=None, compare=False)
    """Id of the newest message when this conversation was last loaded or saved; None before that. A history whose newest
    message is another by now refuses to save this one, so that a stale page overwrites nothing."""
    tags: tuple[str, ...] = field(default=(), compare=False)
    """As stored in the history."""

    def __post_init__(self) -> None:
        for index, message in enumerate(self.messages):
            expected = "user" if index % 2 == 0 else "assistant"
            if message.role != expected:
                raise ValueError(f"message {index} has role {message.role!r}; turns alternate, so {expected!r} was expected")

    def adding(self, message: Message) -> Conversation:
        """The conversation with one more message; ValueError if it is out of turn."""
        return replace(self, messages=(*self.messages, message))

    def without_last_exchange(self) -> Conversation:
        """The conversation before the newest user message (what Undo leaves)."""
        users = [index for index, message in enumerate(self.messages) if message.role == "user"]
        return replace(self, messages=self.messages[: users[-1]] if users else ())

    def before_last(self) -> Conversation:
        """The conversation without its newest message."""
        return replace(self, messages=self.messages[:-1])

    def before(self, turn_id: str) -> Conversation | None:
        """The conversation before the message of that id; None where it has no such message."""
        for index, message in enumerate(self.messages):
            if message.id == turn_id:
                return replace(self, messages=self.messages[:index])
        return None

    def replacing_last(self, message: Message) -> Conversation:
        """The conversation with another newest message of the same role."""
        return replace(self, messages=(*self.messages[:-1], message))

    def copied(self) -> Conversation:
        """A copy with new ids throughout, which no history has."""
        messages = tuple(replace(message, id=new_id()) for message in self.messages)
        return replace(self, id=new_id(), messages=messages, head=None)

    @property
    def last_user_text(self) -> str | None:
        """Text of the newest user message, or None before the first."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), None)

    def pairs(self) -> list[list[str]]:
        """[[user, assistant], ...] as in the log and the original demo; an open turn has answer ""."""
        texts = [message.content for message in self.messages]
        return [[texts[i], texts[i + 1] if i + 1 < len(texts) else ""] for i in range(0, len(texts), 2)]
