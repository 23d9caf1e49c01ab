"""The message list of one tab: the items that the browser fetches, and the small value that tells it when to.

Scope: from the owner's tabs and history to JSON. The value names the newest message and carries the open blocks of the answer
being written; messages themselves go over a route, once. Knows no Gradio.
"""

from __future__ import annotations

from typing import Any

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError, StoredConversation
from qlora_chat.messages import Conversation, Message
from qlora_chat.web.message_list.items import Item, Items
from qlora_chat.web.running_answer import RunningAnswer
from qlora_chat.web.session import Session, owns
from qlora_chat.web.sessions import Sessions

NEWEST = 40
"""Messages that are sent at first; the browser fetches older ones page by page."""
PAGE = 100


class MessageView:
    """Answers the browser's requests for messages, for one owner at a time."""

    def __init__(self, chat: Chat, sessions: Sessions) -> None:
        self._chat, self._sessions = chat, sessions

    def newest(self, conversation_id: str, shown: str | None, owner: str | None) -> dict[str, Any]:
        """The items that follow the branch up to `shown`, or the newest ones.

        `after` is the message that they follow, None where the list begins anew; `earlier` tells that there are older ones.
        """
        conversation, stored, running = self._find(conversation_id, owner)
        if running and conversation.messages[-1].id == running.turn.answer_id:  # it has ended, and is still being saved
            conversation = conversation.before_last()
        items = Items(conversation, stored, self._chat.engine.info.window)
        after = items.common(shown)
        found = items.after(after, NEWEST)
        messages = conversation.messages
        if after is not None and len(found) == NEWEST and messages[-NEWEST - 1].id != after:
            after = None
        if running:
            item: Item = {"id": running.turn.answer_id, "text": "", "live": True, **running.blocks.whole()}
            found = [*found, item][-NEWEST:]
        first = found[0]["id"] if found else None
        earlier = after is None and bool(messages) and first not in (messages[0].id, None)
        return {"conversation": conversation.id, "after": after, "earlier": earlier, "items": found}

    def older(self, conversation_id: str, until: str, owner: str | None) -> dict[str, Any]:
        """A page of items before the message `until`."""
        conversation, stored, _ = self._find(conversation_id, owner)
        found = Items(conversation, stored, self._chat.engine.info.window).until(until, PAGE)
        earlier = bool(found) and found[0]["id"] != conversation.messages[0].id
        return {"conversation": conversation.id, "earlier": earlier, "items": found}

    def _find(
        self, conversation_id: str, owner: str | None
    ) -> tuple[Conversation, StoredConversation | None, RunningAnswer | None]:
        """A conversation of this owner, as a tab shows it, else as stored; an empty one for any other id."""
        session, history = self._sessions.showing(conversation_id, owner), self._chat.history
        try:
            stored = history.read(conversation_id) if session or owns(history, owner, conversation_id) else None
        except HistoryError:
            stored = None
        if session:
            return session.conversation, stored, session.running
        return stored.conversation() if stored else Conversation(conversation_id), stored, None


def idle_value(session: Session, note: dict[str, Any] | None = None) -> dict[str, Any]:
    """Value of the component while no answer is being written."""
    messages = session.conversation.messages
    head = messages[-1].id if messages else ""
    return {"conversation": session.conversation.id, "head": head, "live": None, "note": note}


def live_value(answer: RunningAnswer) -> dict[str, Any]:
    """Value of the component while this answer is being written; the conversation is that of the value before."""
    turn = answer.turn
    return {"live": {"id": turn.answer_id, "said": _progress(answer), **answer.blocks.update(turn.answer)}}


def _progress(answer: RunningAnswer) -> str:
    """Progress of an answer that is being written, as sentences that " · " divides."""
    turn, speed = answer.turn, answer.tokens_per_s
    if turn.answer.strip():
        return (f"{answer.tokens:,} tokens" if answer.tokens else "") + (f" · {speed:,.0f} tokens/s" if speed else "")
    if read := answer.read_so_far:
        return f"reading {read:,} of {turn.prompt_tokens:,} tokens"
    return "waiting for the first token"


def answer_of(conversation: Conversation, turn_id: Any) -> Message | None:
    """The answer of that id; None where the conversation does not have it."""
    return next((each for each in conversation.messages if each.id == turn_id and each.role == "assistant"), None)
