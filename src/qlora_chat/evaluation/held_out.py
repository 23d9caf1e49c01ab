"""Held-out text -> ids to measure a model on.

Scope: dialogues in every form that `train` takes, with the tokens under its loss counting, and plain text (.txt;
everything counts). Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.errors import UserError
from qlora_chat.messages import Conversation
from qlora_chat.models import Notify
from qlora_chat.models.adapter.merge_loss import HeldOut, Passage
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import PromptFormat, training_text
from qlora_chat.training.data.dialogues import read_dialogues
from qlora_chat.training.data.sources import find_data


class HeldOutError(UserError, ValueError):
    """Text that cannot be measured on; the message says what arrived and what to give."""


@dataclass(frozen=True)
class Text:
    """Held-out text that was read and checked, before any model is."""

    name: str
    plain: str | None
    conversations: tuple[Conversation, ...] = ()

    def in_ids(self, tokenizer: ModelTokenizer, window: int, most: int, form: PromptFormat) -> HeldOut:
        """Passages of at most `window` tokens until about `most` tokens count. HeldOutError where nothing does."""
        passages: list[Passage] = []
        counted = 0
        for each in self._passages(tokenizer, window, form):
            passage = Passage(each.ids[: window + 1], each.counted[: window + 1])
            passages.append(passage)
            counted += len(passage.rows)
            if counted >= most:
                break
        if not counted:
            raise HeldOutError(
                f"{self.name} holds no text to measure on; give dialogues with answers as `train` takes them, or a .txt"
            )
        return HeldOut(tuple(each for each in passages if each.rows))

    def _passages(self, tokenizer: ModelTokenizer, window: int, form: PromptFormat) -> Iterator[Passage]:
        if self.plain is not None:
            yield from _windows(self.plain, tokenizer, window)
        end = tokenizer.token_id("</s>")
        for conversation in self.conversations:
            text = training_text(conversation, form, tokenizer, end, "answers")
            yield Passage(text.ids, text.learnt)


def read_text(name: str, notify: Notify) -> Text:
    """A .txt, or dialogues: a file, a folder or a dataset's Hub id. HeldOutError or TrainError says what is wrong with it."""
    if not name.endswith(".txt"):
        return Text(name, None, read_dialogues(find_data(name, notify), skip_bad=None).conversations)
    try:
        return Text(name, Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise HeldOutError(f"{name} cannot be read as text ({problem})") from problem


def _windows(text: str, tokenizer: ModelTokenizer, window: int) -> Iterator[Passage]:
    """Windows side by side, each begun with BOS; every token counts but the first of a window."""
    ids = tokenizer.encode(text)
    lead = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    step = window + 1 - len(lead)
    for begin in range(0, len(ids), step):
        part = (*lead, *ids[begin : begin + step])
        yield Passage(part, (False, *[True] * (len(part) - 1)))
