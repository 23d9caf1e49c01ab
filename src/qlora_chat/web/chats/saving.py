"""The offer to save conversations that are in memory only.

Scope: who gets the offer, and what the page says about it. Only the operator's own page has one: a visitor of a shared page
must not make the operator's machine write files.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError
from qlora_chat.history.savable import SavableHistory
from qlora_chat.text import shown_path
from qlora_chat.web.sessions import PageFeatures

LOST = "Nothing is saved: these conversations are gone when the program that serves this page ends."
HOW = "Start it with --history sqlite:///chats.db to save them, or export them."
NOT_OFFERED = "This page cannot start saving; its operator can, with --history."


@dataclass(frozen=True)
class SavingOffer:
    """The history that can be saved; None where nothing is offered."""

    history: SavableHistory | None

    @property
    def is_saved(self) -> bool:
        """True once a person has taken the offer."""
        return bool(self.history and self.history.is_saved)

    def start(self) -> dict[str, str]:
        """Save from now on, and say where. HistoryError where that is not offered, or the file cannot be created."""
        if self.history is None:
            raise HistoryError(NOT_OFFERED)
        count, file = self.history.start_saving(), shown_path(self.history.file)
        if count:
            return {"said": f"Saved in {file} from now on. Conversations saved already: {count:,}."}
        return {"said": f"Saved in {file} from now on."}

    def notice(self) -> str:
        """HTML that says what is lost, and offers to save it."""
        if self.history is None:
            return f'<p class="note"><span>{LOST}</span> <span>{HOW}</span></p>'
        file = escape(shown_path(self.history.file))
        button = '<button type="button" class="save-chats" data-save>Save from now on</button>'
        return f'<p class="note">{LOST}</p>{button}<p class="note">to {file}, on the machine that runs it</p>'


def offer(chat: Chat, features: PageFeatures) -> SavingOffer:
    """The offer of a page. None to visitors, and none where turns are logged: the log's queue is beside its history."""
    history, has_visitors = chat.history, features.shared or features.logged
    return SavingOffer(history if isinstance(history, SavableHistory) and not has_visitors else None)
