"""Titles, excerpts, and word search over text: tokens for an index, and scanning conversations without one.

Scope: pure functions. Knows no store.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from qlora_chat.history.types import SearchHit, StoredConversation, Summary
from qlora_chat.messages import Conversation

TITLE_LETTERS = 60
EXCERPT_LETTERS = 160
WORD_BOUNDARY_LETTERS = 30
"""Excerpts start at a word boundary if one lies within this many letters."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts without spaces between words: each letter is a token, and a word of several letters is searched as a phrase."""
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def title_of(conversation: Conversation) -> str:
    """Title made of the first user message, up to TITLE_LETTERS; "" for an empty conversation."""
    first = next((message.content for message in conversation.messages if message.role == "user"), "")
    return shortened(" ".join(first.split()), TITLE_LETTERS)


def shortened(text: str, letters: int) -> str:
    """Text of at most that many letters, cut between words if possible and ended with "…"."""
    if len(text) <= letters:
        return text
    cut = text[: letters - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > letters // 2 else cut).rstrip() + "…"


def normalized(text: str) -> str:
    """Text without case, accents and combining marks, as search compares it."""
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(each for each in decomposed if unicodedata.category(each)[0] != "M")


def index_tokens(content: str) -> list[str]:
    """Tokens of a text for a search index, in order. Any change here invalidates every existing index."""
    return _TOKEN.findall(normalized(content))


def query_phrases(query: str) -> list[list[str]]:
    """Words of a query, each as the sequence of its index tokens; [] if it has none. "_" alone is a symbol."""
    words = (word for word in _WORD.findall(normalized(query)) if word.strip("_"))
    return [tokens for word in words if (tokens := _TOKEN.findall(word))]


def query_symbols(query: str) -> list[str]:
    """Parts of a query that no index has: those without any letter or digit, such as emoji; [] if there is none."""
    return [each for each in normalized(query).split() if not _WORD.search(each.replace("_", ""))]


def matches(content: str, query: str) -> bool:
    """True if content has every word of the query, the last one as a prefix, and every symbol; False for a query of neither."""
    phrases, symbols = query_phrases(query), query_symbols(query)
    if not phrases and not symbols:
        return False
    if symbols and not all(each in normalized(content) for each in symbols):
        return False
    text = f" {' '.join(index_tokens(content))} "
    words = all(f" {' '.join(phrase)} " in text for phrase in phrases[:-1])
    return words and (not phrases or f" {' '.join(phrases[-1])}" in text)


def excerpt(content: str, query: str) -> str:
    """About EXCERPT_LETTERS of content on one line, around the first match."""
    line = " ".join(content.split())
    found = next((begin for begin, _ in marked_ranges(line, query)), 0)  # 0 if normalization hides it
    start = max(0, found - EXCERPT_LETTERS // 3)
    if start:
        space = line.rfind(" ", max(0, start - WORD_BOUNDARY_LETTERS), start)
        start = space + 1 if space >= 0 else start
    return ("…" if start else "") + shortened(line[start:], EXCERPT_LETTERS)


def marked_ranges(line: str, query: str) -> list[tuple[int, int]]:
    """(begin, end) of every match of the query's words and symbols in a line, in order, to be marked where it is shown."""
    phrases = query_phrases(query)
    tokens = [(found.start(), found.end(), normalized(found.group())) for found in _TOKEN.finditer(line)]
    ranges = [
        (tokens[at][0], tokens[at + len(phrase) - 1][1])
        for phrase in phrases
        for at in range(len(tokens) - len(phrase) + 1)
        if [word for *_, word in tokens[at : at + len(phrase) - 1]] == phrase[:-1]
        and tokens[at + len(phrase) - 1][2].startswith(phrase[-1])
    ]
    for symbol in query_symbols(query):
        ranges += [(found.start(), found.end()) for found in re.finditer(re.escape(symbol), line)]
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def list_conversations(
    conversations: Iterable[StoredConversation], limit: int | None, before: str | None = None, tag: str | None = None
) -> Sequence[Summary]:
    """Summaries of the conversations with at least one turn, the most recently changed first, as HistoryStore.list returns."""
    summaries = [each.summary for each in conversations if each.turns]
    summaries.sort(key=lambda each: (each.updated_at, each.id), reverse=True)
    if before is not None:
        ids = [each.id for each in summaries]
        summaries = summaries[ids.index(before) + 1 :] if before in ids else []
    shown = [each for each in summaries if not each.hidden_at and (tag is None or tag in each.tags)]
    return shown[:limit]


def search_conversations(conversations: Iterable[StoredConversation], query: str, limit: int) -> Sequence[SearchHit]:
    """Turns that match a query, the newest first."""
    hits = [
        SearchHit(
            each.summary.id, each.summary.title, turn.message.id, turn.message.role, excerpt(turn.message.content, query),
            turn.created_at,
        )
        for each in conversations
        if not each.summary.hidden_at
        for turn in each.turns
        if matches(turn.message.content, query)
    ]  # fmt: skip
    return sorted(hits, key=lambda hit: hit.created_at, reverse=True)[:limit]
