"""Branches of a stored conversation: versions of a turn, and the way through the tree that shows one of them.

Scope: pure functions on a tree of turns. Knows no store and no page.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from qlora_chat.history import StoredConversation, StoredTurn
from qlora_chat.messages import Conversation


class Branches:
    """The turns of a conversation by id, and the children of each."""

    def __init__(self, stored: StoredConversation) -> None:
        self._stored = stored
        self._turns = {turn.message.id: turn for turn in stored.turns}
        self._children: dict[str | None, list[str]] = defaultdict(list)
        for turn in stored.turns:
            self._children[turn.parent_id].append(turn.message.id)

    def turn(self, turn_id: str) -> StoredTurn | None:
        """The stored turn of that id."""
        return self._turns.get(turn_id)

    def versions(self, turn_id: str) -> list[str]:
        """Ids of the turns with the same parent, oldest first; itself alone where it has no other version.

        A question that was never answered, and an answer without a word, are versions only where they are the turn itself.
        """
        turn = self._turns.get(turn_id)
        if turn is None:
            return [turn_id]
        siblings, role = self._children[turn.parent_id], turn.message.role
        alike = (each for each in siblings if self._turns[each].message.role == role)
        return [each for each in alike if each == turn_id or self._counts(each)]

    def through(self, turn_id: str) -> Conversation | None:
        """The conversation on the branch of that turn, to the newest of its descendants; None for an unknown turn."""
        if turn_id not in self._turns:
            return None
        leaf = turn_id
        while children := [each for each in self._children[leaf] if self._counts(each)]:
            leaf = children[-1]
        shown = replace(self._stored, head_id=leaf).conversation()
        return replace(shown, head=self._stored.head_id)

    def _counts(self, turn_id: str) -> bool:
        message = self._turns[turn_id].message
        if message.role == "assistant":
            return bool(message.content)
        return any(self._counts(each) for each in self._children[turn_id])
