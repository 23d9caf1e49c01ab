"""Conversation -> prompt: text for the log, ids for the engine.

Scope: the named prompt formats, their role markers and stops, escaping, and the loss mask of a finished dialogue. Chat and
training share it, so that inference prompts match training text. Knows no model and no window; the tokenizer is a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import DEFAULT_PROMPT_FORMAT, SettingsError

SYSTEM_TEXT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Tokenizer(Protocol):
    """The tokenizer as prompts use it. Text such as "</s>" is always text, never a special token."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def longest_token(self) -> int:
        """No token has more characters."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of text that begins a sequence, without BOS."""
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that follows other text: no dummy space in front."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that follow other text; special tokens give no text."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of a token by its name ("</s>"), or None where the vocabulary lacks it."""
        ...


class ChatFormat(Protocol):
    """A conversation as text and ids: one of the named formats here, or a chat template."""

    @property
    def name(self) -> str: ...
    @property
    def default_system(self) -> str:
        """System text of a conversation that sets none, where it is known."""
        ...

    @property
    def template_text(self) -> str | None:
        """The chat template that the format consists of; None for a format of this module."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines about what the format cannot express, and what is done instead."""
        ...

    @property
    def stop_texts(self) -> tuple[str, ...]: ...
    @property
    def stop_tokens(self) -> tuple[str, ...]: ...
    def render(self, conversation: Conversation, tokenizer: Tokenizer, *, continue_final: bool = False) -> Prompt:
        """Text and ids with the next answer's opening at the end; with `continue_final`, the last answer stays open."""
        ...

    def training_text(
        self,
        conversation: Conversation,
        tokenizer: SpanTokenizer,
        end_id: int | None,
        loss_on: LossOn,
        without_loss: Collection[int] = (),
    ) -> TrainingText:
        """The text of a finished dialogue, its ids and loss mask. ValueError without an answer at its end."""
        ...

    def escape(self, text: str) -> str:
        """Text whose role markers cannot be read as turns."""
        ...


