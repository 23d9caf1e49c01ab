"""Answers with feedback from a history store or from a receiver's store.

Scope: reading both. Knows no rules of what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlora_chat.dataset import NO_OPINION, Example, Exchange, Opinion
from qlora_chat.history import HistoryStore, StoredConversation, StoredTurn
from qlora_chat.prompt import FORMATS
from qlora_chat.receiver.store import RecordFilter, RecordStore
from qlora_chat.receiver.turns import LoggedTurn, TurnKey, turns

BAD = Opinion(-1)
"""Of each answer of a comparison in which all were voted bad, unless it has feedback of its own."""


def from_history(store: HistoryStore) -> Iterator[Example]:
    """Every answer on every branch of a history."""
    for summary in store.list():
        if conversation := store.read(summary.id):
            yield from _examples(conversation)


def _examples(conversation: StoredConversation) -> Iterator[Example]:
    by_id = {turn.message.id: turn for turn in conversation.turns}
    rated = {each.turn_id: Opinion(each.rating, each.edited) for each in conversation.feedback}
    votes = {each.turn_ids: each for each in conversation.votes}  # the newest on the same answers
    opinions = {turn_id: BAD for each in votes.values() if each.verdict == "bad" for turn_id in each.turn_ids} | rated
    for turn in conversation.turns:
        if turn.message.role == "assistant":
            *earlier, exchange = _exchanges(turn, by_id, opinions)
            reason = turn.message.finish_reason
            beaten = {other for each in votes.values() if each.chosen == turn.message.id for other in each.turn_ids}
            beats = tuple(each.message.content for each in conversation.turns if each.message.id in beaten - {turn.message.id})
            yield Example(conversation.summary.id, tuple(earlier), exchange, reason, conversation.system, beats)


def _exchanges(turn: StoredTurn, by_id: Mapping[str, StoredTurn], opinions: Mapping[str, Opinion]) -> list[Exchange]:
    """Exchanges of a branch up to and including an answer, oldest first."""
    exchanges: list[Exchange] = []
    answer: StoredTurn | None = turn
    while answer and answer.parent_id:
        question = by_id[answer.parent_id]
        opinion = opinions.get(answer.message.id, NO_OPINION)
        exchanges.append(Exchange(question.message.content, answer.message.content, opinion))
        answer = by_id[question.parent_id] if question.parent_id else None
    return exchanges[::-1]


def from_receiver(store: RecordStore) -> Iterator[Example]:
    """Every answer in a receiver's store. Opinions need version 2: turns of version 1 have no id."""
    logged = {turn.key: (turn.parent_key, _opinion(turn)) for turn in turns(store, RecordFilter()) if turn.row["turn_id"]}
    for turn in turns(store, RecordFilter()):
        pairs = turn.data["history"]
        keys = [*_earlier_turns(turn, logged), turn.key]
        exchanges = [
            Exchange(question, answer, logged.get(key, (key, NO_OPINION))[1])
            for (question, answer), key in zip(pairs, keys[-len(pairs) :], strict=True)
        ]
        yield Example(
            turn.row["conversation_id"], tuple(exchanges[:-1]), exchanges[-1], turn.row["finish_reason"], _system(turn.data)
        )


def _opinion(turn: LoggedTurn) -> Opinion:
    return Opinion(turn.feedback.get("rating"), turn.feedback.get("edited")) if turn.feedback else NO_OPINION


def _earlier_turns(turn: LoggedTurn, logged: Mapping[TurnKey, tuple[TurnKey, Opinion]]) -> list[TurnKey]:
    """Keys of the earlier answers, one for each exchange, oldest first; an id of None for a turn that was not logged."""
    keys: list[TurnKey] = []
    key = turn.parent_key
    while len(keys) < len(turn.data["history"]) - 1:
        keys.append(key)
        key = logged[key][0] if key in logged else (key[0], None)
    return keys[::-1]


def _system(data: Mapping[str, Any]) -> str | None:
    """System text at the beginning of the prompt, the only place where the log has it; None for the format's default."""
    model = data.get("model")
    prompt_format = FORMATS.get(str(model.get("prompt_format"))) if isinstance(model, dict) else None
    if prompt_format is None:
        return None
    prefix, marker, _ = str(data.get("messages")).partition(prompt_format.before_user)
    system = prefix.removesuffix(prompt_format.after_system) if marker else ""
    return system if system and system != prompt_format.default_system else None
