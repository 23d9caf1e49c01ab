"""Where conversations are kept, and what is recorded of a turn.

Scope: the protocol that every store answers to, and the values that cross it. Turns are only ever added: each names the
one it follows, so that an edit or a retry is a branch, and a conversation has a head, the newest turn of the branch
that is shown. Knows nothing of engines, pages or what a receiver is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from qlora_chat.messages import Conversation, Message, new_id
from qlora_chat.settings import Sampling


class HistoryError(RuntimeError):
    """A store cannot do what was asked; the message is fit to be shown and quotes no conversation."""

    for_people = True


class StaleConversation(HistoryError):
    """The conversation has gone on elsewhere; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation has gone on in another window, or was deleted there. "
            "Here it is as it now is; your message was not sent."
        )


class HistoryUnavailable(HistoryError):
    """Nothing can be written just now: a full disk, a server that is away."""


def now() -> datetime:
    """This moment, in local time with its zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class ModelUsed:
    """What answered."""

    name: str
    base: str
    adapter: str | None
    precision: str
    device: str
    prompt_format: str
    base_sha256: str | None = None
    """None where it is not known."""
    adapter_sha256: str | None = None


@dataclass(frozen=True)
class Spent:
    """What an answer took."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class SettingsChange:
    """Settings moved while the answer was being written: they hold from the token after `at_token` of its tokens."""

    at_token: int
    sampling: Sampling


@dataclass(frozen=True)
class TurnRecord:
    """A turn that has ended, as it is recorded and delivered."""

    conversation: Conversation
    """Up to and including the answer."""
    prompt_text: str
    """The full text that the model went on from."""
    sampling: Sampling
    """As it was when the answer began; its seed is the one that was used, drawn where none was given."""
    finished_at: datetime = field(default_factory=now)
    prompt_ids: tuple[int, ...] = ()
    """What the engine was given."""
    answer_ids: tuple[int, ...] = ()
    """What the engine made, as it made it."""
    changes: tuple[SettingsChange, ...] = ()
    """In the order they were made."""
    spent: Spent | None = None
    """None where the engine never said."""
    model: ModelUsed | None = None

    @property
    def answer(self) -> Message:
        """The newest message."""
        return self.conversation.messages[-1]

    @property
    def question(self) -> Message:
        """What was answered."""
        return self.conversation.messages[-2]

    @property
    def parent_id(self) -> str | None:
        """The turn that the question follows; None where it began the conversation."""
        return self.conversation.messages[-3].id if len(self.conversation.messages) > 2 else None


@dataclass(frozen=True)
class Outgoing:
    """One record on its way to a receiver: the exact bytes that will be posted, under an id that never changes."""

    kind: str
    """turn, feedback or tombstone."""
    conversation_id: str
    body: bytes
    id: str = field(default_factory=new_id)
    """The idempotency key: a receiver that has it already may drop the record."""


@dataclass(frozen=True)
class About:
    """What a store is told of a conversation besides its words."""

    model: str | None = None
    adapter: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Sampling's fields as they were at the newest question."""
    owner: str | None = None
    """Whose list it appears in; None for a store that one person uses."""


@dataclass(frozen=True)
class Summary:
    """A conversation's line in a list."""

    id: str
    title: str
    tags: tuple[str, ...]
    model: str | None
    adapter: str | None
    turns: int
    """Turns ever added, branches included."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class StoredTurn:
    """A turn and its place in the tree."""

    message: Message
    parent_id: str | None
    created_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)
    """For an answer: seed, settings, changes, counts, timings, model, as payload version 2 names them."""


@dataclass(frozen=True)
class Feedback:
    """What a person thought of an answer. The newest of a turn holds; None leaves a part unsaid."""

    turn_id: str
    rating: int | None = None
    """1 or -1."""
    edited: str | None = None
    """The answer as it should have been."""
    comment: str | None = None
    created_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        if self.rating not in (1, -1, None):
            raise ValueError(f"rating is {self.rating!r}, but must be 1, -1 or None")


@dataclass(frozen=True)
class Kept:
    """A whole conversation with every branch."""

    summary: Summary
    system: str | None
    settings: Mapping[str, Any]
    head_id: str | None
    turns: tuple[StoredTurn, ...]
    """In the order they were added; a turn's parent comes before it."""
    feedback: tuple[Feedback, ...] = ()

    def conversation(self) -> Conversation:
        """The branch that is shown."""
        by_id = {turn.message.id: turn for turn in self.turns}
        messages: list[Message] = []
        at = self.head_id
        while at is not None:
            messages.append(by_id[at].message)
            at = by_id[at].parent_id
        return Conversation(self.summary.id, tuple(reversed(messages)), self.system, self.head_id, self.summary.tags)


@dataclass(frozen=True)
class Hit:
    """A turn that a search found."""

    conversation_id: str
    title: str
    turn_id: str
    role: str
    excerpt: str
    """About 160 characters around the first match."""
    created_at: datetime


class Recorder(Protocol):
    """Writes what a receiver is sent; None where nothing is to be sent."""

    def turn(self, record: TurnRecord) -> Outgoing | None:
        """A turn that has ended."""
        ...

    def feedback(self, conversation_id: str, feedback: Feedback) -> Outgoing | None:
        """What a person thought of an answer."""
        ...

    def tombstone(self, conversation_id: str) -> Outgoing | None:
        """That everything sent of a conversation is to be erased."""
        ...


class Queue(Protocol):
    """Where a store that has no outbox of its own puts what is to be delivered; outbox.Outbox is one."""

    def put(self, outgoing: Outgoing) -> None:
        """Queue a record, durably; one that cannot be kept is counted."""
        ...

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[Outgoing]) -> None:
        """Remove what waits of these conversations, and queue their tombstones."""
        ...


class HistoryStore(Protocol):
    """Keeps conversations; safe to call from several threads. Any method may raise HistoryUnavailable."""

    def save(self, conversation: Conversation, about: About | None = None) -> Conversation:
        """Add the messages that are not kept yet and make the last one the head; -> the conversation with that head.

        Durable when it returns. StaleConversation, with nothing written, where the kept head is not `conversation.head`.
        A newest answer whose finish_reason is "partial" is open: `grow` and `finish` may still fill it.
        """
        ...

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Note how far an open answer has got. Returns at once; written within half a second, for a crash to find."""
        ...

    def finish(self, record: TurnRecord, outgoing: Outgoing | None = None) -> None:
        """Close the open answer as it now is and queue `outgoing`, both or neither.

        A turn that could not be opened is added whole; nothing happens where the conversation was erased meanwhile.
        """
        ...

    def load(self, conversation_id: str) -> Conversation | None:
        """The branch that is shown, or None for an id that is not kept."""
        ...

    def read(self, conversation_id: str) -> Kept | None:
        """Everything kept of a conversation, or None."""
        ...

    def restore(self, kept: Kept) -> bool:
        """Add a whole conversation, as `read` gave it; False where its id is kept already, which changes nothing."""
        ...

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Conversations with at least one turn, the newest change first; `owner` None lists everybody's."""
        ...

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[Hit]:
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
        outgoing: Outgoing | None = None,
    ) -> bool:
        """Keep what a person thought of an answer, and queue `outgoing`; False for a turn that is not kept."""
        ...

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[Outgoing] = ()) -> int:
        """Remove conversations, their feedback and their waiting records from every copy, and queue tombstones.

        -> how many there were. When it returns, no byte of their text is left in the store's files.
        """
        ...

    def close(self) -> None:
        """Write what is pending and let go of files and connections."""
        ...
