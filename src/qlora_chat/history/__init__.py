"""Where conversations are remembered between requests, and what is recorded of a turn.

Scope: the protocol. Knows nothing of engines, pages or delivery.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling


@dataclass(frozen=True)
class TurnRecord:
    """A turn that has ended, as it is recorded and delivered."""

    conversation: Conversation
    """Up to and including the answer."""
    prompt_text: str
    """The full text that the model went on from."""
    sampling: Sampling
    """As it was when the answer ended."""
    finished_at: datetime = field(default_factory=lambda: datetime.now().astimezone())


class HistoryStore(Protocol):
    """Keeps conversations by id; safe to call from several threads."""

    def save(self, conversation: Conversation) -> None:
        """Remember the conversation as it now is."""
        ...

    def load(self, conversation_id: str) -> Conversation | None:
        """The conversation of that id, or None if it was never kept."""
        ...

    def delete(self, conversation_id: str) -> None:
        """Forget the conversation; unknown ids are no error."""
        ...
