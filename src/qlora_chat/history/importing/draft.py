"""Drafts of conversations as foreign files hold them, and the step to a conversation that a store accepts.

A foreign tree may have turns of any role, empty ones, and several of one role in a row; ours alternates from a user on. What
cannot be stored is left out and counted, and its children follow the nearest turn before it. Turns of one role in a row
become one turn. Every other branch, and the time of each turn, stays.

Scope: trees. Knows no tool's format and no file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from qlora_chat.dialogue_formats import ROLES
from qlora_chat.history import StoredConversation, StoredTurn, Summary, now
from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import (
    ATTACHMENTS,
    EARLY,
    EMPTY,
    IMAGES,
    OTHER_ROLES,
    SYSTEM,
    TOOLS,
    clean,
    text_or_none,
)
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message, Role

MAX_TURNS = 100_000
MAX_LETTERS = 64_000_000
"""Of one conversation; repeated texts count each time."""
MAX_ID_LETTERS = 128
_MORE_ROLES = {"developer": "system", **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool")}


@dataclass(frozen=True)
class DraftTurn:
    """A turn as a foreign file has it."""

    id: str
    parent_id: str | None
    """None, or an id that the draft lacks, for a first turn."""
    role: str
    """In any project's words."""
    text: str
    created_at: datetime | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    """Counts of what the message had besides its text."""

    @property
    def content(self) -> str:
        """The text; "[images]" or "[attachments]" for a turn of nothing else, so that its answer has a question."""
        files = [name for name in (IMAGES, ATTACHMENTS) if self.left_out[name]]
        return self.text if self.text.strip() or not files else f"[{files[0]}]"


@dataclass(frozen=True)
class Draft:
    """A conversation as a foreign file has it; `turns` in any order."""

    turns: list[DraftTurn]
    id: str | None = None
    """None derives one from the texts, the same at every import."""
    title: str | None = None
    system: str | None = None
    model: str | None = None
    head_id: str | None = None
    """Newest turn of the branch that the tool showed; None for the newest turn of all."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


def digest(*parts: str) -> str:
    """Id that follows from the parts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def usable_id(value: object) -> str | None:
    """An id that may be stored and printed, or None."""
    fits = isinstance(value, str) and 0 < len(value) <= MAX_ID_LETTERS and value.isprintable()
    return str(value) if fits else None


def linear(turns: Iterable[tuple[str, str, datetime | None]]) -> list[DraftTurn]:
    """Turns of (role, text, time), each of which follows the one before it."""
    return [
        DraftTurn(str(index), str(index - 1) if index else None, role, text, moment)
        for index, (role, text, moment) in enumerate(turns)
    ]


def conversation_of(draft: Draft) -> tuple[StoredConversation, Counter[str]]:
    """Conversation of a draft, without a turn if there is no question, and the counts of what it lacks.

    BadExport for turns that form a circle, and for too many of them.
    """
    if len(draft.turns) > MAX_TURNS:
        raise BadExport(f"it holds {len(draft.turns):,} turns, but at most {MAX_TURNS:,} are read")
    tree = _Tree(draft)
    name = usable_id(draft.id) or digest(
        text_or_none(draft.title) or "", *(f"{each.role}\0{each.content}" for each in draft.turns)
    )
    turns, head = tree.stored(name)
    begun = draft.created_at or (turns[0].created_at if turns else now())
    newest = max([draft.updated_at or begun, *(each.created_at for each in turns)])
    title = text_or_none(draft.title) or title_of(Conversation(messages=tuple(each.message for each in turns[:1])))
    summary = Summary(name, title, ("imported",), text_or_none(draft.model), None, len(turns), begun, newest)
    return StoredConversation(summary, tree.system, {}, head, tuple(turns)), tree.left_out


