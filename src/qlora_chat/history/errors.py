"""Errors of history stores."""

from __future__ import annotations

from qlora_chat.errors import UserError


class HistoryError(UserError, RuntimeError):
    """A store cannot do what it was called for; the message quotes no conversation."""


class StaleConversation(HistoryError):
    """The conversation has another head by now, or was deleted; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation has gone on in another window, or was deleted there. "
            "It is shown here as it is now; your message was not sent."
        )


class HistoryUnavailable(HistoryError):
    """The store cannot be read or written at the moment: a full disk, an unreachable server."""


class HistoryDamaged(HistoryUnavailable):
    """The store's file is no intact database."""
