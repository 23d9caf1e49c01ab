"""Pages of the list of conversations, and of search results.

Scope: values, which view.py makes HTML of and the browser groups by its own days. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_chat.history import HistoryStore, SearchHit, Summary
from qlora_chat.history.text_match import matches, normalized, query_phrases
from qlora_chat.text import replace_surrogates

PINNED = "pinned"
"""The tag of conversations that stand above the others."""
PAGE = 50
MOST_REDRAWN = 100_000
"""Conversations of a list that has been scrolled to its end and is asked for anew."""
MOST_FOUND = 2_000
"""Search results at most. Who has more searches for more words."""
HITS_PER_CHAT = 4
"""Matching turns that are read for each conversation shown, because several of them may be in one conversation."""
MAX_TITLE = 200
MAX_TAGS = 20
MAX_TAG = 40


@dataclass(frozen=True)
class Entry:
    """A conversation in the list, and where a search has found it."""

    summary: Summary
    query: str = ""
    hit: SearchHit | None = None
    """A turn that matches."""


@dataclass(frozen=True)
class Page:
    """Some entries, and what the page behind them is asked for by; None at the end."""

    entries: Sequence[Entry]
    next: str | None


def first_page(history: HistoryStore, owner: str | None, limit: int = PAGE) -> Page:
    """The pinned conversations, and the newest of the others: a page, or as many as have been scrolled to."""
    pinned = [Entry(each) for each in history.list(owner=owner, tag=PINNED)]
    page = page_after(history, owner, None, min(max(limit, PAGE), MOST_REDRAWN))
    return Page([*pinned, *page.entries], page.next)


def page_after(history: HistoryStore, owner: str | None, before: str | None, limit: int = PAGE) -> Page:
    """The next page behind the conversation `before`, without those that are pinned."""
    summaries = history.list(owner=owner, limit=limit, before=before)
    others = [Entry(each) for each in summaries if PINNED not in each.tags]
    return Page(others, summaries[-1].id if len(summaries) == limit else None)


def found(history: HistoryStore, owner: str | None, query: str, limit: int, before: str = "") -> Page:
    """Conversations whose title, tag or text has every word: each once, with a turn, those of a "#tag" without. The next ones
    are asked for by their place in the results, as `before`."""
    query, first = replace_surrogates(query).strip(), int(before) if before.isdecimal() and len(before) < 5 else 0
    end = min(first + max(limit, 1), MOST_FOUND)
    if query.startswith("#") and len(query) > 1:
        tagged = history.list(owner=owner, tag=query[1:].strip(), limit=end + 1)
        entries, count = [Entry(each) for each in tagged[first:end]], len(tagged)
    else:
        hits = _first_hits(history.search(query, limit=end * HITS_PER_CHAT, owner=owner))
        titled = _with_title(history.list(owner=owner), query)
        ids = [*titled, *(each for each in hits if each not in titled)]
        summaries = ((each, titled.get(each) or history.summary(each, owner=owner)) for each in ids[first:end])
        entries, count = [Entry(each, query, hits.get(name)) for name, each in summaries if each], len(ids)
    return Page(entries, str(end) if end < min(count, MOST_FOUND) else None)


def clean_title(title: object) -> str:
    """A title on one line; "" for none."""
    return " ".join(replace_surrogates(title).split())[:MAX_TITLE] if isinstance(title, str) else ""


def clean_tags(text: str) -> list[str]:
    """Tags, written with commas between, without spaces around them and without those that come twice."""
    cleaned = (" ".join(each.split()).lstrip("#")[:MAX_TAG] for each in replace_surrogates(text).split(","))
    return [*dict.fromkeys(each for each in cleaned if each)][:MAX_TAGS]


def _first_hits(hits: Iterable[SearchHit]) -> dict[str, SearchHit]:
    """The newest hit of each conversation, by its id."""
    first: dict[str, SearchHit] = {}
    for hit in hits:
        first.setdefault(hit.conversation_id, hit)
    return first


def _with_title(summaries: Sequence[Summary], query: str) -> dict[str, Summary]:
    """Conversations whose title has every word of a query, by id."""
    words = ["".join(each) for each in query_phrases(query)]
    likely = (each for each in summaries if all(word in normalized(each.title) for word in words))
    return {each.id: each for each in likely if matches(each.title, query)}
