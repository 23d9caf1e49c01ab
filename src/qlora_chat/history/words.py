"""Words in conversations: titles, searching without an index, excerpts. Pure functions of text."""

from __future__ import annotations

import re
import unicodedata

from qlora_chat.messages import Conversation

TITLE_LETTERS = 60
EXCERPT_LETTERS = 160
_WORD = re.compile(r"\w+")


def title_of(conversation: Conversation) -> str:
    """A conversation's first words, to call it by until a person renames it; "" before anything was said."""
    first = next((message.content for message in conversation.messages if message.role == "user"), "")
    return shortened(" ".join(first.split()), TITLE_LETTERS)


def shortened(text: str, letters: int) -> str:
    """At most that many letters, cut between words where one is near."""
    if len(text) <= letters:
        return text
    cut = text[: letters - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > letters // 2 else cut).rstrip() + "…"


def folded(text: str) -> str:
    """Text as search compares it: without case and accents."""
    return "".join(each for each in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(each))


def query_words(text: str) -> list[str]:
    """The words that a search asks for, folded; [] where there are none."""
    return _WORD.findall(folded(text))


def matches(content: str, text: str) -> bool:
    """Whether content holds every word of `text`, the last one as a beginning; false for no words."""
    asked = query_words(text)
    if not asked:
        return False
    held = _WORD.findall(folded(content))
    return set(asked[:-1]) <= set(held) and any(word.startswith(asked[-1]) for word in held)


def excerpt(content: str, text: str) -> str:
    """About EXCERPT_LETTERS of content on one line, around the first word that was asked for."""
    line = " ".join(content.split())
    asked = query_words(text)
    at = (
        next((found.start() for found in _WORD.finditer(line) if folded(found.group()).startswith(tuple(asked))), 0)
        if asked
        else 0
    )
    start = max(0, at - EXCERPT_LETTERS // 3)
    if start:
        start = line.rfind(" ", 0, start) + 1
    return ("…" if start else "") + shortened(line[start:], EXCERPT_LETTERS)
