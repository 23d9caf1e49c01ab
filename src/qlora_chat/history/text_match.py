"""Words in conversations: titles, searching without an index, excerpts. Pure functions of text."""

from __future__ import annotations

import re
import unicodedata
from collections import deque

from qlora_chat.messages import Conversation

TITLE_LETTERS = 60
EXCERPT_LETTERS = 160
NEAR_LETTERS = 30
"""How far before an excerpt a space is looked for, to begin with a word."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts that put no space between words: each of their letters is a token, and a search for several a phrase."""
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


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
    """Text as search compares it: without case, accents, and the signs above and below letters that other scripts have."""
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(each for each in decomposed if unicodedata.category(each)[0] != "M")


def index_tokens(content: str) -> list[str]:
    """What an index holds of a text, in order. A change here makes every index that was built before it wrong."""
    return _TOKEN.findall(folded(content))


def query_phrases(text: str) -> list[list[str]]:
    """The words that a search asks for, each as the tokens that stand for it in an index; [] where there are none."""
    return [tokens for word in _WORD.findall(folded(text)) if (tokens := _TOKEN.findall(word))]


def matches(content: str, text: str) -> bool:
    """Whether content holds every word of `text`, the last one as a beginning; false for no words."""
    asked = query_phrases(text)
    if not asked:
        return False
    held = f" {' '.join(index_tokens(content))} "
    return all(f" {' '.join(phrase)} " in held for phrase in asked[:-1]) and f" {' '.join(asked[-1])}" in held


def excerpt(content: str, text: str) -> str:
    """About EXCERPT_LETTERS of content on one line, around the first word that was asked for."""
    line = " ".join(content.split())
    start = max(0, _first_place(line, query_phrases(text)) - EXCERPT_LETTERS // 3)
    if start:
        space = line.rfind(" ", max(0, start - NEAR_LETTERS), start)
        start = space + 1 if space >= 0 else start
    return ("…" if start else "") + shortened(line[start:], EXCERPT_LETTERS)


def _first_place(line: str, asked: list[list[str]]) -> int:
    """Where the first word that was asked for stands; 0 where it is spelt otherwise."""
    passed: deque[tuple[int, str]] = deque(maxlen=max(map(len, asked), default=0))
    for place in _TOKEN.finditer(line):
        passed.append((place.start(), folded(place.group())))
        for phrase in asked:
            here = [*passed][-len(phrase) :]
            spelt = [token for _, token in here]
            if len(here) == len(phrase) and spelt[:-1] == phrase[:-1] and spelt[-1].startswith(phrase[-1]):
                return here[0][0]
    return 0
