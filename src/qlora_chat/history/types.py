"""Values that cross the border of a store: recorded turns, stored conversations, errors.

Scope: frozen values and exceptions. Knows no store and no payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from qlora_chat.errors import UserError
from qlora_chat.messages import AnswerSchema, Conversation, Message, new_id
from qlora_chat.settings import Sampling

Verdict = Literal["best", "tie", "bad"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""One answer is the best, all are equally good, or all are bad."""


def now() -> datetime:
    """Current time in the local zone, which it carries."""
    return datetime.now().astimezone()


# --- recorded turns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelUsed:
    """Model that wrote an answer, and how it was loaded. Field names and their order are those of payload version 2."""

    name: str
    base: str
    adapter: str | None
    precision: str
    device: str
    prompt_format: str
    base_sha256: str | None = None
    """None if unknown."""
    adapter_sha256: str | None = None
    computed_by: str | None = None
    """Name of the forward pass."""
    base_form: str | None = None
    """Form of the base under the adapter, nf4 or 16-bit; None where it is unknown or there is no adapter."""


@dataclass(frozen=True)
class Usage:
    """Tokens and times of one answer."""

    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    ttft_ms: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class SettingsChange:
    """New sampling settings in the middle of an answer, in force from the token after `at_token` of its tokens."""

    at_token: int
    sampling: Sampling
    at_character: int | None = None
    """Length of the shown answer at that token; None if unknown."""


@dataclass(frozen=True)
class ContinuedAnswer:
    """The earlier version of an answer that another one goes on with."""

    turn_id: str | None
    """None if a client or a user wrote it."""
    tokens: int
    """Tokens of it at the prompt's end."""
    characters: int
    """Length of its text, with which the new version begins."""


@dataclass(frozen=True)
class TurnRecord:
    """A finished turn, as it is stored and delivered."""

    conversation: Conversation
    """Up to and including the answer."""
    prompt_text: str
    """Full text that the model continued."""
    sampling: Sampling
    """Settings at the first token, with the seed that was used, drawn if the user set none."""
    finished_at: datetime = field(default_factory=now)
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    """Token ids exactly as the engine sampled them."""
    changes: tuple[SettingsChange, ...] = ()
    """In the order they were made."""
    usage: Usage | None = None
    """None if the engine reported none."""
    model: ModelUsed | None = None
    continues: ContinuedAnswer | None = None
    """Set if the prompt ends with the beginning of the answer; `answer_ids`, `changes` and `usage` are those of the rest."""
    stop_texts: tuple[str, ...] = ()
    """Texts that ended the answer, besides the prompt format's."""
    schema: AnswerSchema | None = None
    """Schema that the answer had to match. The prompt format's stop texts did not apply then."""

    @property
    def answer(self) -> Message:
        """Newest message."""
        return self.conversation.messages[-1]

    @property
    def question(self) -> Message:
        """User message before the answer."""
        return self.conversation.messages[-2]

    @property
    def parent_id(self) -> str | None:
        """Id of the turn that the question follows; None for the first question."""
        return self.conversation.messages[-3].id if len(self.conversation.messages) > 2 else None


@dataclass(frozen=True)
class OutboxRecord:
    """One record for the receiver: the exact bytes to post, under an id that never changes."""

    kind: str
    """turn, feedback or tombstone."""
    conversation_id: str
    body: bytes
    id: str = field(default_factory=new_id)
    """Idempotency key, by which a receiver recognises a record it already has."""
    address: str | None = None
    """LOGGING_URL that it is for; None for that of the outbox which takes it."""


# --- stored conversations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConversationInfo:
    """Metadata stored with a conversation."""

    model: str | None = None
    adapter: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Sampling at the newest question."""
    owner: str | None = None
    """User whose list shows it; None in a store with a single user."""
    name_key: str | None = None
    """Key that `find_named` finds it by, of which a store has each once; None for a conversation without a name."""


@dataclass(frozen=True)
class Summary:
    """A conversation's entry in a list."""

    id: str
    title: str
    tags: tuple[str, ...]
    model: str | None
    adapter: str | None
    turns: int
    """Number of turns ever added, on all branches."""
    created_at: datetime
    updated_at: datetime
    hidden_at: datetime | None = None
    """Set by stores that hold a conversation as one value, while it is hidden."""