class _Tree:
    """The turns of a draft, each after its parent, and the place of each in a tree that alternates."""

    def __init__(self, draft: Draft) -> None:
        self._draft, self.system = draft, clean(draft.system) if draft.system else None
        self.left_out: Counter[str] = Counter()
        self._by_id = {each.id: each for each in draft.turns}
        self._anchor: dict[str, str | None] = {}
        """Of every turn: itself if it is stored, else the nearest stored turn before it; None for none."""
        self._parent: dict[str, str | None] = {}
        """Of a stored turn: the nearest stored turn before it."""
        self._children: dict[str, list[str]] = {}
        self._times: dict[str, datetime] = {}
        for turn in _parents_first(self._by_id):
            self._add(turn)

    def _add(self, turn: DraftTurn) -> None:
        before = self._anchor.get(turn.parent_id) if turn.parent_id else None
        reason = self._reason_to_leave_out(turn, before)
        self.left_out += turn.left_out
        if reason is not None:
            self._anchor[turn.id] = before
            self.left_out += Counter([reason] if reason else [])
            return
        self._anchor[turn.id], self._parent[turn.id], self._children[turn.id] = turn.id, before, []
        earliest = self._times[before] if before else self._draft.created_at
        self._times[turn.id] = max(filter(None, (turn.created_at, earliest)), default=now())
        if before:
            self._children[before].append(turn.id)

    def _reason_to_leave_out(self, turn: DraftTurn, before: str | None) -> str | None:
        """Name of what is left out with this turn, "" if nothing is lost, None if the turn is stored."""
        role, empty = _role_of(turn), not turn.content.strip()
        if role == "system":
            if before is None and self.system is None and not empty:
                self.system = turn.content
                return ""
            return "" if empty else SYSTEM
        if role == "tool":
            return TOOLS
        if role not in ("user", "assistant"):
            return OTHER_ROLES
        if empty:
            return EMPTY
        return EARLY if role == "assistant" and before is None else None

    def stored(self, name: str) -> tuple[list[StoredTurn], str | None]:
        """Turns of the conversation of that name, the oldest first, and its head."""
        ends = [each for each in self._parent if self._is_end(each)]
        letters, turns = 0, []
        for each in sorted(ends, key=self._times.__getitem__):  # stable, and no turn is older than its parent
            text, before = self._joined(each)
            letters += len(text)
            if letters > MAX_LETTERS:
                raise BadExport(f"its branches hold more than {MAX_LETTERS:,} letters")
            role = self._role(each)
            reason = "stop" if role == "assistant" else None
            message = Message(role, text, (), reason, digest(name, each))
            turns.append(StoredTurn(message, digest(name, before) if before else None, self._times[each]))
        head = self._head(ends)
        return turns, digest(name, head) if head else None

    def _is_end(self, turn_id: str) -> bool:
        """True for the last of several turns of one role, where the other role goes on or nobody does."""
        children = self._children[turn_id]
        return not children or any(self._role(each) != self._role(turn_id) for each in children)

    def _joined(self, turn_id: str) -> tuple[str, str | None]:
        """Text of the turns of one role in a row that end with this one, and the turn of the other role before them."""
        texts, role, at = [], self._role(turn_id), turn_id
        letters = 0
        while True:
            texts.append(self._by_id[at].content)
            letters += len(texts[-1])
            before = self._parent[at]
            if before is None or self._role(before) != role or letters > MAX_LETTERS:
                return "\n\n".join(reversed(texts)), before
            at = before

    def _head(self, ends: list[str]) -> str | None:
        head = self._anchor.get(self._draft.head_id) if self._draft.head_id else None
        if head is None:
            leaves = [each for each in ends if not self._children[each]]
            return max(reversed(leaves), key=self._times.__getitem__, default=None)
        while not self._is_end(head):
            head = self._children[head][-1]
        return head

    def _role(self, turn_id: str) -> Role:
        return "user" if _role_of(self._by_id[turn_id]) == "user" else "assistant"


def _role_of(turn: DraftTurn) -> str:
    return ROLES.get(turn.role) or _MORE_ROLES.get(turn.role, "")


def _parents_first(by_id: dict[str, DraftTurn]) -> Iterator[DraftTurn]:
    """Every turn after its parent, otherwise in the file's order. BadExport if turns follow each other in a circle."""
    children: dict[str | None, list[DraftTurn]] = {}
    for turn in by_id.values():
        children.setdefault(turn.parent_id if turn.parent_id in by_id else None, []).append(turn)
    waiting, count = children.pop(None, [])[::-1], 0
    while waiting:
        turn = waiting.pop()
        count += 1
        yield turn
        waiting += reversed(children.get(turn.id, ()))
    if count < len(by_id):
        raise BadExport("its turns follow each other in a circle")
