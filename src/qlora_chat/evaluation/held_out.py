"""Held-out text -> token ids for perplexity.

Scope: dialogues in every format of `train`, whose loss tokens count (of a folder with held-out files, only those), and plain
text (.txt), of which every token counts.
Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.evaluation import EvaluationError, read_file
from qlora_chat.models import Notify
from qlora_chat.models.adapter.merge_loss import HeldOut, Passage
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import ChatFormat, training_text
from qlora_chat.training.data.dialogues import Dialogues, load_dialogues, text_reader, usable_dialogues


@dataclass(frozen=True)
class HeldOutText:
    """Held-out text, read and checked before any model is loaded."""

    name: str
    plain: str | None
    dialogues: Dialogues | None = None

    def tokenize(
        self, tokenizer: ModelTokenizer, end_id: int | None, window: int, max_tokens: int, template: ChatFormat
    ) -> HeldOut:
        """Return passages of at most `window` tokens until about `max_tokens` count. EvaluationError if none does.

        `end_id` ends a dialogue as in training, where the template has no end of its own.
        """
        passages: list[Passage] = []
        counted = 0
        for each in self._passages(tokenizer, end_id, window, template):
            passage = Passage(each.ids[: window + 1], each.counted[: window + 1])
            passages.append(passage)
            counted += len(passage.rows)
            if counted >= max_tokens:
                break
        if not counted:
            raise EvaluationError(
                f"{self.name} holds no text to evaluate; pass dialogues with answers in a format of `train`, or a .txt"
            )
        return HeldOut(tuple(each for each in passages if each.rows))

    def _passages(self, tokenizer: ModelTokenizer, end_id: int | None, window: int, template: ChatFormat) -> Iterator[Passage]:
        if self.plain is not None:
            yield from _windows(self.plain, tokenizer, window)
        if self.dialogues is None:
            return
        usable = usable_dialogues(self.dialogues, text_reader(template), skip_bad=False)
        for each in usable.held_out or usable.train:
            text = training_text(each.conversation, template, tokenizer, end_id, "answers", each.without_loss)
            yield Passage(text.ids, text.loss_mask)


def read_text(name: str, notify: Notify) -> HeldOutText:
    """Read a .txt, or dialogues: a file, a folder or a dataset's Hub id. EvaluationError or TrainError for bad text."""
    if not name.endswith(".txt"):
        return HeldOutText(name, None, load_dialogues([name], notify, skip_bad=None))
    return HeldOutText(name, read_file(Path(name)))


def _windows(text: str, tokenizer: ModelTokenizer, window: int) -> Iterator[Passage]:
    """Yield adjacent windows that start with BOS; every token counts but the first of a window."""
    ids = tokenizer.encode(text)
    bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    step = window + 1 - len(bos)
    for begin in range(0, len(ids), step):
        part = (*bos, *ids[begin : begin + step])
        yield Passage(part, (False, *[True] * (len(part) - 1)))
