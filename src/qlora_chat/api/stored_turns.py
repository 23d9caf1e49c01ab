"""Turns that a client asks to be kept, with OpenAI's `store` and `metadata`: in the history and the outbox, as the page's are.

Scope: which conversation a request goes on with, whose it is, and its choices as turns. Knows no HTTP and no store's kind.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qlora_chat.chat import Chat, Turn
from qlora_chat.messages import Conversation, new_id
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

NAMES_CONVERSATION = "conversation_id"
"""The metadata that says which conversation a turn belongs to; without it, each request is a conversation of its own."""
OURS = "qlora-chat:api"
"""A tag that tells these conversations from the page's."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class StoreOptions:
    """A conversation as a client knows it."""

    name: str
    """What the client calls it; drawn here where it did not say."""
    id: str
    """What the history calls it."""
    tags: tuple[str, ...]

    @staticmethod
    def of(metadata: Mapping[str, str], owner: str | None) -> StoreOptions:
        """A name means a conversation of its owner's and nobody else's."""
        name = metadata.get(NAMES_CONVERSATION) or new_id()
        own = owner is None and _UUID.fullmatch(name) is not None
        tags = (f"{key}={value}" for key, value in metadata.items() if key != NAMES_CONVERSATION)
        return StoreOptions(name, name if own else str(uuid.uuid5(uuid.NAMESPACE_OID, f"{owner or ''} {name}")), (OURS, *tags))


def owner_of(token: str) -> str:
    """Whose the turns are where several people use the server: the token's, kept as a hash that lets nobody in."""
    return hashlib.sha256(f"api {token}".encode("utf-8", "replace")).hexdigest()


class StoredTurnWriter:
    """Begins each of a request's choices as a turn that is kept; several choices are branches after the one question."""

    def __init__(
        self, chat: Chat, said: Conversation, named: StoreOptions, owner: str | None, stops: Stops, adapter: str | None
    ) -> None:
        """`said` ends with the question; what the history holds of it already is not added again."""
        self._chat, self._owner, self._stops, self._adapter = chat, owner, stops, adapter
        kept = chat.history.load(named.id) or Conversation(named.id)
        self._before = kept
        self._asked = replace(_going_on(kept, said), tags=named.tags)
        self._tagged = kept.tags == named.tags

    def begin(self, prompt: Prompt, sampling: Sampling) -> Turn:
        """One choice. HistoryUnavailable where it cannot be kept, StaleConversation where the conversation was changed by
        another request meanwhile; nothing is computed then."""
        turn = self._chat.answer(
            self._asked, prompt, sampling, self._stops, self._before,
            owner=self._owner, adapter=self._adapter, must_be_kept=True,
        )  # fmt: skip
        self._asked = turn.conversation
        if not self._tagged:
            self._tagged = self._chat.history.change(self._asked.id, tags=self._asked.tags)
        return turn


def _going_on(kept: Conversation, said: Conversation) -> Conversation:
    """What was said, with the kept turns where it says the same: what differs from there on is a branch."""
    same = 0
    for ours, theirs in zip(kept.messages, said.messages, strict=False):
        if (ours.role, ours.content) != (theirs.role, theirs.content):
            break
        same += 1
    return replace(kept, messages=(*kept.messages[:same], *said.messages[same:]), system=said.system)
