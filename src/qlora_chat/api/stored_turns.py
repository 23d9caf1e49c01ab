"""Turns that a client asks to store, with OpenAI's `store` and `metadata`: in history and outbox, as the page's are.

Scope: the conversation that a request continues, its owner, and its choices as turns. Knows no HTTP and no kind of store.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.history import HistoryStore
from qlora_chat.messages import AnswerSchema, Conversation, new_id
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

NAME_KEY = "conversation_id"
"""Metadata key of the conversation that a turn belongs to; without it, each request is a conversation of its own."""
API_TAG = "qlora-chat:api"
"""Tag that distinguishes these conversations from the page's."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class StoreOptions:
    """The conversation in which a client stores a turn."""

    name: str
    """The client's name for it; generated if it has none."""
    tags: tuple[str, ...]
    owner: str | None
    requested: bool = True
    """False for a turn that is stored without a word of the client: no receiver gets it, and if the history cannot be written,
    it is answered all the same."""

    @staticmethod
    def of(metadata: Mapping[str, str], owner: str | None, *, requested: bool = True) -> StoreOptions:
        """Options from a request's metadata. The same name means another conversation for another owner."""
        tags = (f"{key}={value}" for key, value in metadata.items() if key != NAME_KEY)
        return StoreOptions(metadata.get(NAME_KEY) or new_id(), (API_TAG, *tags), owner, requested)

    @property
    def is_id(self) -> bool:
        """True if the name is the conversation's id: only where nobody owns a conversation, and for the form that ids have."""
        return self.owner is None and _UUID.fullmatch(self.name) is not None

    @property
    def name_key(self) -> str | None:
        """Key by which the history finds the conversation; None if its name is its id."""
        if self.is_id:
            return None
        return hashlib.sha256(f"name {self.owner or ''} {self.name}".encode("utf-8", "replace")).hexdigest()

    def find_id(self, history: HistoryStore) -> str | None:
        """Id of the conversation if it has begun. Ids are random; earlier versions derived them from owner and name."""
        if self.name_key is None:
            return self.name
        derived = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.owner or ''} {self.name}"))
        return history.find_named(self.name_key) or (derived if history.read(derived) else None)


def owner_of(authorization: str) -> str:
    """Owner of turns on a shared server: a hash of the Authorization header, which opens nothing by itself."""
    return hashlib.sha256(f"api {authorization}".encode("utf-8", "replace")).hexdigest()


class StoredTurnWriter:
    """Starts each choice of a request as a stored turn; several choices are branches after the same question."""

    def __init__(
        self, chat: Chat, conversation: Conversation, options: StoreOptions, stops: Stops, adapter: str | None,
        schema: AnswerSchema | None = None,
    ) -> None:  # fmt: skip
        """`conversation` ends with the question; messages that the history has already are not added again."""
        self._chat, self._stops = chat, stops
        self._options = AnswerOptions(
            Sampling(), adapter, options.owner, options.name_key, logged=options.requested, must_save=options.requested,
            schema=schema,
        )  # fmt: skip
        conversation_id = options.find_id(chat.history) or new_id()
        self._before = chat.history.load(conversation_id) or Conversation(conversation_id)
        self._conversation = replace(_merge(self._before, conversation), tags=options.tags)
        self._is_tagged = self._before.tags == options.tags

    def start(self, prompt: Prompt, sampling: Sampling) -> Turn:
        """Start one choice. HistoryUnavailable if it cannot be stored, StaleConversation if another request changed the
        conversation meanwhile; nothing is computed then."""
        options = replace(self._options, sampling=sampling)
        turn = self._chat.answer(self._conversation, prompt, options, self._stops, self._before)
        self._conversation = replace(self._conversation, head=turn.conversation.head)
        if not self._is_tagged and turn.save_error is None:
            self._is_tagged = self._chat.history.change(self._conversation.id, tags=self._conversation.tags)
        return turn


def _merge(stored: Conversation, sent: Conversation) -> Conversation:
    """The sent conversation, with the stored messages as far as both are the same; the rest is a branch."""
    same = 0
    for ours, theirs in zip(stored.messages, sent.messages, strict=False):
        if (ours.role, ours.content) != (theirs.role, theirs.content):
            break
        same += 1
    return replace(stored, messages=(*stored.messages[:same], *sent.messages[same:]), system=sent.system)
