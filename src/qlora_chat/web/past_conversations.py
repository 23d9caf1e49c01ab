"""The list of past conversations: find, open, rename, delete.

Scope: from that panel's events to the history and the tab's session. Which conversations a browser may see is said by the
session's owner; what is shown of the opened one is the page's own business.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError, Summary
from qlora_chat.text import replace_surrogates
from qlora_chat.web.parts import LONGEST
from qlora_chat.web.session import Busy, Session

MOST_SHOWN = 200


class PastConversations:
    """What the panel asks of the history, for one owner at a time."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def choices(self, asked: Any, owner: str | None) -> list[tuple[str, str]]:
        """(label, id) of what a search finds, or of the newest; [] where the history cannot be read just now."""
        text = replace_surrogates(asked).strip()
        try:
            summaries = self._chat.history.list(owner=owner, limit=None if text else MOST_SHOWN)
            if not text:
                return [(_label(each), each.id) for each in summaries]
            words = {hit.conversation_id for hit in self._chat.history.search(text, limit=MOST_SHOWN * 5, owner=owner)}
        except HistoryError:
            return []
        named = text.casefold()
        found = [each for each in summaries if each.id in words or named in each.title.casefold()]
        return [(_label(each), each.id) for each in found[:MOST_SHOWN]]

    def open(self, conversation_id: Any, session: Session) -> str | None:
        """Show it in this tab; -> its title, None where this browser has no such conversation. Busy while answering."""
        summary = self._mine(conversation_id, session)
        conversation = self._chat.history.load(summary.id) if summary else None
        if summary is None or conversation is None:
            return None
        session.go_to(conversation)
        return summary.title

    def rename(self, conversation_id: Any, title: Any, session: Session) -> bool:
        """Give it another name."""
        summary, name = self._mine(conversation_id, session), " ".join(replace_surrogates(title).split())[: LONGEST["title"]]
        return bool(summary and name and self._chat.history.change(summary.id, title=name))

    def delete(self, conversation_id: Any, session: Session) -> bool:
        """Erase it from every copy, the receiver's included; a tab that shows it becomes empty."""
        summary = self._mine(conversation_id, session)
        if summary is None:
            return False
        if session.conversation.id == summary.id:
            if session.answering:
                raise Busy("This answer is still being written: stop it, then delete the conversation.")
            session.clear(seconds=0)
        return self._chat.erase([summary.id]) > 0

    def _mine(self, conversation_id: Any, session: Session) -> Summary | None:
        listed = self._chat.history.list(owner=session.owner) if isinstance(conversation_id, str) else ()
        return next((each for each in listed if each.id == conversation_id), None)


def listed(choices: list[tuple[str, str]], chosen: str | None = None) -> Any:
    """What becomes of the list."""
    known = chosen if any(chosen == each for _, each in choices) else None
    return gr.update(choices=choices, value=known, visible=bool(choices))


def _label(summary: Summary) -> str:
    return f"{summary.title or 'Untitled'} · {summary.updated_at.astimezone():%d %b %H:%M}"
