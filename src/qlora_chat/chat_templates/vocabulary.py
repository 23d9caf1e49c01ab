"""A tokenizer for rendered templates: special tokens only where the template put them, everything else as Transformers does.

Scope: text with known special tokens <-> ids. Each special token has a private character here instead of its name, with the
same flags, so the tokenizers library finds exactly those and treats the text around them as it always does. Knows no templates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from qlora_chat.chat_templates.parts import RenderedParts, Span, SpecialTokens
from qlora_chat.chat_templates.renderer import TemplateError

_BLOCKS = range(0xF0000, 0xFF000, 0x1000)
_LEADS = ("\n", "\x01", ".")


class TemplateVocabulary:
    """The ids of one tokenizer.json."""

    def __init__(self, tokenizer_json: str) -> None:
        described: dict[str, Any] = json.loads(tokenizer_json)
        self._added: list[dict[str, Any]] = described.get("added_tokens") or []
        self._described = {**described, "post_processor": None, "truncation": None, "padding": None}
        special = (each for each in self._added if each.get("special") and not each.get("single_word"))
        self.ids: dict[str, int] = {str(each["content"]): int(each["id"]) for each in special if each["content"]}
        """Ids of the special tokens by their text."""
        self.specials = SpecialTokens(self.ids)
        self._block = _BLOCKS.start
        self._open(self._block)

    def encode(self, parts: RenderedParts, begin: int = 0, end: int | None = None) -> tuple[list[int], list[Span]]:
        """Ids of text[begin:end], and the characters of the whole text that each covers. From 0 on, it begins a sequence."""
        end = len(parts.text) if end is None else end
        inside = [(span, name) for span, name in parts.specials if begin <= span[0] and span[1] <= end]
        self._avoid(parts.text)
        text, positions = self._written(parts.text, inside, begin, end)
        if not text:
            return [], []
        if begin == 0:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            ids, offsets = encoded.ids, encoded.offsets
        else:
            ids, offsets = self._continued(text)
        return [self._real.get(each, each) for each in ids], [(positions[first], positions[last]) for first, last in offsets]

    def _continued(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids and offsets of text that follows other text: no dummy space in front."""
        for lead in _LEADS:
            before = self._tokenizer.encode(lead, add_special_tokens=False).ids
            whole = self._tokenizer.encode(lead + text, add_special_tokens=False)
            if whole.ids[: len(before)] == before:
                offsets = [(max(0, first - len(lead)), max(0, last - len(lead))) for first, last in whole.offsets]
                return whole.ids[len(before) :], offsets[len(before) :]
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _written(self, text: str, inside: Sequence[tuple[Span, str]], begin: int, end: int) -> tuple[str, list[int]]:
        """The text with a private character for each special token, and the original position of each character."""
        written: list[str] = []
        positions: list[int] = []
        at = begin
        for (first, last), name in inside:
            written += [text[at:first], self._names[name]]
            positions += [*range(at, first), first]
            at = last
        written.append(text[at:end])
        positions += [*range(at, end), end]
        return "".join(written), positions

    def _avoid(self, text: str) -> None:
        """Move to private characters that the text does not use. TemplateError where it uses some of every block."""
        used = {ord(each) // 0x1000 for each in text if ord(each) >= _BLOCKS.start}
        if self._block // 0x1000 not in used:
            return
        free = next((block for block in _BLOCKS if block // 0x1000 not in used), None)
        if free is None:
            raise TemplateError("the text uses characters of Unicode's private use throughout; leave them out")
        self._open(free)

    def _open(self, block: int) -> None:
        names = {name: chr(block + index) for index, name in enumerate(self.ids)}
        added = [{**each, "content": names.get(each["content"], each["content"])} for each in self._added]
        tokenizer = Tokenizer.from_str(json.dumps({**self._described, "added_tokens": added}, ensure_ascii=False))
        original = {names.get(each["content"], each["content"]): int(each["id"]) for each in self._added}
        decoder = tokenizer.get_added_tokens_decoder()
        self._real = {number: original[each.content] for number, each in decoder.items() if each.content in original}
        self._block, self._names, self._tokenizer = block, names, tokenizer
