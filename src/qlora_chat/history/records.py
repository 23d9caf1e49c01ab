"""What is recorded of a turn, and a record on its way to a receiver.

Scope: values. Knows no store and no payload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from qlora_chat.messages import Conversation, Message, new_id
from qlora_chat.settings import Sampling


def now() -> datetime:
    """This moment, in local time with its zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class ModelUsed:
    """What answered."""

    name: str
    base: str
    adapter: str | None
    precision: str
    device: str
    prompt_format: str
    base_sha256: str | None = None
    """None where it is not known."""
    adapter_sha256: str | None = None
    computed_by: str | None = None
    """Which forward pass."""


@dataclass(frozen=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class SettingsChange:
    """Settings moved while the answer was being written: they hold from the token after `at_token` of its tokens."""

    at_token: int
    sampling: Sampling


@dataclass(frozen=True)
class TurnRecord:
    """A turn that has ended, as it is recorded and delivered."""

    conversation: Conversation
    """Up to and including the answer."""
    prompt_text: str
    """The full text that the model went on from."""
    sampling: Sampling
    """As it was when the answer began; its seed is the one that was used, drawn where none was given."""
    finished_at: datetime = field(default_factory=now)
    prompt_ids: tuple[int, ...] = ()
    """What the engine was given."""
    answer_ids: tuple[int, ...] = ()
    """What the engine made, as it made it."""
    changes: tuple[SettingsChange, ...] = ()
    """In the order they were made."""
    spent: Usage | None = None
    """None where the engine never said."""
    model: ModelUsed | None = None

    @property
    def answer(self) -> Message:
        """The newest message."""
        return self.conversation.messages[-1]

    @property
    def question(self) -> Message:
        """What was answered."""
        return self.conversation.messages[-2]

    @property
    def parent_id(self) -> str | None:
        """The turn that the question follows; None where it began the conversation."""
        return self.conversation.messages[-3].id if len(self.conversation.messages) > 2 else None


@dataclass(frozen=True)
class OutboxRecord:
    """One record on its way to a receiver: the exact bytes that will be posted, under an id that never changes."""

    kind: str
    """turn, feedback or tombstone."""
    conversation_id: str
    body: bytes
    id: str = field(default_factory=new_id)
    """The idempotency key: a receiver that has it already may drop the record."""
