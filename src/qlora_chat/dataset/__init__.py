"""Training data from conversations with feedback.

Scope: the values that sources yield and the builder takes. Knows no training and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_chat.errors import UserError
from qlora_chat.messages import FinishReason


class DatasetError(UserError, RuntimeError):
    """A dataset that cannot be built or written."""


@dataclass(frozen=True)
class Opinion:
    """Newest feedback on an answer."""

    rating: int | None = None
    """1 or -1."""
    edited: str | None = None
    """The answer as the user would have it."""

    @property
    def edit(self) -> str:
        """Edited answer without surrounding space; "" if there is none."""
        return (self.edited or "").strip()


NO_OPINION = Opinion()


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, as they were shown."""

    question: str
    answer: str
    opinion: Opinion = NO_OPINION


@dataclass(frozen=True)
class Example:
    """One answer with all earlier exchanges of its branch."""

    conversation_id: str
    earlier: tuple[Exchange, ...]
    exchange: Exchange
    finish_reason: FinishReason | str | None
    """None if it is not recorded."""
    system: str | None = None
    """None for the prompt format's default."""
    beats: tuple[str, ...] = ()
    """Other answers to the question, to which a person preferred this one in a comparison."""
