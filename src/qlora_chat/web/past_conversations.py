"""The list of past conversations: find, open, rename, delete.

Scope: from that panel's events to the history and the tab's session. The session's owner says which conversations a browser
may see.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError, Summary
from qlora_chat.text import replace_surrogates
from qlora_chat.web.parts import MAX_CHARACTERS
from qlora_chat.web.session import Busy, Session

MAX_LISTED = 200


class PastConversations:
    """The history as the panel reads and changes it, for one owner at a time."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def choices(self, query: Any, owner: str | None) -> list[tuple[str, str]]:
        """(label, id) of search results, or of the newest; [] where the history cannot be read just now."""
        text = replace_surrogates(query).strip()
        try:
            summaries = self._chat.history.list(owner=owner, limit=None if text else MAX_LISTED)
            if not text:
                return [(_label(each), each.id) for each in summaries]
            matching = {hit.conversation_id for hit in self._chat.history.search(text, limit=MAX_LISTED * 5, owner=owner)}
        except HistoryError:
            return []
        title = text.casefold()
        found = [each for each in summaries if each.id in matching or title in each.title.casefold()]
        return [(_label(each), each.id) for each in found[:MAX_LISTED]]

    def open(self, conversation_id: Any, session: Session) -> str | None:
        """Show it in this tab. Returns its title, None where this browser has no such conversation. Busy while answering."""
        summary = self._owned(conversation_id, session)
        conversation = self._chat.history.load(summary.id) if summary else None
        if summary is None or conversation is None:
            return None
        session.open(conversation)
        return summary.title

    def rename(self, conversation_id: Any, title: Any, session: Session) -> bool:
        """Change its title."""
        summary = self._owned(conversation_id, session)
        name = " ".join(replace_surrogates(title).split())[: MAX_CHARACTERS["title"]]
        return bool(summary and name and self._chat.history.change(summary.id, title=name))

    def delete(self, conversation_id: Any, session: Session) -> bool:
        """Erase it from every copy, the receiver's included; a tab that shows it becomes empty."""
        summary = self._owned(conversation_id, session)
        if summary is None:
            return False
        if session.conversation.id == summary.id:
            if session.running:
                raise Busy("This answer is still being written: stop it, then delete the conversation.")
            session.clear(seconds=0)
        return self._chat.erase([summary.id]) > 0

    def _owned(self, conversation_id: Any, session: Session) -> Summary | None:
        summaries = self._chat.history.list(owner=session.owner) if isinstance(conversation_id, str) else ()
        return next((each for each in summaries if each.id == conversation_id), None)


def list_update(choices: list[tuple[str, str]], selected: Any = None) -> Any:
    """Update of the list; `selected` stays selected if it is listed."""
    value = selected if any(selected == each for _, each in choices) else None
    return gr.update(choices=choices, value=value, visible=bool(choices))


def _label(summary: Summary) -> str:
    return f"{summary.title or 'Untitled'} · {summary.updated_at.astimezone():%d %b %H:%M}"
