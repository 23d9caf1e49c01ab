"""What every store answers to, and what stands beside one: who writes records, and where a store without an outbox puts them.

Scope: protocols.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from qlora_chat.history.records import OutboxRecord, TurnRecord
from qlora_chat.history.types import ConversationInfo, Feedback, SearchHit, StoredConversation, Summary
from qlora_chat.messages import Conversation, Message


class Recorder(Protocol):
    """Writes what a receiver is sent; None where nothing is to be sent."""

    def turn(self, record: TurnRecord) -> OutboxRecord | None:
        """A turn that has ended."""
        ...

    def feedback(self, conversation_id: str, feedback: Feedback) -> OutboxRecord | None:
        """What a person thought of an answer."""
        ...

    def tombstone(self, conversation_id: str) -> OutboxRecord | None:
        """That everything sent of a conversation is to be erased."""
        ...


class Queue(Protocol):
    """Where a store that has no outbox of its own puts what is to be delivered; outbox.Outbox is one."""

    def put(self, outgoing: OutboxRecord) -> None:
        """Queue a record, durably; one that cannot be kept is counted."""
        ...

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord]) -> None:
        """Remove what waits of these conversations, and queue their tombstones."""
        ...


class HistoryStore(Protocol):
    """Keeps conversations; safe to call from several threads. Any method may raise HistoryUnavailable."""

    def save(self, conversation: Conversation, about: ConversationInfo | None = None) -> Conversation:
        """Add the messages that are not kept yet and make the last one the head; -> the conversation with that head.

        Durable when it returns. StaleConversation, with nothing written, where the kept head is not `conversation.head`.
        A newest answer whose finish_reason is "partial" is open: `grow` and `finish` may still fill it.
        """
        ...

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Note how far an open answer has got. Returns at once; written within half a second, for a crash to find."""
        ...

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer as it now is and queue `outgoing`, both or neither.

        A turn that could not be opened is added whole; nothing happens where the conversation was erased meanwhile.
        """
        ...

    def load(self, conversation_id: str) -> Conversation | None:
        """The branch that is shown, or None for an id that is not kept."""
        ...

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Everything kept of a conversation, or None."""
        ...

    def restore(self, kept: StoredConversation) -> bool:
        """Add a whole conversation, as `read` gave it; False where its id is kept already, which changes nothing."""
        ...

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Conversations with at least one turn, the newest change first; `owner` None lists everybody's."""
        ...

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that hold every word of `text`, the last one as a beginning; the newest first."""
        ...

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Rename or tag; None leaves a part as it is. False for an id that is not kept."""
        ...

    def feedback(
        self,
        conversation_id: str,
        turn_id: str,
        rating: int | None = None,
        edited: str | None = None,
        comment: str | None = None,
        *,
        outgoing: OutboxRecord | None = None,
    ) -> bool:
        """Keep what a person thought of an answer, and queue `outgoing`; False for a turn that is not kept."""
        ...

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Remove conversations, their feedback and their waiting records from every copy, and queue tombstones.

        -> how many there were. When it returns, no byte of their text is left in the store's files.
        """
        ...

    def close(self) -> None:
        """Write what is pending and let go of files and connections."""
        ...
