"""Text that a chat template wrote -> the conversation that it was written from.

Scope: one template. The text is cut at what the template writes between messages, and the messages are rendered again: a
conversation is returned only if that gives the text. Knows no files and no ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.parts import RenderedParts, alternating
from qlora_chat.chat_templates.renderer import TemplateError
from qlora_chat.messages import Conversation, Message, Role

_TURNS = ("Which way is it?", "To the left.", "How far?", "A mile.")
_SYSTEM = "You know every street."
_ROLES: tuple[Role, Role] = ("user", "assistant")


@dataclass(frozen=True)
class ReadText:
    """A conversation that the template renders as the text."""

    conversation: Conversation
    unanswered: bool = False
    """The text had a further question, without an answer."""
    added: bool = False
    """The template writes a text of its own in front, which this text lacked."""


@dataclass(frozen=True)
class _Head:
    """Text before the first message, or before the system text and between both."""

    before: str
    after_system: str | None


@dataclass(frozen=True)
class TextReader:
    """Cuts texts at the pieces that a template writes around messages."""

    template: TemplateFormat
    heads: tuple[_Head, ...]
    before_answer: str
    before_user: str
    end: str

    @staticmethod
    def of(template: TemplateFormat) -> TextReader | None:
        """The reader of a template; None for one whose sample dialogues show no such pieces."""
        plain = _sample(template)
        if plain is None:
            return None
        places = plain.messages
        head = _Head(plain.text[: places[0][0]], None)
        gaps = [plain.text[places[index][1] : places[index + 1][0]] for index in (0, 1)]
        led = _sample(template, _SYSTEM) if template.takes_system else None
        system = [_Head(led.text[: led.messages[0][0]], led.text[led.messages[0][1] : led.messages[1][0]])] if led else []
        if not all(each.strip() for each in gaps):
            return None
        return TextReader(template, (*system, head), gaps[0], gaps[1], plain.text[places[3][1] :])

    def read(self, text: str) -> ReadText | None:
        """The conversation of a text; None if the template renders none as this text."""
        bos = self.template.source.variables.get("bos_token", "")
        body = text.strip().removeprefix(bos) if bos else text.strip()
        found = [each for each in (self._read(body, head, bos) for head in self.heads) if each is not None]
        return max(found, key=lambda each: (not each.added, len(each.conversation.messages)), default=None)

    def _read(self, body: str, head: _Head, bos: str) -> ReadText | None:
        at = _end_of_head(body, head.before.removeprefix(bos) if bos else head.before)
        if at is None:
            return None
        system = None
        if head.after_system is not None:
            end = body.find(head.after_system, at)
            if end < 0:
                return None
            system, at = body[at:end], end + len(head.after_system)
        contents = self._contents(body, at)
        answered = contents[: len(contents) // 2 * 2]
        if not answered or not all(map(self._is_content, contents)) or not (system is None or self._is_content(system or "x")):
            return None
        rendered = next((each for each in self._rendered(system, contents) if each.endswith(body)), None)
        if rendered is None:
            return None
        front = rendered[: len(rendered) - len(body)]
        messages = tuple(Message(_ROLES[index % 2], each) for index, each in enumerate(answered))
        conversation = Conversation(messages=messages, system=system)
        return ReadText(conversation, len(contents) > len(answered), bool((front.removeprefix(bos) if bos else front).strip()))

    def _is_content(self, text: str) -> bool:
        """True for text that a message may hold: words, and nothing that would be a turn of another role."""
        return bool(text.strip()) and not self.template.finds_end(text)

    def _contents(self, body: str, at: int) -> list[str]:
        """Texts of the messages from a place on; an answer that was only opened is not among them."""
        contents: list[str] = []
        end = self.end.strip()
        while True:
            piece = self.before_user if len(contents) % 2 else self.before_answer
            following = body.find(piece, at)
            if following >= 0:
                contents.append(body[at:following])
                at = following + len(piece)
                continue
            last = body[at:]
            if len(contents) % 2:
                return [*contents, last.removesuffix(end).rstrip() if end else last]
            opened = self.before_answer.rstrip()
            ends = (opened[:length] for length in range(len(opened), 0, -1) if opened[:length].strip())
            return [*contents, last.removesuffix(next((each for each in ends if last.endswith(each)), ""))]

    def _rendered(self, system: str | None, contents: Sequence[str]) -> Iterator[str]:
        """The template's text of the messages; after a question, with the opening of an answer and without."""
        messages = alternating(contents, system)
        for open_answer in (False, True) if len(contents) % 2 else (False,):
            with suppress(TemplateError):
                yield self.template.renderer.plain(messages, open_answer=open_answer).strip()


def _sample(template: TemplateFormat, system: str | None = None) -> RenderedParts | None:
    """A sample dialogue with the place of every message; None where the template changes one."""
    turns = alternating(_TURNS, system)
    try:
        parts = template.renderer.render(turns, open_answer=False)
    except TemplateError:
        return None
    return parts if len(parts.messages) == len(turns) else None


def _end_of_head(body: str, head: str) -> int | None:
    """Length of the longest end of the head that the text begins with; None if it begins with none of it."""
    if not head.strip():
        return 0
    begin = next((at for at in range(len(head)) if body.startswith(head[at:]) and head[at:].strip()), None)
    return None if begin is None else len(head) - begin