@dataclass(frozen=True)
class PromptFormat:
    """Role markers, separators and stops of a chat format."""

    name: str
    before_user: str
    after_user: str
    open_answer: str
    """Ends the prompt."""
    before_answer: str
    """Precedes the text of an earlier answer. Where it begins with open_answer, the answer's generated ids can be reused."""
    after_answer: str
    after_system: str
    default_system: str = ""
    stop_texts: tuple[str, ...] = ("### Human", "### Assistant")
    stop_tokens: tuple[str, ...] = ("</s>",)
    template_text: None = None
    notices: tuple[str, ...] = ()

    def render(self, conversation: Conversation, tokenizer: Tokenizer, *, continue_final: bool = False) -> Prompt:
        """Text and ids with the next answer's opening at the end; with `continue_final`, the last answer stays open."""
        if not continue_final:
            return self._opened(conversation, tokenizer)
        opened, answer = self._opened(conversation.before_last(), tokenizer), conversation.messages[-1]
        if not answer.content:
            return opened
        text = self._lead() + (answer.content if answer.ids else _escape_markers(answer.content))
        ids = answer.ids or tuple(tokenizer.encode_continuation(text))
        return Prompt(opened.text + text, (*opened.ids, *ids), continued=len(ids))

    def training_text(
        self,
        conversation: Conversation,
        tokenizer: SpanTokenizer,
        end_id: int | None,
        loss_on: LossOn,
        without_loss: Collection[int] = (),
    ) -> TrainingText:
        """The text of a finished dialogue, its ids and loss mask. ValueError without an answer at its end."""
        text, answers = self._closed_text(conversation, with_marker=end_id is None)
        ids, spans = tokenizer.encode_with_spans(text)
        indices = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        loss_mask = answers_mask(spans, dict(zip(indices, answers, strict=True)), loss_on, without_loss)
        if tokenizer.bos_id is not None:
            ids, loss_mask = [tokenizer.bos_id, *ids], [False, *loss_mask]
        if end_id is not None:
            ids, loss_mask = [*ids, end_id], [*loss_mask, indices[-1] not in without_loss]
        return TrainingText(text, tuple(ids), tuple(loss_mask))

    def escape(self, text: str) -> str:
        """Text whose role markers cannot be read as turns."""
        return escape(text)

    def _opened(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:
        chunks = self._chunks(conversation)
        beginning = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = list(beginning)
        run = ""  # neighbouring texts are tokenised together, as they were in training
        for text, known_ids in chunks:
            if not known_ids:
                run += text
                continue
            ids += _encode(tokenizer, run, at_beginning=ids == beginning)
            ids += known_ids
            run = ""
        ids += _encode(tokenizer, run, at_beginning=ids == beginning)
        return Prompt("".join(text for text, _ in chunks), tuple(ids))

    def _lead(self) -> str:
        """White space between the opening and an answer's text."""
        opening, before = self.open_answer, self.before_answer
        return before.removeprefix(opening) if before.startswith(opening) else ""

    def _chunks(self, conversation: Conversation) -> list[tuple[str, tuple[int, ...]]]:
        """(text, ids) in order; ids are () where the text still has to be tokenised."""
        system = self.default_system if conversation.system is None else conversation.system
        chunks: list[tuple[str, tuple[int, ...]]] = []
        if system:
            chunks.append((escape(system) + self.after_system, ()))
        for message in conversation.messages:
            if message.role == "user":
                chunks.append((self.before_user + escape(message.content) + self.after_user, ()))
            else:
                chunks += self._answer_chunks(message)
        chunks.append((self.open_answer, ()))
        return chunks

    def _answer_chunks(self, message: Message) -> list[tuple[str, tuple[int, ...]]]:
        if message.ids and self.before_answer.startswith(self.open_answer):
            return [(self.open_answer, ()), (self._lead() + message.content, message.ids), (self.after_answer, ())]
        return [(self.before_answer + escape(message.content) + self.after_answer, ())]

    def _closed_text(self, conversation: Conversation, with_marker: bool) -> tuple[str, list[Span]]:
        """The dialogue without the opening of a further answer, and the spans of its answers with their ends."""
        system = self.default_system if conversation.system is None else conversation.system
        text, answers = escape(system) + self.after_system if system else "", []
        marker = self.before_user.rstrip()
        opening = self.open_answer if self.before_answer.startswith(self.open_answer) else self.before_answer
        last = len(conversation.messages) - 1
        for index, message in enumerate(conversation.messages):
            if message.role == "user":
                text += self.before_user + escape(message.content) + self.after_user
                continue
            begin = len(text) + len(opening)
            text += self.before_answer + escape(message.content)
            if index < last or with_marker:
                answers.append((begin, len(text) + len(self.after_answer + marker)))
                text += self.after_answer
            else:
                answers.append((begin, len(text)))
        return (text + marker if with_marker else text), answers


FORMATS: Mapping[str, PromptFormat] = {
    each.name: each
    for each in (
        PromptFormat("guanaco", "### Human: ", "", "### Assistant:", "### Assistant: ", "", after_system="\n"),
        PromptFormat(
            "guanaco-card", "### Human: ", " ", "### Assistant:", "### Assistant: ", " ",
            after_system="\n", default_system=SYSTEM_TEXT,
        ),
        PromptFormat(
            "guanaco-notebook", "### Human: ", "\n", "### Assistant: \n", "### Assistant: ", "\n",
            after_system="", default_system=SYSTEM_TEXT,
        ),
    )
}  # fmt: skip
"""guanaco: the adapter's training text. guanaco-card: its model card. guanaco-notebook: the original demo, whose open and
closed turns differ, so that past answers are tokenised again at every turn."""

DEFAULT_FORMAT = FORMATS[DEFAULT_PROMPT_FORMAT]


def find_prompt_format(name: str) -> PromptFormat:
    """The format of that name; SettingsError lists the known names."""
    if name not in FORMATS:
        raise SettingsError(f"unknown prompt format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation that ends where the answer begins."""

    text: str
    """Without BOS."""
    ids: tuple[int, ...]
    """Token ids, BOS included; at most the window less the tokens reserved for the answer."""
    dropped: tuple[int, ...] = ()
    """Indices of the messages that were dropped for the prompt to fit, oldest first."""
    continued: int = 0
    """Number of ids at the end that are the beginning of the answer."""


def render(
    conversation: Conversation, prompt_format: ChatFormat, tokenizer: Tokenizer, *, continue_final: bool = False
) -> Prompt:
    """Text and ids of a conversation, with the next answer's opening at the end.

    With `continue_final` it must end with an answer, which stays open: the model goes on with it.
    """
    if continue_final and (not conversation.messages or conversation.messages[-1].role != "assistant"):
        raise ValueError("only a conversation that ends with an answer can be continued")
    return prompt_format.render(conversation, tokenizer, continue_final=continue_final)


def _encode(tokenizer: Tokenizer, text: str, at_beginning: bool) -> list[int]:
    if not text:
        return []
    return tokenizer.encode(text) if at_beginning else tokenizer.encode_continuation(text)


_ROLE_MARKER = re.compile(r"#{3,}(?=\s*(?:human|assistant))", re.IGNORECASE)


def escape(text: str) -> str:
    """Text whose role markers cannot be read as turns: "### Human" becomes "# # # Human".

    Other headings stay as they are. A "#" at the very end would melt into the marker that follows, so it gets a space.
    """
    spaced = _escape_markers(text)
    return spaced + " " if spaced.endswith("#") else spaced


def _escape_markers(text: str) -> str:
    return _ROLE_MARKER.sub(lambda match: " ".join(match.group()), text)


def trim_ids(tokenizer: Tokenizer, generated: Sequence[int], text: str) -> tuple[int, ...]:
    """Ids that decode exactly to `text`: the `generated` ones up to its end.

    A stop text or trailing white space may begin inside a token; the rest of such a token is tokenised again. () where an
    engine reports no ids.
    """
    for end in range(len(generated), 0, -1):
        inside = tokenizer.decode(generated[:end])
        if inside and text.startswith(inside):
            return (*generated[:end], *(tokenizer.encode_continuation(text[len(inside) :]) if len(inside) < len(text) else ()))
    return tuple(tokenizer.encode_continuation(text)) if generated and text else ()


# --- training --------------------------------------------------------------------------------------------------------

LossOn = Literal["answers", "all"]
Span = tuple[int, int]
"""First character, and the one after the last."""


class SpanTokenizer(Tokenizer, Protocol):
    """A tokenizer that also reports the position of each token in the text."""

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of text that begins a sequence, without BOS, and the characters that each covers."""
        ...


@dataclass(frozen=True)
class TrainingText:
    """A finished dialogue as training text."""

    text: str
    ids: tuple[int, ...]
    """BOS included, and the end token where the tokenizer has one."""
    loss_mask: tuple[bool, ...]
    """For each id: True if it counts towards the loss."""


def training_text(
    conversation: Conversation,
    prompt_format: ChatFormat,
    tokenizer: SpanTokenizer,
    end_id: int | None,
    loss_on: LossOn,
    without_loss: Collection[int] = (),
) -> TrainingText:
    """Render a conversation that ends with an answer, as chat would for the model.

    With `answers`, the loss covers each answer and what ends it: the marker of the next user turn, or end_id after the last.
    With `all`, it covers everything but BOS, as in Guanaco's training. Without an end_id, the user's marker closes the
    dialogue, so that the model still learns to end. The answers whose indices are in `without_loss` have no loss, nor have
    their ends. ValueError for a dialogue that ends otherwise.
    """
    if not conversation.messages or conversation.messages[-1].role != "assistant":
        raise ValueError("a dialogue to train on needs an answer at its end")
    return prompt_format.training_text(conversation, tokenizer, end_id, loss_on, without_loss)


def answers_mask(
    spans: Sequence[Span], answers: Mapping[int, Span], loss_on: LossOn, without_loss: Collection[int]
) -> list[bool]:
    """For each token's span: True if it counts. `answers`: each answer's characters, with its end, by message index."""
    learned = [span for index, span in answers.items() if index not in without_loss]
    if loss_on == "answers":
        return [overlaps(span, learned) for span in spans]
    excluded = [span for index, span in answers.items() if index in without_loss]
    return [not overlaps(span, excluded) or overlaps(span, learned) for span in spans]


def overlaps(span: Span, others: Sequence[Span]) -> bool:
    """True if a span shares a character with one of the others."""
    return any(span[0] < end and begin < span[1] for begin, end in others)
