"""A conversation through a template, with the template's own text kept apart from the messages'.

Scope: text and character positions. Two stand-ins from Unicode's private use make the origin visible: in messages, characters
that a special token begins or ends with are replaced one for one, so that no special token of the result comes from a message;
and marks stand around each answer. Both are taken out again, and the result is compared with a plain rendering. Knows no ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from qlora_chat.chat_templates.renderer import SANDBOX, Call, Refusal, TemplateError, TemplateSource

Span = tuple[int, int]
"""First character, and the one after the last."""
TemplateMessage = Mapping[str, str]
"""role and content."""


def alternating(texts: Sequence[str], system: str | None = None) -> list[TemplateMessage]:
    """Messages of a user and an assistant in turn, after a system message if there is a text for one."""
    led = [] if system is None else [{"role": "system", "content": system}]
    return [*led, *({"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts))]


PRIVATE_USE = range(0x100000, 0x10FFFE)


@dataclass(frozen=True)
class RenderedParts:
    """A rendered conversation and what of it came from where."""

    text: str
    specials: tuple[tuple[Span, str], ...]
    """The template's special tokens, in order, with the place and text of each."""
    messages: Mapping[int, Span]
    """Place of the text of each message, by its index; none where the template changed or repeated it."""
    generation: tuple[Span, ...] = ()
    """Contents of each `{% generation %}`."""


class SpecialTokens:
    """Texts of the special tokens, and whatever else follows from them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        longest_first = sorted(self.texts, key=len, reverse=True)  # as tokenizers match them
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.edges = frozenset(each[at] for each in self.texts for at in (0, -1))
        """Characters that one begins or ends with."""

    def split(self, text: str) -> list[str]:
        """The text between special tokens."""
        return self._pattern.split(text)

    def find(self, text: str) -> list[tuple[Span, str]]:
        """Each special token in a text, with its position."""
        return [(each.span(), each.group()) for each in self._pattern.finditer(text)]


class PartsRenderer:
    """Renders conversations with one template for one vocabulary."""

    def __init__(self, source: TemplateSource, specials: SpecialTokens) -> None:
        self.source = source
        self._specials = specials
        self._tests = self._tested_texts()

    def plain(self, messages: Sequence[TemplateMessage], *, open_answer: bool) -> str:
        """The text as Transformers renders it. TemplateError with the template's objection."""
        text = SANDBOX.render(self.source, [Call(messages, open_answer)]).texts[0]
        if isinstance(text, Refusal):
            raise text.error(self.source)
        return text

    def render(self, messages: Sequence[TemplateMessage], *, open_answer: bool) -> RenderedParts:
        """Text and origins. TemplateError where the template refuses the conversation."""
        private = _unused_private(messages)
        cipher = _Cipher(private, self._specials, self._tests)
        ciphered = [{**each, "content": cipher.encode(each["content"])} for each in messages]
        marks = _Marks(private, len(messages))
        calls = (
            Call(messages, open_answer),
            Call(marks.around(ciphered), open_answer, marks.generation),
            *([Call(ciphered, open_answer)] if cipher.used else ()),
        )
        plain, marked, *unmarked = SANDBOX.render(self.source, calls).texts
        if isinstance(plain, Refusal):
            raise plain.error(self.source)
        found = self._with_marks(plain, marked, marks, cipher)
        return found or self._without_marks(plain, unmarked[0] if unmarked else plain, cipher)

    def _with_marks(self, plain: str, marked: str | Refusal, marks: _Marks, cipher: _Cipher) -> RenderedParts | None:
        """None where the template reads its messages too closely for marks."""
        if isinstance(marked, Refusal):
            return None
        text, spans, generation = marks.taken_out(marked)
        if cipher.decode(text) != plain:
            return None
        own = [(at, name) for at, name in self._specials.find(text) if not any(map(partial(_overlap, at), spans.values()))]
        return RenderedParts(plain, tuple(own), spans, generation)

    def _without_marks(self, plain: str, ciphered: str | Refusal, cipher: _Cipher) -> RenderedParts:
        """The plain text if its special tokens are the template's own, else the text of the messages with stand-ins."""
        if isinstance(ciphered, Refusal):
            if cipher.hides_tokens:
                raise ciphered.error(self.source)
            return RenderedParts(plain, tuple(self._specials.find(plain)), {})
        found = self._specials.find(ciphered)
        own = self._specials.find(plain)
        if [name for _, name in own] == [name for _, name in found] and not cipher.hides_tokens:
            return RenderedParts(plain, tuple(own), {})
        return RenderedParts(cipher.decode(ciphered), tuple(found), {})

    def _tested_texts(self) -> tuple[str, ...]:
        """Literals that the template may look for in messages ("</think>"); those that are part of a special token, or hold
        one, are not among them."""
        constants = SANDBOX.render(self.source, ()).constants
        return tuple(
            each
            for each in constants
            if self._specials.edges & set(each)
            and not self._specials.find(each)
            and not any(each in special for special in self._specials.texts)
        )


