"""What a store says when it cannot do what was asked."""

from __future__ import annotations

from qlora_chat.errors import UserError


class HistoryError(UserError, RuntimeError):
    """A store cannot do what was asked; the message is fit to be shown and quotes no conversation."""


class StaleConversation(HistoryError):
    """The conversation has gone on elsewhere; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation has gone on in another window, or was deleted there. "
            "Here it is as it now is; your message was not sent."
        )


class HistoryUnavailable(HistoryError):
    """Nothing can be written just now: a full disk, a server that is away."""
