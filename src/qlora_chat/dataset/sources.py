"""Answers with opinions, from a history store or from what a receiver was sent.

Scope: reading the two. Knows nothing of what is learnt from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlora_chat.dataset import NOTHING_SAID, Answered, Exchange, Opinion
from qlora_chat.history import HistoryStore, StoredConversation, StoredTurn
from qlora_chat.prompt import FORMATS
from qlora_chat.receiver.store import RecordStore, TurnFilter
from qlora_chat.receiver.turns import LoggedTurn, turns


def from_history(store: HistoryStore) -> Iterator[Answered]:
    """Every answer of every branch that a history keeps."""
    for summary in store.list():
        if kept := store.read(summary.id):
            yield from _answers_of(kept)


def _answers_of(kept: StoredConversation) -> Iterator[Answered]:
    by_id = {turn.message.id: turn for turn in kept.turns}
    opinions = {said.turn_id: Opinion(said.rating, said.edited) for said in kept.feedback}
    for turn in kept.turns:
        if turn.message.role == "assistant":
            *earlier, exchange = _exchanges(turn, by_id, opinions)
            yield Answered(kept.summary.id, tuple(earlier), exchange, turn.message.finish_reason, kept.system)


def _exchanges(turn: StoredTurn, by_id: Mapping[str, StoredTurn], opinions: Mapping[str, Opinion]) -> list[Exchange]:
    """The branch up to and including an answer, oldest first."""
    found: list[Exchange] = []
    answer: StoredTurn | None = turn
    while answer and answer.parent_id:
        question = by_id[answer.parent_id]
        opinion = opinions.get(answer.message.id, NOTHING_SAID)
        found.append(Exchange(question.message.content, answer.message.content, opinion))
        answer = by_id[question.parent_id] if question.parent_id else None
    return found[::-1]


def from_receiver(store: RecordStore) -> Iterator[Answered]:
    """Every answer that a receiver was sent. Opinions need version 2: nothing names a turn of version 1."""
    parents = {row["turn_id"]: row for row in _parents(store)}
    opinions = {turn_id: row["opinion"] for turn_id, row in parents.items()}
    for turn in turns(store, TurnFilter()):
        names = _earlier_turns(turn, parents)
        pairs = turn.data["history"]
        exchanges = [
            Exchange(question, answer, opinions.get(name, NOTHING_SAID))
            for (question, answer), name in zip(pairs, [*names, turn.row["turn_id"]][-len(pairs) :], strict=True)
        ]
        yield Answered(
            turn.row["conversation_id"], tuple(exchanges[:-1]), exchanges[-1], turn.row["finish_reason"], _system(turn.data)
        )


def _parents(store: RecordStore) -> Iterator[dict[str, Any]]:
    """Of each turn of version 2: its id, the answer before it, and what was thought of it."""
    for turn in turns(store, TurnFilter()):
        if turn.row["turn_id"] is not None:
            said = turn.feedback
            opinion = Opinion(said.get("rating"), said.get("edited")) if said else NOTHING_SAID
            yield {"turn_id": turn.row["turn_id"], "parent_id": turn.data.get("parent_id"), "opinion": opinion}


def _earlier_turns(turn: LoggedTurn, parents: Mapping[str, Mapping[str, Any]]) -> list[str | None]:
    """Ids of the answers before this one, oldest first and one an exchange; None where that turn was not logged."""
    count = len(turn.data["history"]) - 1
    names: list[str | None] = []
    name = turn.data.get("parent_id")
    while len(names) < count:
        names.append(name)
        row = parents.get(name) if isinstance(name, str) else None
        name = row["parent_id"] if row else None
    return names[::-1]


def _system(data: Mapping[str, Any]) -> str | None:
    """The system text that led the prompt, where it is not the format's own; the log has it in the prompt alone."""
    model = data.get("model")
    form = FORMATS.get(str(model.get("prompt_format"))) if isinstance(model, dict) else None
    if form is None:
        return None
    lead, marker, _ = data["messages"].partition(form.before_user)
    system = lead.removesuffix(form.after_system) if marker else ""
    return system if system and system != form.default_system else None
