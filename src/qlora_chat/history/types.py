"""What a store keeps of a conversation: its turns as a tree, its line in a list, what people thought of answers.

Scope: values. Knows no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from qlora_chat.history.records import now
from qlora_chat.messages import Conversation, Message


@dataclass(frozen=True)
class ConversationInfo:
    """What a store is told of a conversation besides its words."""

    model: str | None = None
    adapter: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Sampling's fields as they were at the newest question."""
    owner: str | None = None
    """Whose list it appears in; None for a store that one person uses."""


@dataclass(frozen=True)
class Summary:
    """A conversation's line in a list."""

    id: str
    title: str
    tags: tuple[str, ...]
    model: str | None
    adapter: str | None
    turns: int
    """Turns ever added, branches included."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class StoredTurn:
    """A turn and its place in the tree."""

    message: Message
    parent_id: str | None
    created_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)
    """For an answer: seed, settings, changes, counts, timings, model, as payload version 2 names them."""


@dataclass(frozen=True)
class Feedback:
    """What a person thought of an answer. The newest of a turn holds; None leaves a part unsaid."""

    turn_id: str
    rating: int | None = None
    """1 or -1."""
    edited: str | None = None
    """The answer as it should have been."""
    comment: str | None = None
    created_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        if self.rating not in (1, -1, None):
            raise ValueError(f"rating is {self.rating!r}, but must be 1, -1 or None")


@dataclass(frozen=True)
class StoredConversation:
    """A whole conversation with every branch."""

    summary: Summary
    system: str | None
    settings: Mapping[str, Any]
    head_id: str | None
    turns: tuple[StoredTurn, ...]
    """In the order they were added; a turn's parent comes before it."""
    feedback: tuple[Feedback, ...] = ()

    def conversation(self) -> Conversation:
        """The branch that is shown."""
        by_id = {turn.message.id: turn for turn in self.turns}
        messages: list[Message] = []
        at = self.head_id
        while at is not None:
            messages.append(by_id[at].message)
            at = by_id[at].parent_id
        return Conversation(self.summary.id, tuple(reversed(messages)), self.system, self.head_id, self.summary.tags)

    def has(self, turn_id: str) -> bool:
        """Whether it is a turn of this conversation, on whatever branch."""
        return any(turn.message.id == turn_id for turn in self.turns)

    def missing(self, conversation: Conversation) -> list[StoredTurn]:
        """The messages that are not kept yet, each with the turn that it follows."""
        known = {turn.message.id for turn in self.turns}
        parents = [None, *(message.id for message in conversation.messages)]
        return [
            StoredTurn(message, parent, now())
            for message, parent in zip(conversation.messages, parents, strict=False)
            if message.id not in known
        ]


@dataclass(frozen=True)
class SearchHit:
    """A turn that a search found."""

    conversation_id: str
    title: str
    turn_id: str
    role: str
    excerpt: str
    """About 160 characters around the first match."""
    created_at: datetime
