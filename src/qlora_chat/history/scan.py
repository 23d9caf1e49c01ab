"""Lists and searches over conversations that are at hand whole: what stores without a database have in common.

Scope: values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qlora_chat.history.text_match import excerpt, matches
from qlora_chat.history.types import SearchHit, StoredConversation, Summary


def listed(conversations: Iterable[StoredConversation], limit: int | None) -> Sequence[Summary]:
    """Those with a turn, the newest change first."""
    summaries = [kept.summary for kept in conversations if kept.turns]
    return sorted(summaries, key=lambda each: each.updated_at, reverse=True)[:limit]


def found(conversations: Iterable[StoredConversation], text: str, limit: int) -> Sequence[SearchHit]:
    """Turns that hold every word of `text`, the newest first."""
    hits = [
        SearchHit(
            kept.summary.id, kept.summary.title, turn.message.id, turn.message.role, excerpt(turn.message.content, text),
            turn.created_at,
        )
        for kept in conversations
        for turn in kept.turns
        if matches(turn.message.content, text)
    ]  # fmt: skip
    return sorted(hits, key=lambda hit: hit.created_at, reverse=True)[:limit]
