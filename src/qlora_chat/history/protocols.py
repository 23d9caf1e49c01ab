"""Protocols of a history store and of the two parts it works with: the recorder and the queue.

Scope: signatures and what callers may rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from qlora_chat.history.types import (
    ConversationInfo,
    Feedback,
    OutboxRecord,
    SearchHit,
    StoredConversation,
    Summary,
    TurnRecord,
    Vote,
)
from qlora_chat.messages import Conversation, Message


class Recorder(Protocol):
    """Builds the records for a receiver."""

    def turn(self, record: TurnRecord) -> OutboxRecord | None:
        """Record of a finished turn; None if it is not to be sent."""
        ...

    def feedback(self, conversation_id: str, feedback: Feedback) -> OutboxRecord | None:
        """Record of a user's feedback on an answer; None if it is not to be sent."""
        ...

    def tombstone(self, conversation_id: str) -> OutboxRecord:
        """Record that tells the receiver to erase a conversation."""
        ...


class Queue(Protocol):
    """Outbox of a store that has none in its own database; outbox.queue.Outbox is one."""

    def put(self, outgoing: OutboxRecord) -> None:
        """Queue a record durably; one that cannot be written is counted as dropped."""
        ...

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord]) -> None:
        """Delete the queued records of these conversations, and queue their tombstones."""
        ...


class HistoryStore(Protocol):
    """Store of conversations, safe to call from several threads. Any method may raise HistoryUnavailable."""

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Add the messages that are not stored yet and make the last one the head. Returns the conversation with that head.

        Durable on return. StaleConversation, with nothing written, if the stored head is not `conversation.head`.
        A newest answer with finish_reason "partial" stays open for `update_partial` and `finish`. StaleConversation also for
        a new conversation whose `name_key` another one has.
        """
        ...

    def find_named(self, name_key: str) -> str | None:
        """Id of the conversation that was begun with this `name_key`; None if there is none, or no longer."""
        ...

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Note the current text of an open answer. Returns at once; written within half a second, in case of a crash."""
        ...

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer with its final text and queue `outgoing`, both or neither.

        Adds the whole turn if it could not be opened. Does nothing if the conversation has been erased meanwhile.
        """
        ...

    def load(self, conversation_id: str) -> Conversation | None:
        """Active branch of a conversation; None for an unknown id."""
        ...

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Conversation with all branches and feedback; None for an unknown id."""
        ...

    def restore(self, conversation: StoredConversation, owner: str | None = None) -> bool:
        """Add a whole conversation, as returned by `read`, to those of `owner`.

        False, with nothing changed, if its id exists, or the id of a turn where a store has each of these only once.
        """
        ...

    def list(
        self, *, limit: int | None = None, owner: str | None = None, before: str | None = None, tag: str | None = None
    ) -> Sequence[Summary]:
        """Conversations with at least one turn, the most recently changed first; `owner` None lists those of all users.

        `before` is the id that the last page ended with: the list goes on behind it, and is empty where there is none of that
        id. `tag` lists only those that have the tag. Hidden ones are left out.
        """
        ...

    def summary(self, conversation_id: str, *, owner: str | None = None) -> Summary | None:
        """Entry of one conversation, hidden or not; None for an unknown id, and for one of another owner."""
        ...

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that have every word of `text`, the last one as a prefix, the newest first; none of hidden conversations."""
        ...

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Set title or tags; None leaves them unchanged. False for an unknown id."""
        ...

    def hide(self, conversation_id: str, hidden: bool = True) -> bool:
        """Leave a conversation out of lists and searches, or show it again. Durable on return. False for an unknown id."""
        ...

    def hidden(self) -> Mapping[str, datetime]:
        """Time since when each hidden conversation has been hidden, by its id."""
        ...

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """Store a user's feedback on an answer, and queue `outgoing`. False for an unknown turn."""
        ...

    def add_vote(self, conversation_id: str, vote: Vote) -> bool:
        """Store a person's vote on answers of a conversation. Durable on return. False if it lacks one of them."""
        ...

    def votes(self, *, owner: str | None = None) -> Sequence[Vote]:
        """Votes of all conversations of `owner`, or of all users, in the order they were given; none of hidden ones."""
        ...

    def erase(
        self,
        conversation_ids: Sequence[str],
        tombstones: Sequence[OutboxRecord] = (),
        *,
        unchanged_since: datetime | None = None,
    ) -> int:
        """Delete conversations with their feedback, votes and queued records, and queue tombstones. Returns how many existed.

        On return, no byte of their text is left in the store's files. With `unchanged_since`, those that have changed at that
        time or later stay.
        """
        ...

    def close(self) -> None:
        """Write pending changes and close files and connections."""
        ...
