"""A chat template as a prompt format: prompts, stops and training text.

Scope: conversations to ids through one template and one vocabulary, and what the template's renderings of sample conversations
say about it: which roles it takes, how an answer opens and what ends it. Knows no files and no models.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from qlora_chat.chat_templates.parts import PartsRenderer, RenderedParts, Span, alternating
from qlora_chat.chat_templates.renderer import TemplateError, TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import LossOn, Prompt, SpanTokenizer, Tokenizer, TrainingText, answers_mask
from qlora_chat.text import replace_surrogates

SEPARATOR = "\n\n"
_SAMPLES = ("Which way is it?", "To the left.", "How far?")
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A marker such as <|im_end|> or [INST], where the vocabulary has no token for it."""
_BETWEEN_MARKERS = re.compile(r"\n|(?<=[>\]]) +(?=[<\[])")
_MARKER = re.compile(r"(?=.*[^\w\s]).{3,24}")
"""A line between two messages that is a role marker: short, and more than a word."""
_SYSTEM_SAMPLE = "You know every street."


@dataclass(frozen=True)
class _Traits:
    """Properties of a template, as sample conversations showed them."""

    takes_system: bool
    needs_system: bool
    lead: str
    """White space between the end of a prompt and the text of its answer: " " in Llama 2's, "" in most."""
    stop_token: str | None
    """Special token that the template puts after an answer."""
    stop_text: str | None
    """Text that it puts there instead."""