class _Cipher:
    """One private character for each character that could make a special token of a message's text."""

    def __init__(self, private: Iterator[str], specials: SpecialTokens, tests: Sequence[str]) -> None:
        self._private, self._specials, self._tests = private, specials, tests
        self._encoded: dict[str, str] = {}
        self.hides_tokens = False
        """True if a message held the whole text of a special token."""

    @property
    def used(self) -> bool:
        """True if any character was replaced."""
        return bool(self._encoded)

    def encode(self, text: str) -> str:
        """Text of the same length that can be no part of a special token."""
        core = text.strip()
        if core and any(core in special for special in self._specials.texts):
            self.hides_tokens = self.hides_tokens or core in self._specials.texts
            return "".join(each if each.isspace() else self._stand_in(each) for each in text)
        if not self._specials.edges & set(text):
            return text
        kept = self._kept(text)
        return "".join(
            self._stand_in(each) if each in self._specials.edges and index not in kept else each
            for index, each in enumerate(text)
        )

    def decode(self, text: str) -> str:
        """The characters behind the stand-ins."""
        return text.translate(str.maketrans({stand_in: each for each, stand_in in self._encoded.items()}))

    def _kept(self, text: str) -> set[int]:
        """Positions of what the template may look for, except where a special token stands."""
        kept: set[int] = set()
        for test in self._tests:
            at = text.find(test)
            while at >= 0:
                kept.update(range(at, at + len(test)))
                at = text.find(test, at + 1)
        for (begin, end), _ in self._specials.find(text):
            self.hides_tokens = True
            kept.difference_update(range(begin, end))
        return kept

    def _stand_in(self, character: str) -> str:
        if character not in self._encoded:
            self._encoded[character] = next(self._private)
        return self._encoded[character]


class _Marks:
    """A private character before and after the text of each message, and around generation blocks."""

    def __init__(self, private: Iterator[str], count: int) -> None:
        self.generation = (next(private), next(private))
        self._around = [(next(private), next(private)) for _ in range(count)]

    def around(self, messages: Sequence[TemplateMessage]) -> list[dict[str, str]]:
        """The messages with marks inside their outer white space, which templates strip."""
        return [
            {**each, "content": _enclosed(each["content"], *marks)} for each, marks in zip(messages, self._around, strict=True)
        ]

    def taken_out(self, text: str) -> tuple[str, dict[int, Span], tuple[Span, ...]]:
        """(text without marks, where each message stands, what generation blocks enclose)."""
        names = {
            mark: (index, side) for index, pair in enumerate((self.generation, *self._around)) for side, mark in enumerate(pair)
        }
        plain: list[str] = []
        places: dict[tuple[int, int], list[int]] = {}
        for character in text:
            if character in names:
                places.setdefault(names[character], []).append(len(plain))
            else:
                plain.append(character)
        spans = {
            index - 1: (begins[0], places[index, 1][0])
            for (index, side), begins in places.items()
            if side == 0 and index and len(begins) == len(places.get((index, 1), ())) == 1
        }
        generation = zip(places.get((0, 0), ()), places.get((0, 1), ()), strict=False)
        return "".join(plain), {index: span for index, span in spans.items() if span[0] <= span[1]}, tuple(generation)


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _enclosed(content: str, begin: str, end: str) -> str:
    core = content.strip()
    if not core:
        return content
    at = content.index(core)
    return content[:at] + begin + core + end + content[at + len(core) :]


def _unused_private(messages: Sequence[TemplateMessage]) -> Iterator[str]:
    """Private characters that no message holds. TemplateError for messages that hold them all."""
    used = {ord(each) for message in messages for each in message["content"] if ord(each) >= PRIVATE_USE.start}
    yield from (chr(each) for each in PRIVATE_USE if each not in used)
    raise TemplateError(
        "the messages hold too many characters of Unicode's private use to be told from the template; shorten them"
    )