@dataclass(frozen=True)
class StoredTurn:
    """A message and its parent in the tree of turns."""

    message: Message
    parent_id: str | None
    created_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)
    """answer_metadata of an answer: seed, settings changes, token counts, times, model; {} for a question."""


@dataclass(frozen=True)
class Feedback:
    """A user's opinion of an answer. The newest one of a turn counts; None leaves a field unset."""

    turn_id: str
    rating: int | None = None
    """1 or -1."""
    edited: str | None = None
    """The answer as the user would have it."""
    comment: str | None = None
    created_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        if self.rating not in (1, -1, None):
            raise ValueError(f"rating is {self.rating!r}, but must be 1, -1 or None")


@dataclass(frozen=True)
class ComparedAnswer:
    """One of the answers that a person voted on."""

    turn_id: str
    name: str
    """Adapter or model that wrote it, as the engine reported, and the settings by which it differed from the others."""


@dataclass(frozen=True)
class Vote:
    """A person's choice between answers to one question, shown side by side. The newest one on the same answers counts."""

    answers: tuple[ComparedAnswer, ...]
    """In the order shown."""
    verdict: Verdict
    chosen: str | None = None
    """Turn id of the best answer; None for a tie, and where all are bad."""
    blind: bool = False
    """The names were hidden until the vote."""
    created_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {self.verdict!r}, but must be one of {', '.join(VERDICTS)}")
        if len(self.turn_ids) < 2:
            raise ValueError(f"a vote is on {len(self.turn_ids)} answers, but must be on two or more")
        if (self.chosen in self.turn_ids) != (self.verdict == "best"):
            raise ValueError("chosen must be one of the answers if the verdict is best, and null otherwise")

    @property
    def turn_ids(self) -> frozenset[str]:
        """Ids of the answers."""
        return frozenset(each.turn_id for each in self.answers)


@dataclass(frozen=True)
class StoredConversation:
    """A whole conversation with every branch."""

    summary: Summary
    system: str | None
    settings: Mapping[str, Any]
    head_id: str | None
    turns: tuple[StoredTurn, ...]
    """In the order they were added; a parent comes before its children."""
    feedback: tuple[Feedback, ...] = ()
    votes: tuple[Vote, ...] = ()
    """In the order they were given."""

    def conversation(self) -> Conversation:
        """Active branch: the turns from the root to the head."""
        by_id = {turn.message.id: turn for turn in self.turns}
        messages: list[Message] = []
        turn_id = self.head_id
        while turn_id is not None:
            messages.append(by_id[turn_id].message)
            turn_id = by_id[turn_id].parent_id
        return Conversation(self.summary.id, tuple(reversed(messages)), self.system, self.head_id, self.summary.tags)

    def has_turn(self, turn_id: str) -> bool:
        """True if any branch has this turn."""
        return any(turn.message.id == turn_id for turn in self.turns)

    def new_turns(self, conversation: Conversation) -> list[StoredTurn]:
        """Messages of `conversation` that are not stored yet, each with its parent."""
        stored = {turn.message.id for turn in self.turns}
        parents = [None, *(message.id for message in conversation.messages)]
        return [
            StoredTurn(message, parent, now())
            for message, parent in zip(conversation.messages, parents, strict=False)
            if message.id not in stored
        ]


@dataclass(frozen=True)
class SearchHit:
    """A turn that matches a search."""

    conversation_id: str
    title: str
    turn_id: str
    role: str
    excerpt: str
    """About 160 characters around the first match."""
    created_at: datetime


# --- errors ------------------------------------------------------------------------------------------------------------


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