class TemplateFormat:
    """A template that renders every conversation of a chat. TemplateError for one that cannot."""

    def __init__(self, name: str, source: TemplateSource, vocabulary: TemplateVocabulary) -> None:
        self.name = name
        self.source = source
        self.default_system = ""
        self._vocabulary = vocabulary
        self.renderer = PartsRenderer(source, vocabulary.specials)
        self._traits = traits = self._examine()
        self._markers = self._find_markers()
        self.stop_tokens: tuple[str, ...] = (traits.stop_token,) if traits.stop_token else ()
        self.stop_texts: tuple[str, ...] = (traits.stop_text,) if traits.stop_text else ()

    @property
    def template_text(self) -> str | None:
        """The template as it was found."""
        return self.source.text

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines about what the template cannot express, and what is done instead."""
        if not self._traits.takes_system:
            return ("The chat template has no system role: system text leads the first message instead.",)
        return ()

    def render(self, conversation: Conversation, tokenizer: Tokenizer, *, continue_final: bool = False) -> Prompt:
        """Text and ids with the next answer's opening at the end; with `continue_final`, the last answer stays open.

        An open answer follows the same opening as when it was begun, even where the template writes finished answers
        otherwise: the model goes on from what it has read, and the KV cache still holds it.
        """
        parts, ids = self._opened(conversation.before_last() if continue_final else conversation)
        text = self._without_bos(parts.text, tokenizer)
        answer = conversation.messages[-1] if continue_final else None
        if answer is None or not answer.content:
            return Prompt(text, tuple(ids))
        begun, begun_ids = self._begun(parts, answer)
        return Prompt(text + begun, (*ids, *begun_ids), continued=len(begun_ids))

    def _opened(self, conversation: Conversation) -> tuple[RenderedParts, list[int]]:
        """The rendered conversation with an answer's opening at the end, and its ids."""
        shown = conversation.messages
        messages, offset = self._messages(conversation, shown)
        parts = self.renderer.render(messages, open_answer=True)
        ids: list[int] = []
        at = 0
        for index, message in enumerate(shown):
            span = self._answer_span(parts, message, index + offset)
            if span is None:
                continue
            ids += self._vocabulary.encode(parts, at, span[0])[0]
            ids += self._without_end(message.ids)
            at = span[1]
        return parts, ids + self._vocabulary.encode(parts, at)[0]

    def _begun(self, opened: RenderedParts, answer: Message) -> tuple[str, Sequence[int]]:
        """Text and ids of an answer's beginning, as they follow the opening."""
        content = replace_surrogates(answer.content) if answer.ids else self.escape(answer.content)
        lead = self._traits.lead if not content[:1].isspace() else ""
        if answer.ids:
            return lead + content, self._without_end(answer.ids)
        whole = replace(opened, text=opened.text + lead + content)
        return lead + content, self._vocabulary.encode(whole, len(opened.text))[0]

    def training_text(
        self,
        conversation: Conversation,
        tokenizer: SpanTokenizer,
        end_id: int | None,
        loss_on: LossOn,
        without_loss: Collection[int] = (),
    ) -> TrainingText:
        """A finished dialogue; the loss covers each answer and the end of turn after it, `without_loss` excepted.

        Where the template marks answers itself ({% generation %}), its marks count. `end_id` ends a dialogue whose template
        puts no special token after an answer.
        """
        messages, offset = self._messages(conversation, conversation.messages)
        parts = self.renderer.render(messages, open_answer=False)
        answers = self._answers(parts, conversation.messages, offset, without_loss)
        if not answers:
            raise TemplateError(
                f"the chat template in {self.source.origin} changes answers so that they cannot be found in its text; "
                "name another format with --format"
            )
        closed_by_id = end_id is not None and self._traits.stop_token is None
        last = max(answers)
        ids, spans = self._vocabulary.encode(parts, 0, answers[last][1] if closed_by_id else None)
        mask = answers_mask(spans, answers, loss_on, without_loss)
        if loss_on == "all" and ids and tokenizer.bos_id == ids[0]:
            mask[0] = False
        if closed_by_id and end_id is not None:
            ids, mask = [*ids, end_id], [*mask, last not in without_loss]
        return TrainingText(parts.text, tuple(ids), tuple(mask))

    @property
    def takes_system(self) -> bool:
        """True if the template has a system role."""
        return self._traits.takes_system

    def check_ids(self, embeddings: int) -> None:
        """TemplateError if the template writes a special token whose id has no embedding."""
        beyond = {name: number for name, number in self._vocabulary.ids.items() if number >= embeddings}
        if name := next((each for each in self._written_specials() if each in beyond), None) if beyond else None:
            raise TemplateError(
                f"the chat template in {self.source.origin} writes {name} (id {beyond[name]:,}), and the model has embeddings "
                f"for {embeddings:,} tokens (ids up to {embeddings - 1:,}); use the base that these tokens were added to, or "
                "name another format with --format"
            )

    def _written_specials(self) -> list[str]:
        """Special tokens that the template writes around a sample question and its answer."""
        system = _SYSTEM_SAMPLE if self._traits.needs_system else None
        opened = self.renderer.render(alternating(_SAMPLES[:1], system), open_answer=True)
        return [name for each in (opened, self._dialogue(system)) if each for _, name in each.specials]

    def finds_end(self, text: str) -> bool:
        """True if text written by the template holds one of its special tokens, or what ends an answer."""
        return bool(self._vocabulary.specials.find(text)) or any(each in text for each in self.stop_texts)

    def escape(self, text: str) -> str:
        """Text in which no role marker of the template stands that is plain text: "[INST]" becomes "[ INST]"."""
        text = replace_surrogates(text)
        return self._markers.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text) if self._markers else text

    # --- conversations as the template takes them -------------------------------------------------------------------------

    def _messages(self, conversation: Conversation, shown: Sequence[Message]) -> tuple[list[dict[str, str]], int]:
        """Role and content of each message, and the number of system messages in front."""
        messages = [
            {"role": each.role, "content": (replace_surrogates if each.ids else self.escape)(each.content)} for each in shown
        ]
        system = None if conversation.system is None else self.escape(conversation.system)
        if self._traits.takes_system and (system is not None or self._traits.needs_system):
            return [{"role": "system", "content": system or ""}, *messages], 1
        if system and messages:
            messages[0] = {**messages[0], "content": system + SEPARATOR + messages[0]["content"]}
        return messages, 0

    def _answer_span(self, parts: RenderedParts, message: Message, index: int) -> Span | None:
        """Place of an answer whose generated ids can be used again, with its lead."""
        span = parts.messages.get(index) if message.role == "assistant" and message.ids else None
        if span is None or parts.text[slice(*span)] != replace_surrogates(message.content).strip():
            return None
        return self._with_lead(parts, span[0]), span[1]

    def _with_lead(self, parts: RenderedParts, begin: int) -> int:
        """Begin of an answer with the white space that the template writes in front."""
        lead = self._traits.lead
        return begin - len(lead) if parts.text.endswith(lead, 0, begin) else begin

    def _without_end(self, ids: Sequence[int]) -> Sequence[int]:
        """Generated ids without a special token at the end, which the template writes itself."""
        special = set(self._vocabulary.ids.values())
        end = len(ids)
        while end and ids[end - 1] in special:
            end -= 1
        return ids[:end]

    def _without_bos(self, text: str, tokenizer: Tokenizer) -> str:
        """The text without BOS in front: an engine that sends text lets its server add it."""
        bos = next((name for name, number in self._vocabulary.ids.items() if number == tokenizer.bos_id), None)
        return text.removeprefix(bos) if bos else text

    def _answers(
        self, parts: RenderedParts, messages: Sequence[Message], offset: int, without_loss: Collection[int]
    ) -> dict[int, Span]:
        """Each answer by its message's index: as the template marks it, or with what leads it and the end of its turn.

        TemplateError if one that must not be learned cannot be told from the others.
        """
        indices = [index for index, message in enumerate(messages) if message.role == "assistant"]
        found = self._answers_with_ends(parts, messages, offset)
        if parts.generation and len(parts.generation) == len(indices):
            return dict(zip(indices, parts.generation, strict=True))
        if without_loss and (parts.generation or len(found) < len(indices)):
            raise TemplateError(
                f"the chat template in {self.source.origin} leaves out or changes an answer, so that answers without a loss "
                "(weight 0) cannot be told from the others; name another format with --format"
            )
        return dict(enumerate(parts.generation)) if parts.generation else found

    def _answers_with_ends(self, parts: RenderedParts, messages: Sequence[Message], offset: int) -> dict[int, Span]:
        """Each answer with what leads it and the end of its turn."""
        found: dict[int, Span] = {}
        for index, message in enumerate(messages):
            span = parts.messages.get(index + offset)
            if message.role != "assistant" or span is None:
                continue
            found[index] = self._with_lead(parts, span[0]), self._end_of_turn(parts, span[1])
        return found

    def _end_of_turn(self, parts: RenderedParts, at: int) -> int:
        """End of what ends the turn of an answer that ends at `at`."""
        if self._traits.stop_token:
            after = bisect_right(parts.specials, (at, at), key=lambda each: (each[0][0], each[0][0] + 1))
            following = parts.specials[after][0] if after < len(parts.specials) else None
            return following[1] if following and not parts.text[at : following[0]].strip() else at
        rest = parts.text[at:]
        text = self._traits.stop_text
        if text and rest.lstrip().startswith(text):
            return at + len(rest) - len(rest.lstrip()) + len(text)
        return at

    # --- what the template is like ----------------------------------------------------------------------------------------

    def _examine(self) -> _Traits:
        takes_system, needs_system = self._takes_system(), False
        try:
            opened = self.renderer.plain(alternating(_SAMPLES[:1]), open_answer=True)
        except TemplateError:
            if not takes_system:
                raise
            needs_system = True
            opened = self.renderer.plain(alternating(_SAMPLES[:1], ""), open_answer=True)
        if _SAMPLES[0] not in opened:
            raise TemplateError(
                f"the chat template in {self.source.origin} leaves out the user's message; name a format with --format"
            )
        parts = self._dialogue("" if needs_system else None)
        span = parts.messages.get(1 + needs_system) if parts else None
        if parts is None or span is None:
            return _Traits(takes_system, needs_system, "", None, None)
        lead = parts.text[len(opened) : span[0]] if parts.text.startswith(opened) else ""
        following = parts.messages.get(2 + needs_system)
        token, text = self._end(parts, span[1], following[0] if following else len(parts.text))
        return _Traits(takes_system, needs_system, "" if lead.strip() else lead, token, text)

    def _find_markers(self) -> re.Pattern[str] | None:
        """Role markers that are plain text in this vocabulary: what stands between messages, special tokens left out."""
        system = _SYSTEM_SAMPLE if self._traits.takes_system else None
        parts = self._dialogue(system)
        if parts is None:
            return None
        spans = sorted(parts.messages.values())
        gaps = [(end, begin) for (_, end), (begin, _) in pairwise(([(0, 0)] if system else []) + spans)]
        pieces = (piece for begin, end in gaps for piece in self._vocabulary.specials.split(parts.text[begin:end]))
        lines = {line.strip() for piece in pieces for line in _BETWEEN_MARKERS.split(piece)}
        markers = sorted((each for each in lines if _MARKER.fullmatch(each)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, markers))) if markers else None

    def _dialogue(self, system: str | None) -> RenderedParts | None:
        """A sample dialogue with a further question, or without where the template takes one exchange only."""
        for texts in (_SAMPLES, _SAMPLES[:2]):
            with suppress(TemplateError):
                return self.renderer.render(alternating(texts, system), open_answer=False)
        return None

    def _takes_system(self) -> bool:
        messages = alternating(_SAMPLES[:1], _SYSTEM_SAMPLE)
        try:
            return _SYSTEM_SAMPLE in self.renderer.plain(messages, open_answer=True)
        except TemplateError:
            return False

    def _end(self, parts: RenderedParts, begin: int, end: int) -> tuple[str | None, str | None]:
        """(special token, text) that the template puts after an answer, at text[begin:end]: one or none of them."""
        after = parts.text[begin:end]
        first = begin + len(after) - len(after.lstrip())
        token = next((name for (at, _), name in parts.specials if at == first), None)
        if token or not after.strip():
            return token, None
        line = after.strip().splitlines()[0].rstrip()
        tag = _TAG.match(line)
        return None, tag.group() if tag else line
