"""Our own exports (json, jsonl): a conversation with every branch, restored unchanged.

Scope: one record. What no store could list or return is refused; texts lose lone surrogates and NUL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_chat.history import StoredConversation
from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import clean
from qlora_chat.history.importing.draft import digest, usable_id
from qlora_chat.history.json_codec import conversation_from_json


def recognises(record: Any) -> bool:
    """True for a conversation as `history export` writes it."""
    return isinstance(record, dict) and "turns" in record


def read(record: Mapping[str, Any]) -> StoredConversation:
    """Conversation of a record, with new ids for those that cannot be printed. ValueError says what is wrong."""
    if not isinstance(record, dict):
        raise BadExport("is no conversation as `qlora-chat history export` writes it")
    conversation = conversation_from_json(_cleaned(record))
    if not conversation.turns:
        raise BadExport("holds no turn, so no list would show it")
    name = conversation.summary.id
    if usable_id(name) is None:
        return with_ids(conversation, digest(name, *(each.message.content for each in conversation.turns)))
    return conversation if all(usable_id(each.message.id) for each in conversation.turns) else with_ids(conversation, name)


def with_ids(conversation: StoredConversation, name: str) -> StoredConversation:
    """The same conversation under that name, with turn ids that follow from it."""

    def new_id(turn_id: str) -> str:
        return digest(name, turn_id)

    turns = tuple(
        replace(
            each,
            message=replace(each.message, id=new_id(each.message.id)),
            parent_id=None if each.parent_id is None else new_id(each.parent_id),
        )
        for each in conversation.turns
    )
    feedback = tuple(replace(each, turn_id=new_id(each.turn_id)) for each in conversation.feedback)
    votes = tuple(
        replace(
            vote,
            answers=tuple(replace(each, turn_id=new_id(each.turn_id)) for each in vote.answers),
            chosen=None if vote.chosen is None else new_id(vote.chosen),
        )
        for vote in conversation.votes
    )
    head = None if conversation.head_id is None else new_id(conversation.head_id)
    summary = replace(conversation.summary, id=name)
    return replace(conversation, summary=summary, turns=turns, feedback=feedback, votes=votes, head_id=head)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, list) else value
