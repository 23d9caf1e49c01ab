"""Chats that people rated and edited -> what a model can learn from them.

Scope: the values that both sources give and the builder takes. Knows no training and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_chat.errors import UserError
from qlora_chat.messages import FinishReason


class DatasetError(UserError, RuntimeError):
    """A data set cannot be built or written; the message is fit to be shown."""


@dataclass(frozen=True)
class Opinion:
    """What somebody thought of an answer, as it was last said."""

    rating: int | None = None
    """1 or -1."""
    edited: str | None = None
    """The answer as it should have been."""


NOTHING_SAID = Opinion()


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, as they were shown."""

    question: str
    answer: str
    opinion: Opinion = NOTHING_SAID


@dataclass(frozen=True)
class Answered:
    """One answer with everything that was said before it on its branch."""

    conversation_id: str
    earlier: tuple[Exchange, ...]
    exchange: Exchange
    finish_reason: FinishReason | str | None
    """Why it ended; None where that is not recorded."""
    system: str | None = None
    """None: the prompt format's own."""
