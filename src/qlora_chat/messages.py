"""What people and the model have said: messages and conversations.

Scope: plain, frozen values. Knows nothing of prompts, tokens' meaning, storage or pages.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "error", "partial"]
"""partial: still being written, or cut off because the program ended."""


def new_id() -> str:
    """A fresh random id (uuid4, 36 characters)."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Message:
    """One turn, exactly as it was typed or shown."""

    role: Role
    content: str
    ids: tuple[int, ...] = ()
    """Token ids the content was generated as; () when it was typed or its ids are not known.
    Keeping them lets the next prompt repeat what is in the KV cache instead of a re-tokenised guess."""
    finish_reason: FinishReason | None = None
    """Why generation ended; None for what a person wrote."""
    id: str = field(default_factory=new_id, compare=False)
    """Names the turn in the history and in logs; the same words said twice are two turns."""


def new_conversation_id() -> str:
    """A fresh random conversation id (uuid4, 36 characters)."""
    return new_id()


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate user, assistant, user, ... under one id and one system text."""

    id: str = field(default_factory=new_conversation_id)
    messages: tuple[Message, ...] = ()
    system: str | None = None
    """System text that leads the prompt; None takes the prompt format's own."""
    head: str | None = field(default=None, compare=False)
    """Id of the message that was the newest when the history last gave or took this conversation; None before it ever
    did. A history whose newest message is another by now refuses this one, so that a stale page overwrites nothing."""
    tags: tuple[str, ...] = field(default=(), compare=False)
    """As the history has them."""

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

    def replacing_last(self, message: Message) -> Conversation:
        """The conversation with another newest message of the same role."""
        return replace(self, messages=(*self.messages[:-1], message))

    def copied(self) -> Conversation:
        """The same words as a conversation of its own: new ids throughout, unknown to any history."""
        messages = tuple(replace(message, id=new_id()) for message in self.messages)
        return replace(self, id=new_conversation_id(), messages=messages, head=None)

    @property
    def last_user_text(self) -> str | None:
        """Text of the newest user message, or None before the first."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), None)

    def pairs(self) -> list[list[str]]:
        """[[user, assistant], ...] as the log and the original demo write history; an open turn has answer ""."""
        texts = [message.content for message in self.messages]
        return [[texts[i], texts[i + 1] if i + 1 < len(texts) else ""] for i in range(0, len(texts), 2)]
